"""Which features drift: how often each fires, and how strongly, in a reference and now.

The unit is the request, as everywhere here: a feature fires in a unit or not, and its value there is the mean over the
rows on which it fired. Each feature has two hypotheses, that its rate is as it was and that its values are, and both
are tested exactly, however few firings there are and whatever the values' distribution:

- Rate: given in how many of all units a feature fired, the number among those of now is hypergeometric (Fisher's exact
  test).
- Values: given how often it fired, the number of values of now above the reference's median is that of a draw from an
  urn (the median test for a fixed order statistic: Mathisen 1943, "A method of testing the hypothesis that two samples
  are from the same population"). Mean values are told, with their errors, but not tested by them: sums of skewed values
  are far from normal where it matters, at p-values of 1e-6. A change that moves no value across the median is not
  found.

Features share the k places of a code, so that one fires more because another does less, and many fire together.
Q-values are those of Benjamini & Yekutieli (2001): the share of false discoveries is bounded whatever the dependence.
E-values would allow for that too, but lose more here: one that is to pay for any ratio of rates stays short of 1 / p by
more than the harmonic sum that q-values are multiplied by.

Over time each look at a stream spends a share of the level (:func:`look_share`): the expected share of false
discoveries among those of all looks together is at most the sum of the looks' own, whatever the looks have in common.
"""

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.analyse.columns import Floats, Ints
from hydrophoned.analyse.contrast import q_values
from hydrophoned.analyse.intervals import Z95, wilson
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.exact_tails import draws_tail, exceedances_tail
from hydrophoned.detect.fired import Fired

LEVEL: Final = 0.05
"""Expected share of false discoveries, at most."""
LEAST_UNITS: Final = 100
"""Units of a reference, at least."""
THIN_FIRED: Final = 5
"""Firings that a mean value is told from, at least."""
_ATTAINABLE: Final = 1e-4
"""A side of a test is left out where no outcome could give it so small a p-value."""


class FeatureSummary(NamedTuple):
    """What F features did in ``units`` units.

    ``fired`` int64 [F] counts units. ``sum`` and ``squares`` float64 [F] are of the values in these. ``level`` float32
    [F] is the median of the values in the reference (NaN where it never fired), ``above`` and ``below`` int64 [F] count
    values on either side of it. Without values, sums are NaN and nothing is above or below.
    """

    units: int
    fired: Ints
    sum: Floats
    squares: Floats
    level: NDArray[np.float32]
    above: Ints
    below: Ints

    @property
    def features(self) -> int:
        """Number of features F."""
        return len(self.fired)

    def merge(self, other: Self) -> Self:
        """That of the units of both, which were summarised against one reference. Raises ReferenceMismatch."""
        _same_level(self, other)
        added = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("units", "fired", "sum", "squares", "above", "below")
        }
        return self._replace(**added)


class Side(NamedTuple):
    """What F features did in ``units`` units, reference or now; arrays are [F].

    ``rate`` is fired / units with Wilson's bounds, and the exact ones where it is 0 or 1 (about 3 / units, the rule of
    three). ``mean`` is of the values, NaN of fewer than ``THIN_FIRED``, ``mean_error`` its standard error.
    """

    units: int
    fired: Ints
    rate: Floats
    rate_low: Floats
    rate_high: Floats
    mean: Floats
    mean_error: Floats


class FeatureDrift(NamedTuple):
    """Each feature's change; arrays are [F], NaN where nothing is known.

    ``rate_effect`` is log(rate now / rate before) with 95% bounds, infinite where one of the rates is 0 (and the bound
    on that side too); NaN where both are. ``mean_effect`` is that of the mean values. A p-value, and with it the
    q-value, is NaN where no outcome could have told a change: of features that never or always fired, or hardly ever.
    ``tested`` are the hypotheses, of rate and of values together, that q-values allow for.
    """

    before: Side
    now: Side
    rate_effect: Floats
    rate_effect_low: Floats
    rate_effect_high: Floats
    rate_p: Floats
    rate_q: Floats
    mean_effect: Floats
    mean_effect_low: Floats
    mean_effect_high: Floats
    mean_p: Floats
    mean_q: Floats
    tested: int

    def found(self, level: float = LEVEL) -> Ints:
        """Features with a q-value of at most ``level``, the surest first."""
        with_q = np.fmin(self.rate_q, self.mean_q)
        (feature,) = (with_q <= level).nonzero()
        surest = np.fmin(self.rate_p, self.mean_p)[feature]
        return feature[np.lexsort((feature, surest))]


def summarise(
    fired: Fired, value: Tensor | None, features: int, *, reference: FeatureSummary | None = None
) -> FeatureSummary:
    """Summarise units: a reference itself, or such as are to be compared with ``reference``.

    ``value`` float32, one for each entry of ``fired``; None where values are not known. Raises ReferenceMismatch for
    features that a dictionary of ``features`` has not.
    """
    feature = fired.feature.cpu().numpy().astype(np.int64)
    if len(feature) and not 0 <= feature.min() <= feature.max() < features:
        wrong = feature.min() if feature.min() < 0 else feature.max()
        raise ReferenceMismatch(f"feature {wrong} fired, but the dictionary has {features}")
    count = np.bincount(feature, minlength=features)
    if value is None:
        none, nothing = np.zeros(features, dtype=np.int64), np.full(features, np.nan)
        return FeatureSummary(fired.units, count, nothing, nothing, nothing.astype(np.float32), none, none)
    if len(value) != len(feature):
        raise ValueError(f"{len(value)} values of {len(feature)} firings")
    v = value.float().cpu().numpy()
    level = _medians(feature, v, count) if reference is None else reference.level
    if len(level) != features:
        raise ReferenceMismatch(f"the reference is of {len(level)} features, not {features}")
    wide = v.astype(np.float64)
    return FeatureSummary(
        fired.units,
        count,
        np.bincount(feature, wide, minlength=features).astype(np.float64),
        np.bincount(feature, wide * wide, minlength=features).astype(np.float64),
        level,
        np.bincount(feature[v > level[feature]], minlength=features),
        np.bincount(feature[v < level[feature]], minlength=features),
    )


def feature_drift(reference: FeatureSummary, now: FeatureSummary, *, share: float = 1.0) -> FeatureDrift:
    """Compare what features do ``now`` with what they did in the ``reference``, which ``now`` was summarised against.

    Q-values are over ``share``, the part of the level that this look may spend: what is at most ``LEVEL`` may be told.
    Raises InsufficientReference, and ReferenceMismatch where the two are not of one dictionary.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, not above 0 and at most 1")
    if reference.units < LEAST_UNITS or now.units < 1:
        raise InsufficientReference(
            f"{reference.units} units of reference and {now.units} of now: {LEAST_UNITS} and 1 are needed"
        )
    _same_level(reference, now)
    before, after = _side(reference), _side(now)
    rate_p, mean_p = _rate_p(reference, now), _mean_p(reference, now)
    p = np.concatenate([rate_p, mean_p])
    q = np.full_like(p, np.nan)
    tested = ~np.isnan(p)
    q[tested] = np.minimum(q_values(p[tested]) / share, 1.0)
    rate_q, mean_q = np.split(q, 2)
    return FeatureDrift(
        before,
        after,
        *_rate_effect(before, after),
        rate_p,
        rate_q,
        *_mean_effect(before, after),
        mean_p,
        mean_q,
        int(tested.sum()),
    )


def look_share(look: int, looks: int | None = None) -> float:
    """Part of the level that the ``look``-th look at a stream may spend, counted from 1.

    With ``looks`` to come in a period each has the same, and the level is that of the period. Otherwise there may be
    any number of looks, and the level is that of all time: the shares 1/2, 1/6, 1/12, ... add up to 1.

    >>> look_share(3), look_share(3, looks=30)
    (0.08333333333333333, 0.03333333333333333)
    """
    if look < 1 or (looks is not None and look > looks):
        raise ValueError(f"look {look} of {looks if looks is not None else 'any number'}: they are counted from 1")
    return 1 / (look * (look + 1)) if looks is None else 1 / looks


def _medians(feature: Ints, value: NDArray[np.float32], count: Ints) -> NDArray[np.float32]:
    """The lower median of each feature's values; NaN of none."""
    order = np.lexsort((value, feature))
    middle = np.cumsum(count) - count + (count - 1) // 2
    level = np.full(len(count), np.nan, dtype=np.float32)
    level[count > 0] = value[order[middle[count > 0]]]
    return level


def _same_level(a: FeatureSummary, b: FeatureSummary) -> None:
    if a.features != b.features:
        raise ReferenceMismatch(f"summaries of {a.features} and {b.features} features are of two dictionaries")
    if not np.array_equal(a.level, b.level, equal_nan=True):
        raise ReferenceMismatch("the summaries' values are counted against two references: summarise both against one")


def _side(summary: FeatureSummary) -> Side:
    n, fired = summary.units, summary.fired
    low, high = wilson(fired, n)
    least = 1 - 0.05 ** (1 / n)
    high, low = np.where(fired == 0, least, high), np.where(fired == n, 1 - least, low)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = summary.sum / fired
        variance = (summary.squares / fired - mean**2) * (fired / (fired - 1))
    thin = fired < THIN_FIRED
    error = np.sqrt(np.maximum(variance, 0) / np.maximum(fired, 1))
    return Side(n, fired, fired / n, low, high, np.where(thin, np.nan, mean), np.where(thin, np.nan, error))


def _rate_effect(before: Side, now: Side) -> tuple[Floats, Floats, Floats]:
    """Log ratio of rates with its bounds by Katz et al. (1978), from the rates' own bounds where one is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        effect = np.log(now.rate) - np.log(before.rate)
        spread = sum(1 / side.fired - 1 / side.units for side in (before, now))
        reach = Z95 * np.sqrt(spread)
        low = np.where(before.fired == 0, np.log(now.rate_low) - np.log(before.rate_high), effect - reach)
        high = np.where(now.fired == 0, np.log(now.rate_high) - np.log(before.rate_low), effect + reach)
    neither = (before.fired == 0) & (now.fired == 0)
    return effect, np.where(neither, np.nan, low), np.where(neither, np.nan, high)


def _mean_effect(before: Side, now: Side) -> tuple[Floats, Floats, Floats]:
    """Log ratio of mean values with its bounds by the delta method; NaN where a mean is not above 0."""
    known = (before.mean > 0) & (now.mean > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        effect = np.where(known, np.log(now.mean / before.mean), np.nan)
        reach = Z95 * np.hypot(before.mean_error / before.mean, now.mean_error / now.mean)
    return effect, effect - reach, effect + reach


def _rate_p(reference: FeatureSummary, now: FeatureSummary) -> Floats:
    """Two-sided, of the sides on which there could be a small p-value; NaN where there is none."""
    both, total = reference.fired + now.fired, reference.units + now.units
    p, sides = np.full(len(both), np.nan), np.zeros(len(both))
    (varies,) = ((both > 0) & (both < total)).nonzero()
    for k, n in ((now.fired, now.units), (reference.fired, reference.units)):  # more now, and fewer
        least = draws_tail(np.minimum(both[varies], n), both[varies], n, total)
        at = varies[least <= _ATTAINABLE]
        p[at] = np.fmin(p[at], draws_tail(k[at], both[at], n, total))
        sides[at] += 1
    return np.minimum(p * sides, 1.0)


def _mean_p(reference: FeatureSummary, now: FeatureSummary) -> Floats:
    """The same by the values of now on either side of the order statistic that is the reference's lower median."""
    c, n = reference.fired, now.fired
    under = (c - 1) // 2
    p, sides = np.full(len(c), np.nan), np.zeros(len(c))
    (valued,) = ((n > 0) & ~np.isnan(reference.level) & ~np.isnan(now.sum)).nonzero()
    for k, beyond in ((now.above, c - 1 - under), (now.below, under)):
        least = exceedances_tail(n[valued], n[valued], beyond[valued], c[valued])
        at = valued[least <= _ATTAINABLE]
        p[at] = np.fmin(p[at], exceedances_tail(k[at], n[at], beyond[at], c[at]))
        sides[at] += 1
    return np.minimum(p * sides, 1.0)
