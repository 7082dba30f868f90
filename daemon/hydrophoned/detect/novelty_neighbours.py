"""How far a unit is from the units most like it, by distance and by angle."""

from typing import Final, NamedTuple, Self

from torch import Tensor

NEAREST: Final = 3
"""Neighbours that are averaged over."""
MOST_ROWS: Final = 10_000
"""Units that neighbours are looked for among, at most; ``MOST_BYTES`` is the most that they may take."""
MOST_BYTES: Final = 32_000_000
_CANCELLED: Final = 1e-6  # of the squared lengths: squared distances below are rounding
_LEAST: Final = 1e-30


class Neighbours(NamedTuple):
    """Units to be compared with: ``rows`` float32 [m, d], centred, with squared lengths [m]."""

    rows: Tensor
    length: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Units ``rows`` [n, d], or as many of the first of them as may be kept; let them be in random order."""
        room = max(NEAREST, min(MOST_ROWS, MOST_BYTES // (4 * rows.shape[1])))
        rows = rows[:room].clone()
        return cls(rows, rows.square().sum(1))

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean log distance and mean 1 - cosine to the ``NEAREST`` nearest of centred units x [n, d]: float32 [n].

        Both are of one matrix product.
        """
        product, length = x @ self.rows.T, x.square().sum(1)[:, None]
        nearest = min(NEAREST, len(self.rows))
        cosine = product / (length.sqrt() * self.length.sqrt()).clamp_min(_LEAST)
        both = length + self.length
        squared = (both - 2 * product).maximum(_CANCELLED * both).clamp_min(_LEAST)
        distance = squared.topk(nearest, largest=False).values.log().mean(1) / 2
        return distance, 1 - cosine.topk(nearest).values.mean(1)
