"""Bets on how often each feature fires: what they pay, and at which rates they are fair."""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

RATIOS: Final = (1.5, 2.0, 4.0, 16.0)
"""Ratios of odds that are bet on for features that fire more often."""
FEWER: Final = 0.5
"""The ratio of odds for features that fire less often."""
BETS: Final = 3
"""Bets on a feature: two ratios above 1, and ``FEWER``."""
_SHARES: Final = (0.4, 0.4, 0.2)
_COMMON: Final = 0.02  # a feature of this rate or more has the full weight
_MARGIN: Final = 0.8  # of the whole margin, see feature_bets
_RESOLVED: Final = 2.5  # a ratio is told where the margin is at most this part of the change


class FeatureBets(NamedTuple):
    """Three bets on each of F features, in a block of b units.

    With k firings in a block a bet pays ``exp(k log_ratio)`` times ``rest``, both float32 [F, 3]. ``weight`` [F, 3] is
    its share in the mean, all together 1; a bet of weight 0 always pays nothing. ``turned`` bool [F]: features that
    fire in more than half of the units; for these k counts the units in which they did not.
    """

    log_ratio: Tensor
    rest: Tensor
    weight: Tensor
    turned: Tensor


def feature_bets(fired: Tensor, units: int, run_length: float, block: int) -> FeatureBets:
    """Bets on features that fired in ``fired`` int64 [F] of ``units`` reference units.

    A bet on odds rho times those of rate q pays rho^x / (1 + q (rho - 1)) for a unit with x = 1 where the feature fired
    and 0 where not, the ratio of likelihoods; its mean is at most 1 at all rates up to q for rho > 1, and from q on for
    rho < 1. The rate is known by a count c only, so q = (c + m) / units, or (c - m) / units, with a margin

        m = 0.8 / 2  log(2 F A)  |rho - 1| / (rho log rho - rho + 1)     firings, for a promised run length A.

    Without the factor 0.8 a bet's mean, over units *and* over the reference that c was counted in, is 1 at a horizon of
    log(2 F A) / ((rho log rho - rho + 1) q) units, which is the time that it takes to be paid the threshold where the
    odds are rho times q. (The error of c / units, of variance q / units, is the same in all these units, so that its
    share in the mean grows as exp(t^2) over t units, against a margin's exp(-t).) A mean bounds the chance of a
    false alarm generously: with 0.8 the run length, measured, is still well above the promised one.

    A ratio whose margin is much of the change cannot be told by so small a reference. So each feature is bet on at the
    two least ratios that can, which are 4 and 16 for those seen a few times or never; and a bet on fewer firings has
    weight 0 where they cannot be told from none. Common features weigh more than rare ones, which need longer to show
    anything but the large ratios, and those pay much at a time.
    """
    turned = fired * 2 > units
    count = torch.where(turned, units - fired, fired).double()[:, None]  # [F, 1]
    log_goal = math.log(2 * len(fired) * run_length)
    margins = torch.tensor([_margin(ratio, log_goal) for ratio in RATIOS], dtype=torch.float64, device=fired.device)
    ratios = torch.tensor(RATIOS, dtype=torch.float64, device=fired.device)
    told = count * (ratios - 1) >= _RESOLVED * margins  # [F, 4], rising
    lower = (~told).sum(1, keepdim=True).clamp(max=len(RATIOS) - 2)
    pair = torch.cat([lower, lower + 1], 1)  # [F, 2]
    fewer = _margin(FEWER, log_goal)
    rho = torch.cat([ratios[pair], torch.full_like(count, FEWER)], 1)  # [F, 3]
    q = torch.cat([count + margins[pair], (count - fewer).clamp_min(0)], 1) / units
    # bets that lose nothing while nothing fires would add up to an alarm: of silence alone, to half of it at most
    q[:, :2] = q[:, :2].maximum(2 / (run_length * (rho[:, :2] - 1))).clamp(max=1)
    weight = torch.tensor(_SHARES, dtype=torch.float64, device=fired.device) * (count / units).clamp(1 / units, _COMMON)
    weight[:, 2:][count * (1 - FEWER) < _RESOLVED * fewer] = 0
    rest = torch.exp(-block * torch.log1p(q * (rho - 1))).masked_fill(weight == 0, 0)
    return FeatureBets(rho.log().float(), rest.float(), (weight / weight.sum()).float(), turned)


def _margin(ratio: float, log_goal: float) -> float:
    return _MARGIN / 2 * log_goal * abs(ratio - 1) / (ratio * math.log(ratio) - ratio + 1)
