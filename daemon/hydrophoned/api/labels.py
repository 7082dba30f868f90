"""Endpoints of labels: list, give, take back, import, export, and automatic labelling."""

from datetime import UTC
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Literal

import pyarrow as pa
from hydrophone_schemas import rest
from pydantic import Field

from hydrophoned.api import label_files
from hydrophoned.api.cursors import decode_cursor, encode_cursor
from hydrophoned.api.endpoint import MAX_INDEX, Call, Endpoint, Listing, NoQuery, One, PageQuery, Raw
from hydrophoned.api.errors import Refused
from hydrophoned.api.problems import not_found
from hydrophoned.api.times import to_datetime
from hydrophoned.store import Label, LabelQuery
from hydrophoned.store.labels import IMPORTED, MANUAL

_MAX_EXPORTED: Final = 1 << 20


class LabelsQuery(PageQuery):
    """Which labels."""

    source: str | None = Field(default=None, max_length=200, description="only labels of this source")
    min_score: float | None = Field(default=None, description="only labels with a score >= this", allow_inf_nan=False)
    text: str | None = Field(
        default=None, min_length=1, max_length=200, description="only labels with this in their text, whatever its case"
    )
    index: int | None = Field(default=None, ge=0, le=MAX_INDEX, description="only labels of the feature at this index")


class ExportQuery(rest.RestModel):
    """In which form, and which labels."""

    form: Literal["jsonl", "csv", "neuronpedia"] = Field(
        default="jsonl", description="jsonl and csv hold all fields; neuronpedia is its export of explanations"
    )
    source: str | None = Field(default=None, max_length=200, description="only labels of this source")


class SourceQuery(rest.RestModel):
    """Of which source a label is taken back."""

    source: str = Field(default=MANUAL, max_length=200, description="source of the label that is taken back")


class _LabelCursor(rest.RestModel):
    """Behind which label the next page begins."""

    index: int | None
    feature_id: int = Field(ge=-(2**63), lt=2**63)
    source: str


async def list_labels(call: Call) -> Listing:
    """The labels of a stream's features."""
    status, query = call.stream(), call.query
    order = f"labels {status.id} {query.model_dump_json(exclude={'cursor', 'limit', 'format'})}"
    after = None
    if query.cursor is not None:
        cursor = decode_cursor(query.cursor, _LabelCursor, order)
        after = (cursor.index, cursor.feature_id, cursor.source)
    wanted = LabelQuery(query.limit + 1, query.source, query.min_score, query.text, query.index, after)
    table = await call.reads.run(partial(call.backend.reader.labels, status.stream_key, wanted))
    if table.num_rows <= query.limit:
        return Listing(table)
    page = table.slice(0, query.limit)
    (last,) = page.slice(query.limit - 1).select(["index", "feature_id", "source"]).to_pylist()
    return Listing(page, encode_cursor(_LabelCursor(**last), order))


async def with_labels(call: Call, stream_key: int, features: pa.Table) -> pa.Table:
    """``features`` with the columns ``label``, ``label_source`` and ``label_score``, by their column ``index``."""
    indices = features["index"].to_pylist()
    best = await call.reads.run(partial(call.backend.reader.best_labels, stream_key, indices))
    known = {label.pop("index"): label for label in best.to_pylist()}
    for name, kind in (("label", pa.string()), ("label_source", pa.string()), ("label_score", pa.float64())):
        values = [known.get(index, {}).get(name) for index in indices]
        features = features.append_column(name, pa.array(values, kind))
    return features


async def put_label(call: Call) -> One:
    """Give a feature a label by hand."""
    status = _with_dictionary(call)
    index = call.index(status)
    numbered = await call.backend.feature_ids(status.id)
    label = Label(
        feature_id=int(numbered.ids[index]),
        feature=index,
        dictionary_version=numbered.dictionary_version,
        created=call.backend.now(),
        source=MANUAL,
        text=call.body.text.strip(),
        author=call.body.author,
    )
    await call.backend.put_labels(status.stream_key, [label])
    return One(_as_answer(label))


async def delete_label(call: Call) -> One:
    """Take a label back."""
    status = _with_dictionary(call)
    index, source = call.index(status), call.query.source
    wanted = LabelQuery(limit=1, source=source, place=index)
    table = await call.reads.run(partial(call.backend.reader.labels, status.stream_key, wanted))
    if not table.num_rows:
        raise not_found("label-not-found", f"feature {index} of {status.id} has no label of source {source!r}")
    (given,) = table.to_pylist()
    label = Label(
        given["feature_id"], index, given["dictionary_version"], call.backend.now(), source, "", given["author"]
    )
    await call.backend.put_labels(status.stream_key, [label])
    return One(_as_answer(label))


async def import_labels(call: Call) -> One:
    """Take in labels from a file."""
    status = _with_dictionary(call)
    try:
        read = await call.reads.run(partial(label_files.read_labels, call.body, call.request.content_type))
    except ValueError as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-body", str(error)) from None
    numbered = await call.backend.feature_ids(status.id)
    place = {int(feature_id): index for index, feature_id in enumerate(numbered.ids)}
    labels, problems, now = [], list(read.problems), call.backend.now()
    for given in read.labels:
        index = given.place if given.feature_id is None else place.get(given.feature_id)
        if index is None or index >= len(numbered.ids):
            missing = f"index {given.place}" if given.feature_id is None else f"id {given.feature_id}"
            message = f"there is no feature with {missing}; {status.id} has {len(numbered.ids)} features"
            problems.append(rest.LabelProblem(line=given.line, message=message))
            continue
        labels.append(
            Label(
                feature_id=int(numbered.ids[index]),
                feature=index,
                dictionary_version=numbered.dictionary_version,
                created=now,
                source=IMPORTED,
                text=given.text,
                author=given.author,
                rule=given.rule,
            )
        )
    await call.backend.put_labels(status.stream_key, labels)
    return One(
        rest.LabelImport(imported=len(labels), skipped=len(problems), problems=label_files.first_problems(problems))
    )


async def export_labels(call: Call) -> Raw:
    """All labels of a stream as a file."""
    status, query = call.stream(), call.query
    wanted = LabelQuery(limit=_MAX_EXPORTED, source=query.source)
    table = await call.reads.run(partial(call.backend.reader.labels, status.stream_key, wanted))
    return await call.reads.run(partial(_written, table, query.form, status))


async def start_labelling(call: Call) -> One:
    """Label features automatically."""
    status = _with_dictionary(call)
    return One(call.backend.start_labelling(status.id, call.body), HTTPStatus.ACCEPTED)


async def get_labelling(call: Call) -> One:
    """How far automatic labelling has come."""
    call.stream()
    return One(call.backend.labelling())


def _with_dictionary(call: Call) -> rest.StreamStatus:
    """The stream that is named; raises Refused (404, 409)."""
    status = call.stream()
    if not status.dictionary_version:
        raise Refused(
            HTTPStatus.CONFLICT,
            "no-dictionary",
            f"{status.id} has no dictionary yet, so it has no features; {status.rows_received} rows have been received",
        )
    return status


def _as_answer(label: Label) -> rest.FeatureLabel:
    values = label._asdict() | {"created": to_datetime(label.created)}
    return rest.FeatureLabel(index=values.pop("feature"), **values)


def _written(table: pa.Table, form: str, status: rest.StreamStatus) -> Raw:
    labels: list[dict[str, Any]] = [
        label | {"created": label["created"].replace(tzinfo=UTC)} for label in table.to_pylist()
    ]
    if form == "csv":
        return Raw(label_files.write_csv(labels), label_files.CSV_TYPE)
    if form == "neuronpedia":
        return Raw(label_files.write_neuronpedia(labels, status.model, status.site), label_files.JSONL_TYPE)
    return Raw(label_files.write_jsonl(labels), label_files.JSONL_TYPE)


_WRITE_PROBLEMS: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE)
_BODY_PROBLEMS: Final = (
    *_WRITE_PROBLEMS,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)

ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/streams/{stream}/labels",
        list_labels,
        "Labels of a stream's features that are in force, page by page",
        "features",
        rest.LabelList,
        rest.FeatureLabel,
        LabelsQuery,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    ),
    Endpoint(
        "PUT",
        "/v1/streams/{stream}/features/{index}/label",
        put_label,
        "Give a feature a label by hand, in place of the one it was given by hand before",
        "features",
        rest.FeatureLabel,
        body=rest.LabelBody,
        consumes=(rest.JSON_TYPE,),
        problems=_BODY_PROBLEMS,
    ),
    Endpoint(
        "DELETE",
        "/v1/streams/{stream}/features/{index}/label",
        delete_label,
        "Take back a feature's label",
        "features",
        rest.FeatureLabel,
        query=SourceQuery,
        problems=_WRITE_PROBLEMS,
    ),
    Endpoint(
        "POST",
        "/v1/streams/{stream}/labels:import",
        import_labels,
        "Take in labels from a file: JSON lines, CSV, or Neuronpedia's export",
        "features",
        rest.LabelImport,
        query=NoQuery,
        consumes=(label_files.JSONL_TYPE, label_files.NDJSON_TYPE, label_files.CSV_TYPE, rest.JSON_TYPE),
        problems=_BODY_PROBLEMS,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/labels:export",
        export_labels,
        "All labels of a stream's features as a file",
        "features",
        query=ExportQuery,
        produces=label_files.JSONL_TYPE,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    ),
    Endpoint(
        "POST",
        "/v1/streams/{stream}/labels:auto",
        start_labelling,
        "Label features automatically; one run at a time",
        "features",
        rest.LabelRun,
        body=rest.LabelRunBody,
        consumes=(rest.JSON_TYPE,),
        status=HTTPStatus.ACCEPTED,
        problems=_BODY_PROBLEMS,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/labels:auto",
        get_labelling,
        "How far automatic labelling has come",
        "features",
        rest.LabelRun,
        problems=(HTTPStatus.NOT_FOUND,),
    ),
)
