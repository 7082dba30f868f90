"""The range of windows a query covers, as its parameters give it."""

from functools import partial
from typing import NamedTuple

from hydrophone_schemas.rest import RestModel
from pydantic import Field

from hydrophoned.api.endpoint import Call, PageQuery
from hydrophoned.api.problems import parameter_problem
from hydrophoned.api.times import parse_time, to_datetime

DEFAULT_RANGE_S = 3600
_MAX_US = 253_402_300_799_000_000  # the last second of year 9999
_SINCE = Field(
    default=None,
    max_length=40,
    description="cover windows that start at or after this: ISO 8601 with a zone, or -15m for 15 minutes ago "
    "(s, m, h, d); default one hour before until",
)
_UNTIL = Field(
    default=None,
    max_length=40,
    description="cover windows that start before this; default the end of the stream's last closed window",
)


class RangeQuery(RestModel):
    """A range of windows."""

    since: str | None = _SINCE
    until: str | None = _UNTIL


class RangePageQuery(PageQuery):
    """A page of a list over a range of windows."""

    since: str | None = _SINCE
    until: str | None = _UNTIL


class Range(NamedTuple):
    """Windows that start in [since, until), in us."""

    since: int
    until: int

    def about(self) -> dict[str, object]:
        """The fields of an answer that say what it covers."""
        return {"since": to_datetime(self.since), "until": to_datetime(self.until)}


NOTHING = {"since": None, "until": None}
"""``Range.about`` of a stream that has no closed window."""


async def read_range(call: Call, stream_key: int) -> Range | None:
    """The range that ``since`` and ``until`` give; None where a default was needed and nothing is stored yet.

    Raises Refused (400).
    """
    given: dict[str, int] = {}
    for name in ("since", "until"):
        text = getattr(call.query, name)
        if text is not None:
            try:
                given[name] = parse_time(text, call.backend.now())
            except (ValueError, OverflowError) as error:
                raise parameter_problem(name, "query", str(error)) from None
    until = given.get("until")
    if until is None:
        until = await call.reads.run(partial(call.backend.reader.last_window_end, stream_key))
        if until is None:
            return None
        until = max(until, given.get("since", 0))  # since lies after the last window: an empty range, not an error
    since = given.get("since", max(0, until - DEFAULT_RANGE_S * 1_000_000))
    if since > until:
        raise parameter_problem("since", "query", f"{call.query.since} is after until = {call.query.until}")
    return Range(min(since, _MAX_US), min(until, _MAX_US))
