"""Which features some rows have and others have not: rows of a token, of a text, of anything that marks rows."""

from typing import Final, NamedTuple

import numpy as np

from hydrophoned.analyse.columns import Bools, Floats, Ints
from hydrophoned.analyse.intervals import wilson
from hydrophoned.analyse.traffic import Coded

THIN_FIRED: Final = 5
THIN_REQUESTS: Final = 2


class RowFeatures(NamedTuple):
    """Features that fire on ``marked`` of ``rows`` rows, arrays [c], those that tell the marked rows best first.

    ``fired`` counts marked rows on which the feature fires, ``requests`` their requests, ``everywhere`` all rows on
    which it fires. ``rate`` is fired / marked, with Wilson's bounds; ``precision`` is fired / everywhere. ``f1`` is
    their harmonic mean, in whose order they are. ``mean`` is of the activation over the marked rows on which it fires.
    ``precision``, ``f1`` and ``mean`` are NaN for fewer than THIN_FIRED rows or THIN_REQUESTS requests; such features
    come last.
    """

    rows: int
    marked: int
    feature: Ints
    fired: Ints
    requests: Ints
    everywhere: Ints
    rate: Floats
    rate_low: Floats
    rate_high: Floats
    precision: Floats
    f1: Floats
    mean: Floats


def features_of_rows(codes: Coded, marked: Bools, features: int, *, limit: int) -> RowFeatures:
    """Of the codes of n rows, of which bool [n] ``marked`` says which are meant."""
    row, place = (codes.value > 0).nonzero()
    index = codes.index[row, place].astype(np.int64)
    everywhere = np.bincount(index, minlength=features)
    here = marked[row]
    index, row, place = index[here], row[here], place[here]
    fired = np.bincount(index, minlength=features)
    total = np.bincount(index, codes.value[row, place].astype(np.float64), minlength=features)
    known, number = np.unique(codes.request, return_inverse=True)
    pairs = np.unique(index * max(len(known), 1) + number[row])
    requests = np.bincount(pairs // max(len(known), 1), minlength=features)
    (feature,) = fired.nonzero()
    count = int(marked.sum())
    thin = (fired[feature] < THIN_FIRED) | (requests[feature] < THIN_REQUESTS)
    f1 = np.where(thin, np.nan, 2 * fired[feature] / (count + everywhere[feature]))
    order = np.lexsort((feature, -fired[feature], -f1))[:limit]  # NaN last
    feature, thin = feature[order], thin[order]
    low, high = wilson(fired[feature], count)
    return RowFeatures(
        len(marked),
        count,
        feature,
        fired[feature],
        requests[feature],
        everywhere[feature],
        fired[feature] / max(count, 1),
        low,
        high,
        np.where(thin, np.nan, fired[feature] / everywhere[feature]),
        f1[order],
        np.where(thin, np.nan, total[feature] / fired[feature]),
    )
