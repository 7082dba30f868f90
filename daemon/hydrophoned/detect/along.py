"""How far each unit is along a change.

The direction of a change is the difference of the means after and before it, of values that vary about equally in all
coordinates. A unit's projection on a direction that it had a part in is large by its own noise, the more so the more
coordinates there are: with 576 of them and 64 units after, by nine variances. Each unit is therefore projected on the
difference that is left without it.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

_PAIRED: Final = 512  # units whose pairs tell how much chance there is


class Along(NamedTuple):
    """Units' places along a change, in standard deviations of those before, whose mean is 0: float64 [n] and [m].

    ``squared`` is the squared length of the difference of means, without what is in it by chance: it may be below 0
    where there is none. ``z`` is that in standard errors, were there no difference.
    """

    before: Tensor
    after: Tensor
    squared: float
    z: float


def along(before: Tensor, after: Tensor) -> Along:
    """Places of values before [n, d] and after [m, d]; n and m at least 2.

    ``squared`` and ``z`` are the statistic of Chen & Qin (2010), "A two-sample test for high-dimensional data with
    applications to gene-set testing".
    """
    n, m = len(before), len(after)
    before_mean, after_mean = before.mean(0), after.mean(0)
    away = after_mean - before_mean
    own = before - before_mean
    # without unit i the mean before is lower by (x_i - mean) / (n - 1)
    y = (own @ away + own.square().sum(1) / (n - 1)).double() * (n / (n - 1))
    own = after - after_mean
    x = after - before_mean
    y_after = (x @ away - (x * own).sum(1) / (m - 1)).double()
    # the variance is of the units after: those before may be what the values were whitened by, and vary too little
    noise = float(own.double().square().sum()) / (m - 1) * (1 / m + 1 / n)
    squared = float(away.double().square().sum()) - noise
    error = (2 * _trace_of_square(own)) ** 0.5 * (1 / m + 1 / n)
    spread = float(y.std())
    if not spread > 0:
        return Along(torch.zeros_like(y), torch.zeros_like(y_after), squared, 0.0)
    middle = y.mean()
    return Along((y - middle) / spread, (y_after - middle) / spread, squared, squared / error if error > 0 else 0.0)


def _trace_of_square(own: Tensor) -> float:
    """Trace of the squared covariance of deviations own [m, d] from their mean, from pairs of units."""
    some = own[:: -(-len(own) // _PAIRED)]
    if len(some) < 3:
        return float(own.square().sum()) ** 2 / max(len(own), 1) ** 2
    apart = (some @ some.T).double()[~torch.eye(len(some), dtype=torch.bool, device=some.device)]
    return float(apart.var())  # their mean is not 0, since deviations from one mean are not independent
