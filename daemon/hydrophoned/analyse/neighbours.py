"""Features near a feature: by the direction they write, and by when they fire.

The two answer different questions and often disagree: a decoder row says what a feature adds to a row, the correlation
of activations says which features come up together.
"""

from collections.abc import Iterator
from math import log, sqrt
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hydrophoned.analyse.columns import Floats, Ints
from hydrophoned.analyse.matching import unit
from hydrophoned.analyse.traffic import Coded

THIN_ROWS: Final = 5
_CELLS: Final = 1 << 23  # cosines held at a time


class Correlated(NamedTuple):
    """Correlation float64 [F] of the activations of one feature with those of all, over all sampled rows.

    ``together`` int64 [F] counts the rows on which both fire; the correlation is NaN where these are fewer than
    THIN_ROWS, and with a feature that never fires.
    """

    correlation: Floats
    together: Ints


def cosines(W: Tensor, feature: int) -> Tensor:
    """Cosine of each decoder row of W [F, d] with that of ``feature``: float32 [F]."""
    rows = unit(W.float())
    return rows @ rows[feature]


def nearest_by_decoder(W: Tensor, limit: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first feature, nearest [some, limit], cosine [some, limit]) of all decoder rows of W [F, d], in blocks."""
    rows = unit(W.float())
    size = max(1, _CELLS // len(rows))
    for start in range(0, len(rows), size):
        block = rows[start : start + size] @ rows.T
        place = torch.arange(len(block), device=W.device)
        block[place, place + start] = -2.0
        cosine, near = block.topk(min(limit, len(rows) - 1), dim=1)
        yield start, near, cosine


def chance_cosine(features: int, width: int) -> float:
    """What the largest of ``features - 1`` cosines is at most, in the mean, when directions are drawn at random.

    A coordinate of a random unit vector is 1/d-subgaussian, so that the mean of the largest of m is below
    sqrt(2 ln m / d).

    >>> round(chance_cosine(4608, 576), 2)
    0.17
    """
    return min(1.0, sqrt(2 * log(features - 1) / width)) if features > 2 else 0.0


def correlations(codes: Coded, feature: int, features: int) -> Correlated:
    """Of one feature's activations with those of all, from the codes of n rows."""
    n, active = len(codes.request), codes.value > 0
    row, place = active.nonzero()
    index, value = codes.index[row, place], codes.value[row, place].astype(np.float64)
    own = np.zeros(n)
    mine = index == feature
    own[row[mine]] = value[mine]
    here = own[row] > 0
    together = np.bincount(index[here], minlength=features)
    product = np.bincount(index[here], value[here] * own[row[here]], minlength=features) / max(n, 1)
    mean = np.bincount(index, value, minlength=features) / max(n, 1)
    variance = np.bincount(index, value**2, minlength=features) / max(n, 1) - mean**2
    scale = np.sqrt(np.maximum(variance * variance[feature], 0.0))
    known = (together >= THIN_ROWS) & (scale > 0)
    correlation = np.where(known, (product - mean * mean[feature]) / np.where(known, scale, 1.0), np.nan)
    return Correlated(correlation, together)
