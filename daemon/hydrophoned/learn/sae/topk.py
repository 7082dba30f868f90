"""TopK: the k largest pre-activations of a row. Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 4.

z = ReLU(TopK_k(p))
"""

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.kernels.arrays import Adam, Pairs
from hydrophoned.learn.sae.config import DictionaryConfig
from hydrophoned.learn.sae.variant import Batch, Gradient


class TopK:
    """k active latents in every row."""

    groups = 1
    bounded = True

    def __init__(self, config: DictionaryConfig) -> None:
        self.k = config.k

    def codes(self, batch: Batch) -> Codes:
        """ReLU of the k largest."""
        index, value = batch.kernels.topk(batch.p, batch.latents.b_enc, self.k)
        return Codes(index, value.relu_())

    def select(self, batch: Batch) -> Pairs:
        """The same pairs, k to a row."""
        index, value = self.codes(batch)
        offsets = torch.arange(0, batch.rows * self.k + 1, self.k, device=index.device)
        return Pairs(offsets, index.view(-1), value.view(-1))

    def backward(self, batch: Batch, pairs: Pairs, slope: Tensor, target: Tensor, adam: Adam) -> Gradient:  # noqa: ARG002  same for all
        """dL/dp = dL/dz where z > 0."""
        return Gradient(slope.masked_fill_(pairs.value == 0, 0))

    def initialise(self, batch: Batch) -> None:
        """Nothing of its own."""

    def rescale(self, factor: float) -> None:
        """Nothing of its own."""

    def revive(self, latents: Tensor, living: Tensor) -> None:
        """Nothing of its own."""

    def tensors(self) -> dict[str, Tensor]:
        """Nothing of its own."""
        return {}
