"""Endpoints of drift and novelty: the watch, its references, what was found, and novel requests."""

from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import pyarrow as pa
from hydrophone_schemas import rest
from pydantic import Field

from hydrophoned.api.arrow import as_dicts, as_table
from hydrophoned.api.cursors import decode_cursor, encode_cursor
from hydrophoned.api.endpoint import MAX_INDEX, Call, Endpoint, FormatQuery, Listing, NoQuery, One, PageQuery
from hydrophoned.api.problems import not_found, parameter_problem
from hydrophoned.api.times import parse_time
from hydrophoned.store import DetectionQuery, DetectionReader, NovelQuery

_FOREVER: Final = (1 << 60) - 1
_SINCE: Final = Field(
    default=None,
    max_length=40,
    description="only those of this time or later: ISO 8601 with a zone, or -15m for 15 minutes ago (s, m, h, d)",
)
_UNTIL: Final = Field(default=None, max_length=40, description="only those before this")


class DetectionsQuery(PageQuery):
    """Which drifts."""

    stream: str | None = Field(default=None, max_length=1000, description="only drifts of the stream of this id")
    since: str | None = _SINCE
    until: str | None = _UNTIL


class NoveltyQuery(PageQuery):
    """Which novel requests."""

    since: str | None = _SINCE
    until: str | None = _UNTIL


class _ReferenceCursor(rest.RestModel):
    """Behind which reference the next page begins."""

    made: int = Field(ge=0, lt=2**60)
    stratum: str
    version: int = Field(ge=0, lt=2**31)


class _RangeCursor(rest.RestModel):
    """Behind which time the next page begins, and the range that all pages share."""

    time: int = Field(ge=0, lt=2**60)
    since: int = Field(ge=0, lt=2**60)
    until: int = Field(ge=0, lt=2**60)


class _DetectionCursor(_RangeCursor):
    """Behind which of the drifts of that time."""

    stream_key: int = Field(ge=0, lt=2**31)
    number: int = Field(ge=0, lt=2**31)


class _NovelCursor(_RangeCursor):
    """Behind which of the requests of that time."""

    request_key: int = Field(ge=-1, lt=2**63)


class _Range(NamedTuple):
    """Times in [since, until), in us."""

    since: int
    until: int


# -- the watch ----------------------------------------------------------------------------------------------------


async def get_drift(call: Call) -> One:
    """The watch over a stream."""
    return One(call.backend.drift.status(call.stream().id))


async def list_references(call: Call) -> Listing:
    """What a stream was compared with."""
    status, query = call.stream(), call.query
    order, after = f"references {status.id}", None
    if query.cursor is not None:
        cursor = decode_cursor(query.cursor, _ReferenceCursor, order)
        after = (cursor.made, cursor.stratum, cursor.version)
    read = partial(call.backend.drift.reader.references, status.stream_key, limit=query.limit + 1, after=after)
    table = await call.reads.run(read)
    if table.num_rows <= query.limit:
        return Listing(table)
    page = table.slice(0, query.limit)
    last = _ReferenceCursor(stratum=page["stratum"][-1].as_py(), **_keys(page, "made", "version"))
    return Listing(page, encode_cursor(last, order))


async def rebaseline(call: Call) -> One:
    """Compare a stream with another reference."""
    told = await call.backend.drift.rebaseline(call.stream().id, call.body)
    return One(told, HTTPStatus.ACCEPTED if call.body.source is rest.RebaselineSource.NEXT else HTTPStatus.CREATED)


# -- drifts -------------------------------------------------------------------------------------------------------


async def list_detections(call: Call) -> Listing:
    """Drifts of all streams, or of one."""
    query = call.query
    key = None if query.stream is None else call.known_stream(query.stream).stream_key
    order = f"detections {query.model_dump_json(include={'stream', 'since', 'until'})}"
    covered, after = _covered(call), None
    if query.cursor is not None:
        cursor = decode_cursor(query.cursor, _DetectionCursor, order)
        covered, after = _Range(cursor.since, cursor.until), (cursor.time, cursor.stream_key, cursor.number)
    wanted = DetectionQuery(query.limit + 1, *covered, stream_key=key, after=after)
    table = await call.reads.run(partial(call.backend.drift.reader.detections, wanted))
    if table.num_rows <= query.limit:
        return Listing(table)
    page = table.slice(0, query.limit)
    last = _DetectionCursor(**_keys(page, "time", "stream_key", "number"), **covered._asdict())
    return Listing(page, encode_cursor(last, order))


async def get_detection(call: Call) -> One:
    """One drift and what it is about."""
    status, number = call.stream(), call.number("number")
    found = None
    if number <= MAX_INDEX:
        found = await call.reads.run(partial(_detail, call.backend.drift.reader, status.stream_key, number))
    if found is None:
        counted = call.backend.drift.status(status.id).drifts or 0
        raise not_found(
            "detection-not-found",
            f"{status.id} has no drift {number} in the store; so far {counted} were found there",
        )
    return One(found)


def _detail(reader: DetectionReader, stream_key: int, number: int) -> rest.DetectionDetail | None:
    table = reader.detections(DetectionQuery(1, stream_key=stream_key, number=number))
    if not table.num_rows:
        return None
    (detection,) = _models(table, rest.Detection)
    return rest.DetectionDetail(
        detection=detection,
        features=_models(reader.detected_features(stream_key, number), rest.DetectedFeature),
        requests=_models(reader.detected_requests(stream_key, number), rest.DetectedRequest),
        attributes=_models(reader.detected_attributes(stream_key, number), rest.DetectedAttribute),
    )


def _models(table: pa.Table, model: Any) -> list[Any]:
    """Rows as ``model``, whose fields are columns of the table."""
    return [model(**row) for row in as_dicts(as_table(table, model))]


# -- novelty ------------------------------------------------------------------------------------------------------


async def list_novelty(call: Call) -> Listing:
    """Novel requests, and how many of how many."""
    status, query = call.stream(), call.query
    order = f"novelty {status.id} {query.model_dump_json(include={'since', 'until'})}"
    covered, after = _covered(call), None
    if query.cursor is not None:
        cursor = decode_cursor(query.cursor, _NovelCursor, order)
        covered, after = _Range(cursor.since, cursor.until), (cursor.time, cursor.request_key)
    wanted = NovelQuery(query.limit + 1, *covered, after=after)
    table = await call.reads.run(partial(call.backend.drift.reader.novel, status.stream_key, wanted))
    told = call.backend.drift.status(status.id).novelty
    about = dict.fromkeys(rest.NoveltyStatus.model_fields) if told is None else told.model_dump()
    if table.num_rows <= query.limit:
        return Listing(table, about=about)
    page = table.slice(0, query.limit)
    last = _NovelCursor(**_keys(page, "time", "request_key"), **covered._asdict())
    return Listing(page, encode_cursor(last, order), about)


async def cluster_novelty(call: Call) -> Listing:
    """Groups of novel requests."""
    return Listing(await call.backend.drift.clusters(call.stream().id))


# -- ranges and pages ---------------------------------------------------------------------------------------------


def _covered(call: Call) -> _Range:
    """The range that ``since`` and ``until`` give, without bound where they do not; raises Refused (400)."""
    query, given = call.query, {"since": 0, "until": _FOREVER}
    for name in given:
        text = getattr(query, name)
        if text is not None:
            try:
                given[name] = parse_time(text, call.backend.now())
            except (ValueError, OverflowError) as error:
                raise parameter_problem(name, "query", str(error)) from None
    if given["since"] > given["until"]:
        raise parameter_problem("since", "query", f"{query.since} is after until = {query.until}")
    return _Range(**given)


def _keys(page: pa.Table, *names: str) -> dict[str, int]:
    """What the last row of a page has in these columns, times in us."""
    return {name: page[name][-1].cast(pa.int64()).as_py() for name in names}


_READ: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)

ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/streams/{stream}/drift",
        get_drift,
        "The watch over a stream: its state, reference, detectors and budget",
        "drift",
        rest.DriftStatus,
        problems=(HTTPStatus.NOT_FOUND,),
        stability="beta",
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/references",
        list_references,
        "Samples that a stream was compared with, the latest first",
        "drift",
        rest.ReferenceList,
        rest.Reference,
        PageQuery,
        problems=_READ,
        stability="beta",
    ),
    Endpoint(
        "POST",
        "/v1/streams/{stream}/references",
        rebaseline,
        "Compare a stream with another reference from now on: the latest requests, or those to come",
        "drift",
        rest.DriftStatus,
        query=NoQuery,
        body=rest.RebaselineBody,
        consumes=(rest.JSON_TYPE,),
        status=HTTPStatus.ACCEPTED,
        also=(HTTPStatus.CREATED,),
        problems=(
            *_READ,
            HTTPStatus.CONFLICT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
        ),
        stability="beta",
    ),
    Endpoint(
        "GET",
        "/v1/detections",
        list_detections,
        "Drifts of all streams, the latest first",
        "drift",
        rest.DetectionList,
        rest.Detection,
        DetectionsQuery,
        problems=_READ,
        stability="beta",
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/detections/{number}",
        get_detection,
        "One drift: which features changed, which requests carry it, in which attributes, since when",
        "drift",
        rest.DetectionDetail,
        problems=_READ,
        stability="beta",
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/novelty",
        list_novelty,
        "Requests unlike those of the reference, the latest first, and their share",
        "drift",
        rest.NoveltyList,
        rest.NovelRequest,
        NoveltyQuery,
        problems=_READ,
        stability="beta",
    ),
    Endpoint(
        "POST",
        "/v1/streams/{stream}/novelty:clusters",
        cluster_novelty,
        "The latest novel requests in groups of those that resemble each other",
        "drift",
        rest.NoveltyClusterList,
        rest.NoveltyCluster,
        FormatQuery,
        problems=(*_READ, HTTPStatus.CONFLICT),
        stability="beta",
    ),
)
