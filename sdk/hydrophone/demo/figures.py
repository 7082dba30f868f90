"""The figures the demo shows and reports, gathered from the tap and the daemon's API."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hydrophone.tap import Status

_LONGEST_COURSE = 600


@dataclass
class Figures:
    """One reading. None is unknown."""

    seconds: float = 0.0
    tokens: int = 0
    model_tokens_per_s: float | None = None
    rows_sent: int = 0
    rows_received: int = 0
    rows_dropped: int = 0
    rows_learned: int = 0
    learner_rows_per_s: float | None = None
    fvu: float | None = None
    l0: float | None = None
    dead_fraction: float | None = None
    features_alive: int | None = None
    features_fired: int | None = None
    features: int | None = None


@dataclass
class Meter:
    """Turns counters into rates over the last seconds, and keeps the course of fvu for the picture."""

    started: float = field(default_factory=time.monotonic)
    fvus: list[float] = field(default_factory=list)
    """The course of fvu from the start, thinned by half whenever it grows long."""
    _marks: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=20))

    def read(self, tokens: int, tap: Status, stream: dict[str, Any] | None) -> Figures:
        """A reading from the tokens run so far, the tap's status and the stream's status from the API."""
        now = time.monotonic()
        figures = Figures(seconds=now - self.started, tokens=tokens)
        figures.rows_sent = sum(report["sent"] for report in tap.streams)
        figures.rows_dropped = sum(tap.dropped.values())
        if stream is not None:
            figures.rows_received = stream["rows_received"]
            figures.rows_dropped += sum(stream["rows_dropped"].values())
            figures.rows_learned = stream["rows_learned"] or 0
            for name in ("fvu", "l0", "dead_fraction", "features_alive", "features_fired", "features"):
                setattr(figures, name, stream[name])
            if figures.fvu is not None:
                self.fvus.append(figures.fvu)
                if len(self.fvus) > _LONGEST_COURSE:
                    del self.fvus[1::2]
        self._marks.append((now, tokens, figures.rows_learned))
        first = self._marks[0]
        if now > first[0]:
            figures.model_tokens_per_s = (tokens - first[1]) / (now - first[0])
            figures.learner_rows_per_s = (figures.rows_learned - first[2]) / (now - first[0])
        return figures


def shown(value: float | None, form: str = ",.0f") -> str:
    """A number for people; a dash where it is unknown."""
    return "—" if value is None else format(value, form)
