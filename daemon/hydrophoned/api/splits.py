"""Statistics of part of a stream's rows: which attributes there are to ask by, and how a query names one."""

from functools import partial
from http import HTTPStatus
from typing import Final, Protocol

from hydrophone_schemas import rest
from pydantic import Field

from hydrophoned.api.endpoint import Call, Endpoint, FormatQuery, Listing
from hydrophoned.api.problems import parameter_problem
from hydrophoned.api.ranges import NOTHING, RangeQuery, read_range
from hydrophoned.store import SplitCell

ATTRIBUTE: Final = Field(
    default=None,
    max_length=200,
    description="with value, only rows of this cell: phase, or a name in learn.split_by; see splits",
)
VALUE: Final = Field(
    default=None,
    max_length=200,
    description="the attribute's value, such as decode; 'other' is all beyond its first 32",
)


class SplitsQuery(RangeQuery, FormatQuery):
    """Over which windows."""


class _Splittable(Protocol):
    attribute: str | None
    value: str | None


def read_split(query: _Splittable) -> SplitCell | None:
    """The cell that ``attribute`` and ``value`` name; raises Refused (400) where only one of them is given."""
    if query.attribute is None and query.value is None:
        return None
    if query.attribute is None:
        raise parameter_problem("attribute", "query", "is needed with value")
    if query.value is None:
        raise parameter_problem("value", "query", "is needed with attribute")
    return SplitCell(query.attribute, query.value)


async def list_splits(call: Call) -> Listing:
    """The attributes and values by which a stream's statistics are split."""
    status = call.stream()
    covered = await read_range(call, status.stream_key)
    if covered is None:
        return Listing([], about=NOTHING)
    read = partial(call.backend.reader.splits, status.stream_key, covered.since, covered.until)
    return Listing(await call.reads.run(read), about=covered.about())


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/streams/{stream}/splits",
        list_splits,
        "Attributes and values that the statistics of features can be asked by",
        "features",
        rest.SplitList,
        rest.Split,
        SplitsQuery,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    ),
)
