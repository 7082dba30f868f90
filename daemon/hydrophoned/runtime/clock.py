"""The daemon's clock: the one place where the time of day is read."""

import time


def now_us() -> int:
    """UTC time in microseconds since 1970."""
    return time.time_ns() // 1000
