"""What went wrong inside the SDK: counted by type, the first of each logged, never raised into the user's code."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

logger = logging.getLogger("hydrophone")

_AGAIN_AFTER: Final = 300.0
"""Seconds until the same fault is logged again."""


class FaultLog:
    """Counts faults and keeps them from flooding the log; ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()
        self._clock = clock

    def failed(self, error: BaseException) -> None:
        """Count an exception that was caught; log it with its traceback if its type was not logged lately."""
        kind = type(error).__name__
        with self._lock:
            self.counts[kind] += 1
        if self._due(kind):
            logger.warning("caught inside hydrophone; the model is not affected: %s", error, exc_info=error)

    def warn(self, key: str, message: str, *values: object) -> None:
        """Log a warning if none with this ``key`` was logged lately."""
        if self._due(key):
            logger.warning(message, *values)

    def _due(self, key: str) -> bool:
        now = self._clock()
        with self._lock:
            due = now - self._logged.get(key, -_AGAIN_AFTER) >= _AGAIN_AFTER
            if due:
                self._logged[key] = now
        return due
