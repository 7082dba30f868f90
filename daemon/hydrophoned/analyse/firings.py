"""Some of a feature's firings: drawn uniformly, or in equal parts from the weak and the strong ones.

The rows that activate a feature most say little about what it does as a rule (Bricken et al. 2023, "Towards
Monosemanticity", feature interpretability over the full range of activations).
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrophoned.learn.code_sample import CodedRows

BANDS: Final = 4


class Firings(NamedTuple):
    """m firings of a feature, the strongest first, of ``fired`` in a uniform sample of ``rows`` rows.

    ``row`` int64 [m] are rows of the sample, ``value`` float32 [m] the activations there. ``band`` int64 [m] says in
    which quarter of the ``fired`` values each is, from 1 (the weakest) to 4.
    """

    row: NDArray[np.int64]
    value: NDArray[np.float32]
    band: NDArray[np.int64]
    fired: int
    rows: int


def firings(rows: CodedRows, feature: int, *, limit: int, in_bands: bool, seed: int = 0) -> Firings:
    """Up to ``limit`` firings of ``feature``: of all uniformly, or ``in_bands`` as many of each quarter by value.

    Drawn without replacement; where a band holds fewer than its part, the others are not given more.
    """
    row, place = np.nonzero((rows.index == feature) & (rows.value > 0))
    value = rows.value[row, place]
    fired = len(row)
    # by rank, so that equal values, too, fall into quarters of equal size
    rank = np.empty(fired, np.int64)
    rank[np.argsort(value, kind="stable")] = np.arange(fired)
    band = rank * BANDS // max(fired, 1) + 1
    draw = np.random.default_rng([seed, feature])
    if in_bands:
        parts = [limit // BANDS + (number > BANDS - limit % BANDS) for number in range(1, BANDS + 1)]
        drawn = [_drawn(draw, np.flatnonzero(band == number + 1), part) for number, part in enumerate(parts)]
        chosen = np.concatenate(drawn)
    else:
        chosen = _drawn(draw, np.arange(fired), limit)
    chosen = chosen[np.argsort(-value[chosen], kind="stable")]
    return Firings(row[chosen], value[chosen], band[chosen], fired, rows.rows)


def _drawn(draw: np.random.Generator, some: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return draw.choice(some, min(count, len(some)), replace=False)
