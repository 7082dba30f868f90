"""How often, and how strongly, features of one dictionary fire together with those of another, on the same rows."""

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hydrophoned.learn.dictionary import Codes

_MOST_PAIRS: Final = 1 << 21
"""Pairs of active pairs that are counted; some 200 MB are held while they are sorted."""
Numbers = NDArray[np.int64]
Reals = NDArray[np.float64]


class CoFiring(NamedTuple):
    """Of two sets of codes of the same ``rows`` rows: sums over each feature, and over each pair that fires together.

    ``fired`` int64 [F], ``mean`` and ``deviation`` float64 [F] (population standard deviation, over all rows) are a
    pair, one of each side. Pair p is of the features ``first`` and ``second``, int64 [m], in rising order;
    ``together`` int64 [m] counts its rows, and ``product`` float64 [m] is the sum over them of both activations
    multiplied. ``row`` and ``pair`` int64 [t] have one entry for each row that a pair fires on: the row, and p.
    """

    rows: int
    features: tuple[int, int]
    fired: tuple[Numbers, Numbers]
    mean: tuple[Reals, Reals]
    deviation: tuple[Reals, Reals]
    first: Numbers
    second: Numbers
    together: Numbers
    product: Reals
    row: Numbers
    pair: Numbers

    @classmethod
    def of(cls, before: Codes, after: Codes, features: tuple[int, int]) -> Self:
        """Count over as many rows, from the first, as bounded memory allows: 2048 where codes have 32 features."""
        rows = min(len(before.value), _MOST_PAIRS // max(1, before.value.shape[1] * after.value.shape[1]))
        left, right = _active(before, rows), _active(after, rows)
        left_sums, right_sums = _sums(left, rows, features[0]), _sums(right, rows, features[1])
        key, row, product = _joined(left, right, features[1])
        order = np.argsort(key)
        key, row = key[order], row[order]
        start = np.flatnonzero(np.diff(key, prepend=-1))
        together = np.diff(start, append=len(key))
        pair = np.repeat(np.arange(len(start)), together)
        summed = np.bincount(pair, product[order], minlength=len(start)).astype(np.float64)
        first, second = np.divmod(key[start], features[1])
        return cls(
            rows,
            features,
            (left_sums.fired, right_sums.fired),
            (left_sums.mean, right_sums.mean),
            (left_sums.deviation, right_sums.deviation),
            first,
            second,
            together,
            summed,
            row,
            pair,
        )

    def of_pairs(self, first: Numbers, second: Numbers) -> Reals:
        """Sums of products of given pairs of features, 0 of those that never fire together, float64 [n]."""
        if not len(self.product):
            return np.zeros(len(first))
        key, wanted = self.first * self.features[1] + self.second, first * self.features[1] + second
        place = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        return np.where(key[place] == wanted, self.product[place], 0.0)

    def correlation(self, first: Numbers, second: Numbers, product: Reals, *, least: int) -> Reals:
        """Pearson's, over all rows, of pairs of features with these sums of products, float64 [n].

        NaN where one does not fire at all, or always the same, or neither on ``least`` rows: then it says nothing.
        """
        mean = self.mean[0][first] * self.mean[1][second]
        deviation = self.deviation[0][first] * self.deviation[1][second]
        known = (deviation > 0) & (np.maximum(self.fired[0][first], self.fired[1][second]) >= least)
        value = (product / max(self.rows, 1) - mean) / np.where(known, deviation, 1.0)
        return np.where(known, value.clip(-1, 1), np.nan)

    def swapped(self) -> Self:
        """The same with the sides exchanged; pairs keep their places, so that they no longer rise."""
        return self._replace(
            features=self.features[::-1],
            fired=self.fired[::-1],
            mean=self.mean[::-1],
            deviation=self.deviation[::-1],
            first=self.second,
            second=self.first,
        )


class _Active(NamedTuple):
    """Row, feature and value of each active pair, in order of rows."""

    row: Numbers
    feature: Numbers
    value: Reals


class _Sums(NamedTuple):
    """How often each feature fires, and mean and standard deviation of its activation over all rows."""

    fired: Numbers
    mean: Reals
    deviation: Reals


def _active(codes: Codes, rows: int) -> _Active:
    value = codes.value[:rows].cpu().double().numpy()
    row, place = np.nonzero(value > 0)
    return _Active(row, codes.index[:rows].cpu().long().numpy()[row, place], value[row, place])


def _sums(active: _Active, rows: int, features: int) -> _Sums:
    fired = np.bincount(active.feature, minlength=features)
    mean = np.bincount(active.feature, active.value, minlength=features) / max(rows, 1)
    square = np.bincount(active.feature, active.value**2, minlength=features) / max(rows, 1)
    variance = square - mean**2
    return _Sums(fired, mean, np.sqrt(np.where(variance > 1e-12 * square, variance, 0.0)))  # a constant's is rounding


def _joined(before: _Active, after: _Active, features: int) -> tuple[Numbers, Numbers, Reals]:
    """Key i * ``features`` + j, row and product of activations of each two active pairs that share their row."""
    begin = np.searchsorted(after.row, before.row, side="left")
    size = np.searchsorted(after.row, before.row, side="right") - begin
    left = np.repeat(np.arange(len(before.row)), size)
    right = np.arange(len(left)) + np.repeat(begin - np.cumsum(size) + size, size)
    key = before.feature[left] * features + after.feature[right]
    return key, before.row[left], before.value[left] * after.value[right]
