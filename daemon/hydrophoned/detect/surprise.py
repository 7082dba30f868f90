"""How surprising a score is to a sample of scores: -log p, at one end or at both."""

from math import log
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

_TAIL: Final = 0.1


class Surprise(NamedTuple):
    """-log p of scores, with p how often a sample's are as large. ``ordered`` is the sample, float64 [n], rising.

    Within the sample p is a rank. Beyond its 0.9 quantile q the tail is taken to be exponential, with the mean excess
    m of the sample: -log p = log 10 + (s - q) / m. So scores beyond all of the sample still differ, which those of
    ranks do not. ``two_sided`` scores surprise at both ends, and pay for it with log 2.
    """

    ordered: Tensor
    two_sided: bool

    @classmethod
    def of(cls, sample: Tensor, *, two_sided: bool = False) -> Self:
        """That of a ``sample`` [n] of finite scores, n > 0."""
        return cls(sample.double().sort().values, two_sided)

    def __call__(self, score: Tensor) -> Tensor:
        """-log p of each ``score`` [m], float64 [m], not below 0."""
        large = _upper(self.ordered, score.double())
        if not self.two_sided:
            return large
        small = _upper(-self.ordered.flip(0), -score.double())
        return (torch.maximum(large, small) - log(2)).clamp_min(0)


def _upper(ordered: Tensor, score: Tensor) -> Tensor:
    n = len(ordered)
    rank = torch.searchsorted(ordered, score.contiguous())
    surprise = -((n - rank + 0.5) / (n + 1)).log()
    quantile = ordered[int((1 - _TAIL) * n)]
    excess = (ordered[ordered > quantile] - quantile).mean() if bool((ordered > quantile).any()) else None
    if excess is not None:
        surprise = torch.where(score > quantile, -log(_TAIL) + (score - quantile) / excess, surprise)
    return surprise.clamp_min(0)
