"""One connection of a producer as a state machine: frames in, frames out, calls on the sink. No sockets, no clock."""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hydrophone_schemas import __version__
from hydrophone_schemas.activations import read_schema
from hydrophone_schemas.errors import SchemaError, WireError
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.wire import (
    FATAL,
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    SEQUENCED,
    ErrorCode,
    Frame,
    FrameType,
    encode_control,
    read_ipc_schema,
)

from hydrophoned.ingest import fields
from hydrophoned.ingest.decode import MAX_TIME, decode_rows
from hydrophoned.ingest.errors import StreamConflict, WidthMismatch
from hydrophoned.ingest.producers import Producer, ProducerRegistry
from hydrophoned.ingest.sink import RequestSpec, Sink, StreamSpec

_MAX_DETAIL: Final = 2000
_MAX_REPORTED_STREAMS: Final = 1024
_MAX_CAPABILITIES: Final = 64
_MAX_SCHEMA_BYTES: Final = 64 << 10
_MAX_SEQUENCE: Final = fields.MAX_INT
_MAX_UINT64: Final = (1 << 64) - 1
_PRODUCER_TYPES: Final = SEQUENCED | {
    FrameType.HELLO,
    FrameType.OPEN,
    FrameType.REPORT,
    FrameType.FLUSH,
    FrameType.BYE,
    FrameType.PING,
}


class _Channel(NamedTuple):
    """A stream that rows are sent to; a refused one has no key."""

    key: int | None
    width: int = 0
    dtype: str = ""


_REFUSED: Final = _Channel(None)


@dataclass
class Reaction:
    """What the connection's shell has to do: write ``send``, run each flush of ``flushes``, then perhaps close."""

    send: list[bytes] = field(default_factory=list)
    flushes: list[int] = field(default_factory=list)
    close: bool = False
    superseded: object | None = None
    unacknowledged: bool = False
    fault: Exception | None = None
    """An error of the daemon's own, to be logged; the peer has been told and the connection is to be closed."""


class IngestSession:
    """State of one connection. ``connection`` is the shell's own handle, given back when it is superseded."""

    def __init__(
        self,
        sink: Sink,
        producers: ProducerRegistry,
        connection: object,
        *,
        http: str | None = None,
        max_frame: int = MAX_FRAME_BYTES,
        max_channels: int = 4096,
    ) -> None:
        self._sink, self._producers, self._connection = sink, producers, connection
        self._http, self._max_frame, self._max_channels = http, max_frame, max_channels
        self._channels: dict[int, _Channel] = {}
        self.producer: Producer | None = None

    def receive(self, frames: list[Frame], now: int) -> Reaction:
        """React to frames received at UTC ``now`` in us; what has been received is acknowledged once, at the end."""
        reaction = Reaction()
        for frame in frames:
            try:
                self._take(frame, now, reaction)
            except WireError as error:
                self._complain(error, frame, reaction)
            except Exception as error:  # noqa: BLE001  whatever it is, the other connections go on; the shell logs it
                reaction.fault = error
                told = WireError(ErrorCode.INTERNAL, "an error of the daemon, which its log describes")
                self._complain(told, frame, reaction)
            if reaction.close:
                break
        self._acknowledge(reaction)
        return reaction

    def flushed(self, token: int) -> bytes:
        """The FLUSHED frame for a flush that is done."""
        return encode_control(FrameType.FLUSHED, {"token": token})

    def error(self, code: ErrorCode, detail: str, *, channel: int = 0, sequence: int = 0) -> bytes:
        """An ERROR frame."""
        body = {"code": str(code), "detail": detail[:_MAX_DETAIL], "fatal": code in FATAL, "sequence": sequence}
        return encode_control(FrameType.ERROR, body, channel=channel)

    def ack(self) -> bytes:
        """An ACK of what was received, and of what a checkpoint covers."""
        producer = self._greeted()
        body = {"received": producer.received, "durable": self._sink.durable(producer.id)}
        return encode_control(FrameType.ACK, body, sequence=producer.received)

    def disconnected(self) -> None:
        """The connection has ended."""
        if self.producer is not None:
            self._producers.disconnect(self.producer, self._connection)

    def _greeted(self) -> Producer:
        assert self.producer is not None  # noqa: S101  _take lets no other frame come before HELLO
        return self.producer

    def _acknowledge(self, reaction: Reaction) -> None:
        if reaction.unacknowledged:
            reaction.send.append(self.ack())
            reaction.unacknowledged = False

    def _complain(self, error: WireError, frame: Frame, reaction: Reaction) -> None:
        code = ErrorCode(error.code)
        self._sink.count(f"errors_{code}")
        if code in FATAL:
            self._acknowledge(reaction)  # what came before the fault; nothing is read after it
            reaction.close = True
        sequence = frame.sequence if frame.type in SEQUENCED else 0
        reaction.send.append(self.error(code, error.detail, channel=frame.channel, sequence=sequence))

    def _take(self, frame: Frame, now: int, reaction: Reaction) -> None:
        kind = frame.type
        if kind not in _PRODUCER_TYPES:
            raise WireError(ErrorCode.UNEXPECTED, f"{kind.name} frames are sent by the daemon, not by a producer")
        if (kind is FrameType.HELLO) is (self.producer is not None):
            expected = "HELLO comes once" if self.producer else "the first frame must be HELLO"
            raise WireError(ErrorCode.UNEXPECTED, f"{kind.name} is out of place: {expected}")
        if kind in SEQUENCED:
            self._take_sequenced(frame, reaction)
        elif kind is FrameType.HELLO:
            self._hello(frame.control(), reaction)
        elif kind is FrameType.OPEN:
            self._open(frame, reaction)
        elif kind is FrameType.REPORT:
            self._report(frame.control(), now)
        elif kind is FrameType.FLUSH:
            reaction.flushes.append(fields.integer(frame.control(), "token"))
        elif kind is FrameType.PING:
            token = fields.integer(frame.control(), "token")
            reaction.send.append(encode_control(FrameType.PONG, {"token": token}))
        else:
            frame.control()
            reaction.close = reaction.unacknowledged = True

    def _take_sequenced(self, frame: Frame, reaction: Reaction) -> None:
        # counted as received before it is read: a frame that cannot be taken must not come again for ever
        if not self._is_new(frame, reaction):
            return
        if frame.type is FrameType.DATA:
            self._data(frame)
        elif frame.type is FrameType.REQUEST:
            self._request(frame.control())
        elif frame.type is FrameType.TOKENS:
            self._tokens(frame.control())
        else:
            self._outcome(frame.control())

    def _is_new(self, frame: Frame, reaction: Reaction) -> bool:
        """Account for a sequence number; False for a duplicate."""
        producer = self._greeted()
        if not 1 <= frame.sequence <= _MAX_SEQUENCE:
            raise WireError(
                ErrorCode.BAD_FRAME, f"{frame.type.name} has sequence {frame.sequence}; expected 1..{_MAX_SEQUENCE}"
            )
        reaction.unacknowledged = True
        expected = producer.received + 1
        if frame.sequence < expected:
            self._sink.count("frames_duplicate")
            return False
        if frame.sequence > expected:
            # what a producer gave up while the daemon was away
            self._sink.count("frames_missing", frame.sequence - expected)
        producer.received = frame.sequence
        return True

    def _hello(self, body: dict[str, Any], reaction: Reaction) -> None:
        protocol = fields.integer(body, "protocol")
        if protocol != PROTOCOL_VERSION:
            raise WireError(
                ErrorCode.PROTOCOL_VERSION,
                f"the producer speaks protocol {protocol}; this daemon ({__version__}) speaks {PROTOCOL_VERSION}",
            )
        producer_id = fields.binary(body, "producer", 16, 16).hex()
        name = fields.text(body, "name", default="")
        fields.integer(body, "pid", default=0)
        fields.text(body, "sdk", default="")
        fields.texts(body, "capabilities", _MAX_CAPABILITIES)
        self.producer, reaction.superseded = self._producers.connect(producer_id, name or None, self._connection)
        welcome = {
            "protocol": PROTOCOL_VERSION,
            "daemon": __version__,
            "capabilities": [],
            "max_frame": self._max_frame,
            "received": self.producer.received,
            "durable": self._sink.durable(producer_id),
            "http": self._http,
        }
        reaction.send.append(encode_control(FrameType.WELCOME, welcome))

    def _open(self, frame: Frame, reaction: Reaction) -> None:
        channel, producer = frame.channel, self._greeted()
        if channel == 0:
            raise WireError(ErrorCode.UNEXPECTED, "OPEN on channel 0, which stands for the connection itself")
        if channel not in self._channels and len(self._channels) >= self._max_channels:
            raise WireError(ErrorCode.TOO_MANY, f"channel {channel} would be more than {self._max_channels}")
        self._channels[channel] = _REFUSED  # until all has been checked
        body = frame.control()
        stream_id = StreamId(fields.name(body, "model"), fields.name(body, "version"), fields.site(body, "site"))
        fingerprint = fields.text(body, "fingerprint", default="")
        try:
            width, dtype = read_schema(read_ipc_schema(fields.binary(body, "schema", 1, _MAX_SCHEMA_BYTES)))
        except WireError:
            raise
        except SchemaError as error:
            raise WireError(ErrorCode.BAD_SCHEMA, str(error)) from None
        try:
            key = self._sink.open_stream(StreamSpec(stream_id, fingerprint, width, dtype), producer.id)
        except WidthMismatch as error:
            raise WireError(ErrorCode.WIDTH_MISMATCH, str(error)) from None
        except StreamConflict as error:
            raise WireError(ErrorCode.STREAM_CONFLICT, str(error)) from None
        self._channels[channel] = _Channel(key, width, dtype)
        producer.streams.add(str(stream_id))
        reaction.send.append(encode_control(FrameType.OPENED, {"stream": str(stream_id)}, channel=channel))

    def _data(self, frame: Frame) -> None:
        channel = self._channels.get(frame.channel)
        if channel is None:
            raise WireError(ErrorCode.UNEXPECTED, f"DATA on channel {frame.channel}, which was not opened")
        if channel.key is None:
            self._sink.count("frames_refused")  # its producer was told when it opened the channel
            return
        rows = decode_rows(frame.payload, channel.width, channel.dtype, self._greeted().request_key)
        unknown = int((rows.request < 0).sum())
        if unknown:
            self._sink.count("rows_of_unknown_request", unknown)
        if rows.count:
            self._sink.put_rows(channel.key, rows)

    def _request(self, body: dict[str, Any]) -> None:
        producer = self._greeted()
        number = fields.integer(body, "request", 0, _MAX_UINT64)
        spec = RequestSpec(
            id=fields.text(body, "id"),
            model=fields.name(body, "model"),
            version=fields.name(body, "version"),
            producer=producer.id,
            started=fields.integer(body, "started", 0, MAX_TIME),
            sample=fields.share(body, "sample"),
            attributes=fields.scalars(body, "attributes", nil=False),
        )
        producer.remember_request(number, self._sink.open_request(spec))

    def _tokens(self, body: dict[str, Any]) -> None:
        key = self._greeted().request_key(fields.integer(body, "request", 0, _MAX_UINT64))
        sequence = fields.integer(body, "sequence", 0, (1 << 16) - 1)
        position = fields.integer(body, "position", 0, (1 << 31) - 1)
        pieces = fields.pieces(body, "pieces")
        if key < 0:
            self._sink.count("tokens_of_unknown_request", len(pieces))
            return
        self._sink.put_tokens(key, sequence, position, pieces)

    def _outcome(self, body: dict[str, Any]) -> None:
        model = fields.text(body, "model", default="")
        self._sink.put_outcome(
            fields.text(body, "id"),
            fields.name(body, "model") if model else "",
            fields.scalars(body, "labels", nil=True),
            fields.integer(body, "time", 0, MAX_TIME),
            fields.text(body, "source", default="sdk"),
        )

    def _report(self, body: dict[str, Any], now: int) -> None:
        producer = self._greeted()
        streams = body.get("streams", [])
        if not isinstance(streams, list) or len(streams) > _MAX_REPORTED_STREAMS:
            raise fields.wrong("streams", streams, f"a list of at most {_MAX_REPORTED_STREAMS} maps")
        report = {
            "time": fields.integer(body, "time", 0, MAX_TIME, default=now),
            "sample": fields.share(body, "sample", default=1.0),
            "buffer_bytes": fields.integer(body, "buffer_bytes", default=0),
            "counters": fields.counts(body, "counters", fields.MAX_COUNTERS),
            "streams": (known := [_stream_report(stream) for stream in streams]),
        }
        for stream in known:
            if stream["stream"] in producer.streams:
                producer.reports[stream["stream"]] = {name: stream[name] for name in stream if name != "stream"}
        producer.reported = now
        self._sink.put_report(producer.id, report)


def _stream_report(stream: Any) -> dict[str, Any]:
    """One entry of a REPORT's ``streams``: its id, the rows dropped by reason, and whatever else is counted."""
    if not isinstance(stream, dict) or len(stream) > fields.MAX_ENTRIES:
        raise fields.wrong("streams", stream, f"maps of at most {fields.MAX_ENTRIES} entries")
    counted = {name: stream[name] for name in stream if name not in ("stream", "dropped")}
    return {
        "stream": fields.text(stream, "stream"),
        **fields.counts({"stream": counted}, "stream", fields.MAX_ENTRIES),
        "dropped": fields.counts(stream, "dropped", fields.MAX_ENTRIES),
    }
