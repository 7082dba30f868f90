"""Columns to a record batch of one of the store's tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def record_batch(columns: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    """``columns`` by name (numpy arrays, lists, or pyarrow arrays; times in us), cast to the types of ``schema``."""
    return pa.RecordBatch.from_arrays([_typed(columns[field.name], field.type) for field in schema], schema=schema)


def arrow_array(values: NDArray[Any]) -> pa.Array:
    """Numbers as an Arrow array, without copying them."""
    # pa.array would look for pandas at each call, which takes longer than all else where there is none
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def _typed(column: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(column, list) and not pa.types.is_string(kind) and None not in column:
        column = np.array(column)
    if isinstance(column, np.ndarray) and column.dtype.kind in "iuf":
        column = arrow_array(column)
    elif not isinstance(column, pa.Array):
        column = pa.array(column)
    if pa.types.is_timestamp(kind) and not pa.types.is_integer(column.type):
        column = column.cast(pa.int64())
    return column if column.type == kind else column.cast(kind)
