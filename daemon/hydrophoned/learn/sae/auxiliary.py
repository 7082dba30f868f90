"""AuxK: which dead latents take part in rebuilding what the living ones left. Gao et al. 2024, appendix A.2."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hydrophoned.learn.kernels import Pairs
from hydrophoned.learn.sae.variant import Batch


class DeadPairs(NamedTuple):
    """Pairs of dead latents, as many of each row; ``spare`` (bool [m]) marks those that only fill up, None: none."""

    pairs: Pairs
    spare: Tensor | None


def dead_pairs(batch: Batch, waiting: Tensor, *, rows: int, count: int) -> DeadPairs | None:
    """For each of the first ``rows`` rows the ``count`` latents of bool [F] ``waiting`` with the largest p.

    There is no ReLU: latents far below zero receive a gradient too. None if none wait.
    """
    choose = _gathered if waiting.device.type == "cpu" else _masked
    return choose(batch, waiting, min(rows, batch.rows), count)


def _gathered(batch: Batch, waiting: Tensor, rows: int, count: int) -> DeadPairs | None:
    latents = waiting.nonzero().squeeze(1)
    k = min(count, len(latents))
    if not k:
        return None
    local, value = batch.kernels.topk(batch.p[:rows].index_select(1, latents), batch.latents.b_enc[latents], k)
    return DeadPairs(_pairs(latents[local.long()].to(torch.int32), value), None)


def _masked(batch: Batch, waiting: Tensor, rows: int, count: int) -> DeadPairs:
    """The same where nobody knows how many wait without waiting for the device: all compete, the others from below."""
    p = batch.p[:rows].masked_fill(~waiting, -math.inf)
    index, value = batch.kernels.topk(p, batch.latents.b_enc, min(count, len(waiting)))
    spare = ~waiting[index.long()]
    return DeadPairs(_pairs(index, value.masked_fill(spare, 0)), spare.view(-1))


def _pairs(index: Tensor, value: Tensor) -> Pairs:
    n, k = index.shape
    return Pairs(torch.arange(0, n * k + 1, k, device=index.device), index.view(-1), value.view(-1))
