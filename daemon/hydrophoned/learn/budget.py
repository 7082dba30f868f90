"""How much of a stream is learned from: rows per second of the rows' own time, and a share of the time that passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_BURST_SECONDS: Final = 1.0
_LONGEST_STEP: Final = 60.0
"""Seconds; a step that seems to have taken longer was interrupted: the machine slept, or the process was stopped."""


class Budget:
    """Says whether a batch may be learned from; 0 means no limit, and so does no clock for ``time_share``.

    ``rows_per_second`` counts seconds of the rows' own time. Up to one second's rows (two batches at least) are saved.

    ``time_share`` is the share of the time read from ``clock`` (seconds that only rise) that steps may take. An account
    is filled at that rate, up to what one second brings, and a step is paid from it when it is done: how long it takes
    is not known before. The next one may be taken once the account is above 0, so that in T seconds steps take at most
    ``time_share`` (T + 1), and one step more.
    """

    def __init__(self, rows_per_second: float, time_share: float, clock: Callable[[], float] | None = None) -> None:
        self.rows_per_second, self.time_share = rows_per_second, time_share
        self._clock = clock if 0 < time_share < 1 else None
        self.time = 0
        self.rows = 0.0
        self.seconds = 0.0
        self._read: float | None = None

    def allows(self, rows: int, time: int) -> bool:
        """Whether a batch of ``rows`` rows, the last of them taken at ``time`` (us), may be learned from; counts it."""
        return self._allows_time() and self._allows_rows(rows, time)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Pay for the step taken inside, also for one that nobody asked :meth:`allows` for."""
        if self._clock is None:
            yield
            return
        begun = self._pass(self._clock())
        try:
            yield
        finally:
            now = self._pass(self._clock())
            self.seconds -= min(now - begun, _LONGEST_STEP)

    def _pass(self, now: float) -> float:
        """Let time pass to ``now``."""
        most = self.time_share * _BURST_SECONDS
        if self._read is None:
            self.seconds = most
        else:
            self.seconds = min(self.seconds + (now - self._read) * self.time_share, most)
        self._read = now
        return now

    def _allows_time(self) -> bool:
        if self._clock is None:
            return True
        self._pass(self._clock())
        return self.seconds > 0

    def _allows_rows(self, rows: int, time: int) -> bool:
        rate = self.rows_per_second
        if not rate:
            return True
        elapsed = max(0, time - self.time) / 1e6 if self.time else 1.0
        self.time = max(self.time, time)
        self.rows = min(self.rows + elapsed * rate, max(rate, 2.0 * rows))
        if self.rows < rows:
            return False
        self.rows -= rows
        return True
