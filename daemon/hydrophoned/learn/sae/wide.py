"""Codes of a fixed width for variants whose rows have differing numbers of active latents."""

from torch import Tensor

from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.sae.variant import Batch


def code_width(k: int, features: int) -> int:
    """Pairs kept of a row: twice the mean number, of all those there are."""
    return min(2 * k, features)


def widest(batch: Batch, shift: Tensor, k: int) -> Codes:
    """The ``code_width(k, F)`` largest p + shift of each row, 0 below 0: index [n, K], value [n, K]."""
    index, value = batch.kernels.topk(batch.p, shift, code_width(k, batch.p.shape[1]))
    return Codes(index, value.relu_())


def quantile_for(values: Tensor, k: int) -> float:
    """The threshold above which ``values`` [n, F] have ``k`` entries per row on average; 0 at least."""
    count = min(len(values) * k, values.numel())
    return max(0.0, float(values.flatten().topk(count, sorted=False).values.min()))
