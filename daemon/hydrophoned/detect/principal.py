"""The few directions that most of what units vary in lies along, and how far units are outside of them."""

from typing import Final, NamedTuple

import torch
from torch import Tensor

MOST_ROWS: Final = 512
"""Units that the directions are found from, at most."""
_SHARE: Final = 0.9


class Principal(NamedTuple):
    """Orthonormal ``directions`` float32 [d, r] that hold 90% of the variance, 0 <= r < d."""

    directions: Tensor

    def residual(self, centred: Tensor) -> Tensor:
        """Squared length of units [n, d], less the reference's mean, outside of the directions: float32 [n]."""
        whole = centred.square().sum(1)
        return (whole - (centred @ self.directions).square().sum(1)).clamp_min(0)


def principal(centred: Tensor) -> Principal:
    """That of finite units [n, d] less their mean, of the first of them where there are many."""
    rows = centred[:MOST_ROWS].double()
    n, d = rows.shape
    if d <= n:
        variance, vectors = torch.linalg.eigh(rows.T @ rows)
    else:
        variance, vectors = torch.linalg.eigh(rows @ rows.T)
        reached = variance > 1e-10 * variance[-1]
        variance = variance[reached]
        vectors = rows.T @ vectors[:, reached] / variance.sqrt()
    variance = variance.flip(0).clamp_min(0)
    before = int((variance.cumsum(0) < _SHARE * variance.sum()).sum())
    most = min(before + 1, d - 1, len(variance))
    return Principal(vectors.flip(1)[:, :most].float().contiguous())
