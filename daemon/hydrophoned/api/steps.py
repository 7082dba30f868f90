"""Lists over time: one item per window, or per step of several windows, oldest first."""

from collections.abc import Callable
from typing import Protocol

import pyarrow as pa
from hydrophone_schemas.rest import RestModel
from pydantic import Field

from hydrophoned.api.cursors import decode_cursor, encode_cursor
from hydrophoned.api.endpoint import Call, Listing
from hydrophoned.api.ranges import NOTHING, Range, RangePageQuery, read_range
from hydrophoned.store import WindowRange


class StepQuery(RangePageQuery):
    """A page of a list over time."""

    step: int | None = Field(
        default=None,
        ge=1,
        le=366 * 86400,
        description="seconds that one item covers, joining the windows that start in it; default each window by itself",
    )


class _StepCursor(RestModel):
    """Behind which window the next page begins, and the range that all pages share."""

    after: int = Field(ge=0, lt=2**60)
    since: int = Field(ge=0, lt=2**60)
    until: int = Field(ge=0, lt=2**60)


class _Read(Protocol):
    def __call__(self, stream_key: int, *, covered: WindowRange) -> pa.Table:
        """Rows of the range, with a column ``window_start``."""


async def stepped(call: Call, stream_key: int, name: str, read: _Read) -> Listing:
    """One page of what ``read`` gives; ``name`` tells the list from others."""
    query = call.query
    order = f"{name} {query.model_dump_json(include={'since', 'until', 'step'})}"
    after = None
    if query.cursor is not None:
        cursor = decode_cursor(query.cursor, _StepCursor, order)
        covered: Range | None = Range(cursor.since, cursor.until)
        after = cursor.after
    else:
        covered = await read_range(call, stream_key)
    if covered is None:
        return Listing([], about=NOTHING)
    window = WindowRange(
        covered.since, covered.until, query.limit + 1, None if query.step is None else query.step * 1_000_000
    )
    table = await call.reads.run(_bound(read, stream_key, window if after is None else window.after(after)))
    following = None
    if table.num_rows > query.limit:
        table = table.slice(0, query.limit)
        last = table["window_start"][-1].cast(pa.int64()).as_py()
        following = encode_cursor(_StepCursor(after=last, since=covered.since, until=covered.until), order)
    return Listing(table, following, covered.about())


def _bound(read: _Read, stream_key: int, covered: WindowRange) -> Callable[[], pa.Table]:
    return lambda: read(stream_key, covered=covered)
