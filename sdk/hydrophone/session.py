"""The producer's side of the protocol as a state machine: no sockets, no clock, no threads.

It is told what happened (:meth:`Session.connected`, :meth:`Session.frame`, :meth:`Session.disconnected`) and gives
the bytes to write (:meth:`Session.outgoing`) and the time of the next connection attempt (:attr:`Session.retry_at`).

Sequence numbers are given when an item is first written, so that what is given up before leaves no gap. Written
items are kept until the daemon says it received them, and are written again after a reconnect, in order.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple

from hydrophone_schemas.errors import WireError
from hydrophone_schemas.wire import (
    MAX_FRAME_BYTES,
    PREAMBLE,
    PROTOCOL_VERSION,
    SEQUENCED,
    Frame,
    FrameType,
    data_header,
    encode_control,
    ipc_schema,
    total_size,
)

from hydrophone.requests import Request
from hydrophone.streams import Stream

MIN_BACKOFF: Final = 0.1
MAX_BACKOFF: Final = 5.0
GREETING_TIMEOUT: Final = 5.0
"""Seconds within which the daemon has to answer HELLO."""

Buffers = list[Any]
"""Bytes-like pieces to be written one after the other."""


class State(Enum):
    """Where the connection stands."""

    AWAY = "away"
    GREETING = "greeting"
    LIVE = "live"
    CLOSED = "closed"


class Outgoing:
    """One sequenced item: a DATA frame (``stream`` and Arrow ``buffers``) or a control frame (``body``).

    ``requests`` are announced before it is written.
    """

    __slots__ = ("body", "buffers", "done", "nbytes", "requests", "rows", "sequence", "stream", "type", "wire")

    def __init__(
        self,
        kind: FrameType,
        *,
        body: dict[str, Any] | None = None,
        stream: Stream | None = None,
        buffers: Buffers | None = None,
        rows: int = 0,
        requests: tuple[Request, ...] = (),
    ) -> None:
        self.type = kind
        self.body = body
        self.stream = stream
        self.buffers = buffers or []
        self.rows = rows
        self.requests = requests
        self.nbytes = total_size(self.buffers) + 256
        self.sequence = 0
        self.done = False
        self.wire: Buffers = []


class Refused(NamedTuple):
    """The daemon refuses something: a stream if one is given, else a control frame."""

    stream: Stream | None
    code: str
    detail: str


class Flushed(NamedTuple):
    """Everything submitted before the flush with this token has been processed."""

    token: int


class Hangup(NamedTuple):
    """The connection is to be closed by the caller, who then calls :meth:`Session.disconnected`."""

    reason: str


Event = Refused | Flushed | Hangup


class Session:
    """State of one producer. ``identity`` holds the other fields of HELLO: name, pid, sdk."""

    def __init__(
        self,
        identity: dict[str, Any],
        *,
        new_id: Callable[[], bytes],
        random: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._new_id = new_id
        self._random = random
        self.id = new_id()
        self.state = State.AWAY
        self.retry_at = 0.0
        self.deadline: float | None = None
        """When the greeting times out, while greeting."""
        self.max_frame = MAX_FRAME_BYTES
        self.welcome: dict[str, Any] = {}
        self.counters = {"frames_sent": 0, "bytes_sent": 0, "connections": 0, "frames_lost": 0, "frames_unencodable": 0}
        self.pending_bytes = 0
        self._attempts = 0
        self._sequence = 0
        self._acked = 0
        self._queue: deque[Outgoing] = deque()
        self._sent: deque[Outgoing] = deque()
        self._cursor = 0
        self._opened: dict[int, Stream] = {}
        self._greeting: Buffers = []
        self._flushes: dict[int, Outgoing | None] = {}
        self._flush_sent: set[int] = set()
        self._report: dict[str, Any] | None = None
        self._bye = False

    # What the producer wants

    def submit(self, item: Outgoing) -> None:
        """Queue an item."""
        self.pending_bytes += item.nbytes
        self._queue.append(item)

    def flush(self, token: int) -> None:
        """Ask the daemon, once all that was submitted so far is written, to process it."""
        last = self._queue or self._sent
        self._flushes[token] = last[-1] if last else None

    def forget_flush(self, token: int) -> None:
        """Nobody waits for the flush any more."""
        self._flushes.pop(token, None)
        self._flush_sent.discard(token)

    def report(self, body: dict[str, Any]) -> None:
        """Send this REPORT next; one that was not written yet is replaced."""
        if self.state is State.LIVE:
            self._report = body

    def bye(self) -> None:
        """Say goodbye once everything is written."""
        self._bye = True

    # What happened on the connection

    def connected(self, now: float) -> None:
        """A connection has been made at the monotonic time ``now``."""
        body = self._identity | {"protocol": PROTOCOL_VERSION, "producer": self.id, "capabilities": []}
        self._greeting = [PREAMBLE, encode_control(FrameType.HELLO, body)]
        self.state = State.GREETING
        self.deadline = now + GREETING_TIMEOUT

    def disconnected(self, now: float) -> None:
        """The connection could not be made, or has ended; sets :attr:`retry_at`."""
        backoff = min(MAX_BACKOFF, MIN_BACKOFF * 2.0 ** min(self._attempts, 10))
        self._attempts += 1
        self.retry_at = now + backoff * (0.5 + 0.5 * self._random())
        self.state = State.AWAY
        self.deadline = None
        self._cursor = 0
        for stream in self._opened.values():
            stream.refused = None  # the next connection may accept it
        self._opened.clear()
        self._flush_sent.clear()
        self._greeting = []
        self._report = None

    def frame(self, frame: Frame) -> list[Event]:
        """Account for a frame of the daemon; raises :class:`WireError` if it cannot be read."""
        if frame.type is FrameType.ACK:
            self._acknowledge(_integer(frame.control(), "received"))
            return []
        if frame.type is FrameType.WELCOME:
            return self._welcomed(frame.control())
        if frame.type is FrameType.ERROR:
            return self._error(frame.channel, frame.control())
        if frame.type is FrameType.FLUSHED:
            token = _integer(frame.control(), "token")
            self.forget_flush(token)
            return [Flushed(token)]
        return []  # OPENED, PONG, and what later protocol versions may say to those who can skip it

    # What is to be written

    def outgoing(self) -> Buffers:
        """The pieces of the next frames to be written, about one batch; empty if there is nothing to write now."""
        if self._greeting:
            pieces, self._greeting = self._greeting, []
            return pieces
        if self.state is not State.LIVE:
            return []
        pieces = self._next_flush() or self._next_item()
        if not pieces and self._report is not None:
            pieces = [encode_control(FrameType.REPORT, self._report)]
            self._report = None
        if not pieces and self._bye:
            self.state = State.CLOSED
            pieces = [encode_control(FrameType.BYE, {})]
        return pieces

    @property
    def failing(self) -> bool:
        """Whether the last attempt to reach the daemon failed."""
        return self._attempts > 0

    @property
    def unacknowledged(self) -> int:
        """Items that were written or wait, and that the daemon has not yet received."""
        return len(self._sent) + len(self._queue)

    def _next_item(self) -> Buffers:
        if self._cursor < len(self._sent):
            item = self._sent[self._cursor]
        else:
            queued = self._from_queue()
            if queued is None:
                return []
            item = queued
        pieces: Buffers = []
        if item.stream is not None and item.stream.channel not in self._opened:
            self._opened[item.stream.channel] = item.stream
            pieces.append(_open(item.stream))
        pieces += item.wire
        self._cursor += 1
        self.counters["frames_sent"] += 1
        self.counters["bytes_sent"] += item.nbytes
        return pieces

    def _from_queue(self) -> Outgoing | None:
        """Number the next item that can be written and append it to those sent."""
        while self._queue:
            item = self._queue[0]
            for request in item.requests:
                if request.announced is not self.id:
                    request.announced = self.id
                    announcement = Outgoing(FrameType.REQUEST, body=request.body())
                    self.pending_bytes += announcement.nbytes
                    if self._number(announcement):
                        return announcement
            self._queue.popleft()
            if item.stream is not None and item.stream.refused is not None:
                item.stream.drop(item.stream.refused, item.rows)
                self._finish(item)
            elif self._number(item):
                if item.stream is not None:
                    item.stream.sent += item.rows
                return item
        return None

    def _number(self, item: Outgoing) -> bool:
        sequence = self._sequence + 1
        if item.type is FrameType.DATA and item.stream is not None:
            header = data_header(total_size(item.buffers), channel=item.stream.channel, sequence=sequence)
            item.wire = [header, *item.buffers]
        else:
            try:
                item.wire = [encode_control(item.type, item.body or {}, sequence=sequence)]
            except (WireError, TypeError, ValueError, OverflowError):
                self.counters["frames_unencodable"] += 1
                self._finish(item)
                return False
        item.sequence = self._sequence = sequence
        self._sent.append(item)
        return True

    def _next_flush(self) -> Buffers:
        written = self._sent[self._cursor - 1].sequence if self._cursor else self._acked
        for token, last in self._flushes.items():
            ready = last is None or last.done or 0 < last.sequence <= written
            if ready and token not in self._flush_sent:
                self._flush_sent.add(token)
                return [encode_control(FrameType.FLUSH, {"token": token})]
        return []

    def _finish(self, item: Outgoing) -> None:
        item.done = True
        self.pending_bytes -= item.nbytes

    def _acknowledge(self, received: int) -> None:
        if received > self._sequence:
            raise WireError("unexpected", f"daemon acknowledged {received}, of which only {self._sequence} were sent")
        while self._sent and self._sent[0].sequence <= received:
            item = self._sent.popleft()
            self._cursor = max(0, self._cursor - 1)
            self._finish(item)
            if item.stream is None:
                continue
            if item.stream.refused is None:
                item.stream.acked += item.rows
            else:  # written before the refusal arrived: the daemon skipped it
                item.stream.sent -= item.rows
                item.stream.drop(item.stream.refused, item.rows)
        self._acked = max(self._acked, received)

    def _welcomed(self, body: dict[str, Any]) -> list[Event]:
        if self.state is not State.GREETING:
            raise WireError("unexpected", "daemon said WELCOME outside of the greeting")
        received = _integer(body, "received")
        if not self._acked <= received <= self._sequence:
            return [self._renew(received)]
        self.max_frame = _integer(body, "max_frame", MAX_FRAME_BYTES)
        self.welcome = body
        self._acknowledge(received)
        self.state = State.LIVE
        self.deadline = None
        self._attempts = 0
        self.counters["connections"] += 1
        return []

    def _renew(self, received: int) -> Hangup:
        """The daemon does not remember what it acknowledged: begin anew under another producer id.

        Its requests are unknown there too, so they are announced again before rows that belong to them.
        """
        self.counters["frames_lost"] += max(0, self._acked - received)
        self.id = self._new_id()
        again = [item for item in self._sent if item.type is not FrameType.REQUEST]
        for item in self._sent:
            if item.type is FrameType.REQUEST:
                self._finish(item)
        for item in again:
            item.sequence = 0
        self._queue.extendleft(reversed(again))
        self._sent.clear()
        self._sequence = self._acked = self._attempts = 0
        return Hangup("the daemon has begun anew")

    def _error(self, channel: int, body: dict[str, Any]) -> list[Event]:
        code, detail = str(body.get("code", "")), str(body.get("detail", ""))
        if body.get("fatal"):
            return [Refused(None, code, detail), Hangup(f"{code}: {detail}")]
        stream = self._opened.get(channel) if channel else None
        if stream is not None:
            stream.refused = code or "refused"
        return [Refused(stream, code, detail)]


def _open(stream: Stream) -> bytes:
    assert stream.schema is not None  # noqa: S101  an item of a stream exists only once its form is known
    body = {
        "model": stream.id.model,
        "version": stream.id.version,
        "fingerprint": stream.fingerprint,
        "site": stream.id.site,
        "schema": ipc_schema(stream.schema),
    }
    return encode_control(FrameType.OPEN, body, channel=stream.channel)


def _integer(body: dict[str, Any], field: str, default: int | None = None) -> int:
    value = body.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise WireError("bad_field", f"field {field} is {value!r}, not a number from 0")
    return value


assert {FrameType.REQUEST, FrameType.DATA} <= SEQUENCED  # noqa: S101  Outgoing numbers exactly these kinds
