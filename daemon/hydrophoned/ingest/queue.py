"""The queue between ingestion and a learner: bounded by bytes, and the newest rows win."""

import threading
from collections import deque
from typing import Final

from hydrophoned.rows import Rows

_BATCH_BYTES: Final = 2048
"""Allowance for what a batch takes besides its rows, so that very small batches cannot outgrow the bound."""


class RowQueue:
    """A thread-safe queue of batches that holds at most ``max_bytes``.

    ``put`` never blocks: to make room it drops the oldest batches, and counts their rows in ``dropped_rows``. A batch
    larger than the bound is dropped itself.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.dropped_rows = 0
        self._batches: deque[Rows] = deque()
        self._nbytes = 0
        self._rows = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def rows(self) -> int:
        """Rows waiting."""
        return self._rows

    @property
    def nbytes(self) -> int:
        """Bytes waiting, with an allowance for each batch."""
        return self._nbytes

    def put(self, rows: Rows) -> bool:
        """Queue a batch; False if anything was dropped for it, or it was dropped itself."""
        size = _size(rows)
        with self._changed:
            if size > self.max_bytes or self._closed:
                self.dropped_rows += rows.count
                return False
            kept_all = True
            while self._nbytes + size > self.max_bytes:
                kept_all = False
                self.dropped_rows += self._remove_first().count
            self._batches.append(rows)
            self._nbytes += size
            self._rows += rows.count
            self._changed.notify()
        return kept_all

    def get(self, timeout: float) -> Rows | None:
        """The oldest batch; None when none came within ``timeout`` seconds, or the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._batches or self._closed, timeout)
            return self._remove_first() if self._batches else None

    def close(self) -> None:
        """Take no more batches; those waiting can still be got."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _remove_first(self) -> Rows:
        first = self._batches.popleft()
        self._nbytes -= _size(first)
        self._rows -= first.count
        return first


def _size(rows: Rows) -> int:
    return rows.nbytes + _BATCH_BYTES
