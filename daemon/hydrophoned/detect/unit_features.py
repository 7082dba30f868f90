"""What scores are made of: a unit's direction in whitened coordinates, its squares, and its size."""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.covariance import Whitening

_CLIP: Final = 6.0
_SOFTLY: Final = 16.0  # coordinates: with many more only the direction is left, with fewer a unit stays as it is
_LEAST_SPREAD: Final = 0.05
_LEAST_SIZE: Final = 1e-3


class Features(NamedTuple):
    """``values`` float32 [2, n, d]: the unit's direction y, and y^2 standardised; ``size`` float32 [n]."""

    values: Tensor
    size: Tensor


class UnitDirections:
    """Directions of units, from ``learn`` [n, d] finite units of the reference.

    Whitened units w, clipped at 6 deviations, are brought to equal length,

        y = w ((d + 16) / (|w|^2 + 16))^1/2,

    the spatial sign (Mottonen & Oja 1995, "Multivariate spatial sign and rank methods"): where units differ in how wide
    they are (requests of 4 and of 400 tokens), wide ones would drown the others. How long w was is a feature of its
    own, log(|w|^2 / d).
    """

    def __init__(self, learn: Tensor) -> None:
        self.whitening = Whitening.fit(learn)

    def directions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Y float32 [n, d] of units x [n, d], and how long they were, [n]."""
        w = self.whitening.apply(x).clamp_(-_CLIP, _CLIP)
        d = w.shape[1]
        squared = torch.linalg.vector_norm(w, dim=1).square_()
        w.mul_(((d + _SOFTLY) / (squared + _SOFTLY)).sqrt_()[:, None])
        return w, (squared / d + _LEAST_SIZE).log_()


class UnitFeatures(UnitDirections):
    """Directions of units and their squares, from ``learn`` [n, d] finite units of the reference.

    ``mean`` float32 [2, d] and ``deviation`` [2, d] are those of ``values`` of the units learnt from.
    """

    def __init__(self, learn: Tensor) -> None:
        super().__init__(learn)
        y = self.directions(learn)[0]
        square = y.square().clamp_(max=_CLIP**2)
        deviation = square.std(0).clamp_min_(_LEAST_SPREAD)
        self._scale, self._shift = 1 / deviation, -square.mean(0) / deviation
        values = self.of(learn).values
        self.mean, self.deviation = values.mean(1), values.std(1)

    def of(self, x: Tensor) -> Features:
        """Features of units x [n, d]."""
        y, size = self.directions(x)
        square = y.square().clamp_(max=_CLIP**2)
        return Features(torch.stack([y, torch.addcmul(self._shift, square, self._scale)]), size)
