"""The Arrow schema of activation rows, as they travel on the wire.

Column       Type                       Meaning
request      uint64                     the producer's number of the request (a REQUEST frame names it)
sequence     uint16                     index of the row's sequence within the request's batch, 0 for one sequence
position     int32                      place of the row in its sequence, padding not counted
phase        uint8                      0 prompt, 1 decode
token        int32, nullable            token id, where known
time         timestamp[us]              UTC, when the forward pass began
activation   fixed_size_list<value>[d]  the row x; ``value`` is float32, float16, or uint16 holding bfloat16 bits

The logical dtype is schema metadata ``hydrophone.dtype``.
"""

from enum import IntEnum
from typing import Final

import pyarrow as pa

from hydrophone_schemas.errors import SchemaError

DTYPE_KEY: Final = b"hydrophone.dtype"
MAX_WIDTH: Final = 1 << 20
"""Largest accepted row width d, in elements."""

_STORAGE: Final = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}
DTYPES: Final = tuple(_STORAGE)


class Phase(IntEnum):
    """Whether a row was computed while the prompt was read or while the answer was written."""

    PROMPT = 0
    DECODE = 1


def activation_schema(width: int, dtype: str) -> pa.Schema:
    """Schema of the rows of a stream of width ``d`` sent as ``dtype`` (float32, float16 or bfloat16)."""
    if dtype not in _STORAGE:
        raise SchemaError(f"activation dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if not 1 <= width <= MAX_WIDTH:
        raise SchemaError(f"row width {width} is outside 1..{MAX_WIDTH}")
    return pa.schema(
        [
            pa.field("request", pa.uint64(), nullable=False),
            pa.field("sequence", pa.uint16(), nullable=False),
            pa.field("position", pa.int32(), nullable=False),
            pa.field("phase", pa.uint8(), nullable=False),
            pa.field("token", pa.int32()),
            pa.field("time", pa.timestamp("us"), nullable=False),
            pa.field("activation", pa.list_(pa.field("item", _STORAGE[dtype], nullable=False), width), nullable=False),
        ],
        metadata={DTYPE_KEY: dtype.encode()},
    )


def read_schema(schema: pa.Schema) -> tuple[int, str]:
    """Width and logical dtype of an activation schema; raises :class:`SchemaError` if it is not one."""
    dtype = (schema.metadata or {}).get(DTYPE_KEY, b"").decode(errors="replace")
    index = schema.get_field_index("activation")
    if dtype not in _STORAGE or index < 0 or not pa.types.is_fixed_size_list(schema.field(index).type):
        raise SchemaError(
            f"not an activation schema: metadata {DTYPE_KEY.decode()}={dtype!r}, columns {schema.names}; "
            "see activation_schema() for the layout"
        )
    width = schema.field(index).type.list_size
    expected = activation_schema(width, dtype)
    if not schema.equals(expected):
        raise SchemaError(f"activation schema differs from the expected one:\n{schema}\nexpected\n{expected}")
    return width, dtype
