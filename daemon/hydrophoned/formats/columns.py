"""Columns beside the rows in Parquet and Arrow files: a label, the request of each row."""

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from numpy.typing import NDArray

from hydrophoned.formats.errors import UnreadableRows

_IPC: Final = (".arrow", ".arrows", ".feather", ".ipc")


def read_labels(paths: list[Path], name: str) -> NDArray[np.int8]:
    """Column ``name`` of all files: 1 true, 0 false, -1 null, one for each row. Raises UnreadableRows.

    It is of booleans, or of numbers that are 0 and 1.
    """
    found = []
    for path in paths:
        column = _read(path, name)
        kind = column.type
        if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise UnreadableRows(f"{path}: column {name!r} is of {kind}; a label is a boolean, or 0 and 1")
        values = column.cast(pa.float64()) if not pa.types.is_boolean(kind) else column.cast(pa.int8())
        plain = np.asarray(values.fill_null(-1).to_numpy(), dtype=np.float64)
        wrong = ~np.isin(plain, (0, 1)) & np.asarray(column.is_valid())
        if wrong.any():
            raise UnreadableRows(f"{path}: column {name!r} holds {plain[wrong][0]:g}; a label is a boolean, or 0 and 1")
        found.append(plain.astype(np.int8))
    return np.concatenate(found)


def read_requests(paths: list[Path], name: str) -> NDArray[np.int64]:
    """Column ``name`` of all files, of numbers or text, as a number for each value. Raises UnreadableRows."""
    columns = [_read(path, name) for path in paths]
    for path, column in zip(paths, columns, strict=True):
        if column.null_count:
            raise UnreadableRows(f"{path}: column {name!r} is null in {column.null_count:,} rows: whose are they?")
        if pa.types.is_nested(column.type):
            raise UnreadableRows(f"{path}: column {name!r} is of {column.type}, which names no requests")
    whole = all(pa.types.is_integer(column.type) for column in columns)
    texts = [column.cast(pa.int64() if whole else pa.string()) for column in columns]
    joined = pa.concat_arrays([chunk for one in texts for chunk in one.chunks])
    return np.asarray(joined.dictionary_encode().indices, dtype=np.int64)


def _read(path: Path, name: str) -> pa.ChunkedArray:
    suffix = path.suffix.lower()
    if suffix != ".parquet" and suffix not in _IPC:
        raise UnreadableRows(f"{path} has no columns beside its rows, so none {name!r}; Parquet and Arrow files have")
    try:
        if suffix == ".parquet":
            with pa.parquet.ParquetFile(path) as file:
                _check(path, file.schema_arrow, name)
                return file.read(columns=[name]).column(name)
        with pa.memory_map(str(path)) as source:
            try:
                reader = pa.ipc.open_file(source)
            except pa.ArrowInvalid:  # no footer: a stream
                source.seek(0)
                reader = pa.ipc.open_stream(source)
                _check(path, reader.schema, name)
                parts = [batch.column(name) for batch in reader]
            else:
                _check(path, reader.schema, name)
                parts = [reader.get_batch(number).column(name) for number in range(reader.num_record_batches)]
            return pa.chunked_array(parts, type=reader.schema.field(name).type)
    except UnreadableRows:
        raise
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise UnreadableRows(f"{path} cannot be read: {error}") from error


def _check(path: Path, schema: pa.Schema, name: str) -> None:
    if name not in schema.names:
        raise UnreadableRows(f"{path} has no column {name!r}; its columns are {', '.join(schema.names)}")
