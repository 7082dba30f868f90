"""Captures become items to send: one Arrow batch per run of captures of a stream, and TOKENS where opted in."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Literal, Protocol

import numpy as np
import pyarrow as pa
from hydrophone_schemas.errors import SchemaError
from hydrophone_schemas.wire import FrameType
from numpy.typing import NDArray

from hydrophone.errors import InvalidOption
from hydrophone.forward import Columns, Forward, Run
from hydrophone.requests import Request
from hydrophone.session import Outgoing
from hydrophone.streams import Stream

BATCH_BYTES: Final = 1 << 20
"""Small captures are put together up to about this size."""
LARGE_BYTES: Final = 256 << 10
"""A capture of at least this size goes alone, without a further copy."""
MAX_BATCH_BYTES: Final = 8 << 20
"""Larger captures are sent in pieces."""
_PIECE_CHARACTERS: Final = 1024
_PIECES: Final = 4096
"""Token strings in one TOKENS frame."""

_VALUES: Final = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}

Text = Literal["tokens", "text"] | Callable[[str], str | None] | None
Pieces = Callable[[NDArray[np.int32]], list[str | None]]


class RowSource(Protocol):
    """Rows on their way to a batch. ``forward`` is None for rows that came from no forward pass."""

    stream: Stream
    forward: Forward | None
    width: int
    dtype: str
    rows: int
    nbytes: int
    taken: float

    def columns(self) -> Columns:
        """What describes the rows that are to be sent."""
        ...

    def values(self) -> NDArray[Any]:
        """All rows [n, d], those not to be sent included; bfloat16 as uint16."""
        ...


def encode(
    sources: Iterable[RowSource],
    failed: Callable[[BaseException], None],
    max_frame: int,
    pieces_of: Callable[[Stream], Pieces | None] = lambda _: None,
) -> Iterator[Outgoing]:
    """Items of ``sources``, in order for each stream.

    What cannot be encoded is dropped, counted and given to ``failed``.
    """
    groups: dict[Stream, list[RowSource]] = {}
    sizes: Counter[Stream] = Counter()
    for source in sources:
        stream = source.stream
        pieces = pieces_of(stream)
        if pieces is not None and source.forward is not None and not source.forward.tokens_taken:
            source.forward.tokens_taken = True
            try:
                yield from tokens(source.forward, pieces)
            except Exception as error:  # noqa: BLE001  the user's tokenizer or callable failed; the rows still go
                failed(error)
        group = groups.setdefault(stream, [])
        if group and (source.nbytes >= LARGE_BYTES or sizes[stream] + source.nbytes > BATCH_BYTES):
            yield from _batches(stream, group, failed, max_frame)
            group.clear()
            sizes[stream] = 0
        group.append(source)
        sizes[stream] += source.nbytes
    for stream, group in groups.items():
        yield from _batches(stream, group, failed, max_frame)


def tokens(forward: Forward, pieces: Pieces) -> Iterator[Outgoing]:
    """TOKENS items of a forward pass: for each run of adjoining positions the strings of its tokens."""
    for run in forward.runs():
        for start in range(0, len(run.ids), _PIECES):
            yield _tokens_item(run, start, pieces(run.ids[start : start + _PIECES]))


def read_text(text: Text, tokenizer: Any) -> Pieces | None:
    """The function from token ids to strings that ``text`` asks for; None if it asks for none.

    Raises :class:`InvalidOption` if ``text`` is not known or needs a tokenizer that is not there.
    """
    if text is None:
        return None
    needed = "convert_ids_to_tokens" if text == "tokens" else "decode"
    if text not in ("tokens", "text") and not callable(text):
        raise InvalidOption(f"text={text!r} is none of None, 'tokens', 'text' and a callable from str to str or None")
    if not hasattr(tokenizer, needed):
        raise InvalidOption(f"text={text!r} needs tokenizer= with a method {needed}, got {type(tokenizer).__name__}")
    if text == "tokens":
        return lambda ids: [_string(piece) for piece in tokenizer.convert_ids_to_tokens(ids.tolist())]
    if text == "text":
        return lambda ids: [_string(tokenizer.decode([token])) for token in ids.tolist()]
    redact = text
    return lambda ids: [_string(redact(str(tokenizer.decode([token])))) for token in ids.tolist()]


def record_batch(stream: Stream, columns: Columns, values: NDArray[Any]) -> pa.RecordBatch:
    """Rows as an Arrow batch of the stream's schema; ``values`` [n, d] is not copied if contiguous."""
    count = columns.rows
    flat = np.ascontiguousarray(values).reshape(-1)
    assert stream.schema is not None  # noqa: S101  fixed before the first batch
    assert stream.dtype is not None  # noqa: S101  set before anything is captured
    rows = pa.Array.from_buffers(_VALUES[stream.dtype], len(flat), [None, pa.py_buffer(flat)])
    token = columns.token
    arrays = [
        _array(pa.uint64(), columns.request),
        _array(pa.uint16(), columns.sequence),
        _array(pa.int32(), columns.position),
        _array(pa.uint8(), columns.phase),
        _tokens(token, count),
        _array(pa.timestamp("us"), columns.time),
        pa.Array.from_buffers(stream.schema.field("activation").type, count, [None], children=[rows]),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=stream.schema)


def _batches(
    stream: Stream, sources: list[RowSource], failed: Callable[[BaseException], None], max_frame: int
) -> Iterator[Outgoing]:
    if not sources:
        return
    if stream.refused is not None:
        stream.drop(stream.refused, sum(source.rows for source in sources))
        return
    columns: list[Columns] = []
    values: list[NDArray[Any]] = []
    for source in sources:
        try:
            reason = _misfit(stream, source)
            if reason is not None:
                stream.drop(reason, source.rows)
                continue
            described = source.columns()
            rows = source.values() if described.keep is None else source.values()[described.keep]
            if len(rows) != described.rows:
                stream.drop("batch_mismatch", source.rows)
                continue
        except Exception as error:  # noqa: BLE001  counted and told; one bad capture must not stop the sender
            stream.drop("encode_error", source.rows)
            failed(error)
            continue
        stream.padding += source.rows - described.rows
        if described.rows:
            columns.append(described)
            values.append(rows)
    if columns:
        yield from _items(
            stream, _joined(columns), values[0] if len(values) == 1 else np.concatenate(values), max_frame
        )


def _items(stream: Stream, columns: Columns, values: NDArray[Any], max_frame: int) -> Iterator[Outgoing]:
    assert stream.encoder is not None  # noqa: S101  fixed by _misfit
    row_bytes = values.shape[1] * values.itemsize + 64
    step = max(1, min(MAX_BATCH_BYTES, max_frame - 4096) // row_bytes)
    for start in range(0, columns.rows, step):
        part = slice(start, start + step)
        piece = columns if columns.rows <= step else _sliced(columns, part)
        buffers = stream.encoder.encode(record_batch(stream, piece, values[part]))
        yield Outgoing(FrameType.DATA, stream=stream, buffers=list(buffers), rows=piece.rows, requests=columns.requests)


def _misfit(stream: Stream, source: RowSource) -> str | None:
    """Why the rows cannot be part of the stream, which takes its form from its first rows."""
    if stream.width is None:
        try:
            stream.shape(source.width, source.dtype)
        except SchemaError:
            return "unsupported_width"
    if source.width != stream.width:
        return "width_changed"
    return "dtype_changed" if source.dtype != stream.dtype else None


def _joined(parts: Sequence[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    token = None
    if any(part.token is not None for part in parts):
        unknown = (np.full(part.rows, -1, np.int32) for part in parts)
        token = np.concatenate(
            [blank if part.token is None else part.token for part, blank in zip(parts, unknown, strict=True)]
        )
    requests: dict[Request, None] = {request: None for part in parts for request in part.requests}
    return Columns(
        None,
        np.concatenate([part.request for part in parts]),
        np.concatenate([part.sequence for part in parts]),
        np.concatenate([part.position for part in parts]),
        np.concatenate([part.phase for part in parts]),
        token,
        np.concatenate([part.time for part in parts]),
        tuple(requests),
    )


def _sliced(columns: Columns, part: slice) -> Columns:
    return columns._replace(
        keep=None,
        request=columns.request[part],
        sequence=columns.sequence[part],
        position=columns.position[part],
        phase=columns.phase[part],
        token=None if columns.token is None else columns.token[part],
        time=columns.time[part],
    )


def _tokens(token: NDArray[np.int32] | None, count: int) -> pa.Array:
    if token is None:
        return pa.nulls(count, pa.int32())
    unknown = token < 0
    return pa.array(token, pa.int32(), mask=unknown) if unknown.any() else _array(pa.int32(), token)


def _array(kind: pa.DataType, values: NDArray[Any]) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _tokens_item(run: Run, start: int, pieces: list[str | None]) -> Outgoing:
    body = {
        "request": run.request.number,
        "sequence": run.sequence,
        "position": run.position + start,
        "pieces": pieces,
    }
    return Outgoing(FrameType.TOKENS, body=body, requests=(run.request,))


def _string(piece: object) -> str | None:
    return None if piece is None else str(piece)[:_PIECE_CHARACTERS]
