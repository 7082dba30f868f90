"""What may be exchanged between before and after while nothing changed, and tests by such exchanges.

Units of a block (a tenant, a session) resemble each other, so that units cannot be exchanged freely. Where most units
are of blocks that have some on both sides, they are exchanged within their block: what is told is how the blocks'
traffic changed, and not that there is more of one and less of another. Else blocks are exchanged as wholes, with the
means of their units: there are as many observations as blocks.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.analyse.columns import Bools, Columns, Floats, Ints
from hydrophoned.analyse.permutation import rank_test

LEAST_P: Final = 1e-300
"""P-values below this are given as this."""
_STRATA: Final = 24
_IN_STRATUM: Final = 20  # blocks of a stratum of sizes, at least
_SCREEN: Final = 2.0  # below this |z| the p-value is about 0.05 or more, and need not be exact


class Exchange(NamedTuple):
    """The g groups that may be exchanged, each within its stratum, 0..S-1: units, or blocks of them.

    ``unit`` int64 [m] are the units that tell something, of those before and then those after; ``group`` int64 [m] is
    the group of each. ``size`` int64 [g] is the number of units, ``stratum`` int64 [g] and ``after`` bool [g] say where
    a group belongs. ``of`` is "units", "units of a block" or "blocks".
    """

    unit: Ints
    group: Ints
    size: Ints
    stratum: Ints
    after: Bools
    of: str

    @classmethod
    def between(cls, before: int, after: int, block: NDArray[Any] | None = None) -> "Exchange":
        """Of ``before`` units and then ``after`` units; ``block`` int [before + after] is the block of each."""
        n = before + after
        is_after = np.arange(n) >= before
        if block is None:
            return cls(np.arange(n), np.arange(n), np.ones(n, np.int64), np.zeros(n, np.int64), is_after, "units")
        _, block = np.unique(block, return_inverse=True)
        size = np.bincount(block)
        share = np.bincount(block, is_after) / size
        mixed = (share > 0) & (share < 1)
        if 2 * size[mixed].sum() >= n:
            unit = np.flatnonzero(mixed[block])
            by_share = _equal_parts(share[mixed], size[mixed], _STRATA)
            stratum = np.zeros(len(size), dtype=np.int64)
            stratum[mixed] = by_share
            ones = np.ones(len(unit), dtype=np.int64)
            return cls(unit, np.arange(len(unit)), ones, stratum[block[unit]], is_after[unit], "units of a block")
        # a block that is on both sides counts with its units on the side of most
        of_most = share > 0.5
        unit = np.flatnonzero(is_after == of_most[block])
        left = np.bincount(block[unit], minlength=len(size))
        by_size = _equal_parts(left, np.ones(len(left)), min(_STRATA, max(1, len(left) // _IN_STRATUM)))
        return cls(unit, block[unit], left, by_size, of_most, "blocks")

    @property
    def groups(self) -> int:
        """Number of groups g."""
        return len(self.size)

    def only(self, kept: Bools) -> "Exchange":
        """Of the units where bool [n] ``kept`` is true."""
        some = kept[self.unit]
        old, group = np.unique(self.group[some], return_inverse=True)
        size = np.bincount(group, minlength=len(old))
        return Exchange(self.unit[some], group, size, self.stratum[old], self.after[old], self.of)

    def means(self, x: Tensor) -> Tensor:
        """Means [g, d] over the units of each group, of values x [n, d] of all units."""
        some = x[torch.from_numpy(self.unit).to(x.device)]
        if self.of != "blocks":
            return some
        group = torch.from_numpy(self.group).to(x.device)
        sums = torch.zeros(self.groups, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, group, some)
        return sums / torch.from_numpy(self.size).to(sums)[:, None]

    def shares(self, unit: Ints, feature: Ints, features: int) -> Columns:
        """Of each group the share of its units in which a feature fired; ``unit`` and ``feature`` [p] are all such."""
        place = np.full(int(self.unit.max(initial=-1)) + 1, -1, dtype=np.int64)
        place[self.unit] = self.group
        kept = unit < len(place)
        group = place[unit[kept]]
        key = (feature[kept].astype(np.int64) * self.groups + group)[group >= 0]
        key, count = np.unique(key, return_counts=True)
        at = key % max(self.groups, 1)
        return Columns(self.groups, features, at, key // max(self.groups, 1), count / self.size[at])


def _equal_parts(value: NDArray[Any], weight: NDArray[Any], parts: int) -> Ints:
    """Number of the part of each value [b], of at most ``parts`` of about equal weight; equal values stay together.

    Of blocks by the share of their units that are after, this is stratification by propensity (Rosenbaum & Rubin 1983):
    units of a stratum have all the same chance to be after, as those of one block have.
    """
    level, place = np.unique(value, return_inverse=True)
    heavy = np.bincount(place, weight)
    middle = (np.cumsum(heavy) - heavy / 2) / heavy.sum()
    _, number = np.unique(np.floor(middle * parts), return_inverse=True)
    return number.astype(np.int64)[place] if len(level) else np.zeros(0, dtype=np.int64)


class Difference(NamedTuple):
    """Of c values: ``z``, after - before, in its standard errors under exchange, and two-sided ``p``; float64 [c]."""

    z: Floats
    p: Floats


def share_test(columns: Columns, exchange: Exchange) -> Difference:
    """Test each feature's shares; the p-value is exact, or that of the ranks (``analyse.permutation``), where small."""
    strata = int(exchange.stratum.max(initial=-1)) + 1
    features = columns.features
    if not strata:
        return Difference(np.zeros(features), np.ones(features))
    cell = columns.feature * strata + exchange.stratum[columns.unit]
    after = exchange.after[columns.unit]

    def over(weight: Floats) -> Floats:
        sums: Floats = np.bincount(cell, weight, minlength=features * strata).astype(np.float64, copy=False)
        return sums.reshape(features, strata)

    z, p = _moments(over(columns.value), over(columns.value**2), over(columns.value * after), exchange, strata)
    (wanted,) = (np.abs(z) > _SCREEN).nonzero()
    if len(wanted):
        number = np.full(features, -1, dtype=np.int64)
        number[wanted] = np.arange(len(wanted))
        kept = number[columns.feature] >= 0
        some = Columns(
            columns.units, len(wanted), columns.unit[kept], number[columns.feature[kept]], columns.value[kept]
        )
        p[wanted] = rank_test(some, exchange.after, exchange.stratum).p
    return Difference(z, p)


def mean_test(x: Tensor, exchange: Exchange) -> Difference:
    """Test each column of values x [g, d] of groups; the p-value is that of Student's t, as of many exchanges."""
    strata = int(exchange.stratum.max(initial=-1)) + 1
    if not strata:
        return Difference(np.zeros(x.shape[1]), np.ones(x.shape[1]))
    x = x - x.mean(0)
    stratum = torch.from_numpy(exchange.stratum).to(x.device)
    after = torch.from_numpy(exchange.after).to(x)

    def over(values: Tensor) -> Floats:
        sums = torch.zeros(strata, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, stratum, values)
        found: Floats = sums.T.double().cpu().numpy()
        return found

    return Difference(*_moments(over(x), over(x.square()), over(x * after[:, None]), exchange, strata))


def _moments(total: Floats, square: Floats, after: Floats, exchange: Exchange, strata: int) -> tuple[Floats, Floats]:
    """Z and p of sums [c, S] of values, of their squares, and of the values after the change.

    The sum after has its mean and variance under exchange; from z^2 = (N - S) t^2 / (N - S - 1 + t^2) follows the t
    of a difference of means, with N - S - 1 degrees of freedom (N groups in S strata that have both sides).
    """
    size = np.bincount(exchange.stratum, minlength=strata).astype(np.float64)
    chosen = np.bincount(exchange.stratum[exchange.after], minlength=strata).astype(np.float64)
    mixed = (chosen > 0) & (chosen < size)
    size, chosen = size[mixed], chosen[mixed]
    if not mixed.any():
        return np.zeros(len(total)), np.ones(len(total))
    total, square, after = total[:, mixed], square[:, mixed], after[:, mixed]
    share = chosen / size
    away = (after - share * total).sum(1)
    spread = np.maximum(square - total**2 / size, 0.0)
    variance = (share * (1 - share) * size / (size - 1) * spread).sum(1)
    # what varies by rounding only does not vary
    varies = variance > 1e-12 * (square.sum(1) + 1e-300)
    z = np.where(varies, away / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    freedom = size.sum() - len(size)
    if freedom < 2:
        return z, np.ones(len(z))
    t = z * np.sqrt((freedom - 1) / np.maximum(freedom - z**2, 1e-9))
    return z, student_p(t, freedom - 1)


def student_p(t: Floats, freedom: NDArray[Any] | float) -> Floats:
    """Two-sided p-values of Student's t, by the normal distribution.

    With 5 degrees of ``freedom`` they are 1% too large at 0.05 and 10% at 0.001 (Wallace 1959, "Bounds on normal
    approximations to Student's and the chi-square distributions").

    >>> student_p(np.array([2.228, 4.587]), 10.0).round(4).tolist()
    [0.0501, 0.001]
    """
    nu = np.asarray(freedom, dtype=np.float64)
    normal = (8 * nu + 1) / (8 * nu + 3) * np.sqrt(nu * np.log1p(np.square(t) / nu))
    # not by the distribution function, which is 1 - erf and has no digits left below 1e-16
    both: Floats = torch.special.erfc(torch.from_numpy(np.atleast_1d(normal)) / 2**0.5).numpy()
    return np.clip(both, LEAST_P, 1.0)


def discovery_q(p: Floats, tested: Bools | None = None) -> Floats:
    """Q-values [c] of p-values [c] by Benjamini & Hochberg (1995) among the ``tested``; 1 of the others.

    >>> discovery_q(np.array([0.01, 0.02, 0.5])).round(3).tolist()
    [0.03, 0.03, 0.5]
    """
    q = np.ones(len(p))
    (place,) = (np.ones(len(p), dtype=np.bool_) if tested is None else tested).nonzero()
    order = place[np.argsort(p[place], kind="stable")]
    stepped = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(stepped[::-1])[::-1], 1.0)
    return q
