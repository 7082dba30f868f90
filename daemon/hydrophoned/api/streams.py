"""Endpoints of models and streams, and of a stream's windows."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from hydrophone_schemas import rest
from pydantic import Field

from hydrophoned.api.cursors import decode_cursor, encode_cursor
from hydrophoned.api.endpoint import Call, Endpoint, Listing, One, PageQuery
from hydrophoned.api.steps import StepQuery, stepped


class StreamsQuery(PageQuery):
    """Which streams."""

    model: str | None = Field(default=None, max_length=100, description="only streams of the model of this name")


class _NameCursor(rest.RestModel):
    """Behind which name the next page begins."""

    after: list[str]


async def list_models(call: Call) -> Listing:
    """Models whose activations have been captured, from the streams there are."""
    streams: dict[tuple[str, str], list[rest.StreamStatus]] = {}
    for stream in sorted(call.backend.streams(), key=lambda stream: stream.id):
        streams.setdefault((stream.model, stream.version), []).append(stream)
    models = [
        rest.Model(
            name=name,
            version=version,
            created=min(stream.created for stream in found),
            streams=[stream.id for stream in found],
            fingerprints=sorted({stream.fingerprint for stream in found}),
        )
        for (name, version), found in sorted(streams.items())
    ]
    return _page(call, "models", models, [[model.name, model.version] for model in models])


async def list_streams(call: Call) -> Listing:
    """Streams with their live figures."""
    wanted = call.query.model
    streams = sorted(
        (stream for stream in call.backend.streams() if wanted is None or stream.model == wanted),
        key=lambda stream: stream.id,
    )
    return _page(call, f"streams {wanted}", streams, [[stream.id] for stream in streams])


async def get_stream(call: Call) -> One:
    """One stream with its live figures."""
    return One(call.stream())


async def dictionary_quality(call: Call) -> One:
    """How good a stream's dictionary is."""
    return One(await call.backend.quality(call.stream().id), tagged=True)


async def stream_windows(call: Call) -> Listing:
    """A stream's closed windows."""
    status = call.stream()
    return await stepped(call, status.stream_key, f"windows {status.id}", call.backend.reader.windows)


def _page(call: Call, name: str, items: Sequence[rest.RestModel], keys: list[list[str]]) -> Listing:
    """The page of ``items``, ordered by ``keys``, that the query asks for."""
    query, start = call.query, 0
    if query.cursor is not None:
        after = decode_cursor(query.cursor, _NameCursor, name).after
        start = sum(key <= after for key in keys)
    page = items[start : start + query.limit]
    more = start + query.limit < len(items)
    last = keys[start + query.limit - 1] if more else []
    return Listing(page, encode_cursor(_NameCursor(after=last), name) if more else None)


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/models",
        list_models,
        "Models whose activations have been captured",
        "streams",
        rest.ModelList,
        rest.Model,
        PageQuery,
    ),
    Endpoint(
        "GET",
        "/v1/streams",
        list_streams,
        "Streams with their live figures",
        "streams",
        rest.StreamList,
        rest.StreamStatus,
        StreamsQuery,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/windows",
        stream_windows,
        "A stream over time, window by window or in steps",
        "streams",
        rest.StreamWindowList,
        rest.StreamWindow,
        StepQuery,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/dictionary",
        dictionary_quality,
        "How good a stream's dictionary is, on rows it was not trained on",
        "streams",
        rest.DictionaryQuality,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}",
        get_stream,
        "One stream with its live figures",
        "streams",
        rest.StreamStatus,
        problems=(HTTPStatus.NOT_FOUND,),
    ),
)
