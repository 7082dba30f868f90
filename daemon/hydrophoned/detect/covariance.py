"""Whitening: the linear map under which a reference's units vary equally in every direction."""

from typing import Final, Self

import torch
from torch import Tensor

MOST_SPAN: Final = 2048
"""Units that the map is found from where there are more coordinates than that."""
_FLOOR: Final = 1e-3  # of the mean variance: what does not vary is not blown up without bound
_CONSTANT: Final = 1e-6  # of its size: what varies less is rounding
_FAR: Final = 1e3  # deviations: further than that is no further, so that products stay finite


class Whitening:
    """w = G D^-1 (x - centre): D the coordinates' standard deviations, G the inverse root of their correlations.

    Correlations are (1 - rho) C + rho mu I, with C those of the units, mu the mean of its eigenvalues and rho by Ledoit
    & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices". Shrinking correlations rather
    than covariances keeps a few wide coordinates from hiding the others. G is the symmetric root: w stays close to the
    coordinates of x, and a change of few of them is a change of few of its own.

    ``centre`` and ``scale`` (1 / D) are float32 [d]; ``rho`` is the shrinkage; ``rows`` how many units it is made from.
    A coordinate that does not vary is only centred, on the scale of the median of those that do.
    """

    def __init__(
        self, centre: Tensor, scale: Tensor, root: Tensor | tuple[Tensor, Tensor, float], rho: float, rows: int
    ) -> None:
        """``root`` is G, [d, d], or vectors V [d, r], gains g [r] and a gain c: G = c I + V (g - c) V^T."""
        self.centre, self.scale, self.rho, self.rows = centre, scale, rho, rows
        self._root = root

    @classmethod
    def fit(cls, reference: Tensor) -> Self:
        """That of finite units ``reference`` [n, d]; computed in float64.

        Where d is more than ``MOST_SPAN``, directions are those of so many of the units, spread evenly over them.
        """
        rows = reference.double()
        n, d = rows.shape
        centre = rows.mean(0)
        rows = rows - centre
        deviation = rows.square().mean(0).sqrt()
        varies = deviation > _CONSTANT * centre.abs() + torch.finfo(torch.float32).tiny
        if not bool(varies.any()):
            return cls(centre.float(), torch.ones_like(centre).float(), _identity(rows), 1.0, n)
        median = deviation[varies].median()
        z = torch.where(varies, rows / torch.where(varies, deviation, 1.0), 0.0)
        if d > MOST_SPAN and n > MOST_SPAN:
            z = z[torch.linspace(0, n - 1, MOST_SPAN, device=z.device).long()]
        values, vectors = _spectrum(z)
        mean = float(varies.sum()) / d
        rho = _shrinkage(z.square().sum(1), values, d)
        shrunk = ((1 - rho) * values + rho * mean).clamp_min(_FLOOR * mean)
        rest = max(rho, _FLOOR) * mean
        scale = torch.where(varies, 1 / torch.where(varies, deviation, 1.0), rest**0.5 / median)
        gains, gain = shrunk.rsqrt(), rest**-0.5
        root: Tensor | tuple[Tensor, Tensor, float]
        if 2 * len(values) < d:
            root = vectors.float().contiguous(), (gains - gain).float(), gain
        else:
            root = (
                torch.eye(d, dtype=z.dtype, device=z.device) * gain + (vectors * (gains - gain)) @ vectors.T
            ).float()
        return cls(centre.float(), scale.float(), root, rho, n)

    @property
    def width(self) -> int:
        """Coordinates d of a unit."""
        return len(self.centre)

    def apply(self, x: Tensor) -> Tensor:
        """Whitened units, float32 [n, d], of units x [n, d]."""
        # first what is exact: a coordinate may be far from 0 for how much it varies
        z = (x.float() - self.centre).mul_(self.scale).clamp_(-_FAR, _FAR)
        return self._times_root(z)

    def unwhitened(self, directions: Tensor) -> Tensor:
        """Raw directions A [d, m] of whitened ones D [d, m]: (x - centre) A is what w D is."""
        return self._times_root(directions.T.float()).T * self.scale[:, None]

    def _times_root(self, z: Tensor) -> Tensor:
        if isinstance(self._root, Tensor):
            return z @ self._root
        vectors, gains, gain = self._root
        inside = (z @ vectors).mul_(gains)
        return torch.addmm(z, inside, vectors.T, beta=gain)


def _identity(rows: Tensor) -> tuple[Tensor, Tensor, float]:
    return rows.new_zeros(rows.shape[1], 0, dtype=torch.float32), rows.new_zeros(0, dtype=torch.float32), 1.0


def _spectrum(z: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [r] of z^T z / n, z [n, d], but for those that are 0 where n < d, and eigenvectors [d, r]."""
    n, d = z.shape
    if d <= n:
        values, vectors = torch.linalg.eigh(z.T @ z / n)
        return values.clamp_min(0), vectors
    values, vectors = torch.linalg.eigh(z @ z.T / n)
    reached = values > 1e-10 * values[-1]
    values = values[reached]
    return values, z.T @ vectors[:, reached] / (n * values).sqrt()


def _shrinkage(squared_length: Tensor, values: Tensor, d: int) -> float:
    """Rho = b^2 / d^2 of Ledoit & Wolf, from squared lengths [n] of the units and the eigenvalues of C."""
    n, squares, mean = len(squared_length), float(values.square().sum()), float(values.sum()) / d
    spread = squares - d * mean**2
    error = float(squared_length.square().sum()) / n**2 - squares / n
    return min(1.0, max(0.0, error / spread)) if spread > 0 else 1.0
