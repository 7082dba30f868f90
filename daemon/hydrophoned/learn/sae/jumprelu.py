"""JumpReLU: a trained threshold per latent, an l0 penalty, straight-through gradients.

Rajamanoharan et al. 2024, "Jumping Ahead", eq. 4, 9, 11 and 12. With theta = exp(t), K the rectangle of width 1
around 0, and w the bandwidth:

    z    = p 1[p > theta]
    loss = |y - z W_dec - b_dec|^2 / d + lambda sum over j of 1[p_j > theta_j]
    dz/dtheta    = -theta/w K((p - theta) / w)
    d1[.]/dtheta = -1/w K((p - theta) / w)

The step passes no gradient to p; lambda is driven until l0 is k (:class:`SparsityController`).
"""

from typing import Final

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.kernels.arrays import Adam, Pairs
from hydrophoned.learn.sae.config import DictionaryConfig
from hydrophoned.learn.sae.own import LatentVector, SparsityController
from hydrophoned.learn.sae.variant import Batch, Gradient
from hydrophoned.learn.sae.wide import quantile_for, widest

_LEAST: Final = 1e-3
_RATE: Final = 3.0
"""Step size of the thresholds, in units of the matrices': they are logarithms, and l0 has to follow in time."""


class JumpReLU:
    """A threshold per latent."""

    groups = 1
    bounded = False

    def __init__(self, config: DictionaryConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.k, self.width, self.bandwidth = config.k, config.width, config.bandwidth
        self.log_threshold = LatentVector(torch.full((config.features,), -3.0, device=device, dtype=dtype))
        self.controller = SparsityController(config.sparsity, config.k, device, signed=True)
        self._p = torch.empty(0, device=device, dtype=dtype)

    @property
    def threshold(self) -> Tensor:
        """Theta [F]."""
        return self.log_threshold.value.exp()

    def codes(self, batch: Batch) -> Codes:
        """All above their thresholds, at most twice k of a row: those that exceed theirs by most."""
        theta = self.threshold
        index, above = widest(batch, batch.latents.b_enc - theta, self.k)
        return Codes(index, torch.where(above > 0, above + theta[index.long()], 0.0))

    def select(self, batch: Batch) -> Pairs:
        """Pairs above their threshold, and those below it by less than half a window, with value 0."""
        theta = self.threshold
        found = batch.kernels.above(batch.p, batch.latents.b_enc - theta, -self.bandwidth / 2)
        self._p = found.value + theta[found.index.long()]
        value = torch.where(found.value > 0, self._p, 0.0)
        return Pairs(found.offsets, found.index, value)

    def backward(self, batch: Batch, pairs: Pairs, slope: Tensor, target: Tensor, adam: Adam) -> Gradient:  # noqa: ARG002  same for all
        """dL/dp = dL/dz of the active; moves the thresholds and lambda."""
        self.controller.observe((pairs.value > 0).sum(), batch.rows)
        latent = pairs.index.long()
        theta = self.threshold
        own = theta[latent]
        inside = (self._p - own).abs() < self.bandwidth / 2
        weight = self.controller.weight.to(slope.dtype) * (self.width / 2)
        per_pair = torch.where(inside, -(slope * own + weight) / self.bandwidth, 0.0)
        gradient = torch.zeros_like(theta).index_add_(0, latent, per_pair) * theta
        # not latent[inside]: a GPU would have to be waited for, to know how many there are
        hits = torch.zeros(theta.shape, dtype=torch.int32, device=theta.device).index_add_(0, latent, inside.int())
        gradient *= 2 / (batch.rows * self.width)
        self.log_threshold.step(gradient, hits > 0, adam._replace(rate=_RATE * adam.rate))
        return Gradient(slope.masked_fill(pairs.value == 0, 0))

    def initialise(self, batch: Batch) -> None:
        """One threshold for all, which k per row of the first rows exceed."""
        least = quantile_for(batch.p.float() + batch.latents.b_enc, self.k)
        self.log_threshold.value.fill_(torch.tensor(max(least, _LEAST)).log())

    def rescale(self, factor: float) -> None:
        """The thresholds scale with p."""
        self.log_threshold.value.add_(torch.tensor(factor).log())

    def revive(self, latents: Tensor, living: Tensor) -> None:
        """Begin at the median threshold of the living."""
        some = self.log_threshold.value[living]
        self.log_threshold.forget(latents, some.median() if len(some) else torch.tensor(_LEAST).log())

    def tensors(self) -> dict[str, Tensor]:
        """Thresholds and the weight of the penalty."""
        return {**self.log_threshold.tensors("log_threshold"), **self.controller.tensors()}
