"""Endpoints of features: the list, one feature, its series and its examples."""

import re
from datetime import UTC
from functools import partial
from http import HTTPStatus
from typing import Annotated, Final, NamedTuple

import pyarrow as pa
from hydrophone_schemas import rest
from pydantic import Field

from hydrophoned.api.cursors import decode_cursor, encode_cursor
from hydrophoned.api.endpoint import MAX_INDEX, Call, Endpoint, FormatQuery, Listing, One
from hydrophoned.api.labels import with_labels
from hydrophoned.api.problems import parameter_problem
from hydrophoned.api.ranges import NOTHING, Range, RangePageQuery, RangeQuery, read_range
from hydrophoned.api.splits import ATTRIBUTE, VALUE, read_split
from hydrophoned.api.stability import ranks, with_stability
from hydrophoned.api.steps import StepQuery, stepped
from hydrophoned.store import FeatureQuery

_MAX_ONLY: Final = 1000


class FeaturesQuery(RangePageQuery):
    """Which features, in which order."""

    sort: rest.Sort = Field(default=rest.Sort.RATE, description="column to sort by; ties are in order of index")
    order: rest.Order = Field(default=rest.Order.DESCENDING, description="asc or desc; null comes last in both")
    min_rate: float | None = Field(default=None, description="only features with rate >= this", allow_inf_nan=False)
    max_rate: float | None = Field(default=None, description="only features with rate <= this", allow_inf_nan=False)
    min_max: float | None = Field(
        default=None, description="only features whose largest value is >= this", allow_inf_nan=False
    )
    fired: bool | None = Field(
        default=None, description="true: only features that fired in the range; false: only those that did not"
    )
    index: str | None = Field(
        default=None,
        max_length=_MAX_ONLY * 11,
        pattern=r"^\d{1,10}(,\d{1,10})*$",
        description="only these features: indices with commas between, at most 1000",
    )
    attribute: str | None = ATTRIBUTE
    value: str | None = VALUE


class FeatureQueryRange(RangeQuery):
    """Over which windows, and which rows of them."""

    attribute: str | None = ATTRIBUTE
    value: str | None = VALUE


class SeriesQuery(StepQuery):
    """Over which windows, in which steps, and which rows of them."""

    attribute: str | None = ATTRIBUTE
    value: str | None = VALUE


class ExamplesQuery(FormatQuery):
    """How many examples, and how much around them."""

    limit: int = Field(default=8, ge=1, le=100, description="examples at most")
    context: int = Field(default=10, ge=0, le=200, description="token strings to either side of the row's own")


class _FeatureCursor(rest.RestModel):
    """Behind which feature the next page begins, and the range that all pages share."""

    key: Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[float, Field(allow_inf_nan=False)] | None
    index: int = Field(ge=0, le=MAX_INDEX)
    since: int = Field(ge=0, lt=2**60)
    until: int = Field(ge=0, lt=2**60)


class _Page(NamedTuple):
    table: pa.Table
    next: str | None


async def list_features(call: Call) -> Listing:
    """The features of a stream over a range of windows."""
    status, query = call.stream(), call.query
    only, split = _read_only(query.index), read_split(query)
    # the cursor carries the range it began with: the pages of one list cover the same windows
    order = f"features {status.id} {query.model_dump_json(exclude={'cursor', 'limit', 'format'})}"
    stability = None
    if query.sort is rest.Sort.STABILITY:
        stability, of = await ranks(call, status)
        order += of  # the pages of one list are of one answer
    if query.cursor is not None:
        cursor = decode_cursor(query.cursor, _FeatureCursor, order)
        covered: Range | None = Range(cursor.since, cursor.until)
        after = (cursor.key, cursor.index)
    else:
        covered, after = await read_range(call, status.stream_key), None
    if covered is None:
        return Listing([], about=NOTHING)
    wanted = FeatureQuery(
        covered.since,
        covered.until,
        query.limit + 1,
        features=status.features,
        sort=query.sort.value,
        descending=query.order is rest.Order.DESCENDING,
        after=after,
        only=only,
        fired=query.fired,
        min_rate=query.min_rate,
        max_rate=query.max_rate,
        min_max=query.min_max,
        split=split,
        stability=stability,
    )
    table = await call.reads.run(partial(call.backend.reader.features, status.stream_key, wanted))
    page = _cut(table, query.limit, query.sort.value, covered, order)
    listed = page.table if stability is None else page.table.drop_columns("stability")
    listed = await with_stability(call, status, await with_labels(call, status.stream_key, listed))
    return Listing(listed, page.next, covered.about())


async def get_feature(call: Call) -> One:
    """One feature over a range of windows."""
    status = call.stream()
    index, split = call.index(status), read_split(call.query)
    covered = await read_range(call, status.stream_key)
    wanted = FeatureQuery(*(covered or (0, 0)), limit=1, features=index + 1, only=[index], split=split)
    table = await call.reads.run(partial(call.backend.reader.features, status.stream_key, wanted))
    table = await with_stability(call, status, await with_labels(call, status.stream_key, table))
    (figures,) = table.to_pylist()
    if figures["last_fired"] is not None:
        figures["last_fired"] = figures["last_fired"].replace(tzinfo=UTC)
    about = covered.about() if covered else NOTHING
    here = partial(call.backend.reader.feature_at, status.stream_key, index, status.dictionary_version or 0)
    feature_id, born = (await call.reads.run(here)) or (None, None)
    figures = rest.Feature.model_validate(figures)
    return One(rest.FeatureDetail(stream=status.id, feature=figures, feature_id=feature_id, born_version=born, **about))


async def feature_series(call: Call) -> Listing:
    """One feature window by window."""
    status = call.stream()
    index, split = call.index(status), read_split(call.query)
    read = partial(call.backend.reader.series, feature=index, split=split)
    return await stepped(call, status.stream_key, f"series {status.id} {index} {split}", read)


async def feature_examples(call: Call) -> Listing:
    """The rows that activated a feature most."""
    status, query = call.stream(), call.query
    index = call.index(status)
    return Listing(
        await call.reads.run(
            partial(call.backend.reader.examples, status.stream_key, index, limit=query.limit, context=query.context)
        )
    )


def _cut(table: pa.Table, limit: int, sort: str, covered: Range, order: str) -> _Page:
    """The page of ``limit`` rows, and the cursor of the next where there is a row more."""
    if table.num_rows <= limit:
        return _Page(table, None)
    key = table[sort][limit - 1]
    if pa.types.is_timestamp(key.type):
        key = key.cast(pa.int64())
    cursor = _FeatureCursor(
        key=key.as_py(), index=table["index"][limit - 1].as_py(), since=covered.since, until=covered.until
    )
    return _Page(table.slice(0, limit), encode_cursor(cursor, order))


def _read_only(text: str | None) -> list[int] | None:
    if text is None:
        return None
    indices = [int(part) for part in re.split(",", text)]
    if len(indices) > _MAX_ONLY or max(indices) > MAX_INDEX:
        raise parameter_problem("index", "query", f"at most {_MAX_ONLY} indices, each at most {MAX_INDEX}")
    return indices


_NOT_FOUND: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)
ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/streams/{stream}/features",
        list_features,
        "Features of a stream over a range of windows: sorted, filtered, page by page",
        "features",
        rest.FeatureList,
        rest.Feature,
        FeaturesQuery,
        problems=_NOT_FOUND,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/features/{index}",
        get_feature,
        "One feature over a range of windows",
        "features",
        rest.FeatureDetail,
        query=FeatureQueryRange,
        problems=_NOT_FOUND,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/features/{index}/series",
        feature_series,
        "One feature over time, window by window or in steps",
        "features",
        rest.Series,
        rest.SeriesPoint,
        SeriesQuery,
        problems=_NOT_FOUND,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/features/{index}/examples",
        feature_examples,
        "The rows that activated a feature most, with the token strings around them where these are kept",
        "features",
        rest.ExampleList,
        rest.Example,
        ExamplesQuery,
        problems=_NOT_FOUND,
    ),
)
