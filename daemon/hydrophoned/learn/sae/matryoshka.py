"""Matryoshka: nested prefixes of the latents, each of which has to rebuild the row by itself.

Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders". With m_1 < ... < m_G = F
and z the TopK code over all F latents:

    loss = 1/G sum over g of |y - sum over j < m_g of z_j W_dec[j] - b_dec|^2 / d

The first latents become coarse and frequent, later ones refine them. The order of the latents carries the meaning: a
checkpoint must not sort them.
"""

import torch

from hydrophoned.learn.kernels.arrays import Pairs
from hydrophoned.learn.sae.config import DictionaryConfig
from hydrophoned.learn.sae.topk import TopK
from hydrophoned.learn.sae.variant import Batch


class Matryoshka(TopK):
    """TopK over all latents, a loss over nested prefixes."""

    def __init__(self, config: DictionaryConfig, device: torch.device) -> None:
        super().__init__(config)
        self.groups = len(config.prefix_ends)
        self._ends = torch.tensor(config.prefix_ends, device=device, dtype=torch.int32)

    def select(self, batch: Batch) -> Pairs:
        """Pairs of each row ordered by prefix: G segments to a row."""
        index, value = self.codes(batch)
        group = torch.bucketize(index, self._ends, right=True)
        order = group.argsort(dim=1, stable=True)
        counts = torch.zeros(batch.rows, self.groups, dtype=torch.int64, device=index.device)
        counts.scatter_add_(1, group, torch.ones_like(group))
        offsets = torch.zeros(batch.rows * self.groups + 1, dtype=torch.int64, device=index.device)
        torch.cumsum(counts.view(-1), 0, out=offsets[1:])
        return Pairs(offsets, index.gather(1, order).view(-1), value.gather(1, order).view(-1))
