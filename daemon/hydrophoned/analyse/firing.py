"""On which rows each feature fires."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hydrophoned.learn.code_sample import CodedRows


class Firing(NamedTuple):
    """Rows on which each of F features fires: those of feature f are ``row[start[f]:start[f + 1]]``, int64."""

    rows: int
    start: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, codes: CodedRows, features: int) -> Self:
        """The firing in ``codes``."""
        row, place = (codes.value > 0).nonzero()
        feature = codes.index[row, place]
        order = np.argsort(feature, kind="stable")
        start = np.concatenate(([0], np.cumsum(np.bincount(feature, minlength=features))))
        return cls(codes.rows, start, row[order])

    @property
    def features(self) -> int:
        """Number of features F."""
        return len(self.start) - 1

    def fired(self) -> NDArray[np.int64]:
        """Rows on which each fires, int64 [F]."""
        return np.diff(self.start)

    def of_feature(self, feature: int) -> NDArray[np.bool_]:
        """Bool [n]: the rows on which ``feature`` fires."""
        fires = np.zeros(self.rows, dtype=np.bool_)
        fires[self.row[self.start[feature] : self.start[feature + 1]]] = True
        return fires
