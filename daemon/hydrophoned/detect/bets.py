"""Bets on a score of which no more is known than mean and variance."""

import math
from typing import Final

import torch
from torch import Tensor

SIZES: Final = (0.1, 0.3, 0.8)
_MOST: Final = 8.0  # deviations: what a score is taken as at most
_LEAST_PAID: Final = 1e-3


def paid(score: Tensor, margin: Tensor) -> Tensor:
    """Logarithms, float64 [n, m, s], of what bets of s ``SIZES`` pay for each of ``score`` [n, m]; NaN pays 0.

    A score h is in standard deviations from its mean under the reference; ``margin`` [m, s] is taken off it. A bet of
    size a pays

        e = 1 + a h + a^2 / 2 (h^2 - 1),

    the likelihood ratio of a shift by a deviations, exp(a h - a^2 / 2), by its first Hermite polynomials. Its mean is 1
    whatever the distribution, if h has mean 0 and variance 1; it is at least (1 - a^2) / 2. To cut h above, and below
    at
    -1 / a where e is least, only makes it less.
    """
    size = score.new_tensor(SIZES)
    h = score[..., None] - margin
    h = torch.maximum(h.clamp_(max=_MOST), -1 / size)
    e = (h * h).sub_(1).mul_(size.square() / 2).add_(1).addcmul_(h, size)
    return torch.nan_to_num_(e, nan=1.0).clamp_(min=_LEAST_PAID).double().log_()


def inflation(threshold: float, kurtosis: float, rows: int) -> float:
    """What to multiply a variance by that is of ``rows`` units, for a score of such a kurtosis.

    Its relative error v is normal with variance s^2 = (kurtosis - 1) / rows over references. Evidence reaches a
    threshold A A^v times as often for it, and exp((s log A)^2 / 2) times in the mean; a variance that is overstated by
    s^2 log A / 2 takes that back.
    """
    return 1 + math.log(threshold) * (kurtosis - 1) / (2 * rows)
