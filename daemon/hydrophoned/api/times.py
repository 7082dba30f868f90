"""Times as they are written in query parameters."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_RELATIVE: Final = re.compile(r"-(\d{1,9})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def parse_time(text: str, now_us: int) -> int:
    """Read ISO 8601 with a zone, or a time before now such as ``-15m`` (s, m, h, d); returns UTC us.

    Raises ValueError saying what is accepted.

    >>> parse_time("1970-01-01T00:01:00Z", 0)
    60000000
    >>> parse_time("-2m", 180_000_000)
    60000000
    """
    relative = _RELATIVE.fullmatch(text)
    if relative:
        time = now_us - int(relative[1]) * _SECONDS[relative[2]] * 1_000_000
        if time < 0:
            raise ValueError(f"{text} is before 1970")
        return time
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time: write 2026-01-31T12:00:00Z, or -15m for 15 minutes ago (s, m, h, d)"
        ) from None
    if parsed.tzinfo is None:
        raise ValueError(f"{text!r} has no zone: end it with Z or an offset such as +02:00 (in a URL, %2B02:00)")
    time = (parsed - _EPOCH) // _MICROSECOND
    if time < 0:
        raise ValueError(f"{text} is before 1970")
    return time


def to_datetime(time_us: int) -> datetime:
    """UTC us as an aware datetime."""
    return _EPOCH + timedelta(microseconds=time_us)


def to_us(time: datetime) -> int:
    """An aware datetime as UTC us."""
    return (time - _EPOCH) // _MICROSECOND
