"""Endpoints of stability: whether features last over versions and come back in a twin of their dictionary."""

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import numpy as np
import pyarrow as pa
from hydrophone_schemas import rest
from pydantic import Field

from hydrophoned.api.backend import FoundStability
from hydrophoned.api.cursors import decode_cursor, encode_cursor
from hydrophoned.api.endpoint import Call, Endpoint, Listing, One, PageQuery
from hydrophoned.api.errors import Refused

_KINDS: Final = np.array([kind.value for kind in rest.StabilityKind])
_UNKNOWN: Final = rest.StabilityKind.UNKNOWN.value


class StabilityQuery(PageQuery):
    """Which features."""

    status: rest.StabilityKind | None = Field(default=None, description="only features of this status")


class _StabilityCursor(rest.RestModel):
    """How many features the pages before had."""

    start: int = Field(ge=0, lt=2**31)


async def start_stability(call: Call) -> One:
    """Learn a twin of a stream's dictionary."""
    status = call.stream()
    if not status.dictionary_version:
        raise Refused(
            HTTPStatus.CONFLICT,
            "no-dictionary",
            f"{status.id} has no dictionary yet, so it has no features; {status.rows_received} rows have been received",
        )
    return One(call.backend.start_stability(status.id, call.body), HTTPStatus.ACCEPTED)


async def get_stability(call: Call) -> Listing:
    """What the latest twin said."""
    status, query = call.stream(), call.query
    run, found = call.backend.stability(status.id)
    about = run.model_dump(include={"started", "problem"}) | {"state": run.state.value}
    # the pages of one list are of one answer
    order = f"stability {status.id} {query.status} {found and found.about['time']}"
    start = 0 if query.cursor is None else decode_cursor(query.cursor, _StabilityCursor, order).start
    if found is None:
        return Listing([], about=about)
    chosen = await call.reads.run(partial(_in_order, found, query.status))
    page = _table(found, chosen[start : start + query.limit])
    end = start + query.limit
    following = encode_cursor(_StabilityCursor(start=end), order) if end < len(chosen) else None
    return Listing(page, following, found.about | about)


def _in_order(found: FoundStability, only: rest.StabilityKind | None) -> Any:
    """Indices of features, stable ones first, unknown ones last; ties are in order of index."""
    order = np.argsort(-found.rank, kind="stable")
    return order if only is None else order[_KINDS[found.kind[order]] == only.value]


def _table(found: FoundStability, chosen: Any) -> pa.Table:
    correlation = found.correlation[chosen]
    return pa.table(
        {
            "index": pa.array(chosen),
            "feature_id": pa.array(found.feature_id[chosen]),
            "status": pa.array(_KINDS[found.kind[chosen]].tolist(), pa.string()),
            "correlation": pa.array(correlation, mask=np.isnan(correlation)),
            "persisted": pa.array(found.persisted[chosen]),
        }
    )


# -- in other lists ---------------------------------------------------------------------------------------------------


async def with_stability(call: Call, status: rest.StreamStatus, features: pa.Table) -> pa.Table:
    """``features`` with the columns ``stability`` and ``persisted``, by their column ``index``."""
    indices = features["index"].to_pylist()
    standing = await _standing(call, status, indices)
    _, found = call.backend.stability(status.id)
    kinds: list[str | None] = []
    for index, feature_id in zip(indices, standing["feature_id"].to_pylist(), strict=True):
        kind = _KINDS[found.kind[index]].item() if _is_of(found, index, feature_id) else _UNKNOWN  # type: ignore[union-attr]  # it is of an answer
        kinds.append(None if kind == _UNKNOWN else kind)
    version = status.dictionary_version or 0
    persisted = [None if born is None else version + 1 - born for born in standing["born_version"].to_pylist()]
    features = features.append_column("stability", pa.array(kinds, pa.string()))
    return features.append_column("persisted", pa.array(persisted, pa.int64()))


async def ranks(call: Call, status: rest.StreamStatus) -> tuple[list[float | None], str]:
    """By index what features are sorted by, None where a feature is unknown, and a name for this order."""
    _, found = call.backend.stability(status.id)
    if found is None or not status.features:
        return [None] * (status.features or 0), "none"
    standing = await _standing(call, status, range(status.features))
    return await call.reads.run(partial(_known, found, standing)), str(found.about["time"])


def _known(found: FoundStability, standing: pa.Table) -> list[float | None]:
    """``found.rank``, None of features that are unknown, or where another one stands now."""
    ids = standing["feature_id"].fill_null(-1).to_numpy()
    count = min(len(ids), len(found.rank))  # a dictionary may have been of another size
    known = (ids[:count] == found.feature_id[:count]) & ~np.isnan(found.rank[:count])
    ranks = [rank if is_known else None for rank, is_known in zip(found.rank.tolist(), known.tolist(), strict=False)]
    return ranks + [None] * (len(ids) - count)


async def _standing(call: Call, status: rest.StreamStatus, indices: Sequence[int]) -> pa.Table:
    version = status.dictionary_version or 0
    return await call.reads.run(partial(call.backend.reader.standing, status.stream_key, indices, version))


def _is_of(found: FoundStability | None, index: int, feature_id: int | None) -> bool:
    """Whether the answer is of the feature that stands at an index now."""
    return found is not None and index < len(found.feature_id) and found.feature_id[index] == feature_id


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/streams/{stream}/stability",
        start_stability,
        "Learn a twin of a stream's dictionary with another seed, to see which features come back; one run at a time",
        "features",
        rest.StabilityRun,
        body=rest.StabilityRunBody,
        consumes=(rest.JSON_TYPE,),
        status=HTTPStatus.ACCEPTED,
        problems=(
            HTTPStatus.NOT_FOUND,
            HTTPStatus.CONFLICT,
            HTTPStatus.SERVICE_UNAVAILABLE,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
        ),
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/stability",
        get_stability,
        "Which features of a stream's dictionary come back in a twin, and how long they have lasted",
        "features",
        rest.StabilityList,
        rest.FeatureStability,
        StabilityQuery,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    ),
)
