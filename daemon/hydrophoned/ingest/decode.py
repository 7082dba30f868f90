"""DATA payloads to rows, without copying the activations."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
from hydrophone_schemas.errors import WireError
from hydrophone_schemas.wire import ErrorCode
from numpy.typing import NDArray

from hydrophoned.ingest.layout import Pairs, record_batch_layout
from hydrophoned.rows import Rows

_VALUES: Final[dict[str, type[np.generic]]] = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_COLUMNS: Final[tuple[tuple[str, type[np.generic]], ...]] = (
    ("request", np.uint64),
    ("sequence", np.uint16),
    ("position", np.int32),
    ("phase", np.uint8),
    ("token", np.int32),
    ("time", np.int64),
)
_TOKEN: Final = 4
_NODES: Final = 8  # the columns above, the list of activations, and its items
_BUFFERS: Final = 15  # validity and values of each, but a list has no values of its own
_SLACK: Final = 64 << 10
MAX_TIME: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999, beyond which dates cannot be written."""


def decode_rows(payload: pa.Buffer, width: int, dtype: str, request_key: Callable[[int], int]) -> Rows:
    """Rows of a record batch message of the activation schema of ``width`` and ``dtype``.

    The arrays view ``payload``, and keep it alive. The producer's request numbers are replaced by the daemon's keys.
    Raises :class:`WireError` (bad_batch) when the batch is not valid; NaN and Inf are not looked for here.
    """
    data = memoryview(payload).cast("B")
    layout = record_batch_layout(data)
    count = layout.rows
    if len(layout.nodes) != _NODES or len(layout.buffers) != _BUFFERS:
        raise _bad(f"{len(layout.nodes)} nodes and {len(layout.buffers)} buffers; {_NODES} and {_BUFFERS} are needed")
    _check_nodes(layout.nodes, count, width)
    if len(data) > _needed(count, width, dtype) + _SLACK:
        # else a few rows could keep much more memory alive than a queue that is bounded by bytes counts for them
        raise _bad(f"{count} rows do not need {len(data)} bytes")
    columns = [
        _column(data, layout.buffers[2 * number + 1], kind, count, name) for number, (name, kind) in enumerate(_COLUMNS)
    ]
    values = _column(data, layout.buffers[-1], _VALUES[dtype], count * width, "activation")
    request, sequence, position, phase, token, time = columns
    token = _with_unknown(token, data, layout.buffers[2 * _TOKEN], layout.nodes[_TOKEN][1])
    if count:
        _check_range("position", position, 0, (1 << 31) - 1)
        _check_range("phase", phase, 0, 1)
        _check_range("time", time, 0, MAX_TIME)
    keys = _keys(request, request_key)
    return Rows(values.reshape(count, width), dtype, keys, sequence, position, phase, token, time)


def _check_nodes(nodes: Pairs, count: int, width: int) -> None:
    names = [name for name, _ in _COLUMNS] + ["activation", "activation.item"]
    for name, (length, nulls) in zip(names, nodes, strict=True):
        expected = count * width if name == "activation.item" else count
        if length != expected or length < 0:
            raise _bad(f"column {name!r} has {length} values; expected {expected}")
        if not 0 <= nulls <= (length if name == "token" else 0):
            raise _bad(f"column {name!r} has {nulls} nulls")


def _needed(count: int, width: int, dtype: str) -> int:
    row = sum(np.dtype(kind).itemsize for _, kind in _COLUMNS) + width * np.dtype(_VALUES[dtype]).itemsize
    bitmaps = (_NODES * count + count * width) // 8
    return count * row + bitmaps


def _column(data: memoryview, place: tuple[int, int], kind: type[np.generic], count: int, name: str) -> NDArray[Any]:
    start, length = place
    needed = count * np.dtype(kind).itemsize
    if length < needed:
        raise _bad(f"column {name!r} has {length} bytes; {count} values need {needed}")
    return np.frombuffer(data[start : start + needed], dtype=kind)


def _with_unknown(token: NDArray[Any], data: memoryview, validity: tuple[int, int], nulls: int) -> NDArray[Any]:
    """Tokens with -1 in place of nulls."""
    if not nulls:
        return token
    start, length = validity
    needed = -(-len(token) // 8)
    if length < needed:
        raise _bad(f"column 'token' has {nulls} nulls and {length} bytes to say which; {needed} are needed")
    bits = np.frombuffer(data[start : start + needed], dtype=np.uint8)
    valid = np.unpackbits(bits, count=len(token), bitorder="little")
    return np.where(valid, token, np.int32(-1))


def _check_range(name: str, values: NDArray[Any], low: int, high: int) -> None:
    least, most = int(values.min()), int(values.max())
    if least < low or most > high:
        raise _bad(f"column {name!r} has values from {least} to {most}; expected {low}..{high}")


def _keys(numbers: NDArray[np.uint64], request_key: Callable[[int], int]) -> NDArray[np.int64]:
    if not len(numbers):
        return np.zeros(0, dtype=np.int64)
    if numbers[0] == numbers[-1] and (numbers == numbers[0]).all():
        return np.full(len(numbers), request_key(int(numbers[0])), dtype=np.int64)
    distinct, inverse = np.unique(numbers, return_inverse=True)
    keys = np.fromiter((request_key(int(number)) for number in distinct), dtype=np.int64, count=len(distinct))
    return keys[inverse]


def _bad(what: str) -> WireError:
    return WireError(ErrorCode.BAD_BATCH, what)
