"""Features that fire on the same rows, told from a sample of coded rows.

Of m rows, feature i fires on n_i and both i and j on n_ij. The share n_ij / n_i has Wilson's bounds. Normalised
pointwise mutual information (Bouma 2009) is

    npmi = ln(p_ij / (p_i p_j)) / -ln p_ij,   p = n / m,

1 where the two fire only together, 0 where as often as independent ones would, and the more in doubt the fewer n_ij
there are: among thousands of features some pair of rare ones always fires together by chance. So partners by npmi are
in order of ``npmi_low``, its value at the lower bound of the share.

The error is that of a uniform sample: n_ij / m differs from the share of all rows by about sqrt(p (1 - p) / m). Pairs
are counted in this dictionary's codes; features that share the k places of a row are held apart by that as well.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrophoned.analyse.columns import Floats, Ints
from hydrophoned.analyse.intervals import wilson
from hydrophoned.analyse.traffic import Coded

THIN_ROWS: Final = 5
THIN_REQUESTS: Final = 2
_CELLS: Final = 1 << 23  # counts held at a time
_PAIRS: Final = 1 << 22  # pairs expanded at a time


class Partners(NamedTuple):
    """What fires together with one feature, which fires on ``fired`` of ``rows`` rows; arrays are [c].

    ``together`` and ``requests`` count rows, and requests, on which both fire, ``partner_fired`` rows of the partner.
    ``share`` is together / fired. ``npmi`` and ``npmi_low`` are NaN where fewer than THIN_ROWS rows or THIN_REQUESTS
    requests have both.
    """

    rows: int
    fired: int
    feature: Ints
    together: Ints
    requests: Ints
    partner_fired: Ints
    share: Floats
    share_low: Floats
    share_high: Floats
    npmi: Floats
    npmi_low: Floats


def partners(codes: Coded, feature: int, features: int, *, limit: int, by_npmi: bool = False) -> Partners:
    """The ``limit`` features that fire most often together with ``feature``, or with the highest ``npmi_low``."""
    active = codes.value > 0
    counts = np.bincount(codes.index[active], minlength=features)
    own = ((codes.index == feature) & active).any(1)
    index, here = codes.index[own], active[own]
    together = np.bincount(index[here], minlength=features)
    requests = _requests(index, here, codes.request[own], features)
    fired = int(own.sum())
    together[feature] = 0
    (other,) = together.nonzero()
    n, total = together[other], len(active)
    low, high = wilson(n, fired)
    thin = (n < THIN_ROWS) | (requests[other] < THIN_REQUESTS)
    base = fired / max(total, 1)
    npmi = np.where(thin, np.nan, _npmi(n / max(total, 1), base, counts[other] / max(total, 1)))
    npmi_low = np.where(thin, np.nan, _npmi(low * base, base, counts[other] / max(total, 1)))
    # NaN last; ties in order of index
    first = np.lexsort((other, -n, -npmi_low)) if by_npmi else np.lexsort((other, -n))
    if by_npmi:
        first = first[~thin[first]]
    some = first[:limit]
    return Partners(
        total,
        fired,
        other[some],
        n[some],
        requests[other[some]],
        counts[other[some]],
        (n / max(fired, 1))[some],
        low[some],
        high[some],
        npmi[some],
        npmi_low[some],
    )


def top_partners(codes: Coded, features: int, *, limit: int) -> tuple[Ints, Ints]:
    """(feature, rows together), int64 [F, limit], of the features that fire most often with each; -1 and 0 for none."""
    found, count = np.full((features, limit), -1, dtype=np.int64), np.zeros((features, limit), dtype=np.int64)
    for start, block in _blocks(codes, features):
        place = np.arange(len(block))
        block[place, place + start] = 0
        # stable: equal counts in order of index
        order = np.argsort(-block, axis=1, kind="stable")[:, :limit]
        times = np.take_along_axis(block, order, axis=1)
        found[start : start + len(block), : order.shape[1]] = np.where(times > 0, order, -1)
        count[start : start + len(block), : order.shape[1]] = times
    return found, count


def _requests(index: NDArray[np.int32], active: NDArray[np.bool_], request: Ints, features: int) -> Ints:
    """Distinct requests in which each feature is active, among rows with ``index`` and ``active`` [n, k]."""
    row, place = active.nonzero()
    known, number = np.unique(request, return_inverse=True)
    pairs = np.unique(index[row, place].astype(np.int64) * max(len(known), 1) + number[row])
    return np.bincount(pairs // max(len(known), 1), minlength=features)


def _npmi(joint: Floats, one: float, other: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(joint / (one * other)) / -np.log(joint)
    return np.where(joint >= 1, 1.0, np.where(joint > 0, found, -1.0))


def _blocks(codes: Coded, features: int) -> Iterator[tuple[int, Ints]]:
    """(first feature, rows together int64 [some, F]) over all features."""
    active = codes.value > 0
    row, place = active.nonzero()
    feature = codes.index[row, place].astype(np.int64)
    order = np.argsort(feature, kind="stable")
    row, feature = row[order], feature[order]
    size = max(1, _CELLS // features)
    step = max(1, _PAIRS // max(active.shape[1], 1))
    for start in range(0, features, size):
        stop = min(start + size, features)
        low, high = np.searchsorted(feature, [start, stop])
        block = np.zeros((stop - start) * features, dtype=np.int64)
        for begin in range(low, high, step):
            some = slice(begin, min(begin + step, high))
            here = active[row[some]]
            key = (feature[some] - start)[:, None] * features + codes.index[row[some]]
            block += np.bincount(key[here], minlength=len(block))
        yield start, block.reshape(stop - start, features)
