"""Endpoints of a dictionary's versions, of what became of its features, and of features by their ids."""

from collections.abc import Mapping
from datetime import UTC
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from hydrophone_schemas import rest
from pydantic import Field

from hydrophoned.api.cursors import decode_cursor, encode_cursor
from hydrophoned.api.endpoint import Call, Download, Endpoint, Listing, One, PageQuery
from hydrophoned.api.errors import Refused, Unavailable
from hydrophoned.api.problems import not_found
from hydrophoned.api.steps import StepQuery, stepped
from hydrophoned.store import MatchQuery

TAR_TYPE: Final = "application/x-tar"
_GONE: Final = "lost"


class MatchesQuery(PageQuery):
    """Which matches."""

    kind: rest.MatchKind | None = Field(default=None, description="only matches of this kind")


class _VersionCursor(rest.RestModel):
    """Behind which version the next page begins."""

    before: int = Field(ge=0, lt=2**31)


class _MatchCursor(rest.RestModel):
    """Behind which pair of indices the next page begins."""

    to_index: int | None = Field(ge=0, lt=2**31)
    from_index: int | None = Field(ge=0, lt=2**31)


async def list_versions(call: Call) -> Listing:
    """The versions of a stream's dictionary."""
    status, query = call.stream(), call.query
    order = f"versions {status.id}"
    before = None if query.cursor is None else decode_cursor(query.cursor, _VersionCursor, order).before
    read = partial(call.backend.reader.versions, status.stream_key, limit=query.limit + 1, before=before)
    rows = (await call.reads.run(read)).to_pylist()
    kept = await call.reads.run(partial(call.backend.versions_kept, status.id))
    page = [_version(row, status, kept) for row in rows[: query.limit]]
    more = len(rows) > query.limit
    return Listing(page, encode_cursor(_VersionCursor(before=page[-1].version), order) if more else None)


async def get_version(call: Call) -> One:
    """One version of a stream's dictionary."""
    status = call.stream()
    row = await _row(call, status)
    kept = await call.reads.run(partial(call.backend.versions_kept, status.id))
    return One(_version(row, status, kept))


async def publish_version(call: Call) -> One:
    """Publish a stream's dictionary as it is."""
    status = call.stream()
    if not status.dictionary_version:
        raise Refused(
            HTTPStatus.CONFLICT,
            "no-dictionary",
            f"{status.id} has no dictionary to publish yet: it is made from the first rows, and "
            f"{status.rows_received} have been received",
        )
    row = await call.backend.publish(status.id)
    kept = await call.reads.run(partial(call.backend.versions_kept, status.id))
    return One(_version(row, status, kept), HTTPStatus.CREATED)


async def version_matches(call: Call) -> Listing:
    """How the features of a version came from those of its parent."""
    status, query = call.stream(), call.query
    row = await _row(call, status)
    order = f"matches {status.id} {row['version']} {query.kind}"
    after = None
    if query.cursor is not None:
        cursor = decode_cursor(query.cursor, _MatchCursor, order)
        after = (cursor.to_index, cursor.from_index)
    wanted = MatchQuery(row["version"], query.limit + 1, [] if query.kind is None else [query.kind.value], after)
    table = await call.reads.run(partial(call.backend.reader.matches, status.stream_key, wanted))
    following = None
    if table.num_rows > query.limit:
        table = table.slice(0, query.limit)
        (last,) = table.slice(query.limit - 1).select(["to_index", "from_index"]).to_pylist()
        following = encode_cursor(_MatchCursor(**last), order)
    return Listing(table, following, {"from_version": row["parent"], "to_version": row["version"]})


async def version_artefact(call: Call) -> Download:
    """The weights of a version."""
    status, version = call.stream(), call.number("version")
    files = await call.reads.run(partial(call.backend.artefact, status.id, version))
    if files is None:
        await _row(call, status)  # whether there ever was one
        kept = sorted(await call.reads.run(partial(call.backend.versions_kept, status.id)))
        raise not_found(
            "version-not-kept",
            f"the weights of version {version} of {status.id} are not kept; kept are {kept or 'none'} "
            "(store.keep_versions)",
        )
    return Download(files.digest, files.nbytes, files.name, TAR_TYPE, files.chunks)


async def feature_by_id(call: Call) -> One:
    """Where a feature stands, by its id."""
    status = call.stream()
    return One(await _address(call, status))


async def feature_by_id_series(call: Call) -> Listing:
    """One feature window by window, while it lived."""
    status = call.stream()
    address = await _address(call, status)
    read = partial(call.backend.reader.series_of_id, feature_id=address.feature_id)
    return await stepped(call, status.stream_key, f"series {status.id} id {address.feature_id}", read)


async def _address(call: Call, status: rest.StreamStatus) -> rest.FeatureAddress:
    """The feature of the id in the path; raises Refused (400, 404)."""
    feature_id = call.number("feature_id")
    found = await call.reads.run(partial(call.backend.reader.feature_of_id, status.stream_key, feature_id))
    if found is None:
        raise not_found("feature-not-found", f"no feature of {status.id} has the id {feature_id}, or had it lately")
    lost = found["state"] == _GONE
    return rest.FeatureAddress(
        stream=status.id,
        feature_id=feature_id,
        index=None if lost else found["index"],
        born_version=found["born_version"],
        lost_version=found["version"] if lost else None,
    )


async def _row(call: Call, status: rest.StreamStatus) -> dict[str, Any]:
    """The version in the path as the store has it; raises Refused (400, 404)."""
    version = call.number("version")
    read = partial(call.backend.reader.versions, status.stream_key, limit=1, only=version)
    rows: list[dict[str, Any]] = (await call.reads.run(read)).to_pylist()
    if not rows:
        newest = status.dictionary_version
        if newest is not None and version == newest:
            raise Unavailable(f"version {version} of {status.id} is not stored yet")
        raise not_found(
            "version-not-found", f"{status.id} has no version {version}; the latest is {newest or 'still to come'}"
        )
    return rows[0]


def _version(row: Mapping[str, Any], status: rest.StreamStatus, kept: set[int]) -> rest.Version:
    told = {name: row[name] for name in rest.Version.model_fields if name in row}
    told["published"] = row["published"].replace(tzinfo=UTC)
    return rest.Version(**told, fingerprint=status.fingerprint, kept=row["version"] in kept)


_NOT_FOUND: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)
ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/streams/{stream}/versions",
        list_versions,
        "Published versions of a stream's dictionary",
        "versions",
        rest.VersionList,
        rest.Version,
        PageQuery,
        problems=_NOT_FOUND,
    ),
    Endpoint(
        "POST",
        "/v1/streams/{stream}/versions",
        publish_version,
        "Publish a stream's dictionary as it is now",
        "versions",
        rest.Version,
        status=HTTPStatus.CREATED,
        problems=(*_NOT_FOUND, HTTPStatus.CONFLICT),
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/versions/{version}/matches",
        version_matches,
        "How the features of a version came from those of its parent",
        "versions",
        rest.FeatureMatchList,
        rest.FeatureMatch,
        MatchesQuery,
        problems=_NOT_FOUND,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/versions/{version}/artefact",
        version_artefact,
        "The weights of a version, as a tar of its folder",
        "versions",
        produces=TAR_TYPE,
        problems=_NOT_FOUND,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/versions/{version}",
        get_version,
        "One published version of a stream's dictionary",
        "versions",
        rest.Version,
        problems=_NOT_FOUND,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/features/by-id/{feature_id}/series",
        feature_by_id_series,
        "One feature over time by its id, while it lived, at whichever index it stood",
        "features",
        rest.Series,
        rest.SeriesPoint,
        StepQuery,
        problems=_NOT_FOUND,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/features/by-id/{feature_id}",
        feature_by_id,
        "Where a feature stands, by its id",
        "features",
        rest.FeatureAddress,
        problems=_NOT_FOUND,
    ),
)
