"""The bounded buffer between hooks and the sending thread: bounded by bytes, the newest rows win, drops are counted."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from hydrophone.streams import Stream


class Buffered(Protocol):
    """What the buffer holds: rows of a stream with their size in bytes and the monotonic time of their capture."""

    stream: Stream
    rows: int
    nbytes: int
    taken: float


T = TypeVar("T", bound=Buffered)


class Buffer(Generic[T]):
    """A queue of captures of at most ``capacity`` bytes. All methods may be called from any thread.

    ``wake`` is called, once until the next :meth:`take`, when it becomes more than half full. When a capture does not
    fit, the oldest ones make room and are counted as dropped (``buffer_full``).
    """

    def __init__(self, capacity: int, wake: Callable[[], None]) -> None:
        self.capacity = capacity
        self._wake = wake
        self._woken = False
        self._items: deque[T] = deque()
        self._lock = threading.Lock()
        self.nbytes = 0
        self.put_count = 0
        self.gone_count = 0
        self.dropped_rows = 0

    def put(self, item: T) -> None:
        """Append ``item``; never waits for room."""
        wake = False
        with self._lock:
            self.put_count += 1
            self._items.append(item)
            self.nbytes += item.nbytes
            if self.nbytes * 2 > self.capacity:
                while self.nbytes > self.capacity:
                    self._drop_oldest("buffer_full")
                wake = not self._woken
                self._woken = True
        if wake:
            self._wake()

    def take(self, max_bytes: int) -> list[T]:
        """Remove and return the oldest captures, of ``max_bytes`` in all or the first alone."""
        taken: list[T] = []
        room = max_bytes
        with self._lock:
            self._woken = False
            while self._items and (room > 0 or not taken):
                item = self._items.popleft()
                room -= item.nbytes
                self.nbytes -= item.nbytes
                taken.append(item)
            self.gone_count += len(taken)
        return taken

    def discard_before(self, time: float, reason: str) -> int:
        """Drop captures taken before the monotonic ``time``; the number of rows dropped."""
        rows = 0
        with self._lock:
            while self._items and self._items[0].taken < time:
                rows += self._drop_oldest(reason, pressure=False)
        return rows

    def _drop_oldest(self, reason: str, *, pressure: bool = True) -> int:
        item = self._items.popleft()
        self.nbytes -= item.nbytes
        self.gone_count += 1
        if pressure:
            self.dropped_rows += item.rows
        item.stream.drop(reason, item.rows)
        return item.rows
