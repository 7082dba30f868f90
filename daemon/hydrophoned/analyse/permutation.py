"""A two-sample rank test of many sparse columns, by the permutation distribution itself.

For one feature, unit r (a request) has a value x_r >= 0, most of them 0, and belongs to a stratum s of N_s units of
which n_s are in set A. The statistic is van Elteren's (1960): the sum over the units of A of their mid-ranks within
their stratum, divided by N_s + 1. Under the null hypothesis the units of a stratum are exchangeable: the p-value is
that of all ways to choose n_s of its N_s units for A, whatever the values, their ties and the zeros among them.

Where a feature has at most ``EXACT`` values above 0 all ways are enumerated. Else the tail is Skovgaard's (1987) double
saddlepoint approximation, as for permutations in Robinson (1982) and Booth & Butler (1990): units are in A
independently of each other with probability pi_s, given that there are n_s of them in each stratum. With

    K(t, u) = sum over units of log(1 - pi_s + pi_s exp(t a_r + u_s)),   a_r the scores,

t and u solve dK/dt = T, dK/du_s = n_s (the maximum of a concave function, by Newton's method over all features at
once), and with w^2 = 2 (t T + u.n - K) and v = t sqrt(|K''(t, u)| / |K''_uu(0, 0)|),

    P(sum >= T) = 1 - Phi(w) + phi(w) (1/v - 1/w).

The tails of many ties are steps. T is moved towards its mean by half of the largest gap between two scores that are
next to each other, so that the approximation lies above the steps: p-values are a little too large rather than too
small.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hydrophoned.analyse.columns import Columns, Floats, Ints

EXACT: Final = 12
"""Features with at most so many values above 0 have their exact p-value."""
LEAST_P: Final = 1e-300
"""P-values below this are given as this."""
_STEPS: Final = 60
_HALVINGS: Final = 30
_TOLERANCE: Final = 1e-6
_ROUNDING: Final = 1e-10
_ALIKE: Final = 1e-9  # sums closer than this are ties
_NEAR: Final = 0.05  # below this w the p-value is 1 to two digits, and 1/v - 1/w the difference of large numbers
_FAR: Final = 37.0  # beyond this w float64 cannot hold the normal tail


class Ranked(NamedTuple):
    """For each of F features the two-sided ``p`` and the ``effect``, float64 [F].

    ``effect`` is the rank-biserial correlation within strata: how much more often a unit of A has the larger value than
    a unit of B has, from -1 to 1; 0 where no value is above 0.
    """

    p: Floats
    effect: Floats


class _Design(NamedTuple):
    """Strata with units of both sets: their units, and those in A, [S] each; cells are features times strata."""

    size: Floats
    chosen: Floats


class _Scores(NamedTuple):
    """Values above 0 as scores, in order of cell: ``cell`` and ``score`` [m], ``in_a`` bool [m]; ``zeros`` [F, S]."""

    cell: Ints
    feature: Ints
    score: Floats
    in_a: NDArray[np.bool_]
    zeros: Floats
    gap: Floats


def rank_test(columns: Columns, in_a: NDArray[np.bool_], stratum: NDArray[Any]) -> Ranked:
    """Test each feature; ``in_a`` bool [R] says which units are of set A, ``stratum`` int [R] is 0..S-1.

    Strata without units of both sets tell nothing and are left out.
    """
    strata = int(stratum.max()) + 1 if len(stratum) else 0
    size = np.bincount(stratum, minlength=strata).astype(np.float64)
    chosen = np.bincount(stratum[in_a], minlength=strata).astype(np.float64)
    mixed = (chosen > 0) & (chosen < size)
    number = np.cumsum(mixed) - 1
    design = _Design(size[mixed], chosen[mixed])
    kept = mixed[stratum[columns.unit]]
    unit, feature, value = columns.unit[kept], columns.feature[kept], columns.value[kept]
    p, effect = np.ones(columns.features), np.zeros(columns.features)
    if not len(unit):
        return Ranked(p, effect)
    scores = _scores(columns.features, feature, number[stratum[unit]], value, in_a[unit], design)
    total = _sums(scores.feature[scores.in_a], scores.score[scores.in_a], columns.features)
    share = (design.chosen / design.size)[scores.cell % len(design.size)]
    mean = _sums(scores.feature, scores.score * share, columns.features)
    pairs = design.chosen * (design.size - design.chosen) / (design.size + 1)
    effect = 2 * (total - mean) / pairs.sum()
    count = np.bincount(scores.feature, minlength=columns.features).astype(np.int64)
    _exact(p, scores, design, total, mean, count)
    _approximate(p, scores, design, total, mean, count)
    return Ranked(p, effect)


def _sums(place: Ints, weight: Floats, count: int) -> Floats:
    return np.bincount(place, weight, minlength=count).astype(np.float64, copy=False)


def _scores(
    features: int, feature: Ints, stratum: Ints, value: Floats, in_a: NDArray[np.bool_], design: _Design
) -> _Scores:
    """Mid-ranks within cells, so shifted that the score of a 0 is 0, divided by N_s + 1."""
    strata = len(design.size)
    cell = feature * strata + stratum
    order = np.lexsort((value, cell))
    cell, value, in_a, feature = cell[order], value[order], in_a[order], feature[order]
    count = np.bincount(cell, minlength=features * strata)
    zeros = np.tile(design.size, features) - count
    # runs of equal values in a cell share the mean of their ranks
    new = np.ones(len(cell), dtype=np.bool_)
    new[1:] = (cell[1:] != cell[:-1]) | (value[1:] != value[:-1])
    run = np.cumsum(new) - 1
    length = np.bincount(run)
    first = np.flatnonzero(new)
    start = np.concatenate(([0], np.cumsum(count)))[cell[first]]
    rank = first - start + (length + 1) / 2
    over = np.tile(design.size + 1, features)[cell[first]]
    level = (zeros[cell[first]] / 2 + rank - 0.5) / over
    below = np.where(first == start, 0.0, np.concatenate(([0.0], level[:-1])))
    # without zeros the lowest value has nothing below it
    step = np.where((first == start) & (zeros[cell[first]] == 0), 0.0, level - below)
    gap = np.zeros(features)
    np.maximum.at(gap, feature[first], step)
    return _Scores(cell, feature, level[run], in_a, zeros.reshape(features, strata).astype(np.float64), gap)


# -- exact ------------------------------------------------------------------------------------------------------------


def _exact(p: Floats, scores: _Scores, design: _Design, total: Floats, mean: Floats, count: Ints) -> None:
    """Write the p-values of features with few values above 0."""
    strata = len(design.size)
    factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, int(design.size.max()) + 1)))))
    ends = np.cumsum(count)
    ways = _log_choose(design.size, design.chosen, factorial)
    for feature in np.flatnonzero((count > 0) & (count <= EXACT)):
        part = slice(ends[feature] - count[feature], ends[feature])
        member = np.zeros((count[feature], strata))
        member[np.arange(count[feature]), scores.cell[part] % strata] = 1.0
        patterns = _patterns(int(count[feature]))
        drawn = patterns @ member  # [2^m, S]: how many of the values are in A
        weight = np.exp((_log_choose(scores.zeros[feature], design.chosen - drawn, factorial) - ways).sum(1))
        sums = patterns @ scores.score[part]
        if total[feature] >= mean[feature]:
            tail = weight[sums >= total[feature] - _ALIKE].sum()
        else:
            tail = weight[sums <= total[feature] + _ALIKE].sum()
        p[feature] = min(1.0, 2 * tail)


def _log_choose(n: Floats, k: Floats, factorial: Floats) -> Floats:
    """Logarithm of n over k, -inf where there is no way."""
    possible = (k >= 0) & (k <= n)
    n, k = np.broadcast_arrays(n, np.where(possible, k, 0))
    chosen: Floats = factorial[n.astype(np.int64)] - factorial[k.astype(np.int64)]
    rest = np.where(possible, n - k, 0).astype(np.int64)
    return np.where(possible, chosen - factorial[rest], -np.inf)


def _patterns(count: int) -> Floats:
    return ((np.arange(1 << count)[:, None] >> np.arange(count)) & 1).astype(np.float64)


# -- saddlepoint ------------------------------------------------------------------------------------------------------


class _Point(NamedTuple):
    """The concave function tT + u.n - K and its derivatives at (t, u), for F features and S strata."""

    value: Floats  # [F]
    slope_t: Floats  # [F]
    slope_u: Floats  # [F, S]
    tt: Floats  # [F]
    tu: Floats  # [F, S]
    uu: Floats  # [F, S]


def _approximate(p: Floats, scores: _Scores, design: _Design, total: Floats, mean: Floats, count: Ints) -> None:
    """Write the p-values of the other features."""
    wanted = count > EXACT
    if not wanted.any():
        return
    number = np.cumsum(wanted) - 1
    kept = wanted[scores.feature]
    strata = len(design.size)
    feature = number[scores.feature[kept]]
    some = _Scores(
        feature * strata + scores.cell[kept] % strata,
        feature,
        scores.score[kept],
        scores.in_a[kept],
        scores.zeros[wanted],
        scores.gap[wanted],
    )
    away = total[wanted] - mean[wanted]
    target = mean[wanted] + np.sign(away) * np.maximum(np.abs(away) - some.gap / 2, 0.0)
    inside = target != mean[wanted]
    t, point = _solve(some, design, np.where(inside, target, mean[wanted]))
    w = np.sqrt(np.maximum(2 * point.value, 0.0))
    null = design.chosen * (1 - design.chosen / design.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.exp(np.log(point.uu / null).sum(1) / 2)
        v = np.abs(t) * np.sqrt(point.tt - (point.tu**2 / point.uu).sum(1)) * ratio
        tail = _tail(w, v)
    p[wanted] = np.where(inside & (w > _NEAR), np.clip(2 * tail, LEAST_P, 1.0), 1.0)


def _tail(w: Floats, v: Floats) -> Floats:
    """1 - Phi(w) + phi(w) (1/v - 1/w); what cannot be told apart from 0 is 0."""
    near = np.minimum(w, _FAR)
    # not by the distribution function, which is 1 - erf and has no digits left below 1e-16
    normal: Floats = torch.special.erfc(torch.from_numpy(near) / 2**0.5).numpy() / 2
    tail = normal + np.exp(-(near**2) / 2) / np.sqrt(2 * np.pi) * (1 / v - 1 / near)
    # beyond the largest w the product with 1/v is what is left of the sum, and no more than the normal tail's order
    return np.where(w > _FAR, 0.0, np.where(np.isfinite(tail), tail, 1.0))


def _solve(scores: _Scores, design: _Design, target: Floats) -> tuple[Floats, _Point]:
    """The t [F] of the maximum, and what is there: Newton's method with halved steps, all features at once."""
    features, strata = scores.zeros.shape
    t, u = np.zeros(features), np.zeros((features, strata))
    final = _evaluate(scores, design, target, t, u)
    (left,) = _open(final).nonzero()  # features that are not solved yet
    for _ in range(_STEPS):
        if not len(left):
            break
        part, at = _of_features(scores, left), _Point(*(column[left] for column in final))
        step_t, step_u = _newton(at)
        size = np.ones(len(left))
        for _ in range(_HALVINGS):
            new_t, new_u = t[left] + size * step_t, u[left] + size[:, None] * step_u
            new = _evaluate(part, design, target[left], new_t, new_u)
            # near the maximum a step may lower the function by rounding
            worse = ~(new.value >= at.value - _ROUNDING * (1 + np.abs(at.value)))
            if not worse.any():
                break
            size = np.where(worse, size / 2, size)
        t[left], u[left] = new_t, new_u
        for column, found in zip(final, new, strict=True):
            column[left] = found
        left = left[_open(new)]
    return t, final


def _open(point: _Point) -> NDArray[np.bool_]:
    """Which features are away from the maximum: by more than what w, squared, could tell."""
    away: NDArray[np.bool_] = np.abs(point.slope_t) > _TOLERANCE * np.sqrt(point.tt)
    return away | (np.abs(point.slope_u) > _TOLERANCE * np.sqrt(point.uu)).any(1)


def _of_features(scores: _Scores, chosen: Ints) -> _Scores:
    """The scores of the features ``chosen``, rising, numbered anew."""
    features, strata = scores.zeros.shape
    if len(chosen) == features:
        return scores
    number = np.full(features, -1, dtype=np.int64)
    number[chosen] = np.arange(len(chosen))
    kept = number[scores.feature] >= 0
    feature = number[scores.feature[kept]]
    return _Scores(
        feature * strata + scores.cell[kept] % strata,
        feature,
        scores.score[kept],
        scores.in_a[kept],
        scores.zeros[chosen],
        scores.gap[chosen],
    )


def _newton(point: _Point) -> tuple[Floats, Floats]:
    """The Newton step of an arrowhead Hessian."""
    uu = np.maximum(point.uu, 1e-300)
    left = np.maximum(point.tt - (point.tu**2 / uu).sum(1), 1e-300)
    step_t = (point.slope_t - (point.tu / uu * point.slope_u).sum(1)) / left
    step_u = (point.slope_u - point.tu * step_t[:, None]) / uu
    return step_t, step_u


def _evaluate(scores: _Scores, design: _Design, target: Floats, t: Floats, u: Floats) -> _Point:
    features, strata = scores.zeros.shape
    cells = features * strata
    x = t[scores.feature] * scores.score + u.reshape(-1)[scores.cell]
    chance, k = _tilted(x, (design.chosen / design.size)[scores.cell % strata])
    chance_zero, k_zero = _tilted(u, design.chosen / design.size)
    spread = chance * (1 - chance)

    def over_cells(weight: Floats) -> Floats:
        return _sums(scores.cell, weight, cells).reshape(features, strata)

    return _Point(
        t * target + (u * design.chosen).sum(1) - (over_cells(k) + scores.zeros * k_zero).sum(1),
        target - over_cells(chance * scores.score).sum(1),
        design.chosen - over_cells(chance) - scores.zeros * chance_zero,
        over_cells(spread * scores.score**2).sum(1),
        over_cells(spread * scores.score),
        over_cells(spread) + scores.zeros * chance_zero * (1 - chance_zero),
    )


def _tilted(x: Floats, share: Floats) -> tuple[Floats, Floats]:
    """The chance pi e^x / (1 - pi + pi e^x), and log(1 - pi + pi e^x), of shares pi: exact for small x, no overflow."""
    small = np.expm1(-np.abs(x))  # from 0 down to -1
    rises = x > 0
    beyond = np.where(rises, 1 - share, share) * small
    chance = np.where(rises, share, share * (1 + small)) / (1 + beyond)
    return chance, np.maximum(x, 0.0) + np.log1p(beyond)
