"""Logging: one line per event on standard error, as text for people or JSON for machines.

Fields go with a message as ``_log.info("stream opened", extra={"stream": "a@1/x", "width": 576})``; text shows them as
``stream=a@1/x width=576``. Users' text does not belong into logs: fields named as if they held it are withheld, and
whatever else came from outside is cut short and cannot begin a line of its own.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TextIO

_LONGEST: Final = 4000
"""Characters of a message or field; what comes from outside may be long."""
_WITHHELD: Final = frozenset({"text", "texts", "token", "tokens", "piece", "pieces", "context", "prompt", "completion"})
_OWN_ATTRIBUTES: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields given with a record; what may be users' text is replaced by how much there was of it."""
    given = {name: value for name, value in record.__dict__.items() if name not in _OWN_ATTRIBUTES}
    for name in _WITHHELD & given.keys():
        size = len(given[name]) if hasattr(given[name], "__len__") else 1
        given[name] = f"<{size} withheld>"
    return given


class TextFormatter(logging.Formatter):
    """``time level logger: message key=value ...``; a traceback follows, indented.

    With ``journal`` it writes the priority that the journal reads and leaves out the time, which the journal has.
    """

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the lines of the traceback."""
        words = [_one_line(record.getMessage())]
        words += [f"{name}={_value(value)}" for name, value in fields_of(record).items()]
        level = record.levelname.lower()
        if self._journal:
            head = f"<{next(number for least, number in _PRIORITIES if record.levelno >= least)}>{level}"
        else:
            head = f"{_time(record)} {level:<7}"
        lines = [f"{head} {record.name}: {' '.join(words)}"]
        if record.exc_info:
            lines += ["    " + line for line in self.formatException(record.exc_info).splitlines()]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = fields_of(record) | {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_LONGEST],
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Allowance(NamedTuple):
    tokens: float
    updated: float
    held: int


class RateLimit(logging.Filter):
    """Lets one place in the code log ``burst`` records at once and ``per_second`` after that.

    The next record that passes says in its field ``held_back`` how many did not. ``clock`` gives seconds.
    """

    def __init__(self, burst: int = 20, per_second: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._burst, self._per_second, self._clock = burst, per_second, clock
        self._places: dict[tuple[str, int], _Allowance] = {}  # as many as there are logging calls in the code

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record passes."""
        now = self._clock()
        place = (record.pathname, record.lineno)
        tokens, updated, held = self._places.get(place, _Allowance(self._burst, now, 0))
        tokens = min(self._burst, tokens + (now - updated) * self._per_second)
        if tokens < 1:
            self._places[place] = _Allowance(tokens, now, held + 1)
            return False
        self._places[place] = _Allowance(tokens - 1, now, 0)
        if held:
            record.held_back = held
        return True


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (standard error) at ``level`` (debug, info, warning, error) in ``form`` (text, json)."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.addFilter(RateLimit())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(journal=_is_journal(stream)))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def _is_journal(stream: TextIO) -> bool:
    """Whether ``stream`` leads to the journal: ``$JOURNAL_STREAM`` is the device and inode of its file."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # a stream in memory has no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    """``text`` cut short, with control characters escaped so that it cannot pass for another line."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)


def _value(value: Any) -> str:
    text = _one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text or "=" in text else text
