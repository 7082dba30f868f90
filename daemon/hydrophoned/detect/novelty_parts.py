"""The scores that novelty is fused of, fitted to a reference."""

from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from hydrophoned.detect.covariance import Whitening
from hydrophoned.detect.novelty_head import Head, HeadScores
from hydrophoned.detect.novelty_neighbours import Neighbours
from hydrophoned.detect.principal import Principal, principal

WEIGHTS: Final = {
    "whitened_distance": 0.5,
    "whitened_angle": 0.5,
    "distance": 0.0625,
    "angle": 0.0625,
    "mahalanobis": 0.0625,
    "residual": 0.0625,
    "reconstruction": 1.0,
    "energy": 0.25,
    "shaped": 0.25,
    "relative_mahalanobis": 0.5,
}
"""What the surprise of each score counts in the fused one."""
TWO_SIDED: Final = frozenset({"energy", "shaped"})
"""Scores of which small values are new as well."""
_RIDGE: Final = 1.0  # of a whitened coordinate's variance
_MOST_REGRESSED: Final = 2048
_FAR: Final = 1e6  # deviations: further than that is no further, so that products stay finite
_LEAST: Final = 1e-30
_LEAST_FVU: Final = 1e-6


class Reference(NamedTuple):
    """Finite units x [n, d] in random order, and what is known of them.

    ``labels`` int64 [n], negative where there is none; ``fvu`` float32 [n].
    """

    x: Tensor
    labels: Tensor | None
    fvu: Tensor | None

    def take(self, which: Tensor) -> Self:
        """Those of ``which``."""
        return type(self)(*(None if column is None else column[which] for column in self))  # type: ignore[arg-type]


class _Raw(NamedTuple):
    """Units as captured, less the reference's mean and in units of its mean deviation."""

    centre: Tensor
    scale: float

    @classmethod
    def of(cls, x: Tensor) -> Self:
        centre = x.double().mean(0)
        return cls(centre.float(), 1 / max(float((x - centre).square().mean().sqrt()), _LEAST))

    def apply(self, x: Tensor) -> Tensor:
        return ((x - self.centre) * self.scale).clamp_(-_FAR, _FAR)


class _Reconstruction(NamedTuple):
    """log FVU, and what a ridge regression on the whitened unit foretells of it."""

    mean: float
    slope: Tensor

    def score(self, w: Tensor, fvu: Tensor) -> Tensor:
        return _log_fvu(fvu) - self.mean - w @ self.slope


class _Classes(NamedTuple):
    """Means of classes [C, d], whitened by what varies within them."""

    within: Whitening
    means: Tensor

    def squared_distance(self, x: Tensor) -> Tensor:
        return torch.cdist(self.within.apply(x), self.means).square().amin(1)


class NoveltyParts(NamedTuple):
    """Scores of units, each larger for what is newer, fitted to a reference.

    mahalanobis            log of the distance from the mean, by the shrunk covariance (Lee et al. 2018)
    residual               log of the squared length outside the principal directions of 90% of the variance
    whitened_distance, whitened_angle, distance, angle
                           from the nearest units of the reference (Sun et al. 2022), whitened and as captured
    reconstruction         log of the FVU of a dictionary, in the mean over a unit's rows, beyond what the unit's mean
                           row lets expect: in some places of a reference units are harder to reconstruct
    energy, shaped         of a linear head; see novelty_head
    relative_mahalanobis   squared distance from the nearest class mean less that from the mean of all (Ren et al. 2021)
    """

    whitening: Whitening
    raw: _Raw
    principal: Principal
    whitened_neighbours: Neighbours
    neighbours: Neighbours
    reconstruction: _Reconstruction | None
    head: HeadScores | None
    classes: _Classes | None

    @classmethod
    def of(cls, reference: Reference, head: Head | None) -> Self:
        """Fitted to ``reference``."""
        x, whitening, raw = reference.x, Whitening.fit(reference.x), _Raw.of(reference.x)
        w, centred = whitening.apply(x), raw.apply(x)
        return cls(
            whitening,
            raw,
            principal(centred),
            Neighbours.of(w),
            Neighbours.of(centred),
            None if reference.fvu is None else _reconstruction(w, reference.fvu),
            None if head is None else HeadScores.of(x, head),
            None if reference.labels is None else _classes(x, reference.labels),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores, in their order."""
        names = ["mahalanobis", "residual", "whitened_distance", "whitened_angle", "distance", "angle"]
        names += ["reconstruction"] * (self.reconstruction is not None)
        names += ["energy", "shaped"] * (self.head is not None)
        names += ["relative_mahalanobis"] * (self.classes is not None)
        return tuple(names)

    def scores(self, x: Tensor, fvu: Tensor | None) -> Tensor:
        """Scores float64 [n, K] of finite units x [n, d] with ``fvu`` [n]."""
        w, centred = self.whitening.apply(x), self.raw.apply(x)
        squared = w.square().sum(1)
        found = [
            _log(squared) / 2,
            _log(self.principal.residual(centred)),
            *self.whitened_neighbours.scores(w),
            *self.neighbours.scores(centred),
        ]
        if self.reconstruction is not None and fvu is not None:
            found.append(self.reconstruction.score(w, fvu))
        if self.head is not None:
            found += self.head.scores(x)
        if self.classes is not None:
            found.append(self.classes.squared_distance(x) - squared)
        return torch.stack([score.double() for score in found], dim=1)


def _reconstruction(w: Tensor, fvu: Tensor) -> _Reconstruction:
    """The regression on whitened units w [n, d], if it foretells anything of units left out; else only the mean."""
    w, y = w[:_MOST_REGRESSED].double(), _log_fvu(fvu).double()[:_MOST_REGRESSED]
    mean = y.mean()
    y, n, d = y - mean, len(w), w.shape[1]
    ridge = _RIDGE * n * torch.eye(min(n, d), dtype=w.dtype, device=w.device)
    if d <= n:
        inverse = torch.linalg.inv(w.T @ w + ridge)
        slope = inverse @ (w.T @ y)
        leverage = (w @ inverse * w).sum(1)
    else:
        inverse = torch.linalg.inv(w @ w.T + ridge)
        slope = w.T @ (inverse @ y)
        leverage = 1 - _RIDGE * n * inverse.diagonal()
    left_out = (y - w @ slope) / (1 - 1 / n - leverage).clamp_min(1e-3)
    if left_out.square().sum() >= y.square().sum():
        slope = torch.zeros_like(slope)
    return _Reconstruction(float(mean), slope.float())


def _classes(x: Tensor, labels: Tensor) -> _Classes | None:
    """None where fewer than two classes are known, or units do not vary within them."""
    x, labels = x[labels >= 0], labels[labels >= 0]
    _, own, count = torch.unique(labels, return_inverse=True, return_counts=True)
    means = torch.zeros(len(count), x.shape[1], device=x.device).index_add_(0, own, x) / count[:, None]
    apart = x - means[own]
    if len(count) < 2 or not bool((apart != 0).any()):
        return None
    within = Whitening.fit(apart)
    return _Classes(within, within.apply(means))


def _log_fvu(fvu: Tensor) -> Tensor:
    return fvu.clamp_min(_LEAST_FVU).log()


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(_LEAST).log()
