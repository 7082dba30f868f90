"""What the first principal components explain: the trivial rival of a dictionary."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

MOST_WIDTH: Final = 8192
"""Row width above which the products would not fit beside everything else."""


class Components:
    """Principal components of one half of the rows, scored on the other, and the other way round.

    Holds two matrices [d, d] in float64, and no row.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = [0, 0]
        self.total = [torch.zeros(width, dtype=torch.float64, device=device) for _ in range(2)]
        self.square = [torch.zeros(width, width, dtype=torch.float64, device=device) for _ in range(2)]
        self._origin: Tensor | None = None  # near the mean, so that float32 products keep what varies

    def add(self, x: Tensor, half: int) -> None:
        """Take in rows x [n, d] of half 0 or 1; rows of one request belong to one."""
        if not len(x):
            return
        if self._origin is None:
            self._origin = x.mean(0)
        x = x - self._origin
        self.count[half] += len(x)
        self.total[half] += x.double().sum(0)
        self.square[half] += (x.T @ x).double()

    def fvu(self, counts: Sequence[int]) -> list[float | None]:
        """Fraction of variance unexplained by the first m components, for each m of ``counts``.

        The mean and components are of the one half, rows and their variance around their own mean of the other. None
        where m is above d, or a half has no more rows than m, or does not vary.
        """
        missed = [self._missed(one, 1 - one) for one in (0, 1)]
        found: list[float | None] = []
        for m in counts:
            known = 0 < m < min(*self.count, len(self.total[0]) + 1) and all(variance > 0 for _, variance in missed)
            left = sum(float(by_count[m]) for by_count, _ in missed) if known else 0.0
            found.append(left / sum(variance for _, variance in missed) if known else None)
        return found

    def _missed(self, one: int, other: int) -> tuple[Tensor, float]:
        """Squared errors on half ``other`` with 0..d components of half ``one``, and that half's variance, summed."""
        n, own = self.count[other], max(self.count[one], 1)
        mean, its_mean = self.total[one] / own, self.total[other] / max(n, 1)
        spread = self.square[one] - own * torch.outer(mean, mean)
        its_spread = self.square[other] - n * torch.outer(its_mean, its_mean)
        vectors = torch.linalg.eigh(spread)[1].flip(1)  # the largest first
        shift = its_mean - mean
        explained = (vectors * (its_spread @ vectors)).sum(0) + n * (shift @ vectors).square()
        variance = float(its_spread.trace())
        whole = explained.new_tensor([variance + n * float(shift.square().sum())])
        return torch.cat([whole, whole - explained.cumsum(0)]), variance
