"""What requests made features do: sums per request, the unit of every question about traffic."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hydrophoned.analyse.columns import Columns


class Measure(StrEnum):
    """What of a request is looked at."""

    RATE = "rate"
    """Share of its scored rows on which the feature fired."""
    MEAN = "mean"
    """Mean activation over all of its scored rows."""


class Coded(Protocol):
    """Codes of n rows, as ``learn.code_sample.CodedRows`` holds them."""

    @property
    def index(self) -> NDArray[np.int32]:
        """Features [n, k]."""

    @property
    def value(self) -> NDArray[np.float32]:
        """Activations [n, k]; a pair whose value is 0 is not active."""

    @property
    def request(self) -> NDArray[np.int64]:
        """Request of each row [n]."""


class Traffic(NamedTuple):
    """The pairs of R requests and F features in which the feature fired, in order of feature, then request.

    ``rows`` int64 [R] are the scored rows of each request. ``request`` and ``feature`` int64 [m] name the pairs,
    ``fired`` float64 [m] is the number of rows on which the feature was active, ``sum`` float64 [m] the sum of its
    activations over them. No pair comes twice.
    """

    features: int
    rows: NDArray[np.int64]
    request: NDArray[np.int64]
    feature: NDArray[np.int64]
    fired: NDArray[np.float64]
    sum: NDArray[np.float64]

    @property
    def requests(self) -> int:
        """Number of requests R."""
        return len(self.rows)

    @classmethod
    def of(
        cls,
        features: int,
        rows: NDArray[Any],
        request: NDArray[Any],
        feature: NDArray[Any],
        fired: NDArray[Any],
        sum: NDArray[Any],  # noqa: A002  the column's own name
    ) -> Self:
        """Traffic of sums in any order; a pair may come several times, as the windows of a long request do."""
        key = feature.astype(np.int64) * len(rows) + request
        known, place = np.unique(key, return_inverse=True)
        count = len(known)
        return cls(
            features,
            rows.astype(np.int64),
            known % max(len(rows), 1),
            known // max(len(rows), 1),
            np.bincount(place, fired, minlength=count).astype(np.float64),
            np.bincount(place, sum, minlength=count).astype(np.float64),
        )

    @classmethod
    def of_codes(cls, codes: Coded, features: int) -> tuple[Self, NDArray[np.int64]]:
        """Traffic of the codes of n rows, and the request key [R] of each of its requests."""
        keys, request, rows = np.unique(codes.request, return_inverse=True, return_counts=True)
        row, place = (codes.value > 0).nonzero()
        value = codes.value[row, place].astype(np.float64)
        return cls.of(features, rows, request[row], codes.index[row, place], np.ones(len(row)), value), keys

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The requests of all ``parts``, at least one, one after the other; a request of two parts comes twice."""
        rows = np.concatenate([part.rows for part in parts])
        starts = np.cumsum([0, *(part.requests for part in parts[:-1])])
        request = np.concatenate([part.request + start for part, start in zip(parts, starts, strict=True)])
        feature, fired, total = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("feature", "fired", "sum")
        )
        return cls.of(parts[0].features, rows, request, feature, fired, total)

    def take(self, chosen: NDArray[np.bool_]) -> Self:
        """The requests where bool [R] ``chosen`` is true, numbered anew in their order."""
        number = np.cumsum(chosen) - 1
        kept = chosen[self.request]
        return self._replace(
            rows=self.rows[chosen],
            request=number[self.request[kept]],
            feature=self.feature[kept],
            fired=self.fired[kept],
            sum=self.sum[kept],
        )

    def of_features(self, chosen: NDArray[np.bool_]) -> Self:
        """The pairs of features where bool [F] ``chosen`` is true; features keep their numbers."""
        kept = chosen[self.feature]
        return self._replace(
            request=self.request[kept], feature=self.feature[kept], fired=self.fired[kept], sum=self.sum[kept]
        )

    def columns(self, measure: Measure) -> Columns:
        """One value for each request and feature."""
        total = self.fired if measure is Measure.RATE else self.sum
        return Columns(self.requests, self.features, self.request, self.feature, total / self.rows[self.request])

    def per_feature(self, weight: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Pairs of each feature, or the sum of ``weight`` [m] over them: float64 [F]."""
        return np.bincount(self.feature, weight, minlength=self.features).astype(np.float64)
