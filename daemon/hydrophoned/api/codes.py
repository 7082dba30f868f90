"""The endpoints that take rows: codes of them, or the rows as their codes rebuild them."""

from functools import partial
from http import HTTPStatus
from typing import Final

import numpy as np
import pyarrow as pa
from hydrophone_schemas import rest
from numpy.typing import NDArray

from hydrophoned.api.backend import EncodedRows, ReconstructedRows
from hydrophoned.api.endpoint import Call, Endpoint, FormatQuery, Listing
from hydrophoned.api.errors import Refused

MAX_ROWS: Final = 8192
_FLOATS: Final = (pa.float32(), pa.float64(), pa.float16())


async def encode(call: Call) -> Listing:
    """Codes of the given rows."""
    status, rows = await _read(call)
    codes = await call.backend.encode(status.id, rows)
    return Listing(_as_table(codes), about={"dictionary_version": status.dictionary_version})


async def reconstruct(call: Call) -> Listing:
    """The given rows, rebuilt."""
    status, rows = await _read(call)
    rebuilt = await call.backend.reconstruct(status.id, rows)
    return Listing(_rebuilt_table(rebuilt), about={"dictionary_version": rebuilt.dictionary_version})


async def _read(call: Call) -> tuple[rest.StreamStatus, NDArray[np.float32]]:
    """The stream that is named and the rows [n, d] of the body; raises Refused (400, 404, 409, 413, 422)."""
    status = call.stream()
    if not status.dictionary_version:
        raise Refused(
            HTTPStatus.CONFLICT,
            "no-dictionary",
            f"{status.id} has no dictionary yet: it is made from the first rows, and "
            f"{status.rows_received} have been received",
        )
    if isinstance(call.body, rest.RowsBody):
        return status, await call.reads.run(partial(from_lists, call.body.rows, status.width))
    return status, await call.reads.run(partial(_from_arrow, call.body, status.width))


def from_lists(rows: list[list[float]], width: int) -> NDArray[np.float32]:
    """Rows [n, d] given as JSON; raises Refused (422)."""
    check_count(len(rows))
    for place, row in enumerate(rows):
        if len(row) != width:
            raise _invalid(f"rows.{place}", f"has {len(row)} values; rows of this stream have {width}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf, and is flagged as not finite
        return np.array(rows, dtype=np.float64).reshape(len(rows), width).astype(np.float32)


def _from_arrow(body: bytes, width: int) -> NDArray[np.float32]:
    """Rows [n, d] given as an Arrow stream with one fixed-size-list column; raises Refused (400, 422)."""
    try:
        with pa.ipc.open_stream(body) as reader:
            schema = reader.schema
            _check_schema(schema, width)
            batches, count = [], 0
            for batch in reader:
                count += batch.num_rows
                check_count(count)  # before more is read: a compressed body may hold far more than its bytes
                batch.validate(full=True)
                batches.append(batch)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise Refused(
            HTTPStatus.BAD_REQUEST, "malformed-body", f"the body is not an Arrow IPC stream: {error}"
        ) from None
    check_count(count)
    column = pa.Table.from_batches(batches, schema).column(0).combine_chunks()
    if column.null_count or column.flatten().null_count:
        raise _invalid(schema.field(0).name, "has nulls; write NaN for a value that is unknown")
    values = column.flatten().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # as above
        return np.ascontiguousarray(values.astype(np.float32).reshape(-1, width))


def _check_schema(schema: pa.Schema, width: int) -> None:
    if len(schema) != 1 or not pa.types.is_fixed_size_list(schema.field(0).type):
        raise _invalid("schema", f"has columns {schema.names}; one fixed-size-list column is wanted")
    kind = schema.field(0).type
    if kind.value_type not in _FLOATS:
        raise _invalid(schema.field(0).name, f"holds {kind.value_type}; float16, float32 or float64 is wanted")
    if kind.list_size != width:
        raise _invalid(schema.field(0).name, f"has rows of {kind.list_size} values; rows of this stream have {width}")


def check_count(count: int) -> None:
    """Raises Refused (413) for more rows than one call may have."""
    if count > MAX_ROWS:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too-many-rows",
            f"more than {MAX_ROWS} rows in one call; send them in several",
        )


def _invalid(name: str, message: str) -> Refused:
    return Refused(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid-body",
        f"{name} {message}",
        errors=[rest.FieldProblem(location="body", name=name, message=message)],
    )


def _as_table(codes: EncodedRows) -> pa.Table:
    """Columns of ``rest.Code``; index and value are null for rows that are not finite."""
    n, k = codes.index.shape
    unknown = ~np.asarray(codes.finite)
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * k, mask=np.append(unknown, False))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1))) for values in (codes.index, codes.value)]
    return pa.Table.from_arrays(
        [*lists, pa.array(codes.sink), pa.array(codes.finite)], names=["index", "value", "sink", "finite"]
    )


def _rebuilt_table(rebuilt: ReconstructedRows) -> pa.Table:
    """Columns of ``rest.Reconstruction``."""
    n, width = rebuilt.row.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * width)
    rows = pa.ListArray.from_arrays(offsets, pa.array(rebuilt.row.reshape(-1)))
    return pa.Table.from_arrays(
        [rows, pa.array(rebuilt.sink), pa.array(rebuilt.finite)], names=["row", "sink", "finite"]
    )


_PROBLEMS: Final = (
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
)

ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/streams/{stream}/encode",
        encode,
        "Codes of given rows, with the dictionary as it is now",
        "codes",
        rest.CodeList,
        rest.Code,
        FormatQuery,
        rest.RowsBody,
        consumes=(rest.JSON_TYPE, rest.ARROW_TYPE),
        problems=_PROBLEMS,
    ),
    Endpoint(
        "POST",
        "/v1/streams/{stream}/reconstruct",
        reconstruct,
        "Given rows as their codes rebuild them, with the dictionary as it is now",
        "codes",
        rest.ReconstructionList,
        rest.Reconstruction,
        FormatQuery,
        rest.RowsBody,
        consumes=(rest.JSON_TYPE, rest.ARROW_TYPE),
        problems=_PROBLEMS,
    ),
)
