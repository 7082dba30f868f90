"""Logging: one line per event on standard error, as text for people or JSON for machines."""

import json
import logging
import sys
import time
from datetime import UTC, datetime

_PER_SECOND = 20


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class RateLimit(logging.Filter):
    """Passes at most 20 records of one place in the code per second, and says how many it held back."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, int], tuple[int, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record passes."""
        place, second = (record.pathname, record.lineno), int(time.monotonic())
        began, passed, held = self._places.get(place, (second, 0, 0))
        if second != began:
            if held:
                record.msg = f"{record.msg} ({held} more like this were held back)"
            began, passed, held = second, 0, 0
        keep = passed < _PER_SECOND
        self._places[place] = (began, passed + keep, held + (not keep))
        return keep


def configure(level: str, form: str) -> None:
    """Log to standard error at ``level`` (debug, info, warning, error) in ``form`` (text, json)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RateLimit())
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
