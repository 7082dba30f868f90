"""Where the buffers of an Arrow record batch message lie, read without trusting a single byte of it.

Arrow's own reader follows the offsets and lengths it finds, and decompresses what says that it is compressed, before
it can be asked whether they make sense. Rows come from other processes, so their place is worked out here, with each
offset held against the bytes that are there, and no memory is touched or reserved that the message does not have.

An encapsulated message is ``0xFFFFFFFF, i32 n, n bytes of flatbuffer, body``. The flatbuffer is a ``Message`` table,
whose header is a ``RecordBatch`` table; Arrow's ``Message.fbs`` has the numbers of their fields, used below.
"""

import functools
import struct
from typing import Final, NamedTuple, NoReturn

from hydrophone_schemas.errors import WireError
from hydrophone_schemas.wire import ErrorCode

_CONTINUATION: Final = 0xFFFFFFFF
_MAX_METADATA: Final = 64 << 10
_VERSION_5: Final = 4
_RECORD_BATCH: Final = 3
_ALIGNMENT: Final = 8
_PREFIX: Final = struct.Struct("<Ii")


Pairs = tuple[tuple[int, int], ...]


class Layout(NamedTuple):
    """A record batch's row count, its nodes (length, null count), and its buffers (start in the message, bytes)."""

    rows: int
    nodes: Pairs
    buffers: Pairs


def record_batch_layout(message: memoryview) -> Layout:
    """Layout of an uncompressed record batch message whose buffers all lie in its body.

    Raises :class:`WireError` (bad_batch) for anything else.
    """
    if len(message) < _PREFIX.size:
        _refuse(f"a message of {len(message)} bytes has no room for its own size")
    mark, size = _PREFIX.unpack_from(message)
    body = _PREFIX.size + size
    if mark != _CONTINUATION:
        _refuse(f"the message begins with {mark:#010x}, not with {_CONTINUATION:#010x}")
    if not 0 < size <= min(_MAX_METADATA, len(message) - _PREFIX.size) or size % _ALIGNMENT:
        _refuse(f"its metadata has {size} bytes; a multiple of {_ALIGNMENT} within the frame and {_MAX_METADATA} fits")
    metadata = bytes(message[_PREFIX.size : body])
    try:
        rows, nodes, places, body_length = _read(metadata)
    except struct.error:
        _refuse("an offset in its metadata points out of it")
    if body_length != len(message) - body:
        _refuse(f"its body should have {body_length} bytes and {len(message) - body} came")
    for start, length in places:
        if start < 0 or length < 0 or start + length > body_length or start % _ALIGNMENT:
            _refuse(f"a buffer of {length} bytes at {start} does not lie, aligned, in the body of {body_length} bytes")
    return Layout(rows, nodes, tuple((body + start, length) for start, length in places))


class _Table:
    """A flatbuffer table: the position of each field that is there. Out of bounds raises ``struct.error``."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        self._vtable = position - self._get("<i", position)
        self._fields = (self._get("<H", self._vtable) - 4) // 2

    def _get(self, form: str, position: int) -> int:
        if position < 0:  # struct would count from the end
            raise struct.error
        value: int = struct.unpack_from(form, self._data, position)[0]
        return value

    def _place(self, field: int) -> int:
        """Where a field is; 0 if it is absent."""
        offset = self._get("<H", self._vtable + 4 + 2 * field) if field < self._fields else 0
        return self._position + offset if offset else 0

    def number(self, field: int, form: str) -> int:
        """A scalar field; absent means 0."""
        place = self._place(field)
        return self._get(form, place) if place else 0

    def table(self, field: int) -> "_Table | None":
        """A table field."""
        place = self._place(field)
        return _Table(self._data, place + self._get("<I", place)) if place else None

    def pairs(self, field: int, most: int) -> Pairs:
        """A vector of structs of two int64, of at most ``most`` entries."""
        place = self._place(field)
        if not place:
            return ()
        vector = place + self._get("<I", place)
        count = self._get("<I", vector)
        if count > most:
            raise struct.error
        numbers = struct.unpack_from(f"<{2 * count}q", self._data, vector + 4)
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))


@functools.lru_cache(maxsize=64)  # batches of as many rows have the same metadata, byte for byte
def _read(metadata: bytes) -> tuple[int, Pairs, Pairs, int]:
    message = _Table(metadata, struct.unpack_from("<I", metadata)[0])
    version, kind = message.number(0, "<h"), message.number(1, "<B")
    batch = message.table(2)
    if version != _VERSION_5 or kind != _RECORD_BATCH or batch is None:
        _refuse(f"its metadata is of version {version} and kind {kind}; a record batch (4 and 3) is needed")
    if batch.table(3) is not None:
        _refuse("it is compressed; rows are sent plain")
    most = len(metadata) // 16
    return batch.number(0, "<q"), batch.pairs(1, most), batch.pairs(2, most), message.number(3, "<q")


def _refuse(what: str) -> NoReturn:
    raise WireError(ErrorCode.BAD_BATCH, f"not a record batch of this channel's schema: {what}")
