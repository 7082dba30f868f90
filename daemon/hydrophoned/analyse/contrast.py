"""Two sets of traffic compared: the features that differ between them.

The unit is the request. Rows of one request are alike, so that the number of rows says little about how sure a
difference is. Requests are compared with requests of about their own length, since a short one has a rate of 0 or a
high one where a long one has the mean: the test (``permutation``) goes by strata of length. That is what the p-value
and the effect are of; rates and their difference are of all requests, as they came.

Q-values are those of Benjamini & Yekutieli (2001), which bound the share of false discoveries whatever the dependence
between features; features that share the k places of a row do depend on each other, and in both directions. Which
features are tested is told from both sets together.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrophoned.analyse.columns import Floats, Ints
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.intervals import Z95, wilson
from hydrophoned.analyse.permutation import rank_test
from hydrophoned.analyse.traffic import Measure, Traffic

LEAST_REQUESTS: Final = 5
"""Requests, of both sets together, in which a feature has to fire to be tested."""
THIN_FIRED: Final = 5
THIN_REQUESTS: Final = 2
_STRATA: Final = 8
_IN_STRATUM: Final = 20  # requests of a stratum of length, at least


class Side(NamedTuple):
    """What the tested features do in one set of ``requests`` requests and ``rows`` rows; arrays are [c].

    ``firing`` counts requests in which the feature fired, ``fired`` rows. ``rate`` is fired / rows, with Wilson's
    bounds as if rows were independent. ``mean`` is of the activation over the rows on which it fired; NaN where it
    fired on fewer than THIN_FIRED rows or in fewer than THIN_REQUESTS requests.
    """

    requests: int
    rows: int
    firing: Ints
    fired: Ints
    rate: Floats
    rate_low: Floats
    rate_high: Floats
    mean: Floats


class Contrast(NamedTuple):
    """The tested features, arrays [c], those that differ most surely first.

    ``difference`` is rate in A minus rate in B, with the 95% bounds of requests as units. ``effect`` is the
    rank-biserial correlation: how much more often a request of A has the larger value than one of B of about its length
    has, -1 to 1. ``compared`` are the requests that have a match of the other set in their stratum, of A and of B.
    """

    feature: Ints
    a: Side
    b: Side
    difference: Floats
    difference_low: Floats
    difference_high: Floats
    effect: Floats
    p: Floats
    q: Floats
    compared: tuple[int, int]
    strata: int


def contrast(
    traffic: Traffic,
    in_a: NDArray[np.bool_],
    *,
    measure: Measure = Measure.RATE,
    least_requests: int = LEAST_REQUESTS,
    by_length: bool = True,
) -> Contrast:
    """Compare the requests where bool [R] ``in_a`` is true with the others; ``by_length`` as the module says.

    Requests without scored rows are left out. Raises TooLittle when a set has no requests, or none has a match of its
    length.
    """
    scored = traffic.rows > 0
    traffic, in_a = traffic.take(scored), in_a[scored]
    if not in_a.any() or in_a.all():
        raise TooLittle(
            f"sets of {int(in_a.sum())} and {int((~in_a).sum())} requests cannot be compared: each needs at least one"
        )
    stratum = _length_strata(traffic.rows) if by_length else np.zeros(traffic.requests, dtype=np.int64)
    matched = _matched(stratum, in_a)
    if not matched.any():
        raise TooLittle(
            f"no request of A ({int(in_a.sum())}) is of the length of one of B ({int((~in_a).sum())}): "
            "compare sets of like lengths, or without regard to length"
        )
    tested = traffic.per_feature() >= least_requests
    some = traffic.of_features(tested)
    ranked = rank_test(some.columns(measure), in_a, stratum)
    (feature,) = tested.nonzero()
    feature = feature[np.lexsort((feature, -np.abs(ranked.effect[feature]), ranked.p[feature]))]
    a, b = _side(some, in_a, feature), _side(some, ~in_a, feature)
    difference = a.rate - b.rate
    error = np.sqrt(_variance(some, in_a, feature, a) + _variance(some, ~in_a, feature, b))
    return Contrast(
        feature,
        a,
        b,
        difference,
        difference - Z95 * error,
        difference + Z95 * error,
        ranked.effect[feature],
        ranked.p[feature],
        q_values(ranked.p[feature]),
        (int((in_a & matched).sum()), int((~in_a & matched).sum())),
        len(np.unique(stratum)),
    )


def q_values(p: Floats) -> Floats:
    """Q-values [c] of p-values [c] by Benjamini & Yekutieli: valid under any dependence.

    >>> q_values(np.array([0.001, 0.5])).round(4).tolist()
    [0.003, 0.75]
    """
    count = len(p)
    order = np.argsort(p)
    harmonic = (1 / np.arange(1, count + 1)).sum()
    stepped = p[order] * count * harmonic / np.arange(1, count + 1)
    q = np.empty(count)
    q[order] = np.minimum(np.minimum.accumulate(stepped[::-1])[::-1], 1.0)
    return q


def _length_strata(rows: Ints) -> Ints:
    """Number of each request's stratum: equal shares of the requests by their rows; equal lengths stay together."""
    count = min(_STRATA, max(1, len(rows) // _IN_STRATUM))
    edges = np.unique(np.quantile(rows, np.arange(1, count) / count, method="lower"))
    return np.searchsorted(edges, rows, side="left").astype(np.int64)


def _matched(stratum: Ints, in_a: NDArray[np.bool_]) -> NDArray[np.bool_]:
    size = np.bincount(stratum)
    chosen = np.bincount(stratum[in_a], minlength=len(size))
    mixed: NDArray[np.bool_] = ((chosen > 0) & (chosen < size))[stratum]
    return mixed


def _side(traffic: Traffic, inside: NDArray[np.bool_], feature: Ints) -> Side:
    here = inside[traffic.request].astype(np.float64)
    rows = int(traffic.rows[inside].sum())
    firing = traffic.per_feature(here)[feature].astype(np.int64)
    fired = traffic.per_feature(here * traffic.fired)[feature].astype(np.int64)
    thin = (fired < THIN_FIRED) | (firing < THIN_REQUESTS)
    low, high = wilson(fired, rows)
    mean = traffic.per_feature(here * traffic.sum)[feature] / np.maximum(fired, 1)
    return Side(int(inside.sum()), rows, firing, fired, fired / rows, low, high, np.where(thin, np.nan, mean))


def _variance(traffic: Traffic, inside: NDArray[np.bool_], feature: Ints, side: Side) -> Floats:
    """Of a rate over all rows of a set, with requests as units: the ratio estimator's; NaN of a single request."""
    if side.requests < 2:
        return np.full(len(feature), np.nan)
    here = inside[traffic.request].astype(np.float64)
    rows = traffic.rows.astype(np.float64)
    squares = traffic.per_feature(here * traffic.fired**2)[feature]
    products = traffic.per_feature(here * traffic.fired * rows[traffic.request])[feature]
    lengths = (rows[inside] ** 2).sum()
    left = squares - 2 * side.rate * products + side.rate**2 * lengths
    spread: Any = np.maximum(left, 0.0) / side.rows**2 * side.requests / (side.requests - 1)
    return np.asarray(spread, dtype=np.float64)
