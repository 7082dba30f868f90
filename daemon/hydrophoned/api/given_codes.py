"""Codes as a body gives them, in JSON or Arrow, checked."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from hydrophone_schemas.rest import FieldProblem, GivenCode
from numpy.typing import NDArray

from hydrophoned.api.codes import check_count
from hydrophoned.api.errors import Refused

_INTEGERS: Final = (pa.int32(), pa.int64(), pa.uint32())
_FLOATS: Final = (pa.float32(), pa.float64())


class GivenCodes(NamedTuple):
    """Codes of n rows, ``index`` int32 and ``value`` float32 [n, k]: padded with index 0 and value 0."""

    index: NDArray[np.int32]  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    value: NDArray[np.float32]


def codes_from_lists(codes: Sequence[GivenCode], features: int) -> GivenCodes:
    """Codes given as JSON; raises Refused (413, 422)."""
    check_count(len(codes))
    for place, code in enumerate(codes):
        if len(code.index) != len(code.value):
            raise _invalid(f"codes.{place}", f"has {len(code.index)} indices and {len(code.value)} values")
    lengths = np.array([len(code.index) for code in codes], dtype=np.int64)
    index = np.array([one for code in codes for one in code.index], dtype=np.int64)
    value = np.array([one for code in codes for one in code.value], dtype=np.float64)
    return _padded(lengths, index, value, features)


def codes_from_arrow(body: bytes, features: int) -> GivenCodes:
    """Codes given as an Arrow stream with the list columns ``index`` and ``value``; raises Refused (400, 413, 422)."""
    try:
        with pa.ipc.open_stream(body) as reader:
            _check_schema(reader.schema)
            batches, count = [], 0
            for batch in reader:
                count += batch.num_rows
                check_count(count)  # before more is read: a compressed body may hold far more than its bytes
                batch.validate(full=True)
                batches.append(batch)
            table = pa.Table.from_batches(batches, reader.schema)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise Refused(
            HTTPStatus.BAD_REQUEST, "malformed-body", f"the body is not an Arrow IPC stream: {error}"
        ) from None
    columns: dict[str, Any] = {}
    for name in ("index", "value"):
        column = table[name].combine_chunks()
        if column.null_count or column.flatten().null_count:
            raise _invalid(name, "has nulls")
        columns[name] = column.flatten().to_numpy(zero_copy_only=False)
        columns[f"{name}_lengths"] = column.value_lengths().to_numpy(zero_copy_only=False)
    (differing,) = (columns["index_lengths"] != columns["value_lengths"]).nonzero()
    if len(differing):
        raise _invalid(f"row {differing[0]}", "has another number of indices than of values")
    value = columns["value"].astype(np.float64)
    if not np.isfinite(value).all() or (value < 0).any():
        raise _invalid("value", "has a value that is negative or not finite")
    return _padded(columns["index_lengths"].astype(np.int64), columns["index"].astype(np.int64), value, features)


def _padded(
    lengths: NDArray[np.int64], index: NDArray[np.int64], value: NDArray[np.float64], features: int
) -> GivenCodes:
    row = np.repeat(np.arange(len(lengths)), lengths)
    beyond = (index < 0) | (index >= features)
    if beyond.any():
        at = int(beyond.argmax())
        raise _invalid(f"codes.{row[at]}", f"names feature {index[at]}; there are 0 to {features - 1}")
    key = np.sort(row * features + index)
    twice = np.flatnonzero(key[1:] == key[:-1])
    if len(twice):
        at_row, feature = divmod(int(key[twice[0]]), features)
        raise _invalid(f"codes.{at_row}", f"names feature {feature} twice")
    width = int(lengths.max(initial=1))
    found = GivenCodes(
        np.zeros((len(lengths), width), dtype=np.int32), np.zeros((len(lengths), width), dtype=np.float32)
    )
    place = np.arange(len(index)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf, and so does the row
        found.index[row, place], found.value[row, place] = index, value.astype(np.float32)
    return found


def _check_schema(schema: pa.Schema) -> None:
    if sorted(schema.names) != ["index", "value"]:
        raise _invalid("schema", f"has columns {schema.names}; index and value are wanted")
    for name, kinds in (("index", _INTEGERS), ("value", _FLOATS)):
        kind = schema.field(name).type
        if not (pa.types.is_list(kind) and kind.value_type in kinds):
            raise _invalid(name, f"is of type {kind}; a list of {' or '.join(map(str, kinds))} is wanted")


def _invalid(name: str, message: str) -> Refused:
    return Refused(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid-body",
        f"{name}: {message}",
        errors=[FieldProblem(location="body", name=name, message=message)],
    )
