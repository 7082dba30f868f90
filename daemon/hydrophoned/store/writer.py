"""The thread that writes: a bounded queue in front of the store, so that learners never wait long for the disk."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Final, NamedTuple

import pyarrow as pa
from hydrophone_schemas.rest import StoreReport

from hydrophoned.store.database import Store, Tables, check_table
from hydrophoned.store.errors import WriteFailed

_log = logging.getLogger(__name__)
_RETRY_SECONDS: Final = 1.0
_MERGE_BYTES: Final = 32 << 20
"""What one transaction takes from the queue at most, so that a long queue is not written in one."""


class _Entry(NamedTuple):
    tables: dict[str, pa.Table]
    nbytes: int
    rows: int
    queued: float  # time.monotonic()


class StoreWriter:
    """Writes what it is given in order, several entries per transaction when they wait.

    The queue holds at most ``max_bytes``. When it is full, ``put`` waits ``patience_seconds`` at most, and then the new
    entry is lost and counted. While a write fails for a cause that may pass (a full disk), it is tried again each
    second and ``problem`` says why; one that cannot work is counted as lost, and the writer goes on.
    """

    def __init__(self, store: Store, max_bytes: int = 64 << 20, *, patience_seconds: float = 1.0) -> None:
        self.max_bytes, self.patience_seconds = max_bytes, patience_seconds
        self.rows_written = 0
        self.rows_lost: Counter[str] = Counter()
        self.problem: str | None = None
        self.last_write_seconds: float | None = None
        self.cpu_seconds = 0.0
        self._store = store
        self._queue: deque[_Entry] = deque()
        self._queued_bytes = self._queued_rows = 0
        self._put = self._done = 0  # entries given, entries finished one way or another
        self._failed: deque[int] = deque(maxlen=64)  # numbers of entries that were lost after they were queued
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    @property
    def queue_bytes(self) -> int:
        """Bytes waiting, the transaction in progress included."""
        return self._queued_bytes

    @property
    def queue_rows(self) -> int:
        """Table rows waiting, the transaction in progress included."""
        return self._queued_rows

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest entry that is not yet written; 0 when there is none."""
        with self._changed:
            return time.monotonic() - self._queue[0].queued if self._queue else 0.0

    def put(self, tables: Tables, *, patience_seconds: float | None = None) -> bool:
        """Queue tables for one transaction; False if they were lost because the queue stayed full.

        Raises :class:`BadTable` if they are not the store's. A patience of 0 never waits, as on an event loop.
        """
        ready = {name: table for name, given in tables.items() if (table := check_table(name, given)).num_rows}
        if not ready:
            return True
        nbytes = sum(table.nbytes for table in ready.values())
        rows = sum(table.num_rows for table in ready.values())
        patience = self.patience_seconds if patience_seconds is None else patience_seconds
        with self._changed:
            # an entry larger than the whole queue may go in alone: else it could never be written
            self._changed.wait_for(lambda: self._closing or self._fits(nbytes), timeout=patience)
            if self._closing or not self._fits(nbytes):
                self.rows_lost["closed" if self._closing else "queue_full"] += rows
                return False
            self._queue.append(_Entry(ready, nbytes, rows, time.monotonic()))
            self._queued_bytes += nbytes
            self._queued_rows += rows
            self._put += 1
            self._changed.notify_all()
        return True

    def flush(self, timeout: float) -> bool:
        """Wait until everything put so far is committed; False if it is not after ``timeout`` seconds, or was lost."""
        with self._changed:
            start, target = self._done, self._put
            finished = self._changed.wait_for(lambda: self._done >= target, timeout=timeout)
            return finished and not any(start < number <= target for number in self._failed)

    def close(self, timeout: float) -> bool:
        """Write what waits and end the thread; False if that took longer than ``timeout`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def report(self) -> StoreReport:
        """The writer's figures as the API shows them."""
        return StoreReport(
            queue_bytes=self.queue_bytes,
            queue_rows=self.queue_rows,
            rows_written=self.rows_written,
            rows_lost=dict(self.rows_lost),
            lag_seconds=self.lag_seconds,
            last_write_seconds=self.last_write_seconds,
            file_bytes=self._store.file_bytes,
            problem=self.problem,
        )

    def _fits(self, nbytes: int) -> bool:
        return not self._queue or self._queued_bytes + nbytes <= self.max_bytes

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                taken = self._take()
            if self._write(taken):
                lost = [False] * len(taken)
            elif len(taken) == 1:
                lost = [True]
            else:  # one entry can spoil a transaction: the others get their own
                lost = [not self._write([entry]) for entry in taken]
            with self._changed:
                for entry, gone in zip(taken, lost, strict=True):
                    self._finish(entry, lost=gone)
                self.cpu_seconds = time.thread_time()
                self._changed.notify_all()

    def _take(self) -> list[_Entry]:
        """The entries of the next transaction; they stay in the queue until it ends."""
        taken: list[_Entry] = []
        nbytes = 0
        for entry in self._queue:
            if taken and nbytes + entry.nbytes > _MERGE_BYTES:
                break
            taken.append(entry)
            nbytes += entry.nbytes
        return taken

    def _finish(self, entry: _Entry, *, lost: bool) -> None:
        self._queue.popleft()
        self._queued_bytes -= entry.nbytes
        self._queued_rows -= entry.rows
        self._done += 1
        if lost:
            self._failed.append(self._done)
            self.rows_lost["write_failed"] += entry.rows
        else:
            self.rows_written += entry.rows

    def _write(self, taken: list[_Entry]) -> bool:
        """Write ``taken`` in one transaction; False if that cannot work, or not before the writer is closed."""
        merged = _merge([entry.tables for entry in taken])
        while True:
            began = time.monotonic()
            try:
                self._store.write(merged)
            except Exception as error:  # noqa: BLE001  whatever it was, the thread must go on with what comes next
                passing = isinstance(error, WriteFailed) and error.retry
                if self.problem is None:
                    _log.exception("%s", "the store cannot write; trying again" if passing else "a write failed")
                self.problem = str(error)
                if not passing or self._closing:
                    return False
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=_RETRY_SECONDS)
                continue
            if self.problem is not None:
                _log.info("the store writes again")
                self.problem = None
            self.last_write_seconds = time.monotonic() - began
            return True


def _merge(entries: list[dict[str, pa.Table]]) -> Mapping[str, pa.Table]:
    if len(entries) == 1:
        return entries[0]
    by_name: dict[str, list[pa.Table]] = {}
    for tables in entries:
        for name, table in tables.items():
            by_name.setdefault(name, []).append(table)
    return {name: pa.concat_tables(parts) for name, parts in by_name.items()}
