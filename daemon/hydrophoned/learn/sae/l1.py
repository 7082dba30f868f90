"""ReLU with an L1 penalty, the baseline. Bricken et al. 2023, "Towards Monosemanticity".

    z    = ReLU(p)
    loss = |y - z W_dec - b_dec|^2 / d + lambda sum over j of z_j

Decoder rows have unit norm, so the penalty cannot be evaded by scale; lambda is driven until l0 is k
(:class:`SparsityController`).
"""

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.kernels.arrays import Adam, Pairs
from hydrophoned.learn.sae.config import DictionaryConfig
from hydrophoned.learn.sae.own import DAMPING, SparsityController
from hydrophoned.learn.sae.variant import Batch, Gradient
from hydrophoned.learn.sae.wide import quantile_for, widest


class L1:
    """Every positive pre-activation is active."""

    groups = 1
    bounded = False

    def __init__(self, config: DictionaryConfig, device: torch.device) -> None:
        self.k, self.width = config.k, config.width
        self.controller = SparsityController(config.sparsity, config.k, device, damping=DAMPING)
        self._bias: Tensor | None = None

    def codes(self, batch: Batch) -> Codes:
        """All that are positive, at most twice k of a row."""
        return widest(batch, batch.latents.b_enc, self.k)

    def select(self, batch: Batch) -> Pairs:
        """All that are positive."""
        return batch.kernels.above(batch.p, batch.latents.b_enc, 0.0)

    def backward(self, batch: Batch, pairs: Pairs, slope: Tensor, target: Tensor, adam: Adam) -> Gradient:  # noqa: ARG002  same for all
        """The penalty's gradient is lambda for each active pair; moves lambda."""
        active = torch.full((), len(pairs.value), dtype=torch.int64, device=slope.device)  # filled there, not sent
        self.controller.observe(active, batch.rows)
        return Gradient(slope + self.controller.weight.to(slope.dtype) * (self.width / 2))

    def initialise(self, batch: Batch) -> None:
        """A bias that leaves k per row of the first rows positive."""
        batch.latents.b_enc.sub_(quantile_for(batch.p.float() + batch.latents.b_enc, self.k))

    def rescale(self, factor: float) -> None:
        """Nothing of its own scales."""

    def revive(self, latents: Tensor, living: Tensor) -> None:
        """Nothing per latent."""

    def tensors(self) -> dict[str, Tensor]:
        """The weight of the penalty."""
        return self.controller.tensors()
