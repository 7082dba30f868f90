"""BatchTopK: the n k largest pre-activations of a batch; a learned threshold at inference.

Bussmann et al. 2024, "BatchTopK Sparse Autoencoders". A row may have few or many active latents, k on average:

    training:   z = p 1[p among the n k largest positive p of the batch]
    inference:  z = p 1[p > theta],   theta = mean over batches of the smallest value kept (weight 0.02 for the newest)

A batch should mix requests, else the threshold follows the request at hand.
"""

from typing import Final

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.kernels.arrays import Adam, Pairs
from hydrophoned.learn.sae.config import DictionaryConfig
from hydrophoned.learn.sae.variant import Batch, Gradient
from hydrophoned.learn.sae.wide import quantile_for, widest

_NEWEST: Final = 0.02
_START_BELOW: Final = 0.7
"""Share of theta from which candidates are collected; the n k largest are nearly always among them."""


class BatchTopK:
    """k active latents per row on average."""

    groups = 1
    bounded = True

    def __init__(self, config: DictionaryConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.k = config.k
        self.threshold = torch.zeros((), dtype=dtype, device=device)
        self._start: float | None = None  # the threshold as last read; where candidates begin does not decide who wins
        self._least: Tensor | None = None

    def codes(self, batch: Batch) -> Codes:
        """All above the threshold, at most twice k of a row."""
        index, above = widest(batch, batch.latents.b_enc - self.threshold, self.k)
        return Codes(index, torch.where(above > 0, above + self.threshold, 0.0))

    def select(self, batch: Batch) -> Pairs:
        """The n k largest of the batch."""
        wanted = batch.rows * self.k
        if self._start is None:
            self._start = float(self.threshold)
        pairs = batch.kernels.above(batch.p, batch.latents.b_enc, _START_BELOW * self._start)
        self._start = float(self.threshold)  # read here, since a GPU has just been waited for
        if len(pairs.value) < wanted:
            pairs = batch.kernels.above(batch.p, batch.latents.b_enc, 0.0)
        if len(pairs.value) > wanted:
            self._least = pairs.value.kthvalue(len(pairs.value) - wanted + 1).values
            pairs = _keep(pairs, pairs.value >= self._least)
        else:
            self._least = pairs.value.min() if len(pairs.value) else None
        return pairs

    def backward(self, batch: Batch, pairs: Pairs, slope: Tensor, target: Tensor, adam: Adam) -> Gradient:  # noqa: ARG002  same for all
        """dL/dp = dL/dz of the active; moves the threshold."""
        if self._least is not None:
            self.threshold.lerp_(self._least, _NEWEST)  # never negative: only positive pairs are kept
        return Gradient(slope)

    def initialise(self, batch: Batch) -> None:
        """The threshold that k per row of the first rows exceed."""
        self.threshold.fill_(quantile_for(batch.p.float() + batch.latents.b_enc, self.k))
        self._start = None

    def rescale(self, factor: float) -> None:
        """The threshold scales with p."""
        self.threshold.mul_(factor)
        self._start = None

    def revive(self, latents: Tensor, living: Tensor) -> None:
        """Nothing per latent."""

    def tensors(self) -> dict[str, Tensor]:
        """The threshold."""
        return {"threshold": self.threshold}


def _keep(pairs: Pairs, kept: Tensor) -> Pairs:
    """Only the pairs of bool [m] ``kept``."""
    running = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
    torch.cumsum(kept, 0, out=running[1:])
    where = kept.nonzero().squeeze(1)
    return Pairs(running[pairs.offsets], pairs.index[where], pairs.value[where])
