"""Which requests rows belong to, and how many rows each has had in a window."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hydrophoned.learn.metadata import RowMetadata

_MERGE_EVERY = 64


class DistinctRequests(NamedTuple):
    """The requests of n rows: ``key`` int64 [m], rising, -1 where not known, and ``place`` int64 [n], each row's in it.

    ``rows`` and ``rows_decode``, int64 [m], count the rows of each.
    """

    key: NDArray[np.int64]
    place: NDArray[np.int64]
    rows: NDArray[np.int64]
    rows_decode: NDArray[np.int64]

    @classmethod
    def of(cls, metadata: RowMetadata) -> Self:
        """The requests of the rows that ``metadata`` is of."""
        request, phase = metadata.request.cpu().numpy(), metadata.phase.cpu().numpy()
        key, place, rows = np.unique(request, return_inverse=True, return_counts=True)
        decode = np.bincount(place, weights=phase, minlength=len(key)).astype(np.int64)
        return cls(key, place, rows, decode)


class RequestRows:
    """Rows of each request, added up over a window."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int64]] = []

    def add(self, requests: DistinctRequests) -> None:
        """Count the rows of one chunk."""
        self._parts.append(np.stack([requests.key, requests.rows, requests.rows_decode]))
        if len(self._parts) > _MERGE_EVERY:
            self._parts = [self.merged()]

    def merged(self) -> NDArray[np.int64]:
        """Distinct keys, rising, their rows and their decode rows: int64 [3, m]."""
        if not self._parts:
            return np.zeros((3, 0), dtype=np.int64)
        stacked = np.concatenate(self._parts, axis=1)
        keys, inverse = np.unique(stacked[0], return_inverse=True)
        merged = np.zeros((3, len(keys)), dtype=np.int64)
        merged[0] = keys
        np.add.at(merged[1], inverse, stacked[1])
        np.add.at(merged[2], inverse, stacked[2])
        return merged

    def clear(self) -> None:
        """Begin a new window."""
        self._parts = []

    def load(self, merged: NDArray[np.int64]) -> None:
        """Take over what :meth:`merged` gave."""
        self._parts = [merged]
