"""Courses and shares in one line of text."""

from collections.abc import Sequence
from typing import Any, Final

_BARS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None]) -> str:
    """Values as bars between their least and greatest; a value that is not known is a gap.

    >>> sparkline([0.0, None, 0.5, 1.0])
    '▁ ▅█'
    """
    known = [value for value in values if value is not None]
    if not known:
        return " " * len(values)
    low, span = min(known), max(known) - min(known)

    def bar(value: float | None) -> str:
        if value is None:
            return " "
        return _BARS[round((value - low) / span * (len(_BARS) - 1))] if span else _BARS[0]

    return "".join(map(bar, values))


def rates(points: Sequence[dict[str, Any]], count: int) -> list[float | None]:
    """Firing rates of at most ``count`` runs of neighbouring series points; None where no row was scored.

    >>> points = [{"rows": 10, "fired": 1}, {"rows": 30, "fired": 5}, {"rows": 0, "fired": None}]
    >>> rates(points, 2)
    [0.15, None]
    """
    size = max(1, -(-len(points) // count))
    joined = []
    for start in range(0, len(points), size):
        run = points[start : start + size]
        rows = sum(point["rows"] for point in run)
        joined.append(sum(point["fired"] or 0 for point in run) / rows if rows else None)
    return joined


def gauge(value: float | None, full: float | None, width: int) -> str:
    """How much of ``full`` there is of ``value``, as a bar; blank where one of them is not known.

    >>> gauge(3.0, 4.0, 8), gauge(-1.0, 4.0, 4), gauge(None, 4.0, 4)
    ('██████··', '····', '    ')
    """
    if value is None or not full:
        return " " * width
    filled = min(width, max(0, int(width * value / full)))
    return "█" * filled + "·" * (width - filled)
