"""The wire protocol between a producer (SDK) and the daemon: frames, sans I/O.

A connection begins with the 8-byte preamble from the producer. After it both sides send frames: a 16-byte header
(little-endian ``type u8, flags u8, channel u16, length u32, sequence u64``) and ``length`` bytes of payload.
Control payloads are msgpack maps; DATA payloads are one encapsulated Arrow IPC record batch.
``docs/reference/wire.md`` is the full specification.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple

import msgpack
import pyarrow as pa

from hydrophone_schemas.errors import WireError

PREAMBLE: Final = b"HYDROPH\x01"
PROTOCOL_VERSION: Final = 1
HEADER: Final = struct.Struct("<BBHIQ")
MAX_FRAME_BYTES: Final = 64 << 20
"""Default largest payload the daemon accepts; it states its own in WELCOME."""
MAX_CONTROL_BYTES: Final = 4 << 20
"""Largest payload of a control frame."""
_SCRATCH_BYTES: Final = 64 << 10
_PROVEN_BYTES: Final = 4 << 10
"""Control payloads beyond this size are parsed once before they are built."""


class FrameType(IntEnum):
    """What a frame carries. P: producer to daemon, D: daemon to producer, # sequenced."""

    HELLO = 1  # P    {protocol, producer: bin(16), name, pid, sdk, capabilities}
    WELCOME = 2  # D    {protocol, daemon, capabilities, max_frame, received, durable, http}
    OPEN = 3  # P    channel: {model, version, fingerprint, site, schema: bin}
    OPENED = 4  # D    channel: {stream}
    REQUEST = 5  # P #  {request, id, model, version, started, attributes, sample}
    DATA = 6  # P #  channel: Arrow IPC record batch
    TOKENS = 7  # P #  {request, sequence, position, pieces: [str|nil]}
    OUTCOME = 8  # P #  {id, labels, time, source}
    REPORT = 9  # P    {streams: [...], ...}: the producer's own counters
    ACK = 10  # D    sequence = received; {received, durable}
    ERROR = 11  # D    {code, detail, fatal, sequence}; channel where it concerns one
    FLUSH = 12  # P    {token}: process everything received so far
    FLUSHED = 13  # D    {token}
    BYE = 14  # P    {}: the producer ends; the daemon closes after its last ACK
    PING = 15  # P    {token}
    PONG = 16  # D    {token}


SEQUENCED: Final = frozenset({FrameType.REQUEST, FrameType.DATA, FrameType.TOKENS, FrameType.OUTCOME})
"""Types that carry a sequence number, are acknowledged, and are sent again after a reconnect."""


class ErrorCode(StrEnum):
    """Causes named in an ERROR frame. The first group is fatal: the daemon closes the connection."""

    BAD_PREAMBLE = "bad_preamble"
    BAD_FRAME = "bad_frame"
    UNKNOWN_TYPE = "unknown_type"
    FRAME_TOO_LARGE = "frame_too_large"
    PROTOCOL_VERSION = "protocol_version"
    UNEXPECTED = "unexpected"
    TIMEOUT = "timeout"
    GAP = "sequence_gap"
    TOO_MANY = "too_many"
    SHUTTING_DOWN = "shutting_down"
    SUPERSEDED = "superseded"
    INTERNAL = "internal"

    STREAM_CONFLICT = "stream_conflict"
    WIDTH_MISMATCH = "width_mismatch"
    BAD_SCHEMA = "bad_schema"
    BAD_BATCH = "bad_batch"
    BAD_FIELD = "bad_field"
    FLUSH_FAILED = "flush_failed"


FATAL: Final = frozenset(
    {
        ErrorCode.BAD_PREAMBLE,
        ErrorCode.BAD_FRAME,
        ErrorCode.UNKNOWN_TYPE,
        ErrorCode.FRAME_TOO_LARGE,
        ErrorCode.PROTOCOL_VERSION,
        ErrorCode.UNEXPECTED,
        ErrorCode.TIMEOUT,
        ErrorCode.GAP,
        ErrorCode.TOO_MANY,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.SUPERSEDED,
        ErrorCode.INTERNAL,
    }
)


class Frame(NamedTuple):
    """One frame as received. ``payload`` is a ``pyarrow.Buffer``; DATA payloads are read from it without a copy."""

    type: FrameType
    channel: int
    sequence: int
    payload: pa.Buffer

    def control(self) -> dict[str, Any]:
        """Decode a control payload, a msgpack map; raises :class:`WireError`."""
        return decode_control(memoryview(self.payload))


def encode_control(frame_type: FrameType, body: dict[str, Any], *, channel: int = 0, sequence: int = 0) -> bytes:
    """Header and msgpack payload of a control frame."""
    payload: bytes = msgpack.packb(body, use_bin_type=True)
    if len(payload) > MAX_CONTROL_BYTES:
        raise WireError(
            ErrorCode.FRAME_TOO_LARGE, f"{frame_type.name} of {len(payload)} bytes exceeds {MAX_CONTROL_BYTES}"
        )
    return HEADER.pack(frame_type, 0, channel, len(payload), sequence) + payload


def data_header(length: int, *, channel: int, sequence: int) -> bytes:
    """Header of a DATA frame whose payload of ``length`` bytes follows."""
    return HEADER.pack(FrameType.DATA, 0, channel, length, sequence)


def decode_control(payload: bytes | memoryview) -> dict[str, Any]:
    """Decode a msgpack map with string keys and bounded sizes; raises :class:`WireError`."""
    try:
        if len(payload) > _PROVEN_BYTES:
            # a list that claims more entries than there are bytes would be reserved in full, at every level of nesting
            proof = msgpack.Unpacker(max_buffer_size=len(payload))
            proof.feed(payload)
            proof.skip()
        body = msgpack.unpackb(payload, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(ErrorCode.BAD_FRAME, f"control payload is not msgpack: {error}") from None
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise WireError(ErrorCode.BAD_FRAME, f"control payload is a {type(body).__name__}, not a map with string keys")
    return body


class BatchEncoder:
    """Writes record batches of one schema as encapsulated IPC messages without copying row data.

    >>> encoder = BatchEncoder(pa.schema([("x", pa.int64())]))
    >>> buffers = encoder.encode(pa.record_batch({"x": [1, 2]}))
    >>> read_ipc_batch(pa.py_buffer(b"".join(buffers)), encoder.schema).num_rows
    2
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._collector = _Collector()
        file = pa.PythonFile(self._collector, mode="w")
        self._writer = pa.RecordBatchStreamWriter(file, schema, options=_IPC_OPTIONS)
        self._writer.write_batch(pa.RecordBatch.from_pylist([], schema=schema))
        self._collector.buffers.clear()  # the schema message, which OPEN carries, and the empty batch

    def encode(self, batch: pa.RecordBatch) -> list[pa.Buffer]:
        """The message of ``batch`` as buffers for ``sendmsg``; they keep the batch's memory alive."""
        self._writer.write_batch(batch)
        buffers = self._collector.buffers
        self._collector.buffers = []
        return buffers


def ipc_schema(schema: pa.Schema) -> bytes:
    """The encapsulated IPC message of a schema."""
    return bytes(schema.serialize())


def read_ipc_schema(payload: bytes) -> pa.Schema:
    """Read a schema message; raises :class:`WireError`."""
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(payload))
        _ = schema.names, str(schema)  # text is decoded only when it is asked for
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise WireError(ErrorCode.BAD_SCHEMA, f"not an Arrow IPC schema message: {error}") from None
    return schema


def read_ipc_batch(payload: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """Read and validate a record batch message without copying its body; raises :class:`WireError`."""
    try:
        message = pa.ipc.read_message(payload)
        if message.type != "record batch":
            raise WireError(ErrorCode.BAD_BATCH, f"expected an Arrow record batch message, got {message.type!r}")
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=False)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise WireError(ErrorCode.BAD_BATCH, f"not a record batch of this channel's schema: {error}") from None
    return batch


class FrameReceiver:
    """Turns received bytes into frames with one copy at most: the kernel writes large payloads where they stay.

    Drive it as ``BufferedProtocol`` does: take :meth:`buffer`, write up to its length into it, call
    :meth:`received` with the count. State is bounded by one frame of ``max_frame`` bytes.

    After :meth:`received` has raised, ``before_fault`` holds the frames that the same bytes completed before the fault,
    so that what is received does not depend on how the bytes were split.
    """

    def __init__(self, *, max_frame: int = MAX_FRAME_BYTES, expect_preamble: bool = True) -> None:
        self.max_frame = max_frame
        self.before_fault: list[Frame] = []
        self._preamble = expect_preamble
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._start = 0
        self._end = 0
        self._header: tuple[FrameType, int, int, int] | None = None
        self._payload: pa.Buffer | None = None
        self._payload_view: memoryview | None = None
        self._filled = 0

    @property
    def partial(self) -> bool:
        """True while a frame (or the preamble) has begun to arrive and has not ended."""
        return self._payload is not None or self._end > self._start

    def buffer(self) -> memoryview:
        """Where the next bytes are to be written; never empty."""
        if self._payload_view is not None:
            return self._payload_view[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._scratch):
            rest = self._end - self._start
            self._scratch[:rest] = self._scratch[self._start : self._end]
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def received(self, count: int) -> list[Frame]:
        """Account for ``count`` bytes written into :meth:`buffer`; return the frames they complete.

        Raises :class:`WireError` on bytes that break the protocol; the connection must then be closed.
        """
        if self._payload_view is not None:
            self._filled += count
            if self._filled < len(self._payload_view):
                return []
            return [self._finish()]
        self._end += count
        frames = self.before_fault = []
        if self._preamble and not self._take_preamble():
            return frames
        while self._payload_view is None and self._end - self._start >= HEADER.size:
            frame = self._next_in_scratch()
            if frame is not None:
                frames.append(frame)
        return frames

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Copying form of buffer/received, for tests and blocking clients."""
        frames: list[Frame] = []
        view = memoryview(data)
        while view:
            room = self.buffer()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            try:
                frames += self.received(count)
            except WireError:
                self.before_fault = frames + self.before_fault
                raise
            view = view[count:]
        return frames

    def _take_preamble(self) -> bool:
        seen = bytes(self._view[self._start : min(self._end, self._start + len(PREAMBLE))])
        if not PREAMBLE.startswith(seen):
            raise WireError(
                ErrorCode.BAD_PREAMBLE,
                f"connection begins with {seen!r}, not with {PREAMBLE!r}: the peer does not speak this protocol",
            )
        if len(seen) < len(PREAMBLE):
            return False
        self._start += len(PREAMBLE)
        self._preamble = False
        return True

    def _next_in_scratch(self) -> Frame | None:
        kind, flags, channel, length, sequence = HEADER.unpack_from(self._scratch, self._start)
        try:
            frame_type = FrameType(kind)
        except ValueError:
            raise WireError(ErrorCode.UNKNOWN_TYPE, f"frame type {kind} is not known") from None
        if flags:
            raise WireError(ErrorCode.BAD_FRAME, f"flags {flags:#x} are not defined in protocol {PROTOCOL_VERSION}")
        limit = self.max_frame if frame_type is FrameType.DATA else min(MAX_CONTROL_BYTES, self.max_frame)
        if length > limit:
            raise WireError(
                ErrorCode.FRAME_TOO_LARGE, f"{frame_type.name} frame of {length} bytes; at most {limit} are accepted"
            )
        self._start += HEADER.size
        self._header = (frame_type, channel, sequence, length)
        available = min(length, self._end - self._start)
        # Arrow's own allocator: 64-byte aligned, and its pool keeps pages warm between frames.
        self._payload = pa.allocate_buffer(length)
        self._payload_view = memoryview(self._payload).cast("B")
        self._payload_view[:available] = self._view[self._start : self._start + available]
        self._start += available
        self._filled = available
        return self._finish() if available == length else None

    def _finish(self) -> Frame:
        assert self._header is not None  # noqa: S101  set together with the payload
        assert self._payload is not None  # noqa: S101  set together with the header
        frame_type, channel, sequence, _ = self._header
        frame = Frame(frame_type, channel, sequence, self._payload)
        self._header = self._payload = self._payload_view = None
        return frame


class _Collector:
    """A file-like object that keeps the buffers written to it."""

    closed = False

    def __init__(self) -> None:
        self.buffers: list[pa.Buffer] = []

    def write(self, data: pa.Buffer | bytes) -> int:
        self.buffers.append(data if isinstance(data, pa.Buffer) else pa.py_buffer(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing to release."""


_IPC_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression=None, use_threads=False)


def total_size(buffers: Sequence[pa.Buffer]) -> int:
    """Bytes of a list of buffers."""
    return sum(len(buffer) for buffer in buffers)
