"""Values of features over units, requests or rows, as tests and probes take them."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Values(Protocol):
    """Values [units, features]."""

    @property
    def units(self) -> int:
        """Number of units n."""

    @property
    def features(self) -> int:
        """Number of features F."""

    def sums(self, chosen: Bools) -> tuple[Floats, Floats, Ints]:
        """Over the units where bool [n] ``chosen`` is true: sum, sum of squares, number above 0; each [F]."""

    def dense(self, features: Ints) -> Floats:
        """The columns ``features`` int [c] over all units: [n, c]."""


class Columns(NamedTuple):
    """The values above 0, in order of feature, of F features over n units; no pair comes twice.

    ``unit`` and ``feature`` int64 [m], ``value`` float64 [m].
    """

    units: int
    features: int
    unit: Ints
    feature: Ints
    value: Floats

    @classmethod
    def of_codes(cls, index: NDArray[np.int32], value: NDArray[np.float32], features: int) -> "Columns":
        """Codes [n, k] with rows as units."""
        row, place = (value > 0).nonzero()
        feature = index[row, place].astype(np.int64)
        order = np.argsort(feature, kind="stable")
        return cls(len(value), features, row[order], feature[order], value[row, place].astype(np.float64)[order])

    def take(self, chosen: Bools) -> "Columns":
        """The units where bool [n] ``chosen`` is true, numbered anew in their order."""
        number = np.cumsum(chosen) - 1
        kept = chosen[self.unit]
        return Columns(int(chosen.sum()), self.features, number[self.unit[kept]], self.feature[kept], self.value[kept])

    def sums(self, chosen: Bools) -> tuple[Floats, Floats, Ints]:
        """See :class:`Values`."""
        kept = chosen[self.unit]
        feature, value = self.feature[kept], self.value[kept]

        def over(weight: NDArray[Any] | None) -> NDArray[Any]:
            return np.bincount(feature, weight, minlength=self.features)

        return over(value), over(value**2), over(None)

    def dense(self, features: Ints) -> Floats:
        """See :class:`Values`."""
        found = np.zeros((self.units, len(features)))
        start = np.searchsorted(self.feature, features, side="left")
        stop = np.searchsorted(self.feature, features, side="right")
        for place, (low, high) in enumerate(zip(start, stop, strict=True)):
            found[self.unit[low:high], place] = self.value[low:high]
        return found


class DenseColumns(NamedTuple):
    """Values x float32 [n, d], such as raw rows."""

    x: NDArray[np.float32]

    @property
    def units(self) -> int:
        """Number of units n."""
        return len(self.x)

    @property
    def features(self) -> int:
        """Number of columns d."""
        return int(self.x.shape[1])

    def sums(self, chosen: Bools) -> tuple[Floats, Floats, Ints]:
        """See :class:`Values`; every value counts as above 0."""
        some = self.x[chosen].astype(np.float64)
        return some.sum(0), np.square(some).sum(0), np.full(self.features, len(some), dtype=np.int64)

    def dense(self, features: Ints) -> Floats:
        """See :class:`Values`."""
        return self.x[:, features].astype(np.float64)
