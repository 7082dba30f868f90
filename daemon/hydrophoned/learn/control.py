"""Control rows: they show what is of no interest in a stream (healthy traffic, baseline prompts), to whiten it by."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hydrophoned.learn.config import WHITENING_ROWS
from hydrophoned.learn.errors import LearnError, WidthMismatch
from hydrophoned.learn.normaliser import SinkFilter
from hydrophoned.learn.whitening import Covariance, Whitening


class Control(NamedTuple):
    """A whitening by control rows; ``rows_sink`` and ``rows_quarantined`` were set apart, as in a stream."""

    whitening: Whitening
    rows_sink: int
    rows_quarantined: int


def whiten_by(batches: Iterable[NDArray[np.float32]], width: int, *, sink_norm_factor: float) -> Control:
    """The whitening by control rows, given in batches [n, ``width``]. Memory holds one batch and the covariance.

    Raises WidthMismatch, and LearnError for rows too few to tell a covariance at all.
    """
    device = torch.device("cpu")
    covariance, sinks = Covariance(width, device), SinkFilter(sink_norm_factor, device)
    rows_sink = rows_quarantined = 0
    for batch in batches:
        if batch.ndim != 2 or batch.shape[1] != width:
            raise WidthMismatch(f"control rows of shape {batch.shape} given for rows of width {width}")
        x = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32))
        norms = x.norm(dim=1)
        finite = norms.isfinite()
        far = torch.zeros_like(finite)
        far[finite] = sinks.split(norms[finite])
        rows_sink += int(far.sum())
        rows_quarantined += int((~finite).sum())
        covariance.update(x[finite & ~far])
    if covariance.count <= width:
        raise LearnError(
            f"{covariance.count} control rows are too few to whiten rows of width {width}: at least {width + 1} are "
            f"needed, and {WHITENING_ROWS * width} are better; {rows_sink} more were sinks and {rows_quarantined} not "
            "finite"
        )
    return Control(covariance.whitening()[0], rows_sink, rows_quarantined)
