"""Rows of one stream as they travel inside the daemon: from ingest through the queue to the learner."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class Rows(NamedTuple):
    """``n`` rows of one stream; all arrays have length ``n``.

    ``activation`` is [n, d], float32 or float16, or uint16 holding bfloat16 bits (``dtype`` says which).
    ``request`` is the daemon's request key; ``time`` is UTC in microseconds; ``token`` is -1 where unknown.
    """

    activation: NDArray[np.generic]
    dtype: str
    request: NDArray[np.int64]
    sequence: NDArray[np.uint16]
    position: NDArray[np.int32]
    phase: NDArray[np.uint8]
    token: NDArray[np.int32]
    time: NDArray[np.int64]

    @property
    def count(self) -> int:  # type: ignore[override]  # rows are counted, not searched for in a tuple
        """Number of rows n."""
        return len(self.request)

    @property
    def nbytes(self) -> int:
        """Memory held by the arrays, in bytes."""
        return sum(column.nbytes for column in self if isinstance(column, np.ndarray))

    def slice(self, start: int, stop: int) -> Self:
        """Rows ``start`` to ``stop`` as views."""
        return self._replace(
            activation=self.activation[start:stop],
            request=self.request[start:stop],
            sequence=self.sequence[start:stop],
            position=self.position[start:stop],
            phase=self.phase[start:stop],
            token=self.token[start:stop],
            time=self.time[start:stop],
        )
