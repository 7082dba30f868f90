"""Answers as Arrow: a list's columns are the fields of its model, so that JSON and Arrow cannot drift apart."""

import types
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

import pyarrow as pa
from hydrophone_schemas.rest import NEXT_KEY, SINGLE, RestModel, format_time

_PLAIN = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
}


@cache
def arrow_schema(model: type[RestModel]) -> pa.Schema:
    """The Arrow schema of a list of ``model``: a column per field, described in the field's metadata."""
    return pa.schema([_field(name, info) for name, info in model.model_fields.items()])


def as_table(items: pa.Table | Sequence[RestModel], model: type[RestModel]) -> pa.Table:
    """``items`` with exactly the columns of ``arrow_schema(model)``."""
    schema = arrow_schema(model)
    if isinstance(items, pa.Table):
        return items.select(schema.names).cast(schema)
    rows = [item.model_dump() for item in items]
    columns = [
        pa.array([_value(row[field.name], field.type) for row in rows], field.type, from_pandas=False)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def as_dicts(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as plain values; times are aware."""
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def stream_bytes(table: pa.Table, following: str | None, about: Mapping[str, Any]) -> bytes:
    """An Arrow IPC stream of ``table``.

    ``following``, the next page's cursor, and ``about``, what else the JSON page says, are schema metadata:
    ``hydrophone.next``, ``hydrophone.since`` and so on; what is null is absent.
    """
    metadata = {f"hydrophone.{name}".encode(): _text(value) for name, value in about.items() if value is not None}
    if following is not None:
        metadata[NEXT_KEY] = following.encode()
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _field(name: str, info: Any) -> pa.Field:
    kind, nullable = _arrow_type(info.annotation)
    return pa.field(name, kind, nullable=nullable, metadata={"description": info.description or ""})


def _arrow_type(annotation: Any) -> tuple[pa.DataType, bool]:
    """Arrow type of a model's annotation, and whether it may be null."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if SINGLE in arguments:
            return pa.float32(), False
        return _arrow_type(arguments[0])
    if origin in {Union, types.UnionType}:
        options = [option for option in arguments if option is not type(None)]
        if len(options) != 1:
            raise TypeError(f"{annotation} has no Arrow type: a list's column has one type")
        return _arrow_type(options[0])[0], True
    if origin is list:
        kind, nullable = _arrow_type(arguments[0])
        return pa.list_(pa.field("item", kind, nullable=nullable)), False
    if origin is dict:
        return pa.map_(pa.string(), _arrow_type(arguments[1])[0]), False
    return (
        pa.struct(list(arrow_schema(annotation))) if issubclass(annotation, RestModel) else _PLAIN[annotation]
    ), False


def _value(value: Any, kind: pa.DataType) -> Any:
    """``value`` in the form from which pyarrow makes ``kind``: maps as pairs."""
    if value is None:
        return None
    if pa.types.is_map(kind):
        return list(value.items())
    if pa.types.is_list(kind):
        return [_value(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _value(value[field.name], field.type) for field in kind}
    return value


def _text(value: Any) -> bytes:
    return (format_time(value) if isinstance(value, datetime) else str(value)).encode()
