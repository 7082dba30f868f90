"""The sending thread: takes captures from the buffer, encodes them and talks to the daemon.

A thin shell around :class:`hydrophone.session.Session`: it owns the socket, the clock and the thread. One producer
per daemon address is shared by all taps of the process, and by ``log``.
"""

import atexit
import itertools
import os
import random
import select
import socket
import sys
import threading
import time
import uuid
import weakref
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final, Protocol

from hydrophone_schemas.errors import WireError
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.places import Address
from hydrophone_schemas.wire import FrameReceiver, FrameType

from hydrophone.buffer import Buffer
from hydrophone.encode import Pieces, RowSource, encode
from hydrophone.errors import InvalidOption
from hydrophone.faults import FaultLog
from hydrophone.requests import Numbering
from hydrophone.session import Flushed, Hangup, Outgoing, Refused, Session, State
from hydrophone.streams import Stream

VERSION: Final = "0.1.0"
FLUSH_INTERVAL: Final = 1.0
"""Seconds between looks at the buffer; hooks wake the thread only when it is more than half full.

A look costs a model that decodes on all cores several times what it costs the thread: its threads wait for one
another, so what one core loses all lose. See benchmarks/sdk_overhead.py.
"""
AWAY_SECONDS: Final = 10.0
"""Age after which captures are dropped while the daemon is away."""
SEND_TIMEOUT: Final = 10.0
"""Seconds without progress after which a connection with bytes to write is given up."""
SEND_BUFFER_BYTES: Final = 4 << 20
CONNECT_TIMEOUT: Final = 2.0
ATEXIT_TIMEOUT: Final = 2.0
"""Seconds the interpreter's end may wait for what is still to be sent."""
_OUTCOMES: Final = 10_000
_PIECES_PER_CALL: Final = 64
_STREAMS: Final = 4096
"""As many as a daemon accepts on one connection."""


class Watcher(Protocol):
    """What the thread calls each second, for each tap."""

    @property
    def rate(self) -> float:
        """Sample rate in force, in 0..1."""
        ...

    def tick(self, fill: float, dropped: int) -> None:
        """``fill`` of the buffer in 0..1, and rows dropped in the last second for want of room."""
        ...


class Producer:
    """Sends captures to the daemon at ``address``; starts its thread with the first capture.

    At most ``buffer_bytes`` are held: three quarters wait to be encoded, one quarter is on its way, not yet
    acknowledged.
    """

    def __init__(self, address: Address, buffer_bytes: int = 64 << 20) -> None:
        self.address = address
        self.buffer_bytes = buffer_bytes
        self.faults = FaultLog()
        self.numbering = Numbering()
        self.counters: Counter[str] = Counter()
        self.users = 0
        self.watchers: list[Watcher] = []
        self._streams: dict[str, Stream] = {}
        self._pieces: dict[Stream, Pieces] = {}
        self._state = threading.Lock()
        self._reset()
        _PRODUCERS.add(self)

    def _reset(self) -> None:
        """Begin with an empty buffer and no connection, as at first and in a forked child."""
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.buffer: Buffer[RowSource] = Buffer(self.buffer_bytes * 3 // 4, self._wake)
        identity = {"name": Path(sys.argv[0]).name[:100] if sys.argv else "", "pid": os.getpid(), "sdk": VERSION}
        self.session = Session(identity, new_id=lambda: uuid.uuid4().bytes, random=random.Random().random)  # noqa: S311  jitter
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._receiver = FrameReceiver(expect_preamble=False)
        self._unwritten: deque[memoryview] = deque()
        self._progress = 0.0
        self._outcomes: deque[Outgoing] = deque(maxlen=_OUTCOMES)
        self._flush_tokens = itertools.count(1)
        self._flushes: dict[int, threading.Event] = {}
        self._flush_waiting: dict[int, int] = {}
        self._closing = False
        self._close_by = 0.0
        self._last_tick = time.monotonic()
        self._dropped_seen = 0

    # For taps and log

    def stream(self, stream_id: StreamId, fingerprint: str, pieces: Pieces | None = None) -> Stream:
        """The stream with this id, made if it is new; ``pieces`` turns token ids into strings that are to be sent."""
        with self._state:
            stream = self._streams.get(str(stream_id))
            if stream is None:
                if len(self._streams) == _STREAMS:
                    raise InvalidOption(f"{stream_id} would be more than {_STREAMS} streams of one producer")
                stream = Stream(stream_id, fingerprint, len(self._streams) + 1)
                self._streams[stream.name] = stream
            if pieces is not None:
                self._pieces[stream] = pieces
            return stream

    def put(self, capture: RowSource) -> None:
        """Take over a capture; never waits, never raises for anything the daemon does."""
        self.buffer.put(capture)
        if self._thread is None:
            self.start()

    def outcome(self, body: dict[str, Any]) -> None:
        """Queue an outcome; the oldest one gives way when too many wait."""
        if len(self._outcomes) == _OUTCOMES:
            self.counters["outcomes_dropped"] += 1
        self._outcomes.append(Outgoing(FrameType.OUTCOME, body=body))
        self.start()

    def start(self) -> None:
        """Start the thread if it does not run."""
        with self._state:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="hydrophone-producer", daemon=True)
                self._thread.start()

    def flush(self, timeout: float) -> bool:
        """Send what was put so far and wait until the daemon has processed it; False if ``timeout`` s pass first."""
        if self._thread is None and not self.buffer.put_count and not self._outcomes:
            return True
        self.start()
        token, done = next(self._flush_tokens), threading.Event()
        self._flushes[token] = done
        self._flush_waiting[token] = self.buffer.put_count
        self._wake()
        try:
            return done.wait(timeout)
        finally:
            self._flushes.pop(token, None)

    def close(self, timeout: float) -> None:
        """Send what is left within ``timeout`` seconds, say goodbye and end the thread. It does not start again."""
        thread = self._thread
        self._close_by = time.monotonic() + timeout
        if thread is not None and thread.is_alive() and not self.session.failing:
            self.flush(timeout)
        self._closing = True
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.5, self._close_by + 0.2 - time.monotonic()))
        if thread is None or not thread.is_alive():
            self._wake_read.close()
            self._wake_write.close()
        _PRODUCERS.discard(self)

    @property
    def connected(self) -> bool:
        """Whether the daemon has welcomed this producer."""
        return self.session.state is State.LIVE

    # The thread

    def _run(self) -> None:
        session = self.session
        while not (self._closing and self._finished()):
            try:
                now = time.monotonic()
                if self._socket is None and now >= session.retry_at and not self._closing:
                    self._connect(now)
                self._fill(now)
                self._write(now)
                self._wait()
                self._watch(time.monotonic())
            except (OSError, WireError) as error:
                self._hang_up(str(error))
            except Exception as error:  # noqa: BLE001  the thread must outlive any fault of ours
                self.faults.failed(error)
                self._hang_up(str(error))
        self._hang_up("closed")

    def _finished(self) -> bool:
        """Whether the closing thread may end: the daemon has seen BYE, is away, or the time is up."""
        if self.session.state is State.LIVE:
            self.session.bye()
        return self._socket is None or time.monotonic() >= self._close_by

    def _connect(self, now: float) -> None:
        address = self.address
        try:
            if address.path is not None:
                connection = socket.socket(socket.AF_UNIX)
                # only the sender's buffer counts on a Unix socket: with room for a batch the receiver wakes less
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                connection.settimeout(CONNECT_TIMEOUT)
                self._socket = connection
                connection.connect(address.path)
            else:
                connection = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socket = connection
        except OSError as error:
            self.faults.warn(
                "away", "no daemon at %s (%s); trying again, captures are kept within bounds", address, error
            )
            self._hang_up(str(error))
            return
        connection.setblocking(False)
        self._receiver = FrameReceiver(expect_preamble=False)
        self._progress = now
        self.session.connected(now)

    def _fill(self, now: float) -> None:
        """Move captures from the buffer to the session while it has room; drop old ones while the daemon is away."""
        session = self.session
        if session.state is not State.LIVE:
            self.buffer.discard_before(now - AWAY_SECONDS, "daemon_away")
            return
        while self._outcomes:
            session.submit(self._outcomes.popleft())
        room = self.buffer_bytes // 4 - session.pending_bytes
        if room > 0 and self.buffer.nbytes:
            taken = self.buffer.take(room)
            for item in encode(taken, self.faults.failed, session.max_frame, self._pieces.get):
                session.submit(item)
        for token, target in list(self._flush_waiting.items()):
            if self.buffer.gone_count >= target:
                del self._flush_waiting[token]
                session.flush(token)

    def _write(self, now: float) -> None:
        if self._socket is None:
            return
        while True:
            while len(self._unwritten) < _PIECES_PER_CALL and (pieces := self.session.outgoing()):
                self._unwritten.extend(_bytes_view(piece) for piece in pieces)
            if not self._unwritten:
                self._progress = now
                return
            try:
                count = self._socket.sendmsg(itertools.islice(self._unwritten, _PIECES_PER_CALL))
            except BlockingIOError:
                return
            self._progress = now
            self._advance(count)

    def _advance(self, count: int) -> None:
        unwritten = self._unwritten
        while unwritten and count >= len(unwritten[0]):
            count -= len(unwritten.popleft())
        if count:
            unwritten[0] = unwritten[0][count:]

    def _wait(self) -> None:
        """Wait for the daemon, a wake-up or the flush interval; read what came."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if self._socket is not None and self._expects():
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unwritten else 0))
        busy = self.session.state is State.LIVE and self.buffer.nbytes and not self._unwritten and self._room()
        ready = poll.poll(0 if busy and self.buffer.nbytes * 2 > self.buffer.capacity else self._patience() * 1000)
        if any(descriptor == self._wake_read.fileno() for descriptor, _ in ready):
            _drain(self._wake_read)
        if self._socket is not None:
            self._read()

    def _patience(self) -> float:
        """Seconds until the next look at the buffer, or the next attempt to connect if that is earlier."""
        if self._socket is not None:
            return FLUSH_INTERVAL
        return min(FLUSH_INTERVAL, max(0.01, self.session.retry_at - time.monotonic()))

    def _expects(self) -> bool:
        """Whether the daemon's next word is urgent; acknowledgements are else read at the next look at the buffer."""
        live = self.session.state is State.LIVE
        return not live or bool(self._flushes or self._unwritten or self._closing) or not self._room()

    def _room(self) -> bool:
        return self.session.pending_bytes < self.buffer_bytes // 4

    def _read(self) -> None:
        assert self._socket is not None  # noqa: S101  only called with a connection
        while True:
            try:
                count = self._socket.recv_into(self._receiver.buffer())
            except BlockingIOError:
                return
            if not count:
                self._hang_up("the daemon closed the connection")
                return
            for frame in self._receiver.received(count):
                for event in self.session.frame(frame):
                    self._handle(event)
                if self._socket is None:
                    return

    def _handle(self, event: Flushed | Refused | Hangup) -> None:
        if isinstance(event, Flushed):
            done = self._flushes.get(event.token)
            if done is not None:
                done.set()
        elif isinstance(event, Refused):
            self.counters[f"refused_{event.code}"] += 1
            what = event.stream.name if event.stream is not None else "a frame"
            self.faults.warn(f"{what} {event.code}", "the daemon refuses %s: %s: %s", what, event.code, event.detail)
        else:
            self._hang_up(event.reason)

    def _watch(self, now: float) -> None:
        """Time-outs, and each second the report and the taps' own checks."""
        session = self.session
        if session.deadline is not None and now >= session.deadline:
            self._hang_up("the daemon did not answer the greeting")
        elif self._unwritten and now - self._progress > SEND_TIMEOUT:
            self._hang_up("the daemon reads nothing")
        for token in [token for token in self._flush_waiting if token not in self._flushes]:
            del self._flush_waiting[token]
        if now - self._last_tick >= 1:
            self._last_tick = now
            dropped = self.buffer.dropped_rows - self._dropped_seen
            self._dropped_seen += dropped
            for watcher in list(self.watchers):
                watcher.tick(self.buffer.nbytes / self.buffer.capacity, dropped)
            session.report(self.report())

    def report(self) -> dict[str, Any]:
        """The producer's own counters, as a REPORT frame carries them."""
        return {
            "time": time.time_ns() // 1000,
            "sample": min((watcher.rate for watcher in list(self.watchers)), default=1.0),
            "buffer_bytes": self.buffer.nbytes,
            "counters": {**self.session.counters, **self.counters, **self._faults()},
            "streams": [stream.report() for stream in list(self._streams.values())],
        }

    def _faults(self) -> dict[str, int]:
        return {f"caught_{kind}": count for kind, count in self.faults.counts.copy().items()}

    def _hang_up(self, reason: str) -> None:
        if self.session.state is State.LIVE and not self._closing:
            self.faults.warn("lost", "connection to the daemon at %s ended: %s", self.address, reason)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._unwritten.clear()
        if self.session.state is not State.CLOSED:
            self.session.disconnected(time.monotonic())

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"\0")
        except BlockingIOError:
            return  # it is awake already
        except OSError as error:  # closed while a hook still ran
            self.faults.failed(error)

    def _after_fork(self) -> None:
        """In a forked child: the parent's thread, connection and captures are not ours."""
        for inherited in (self._socket, self._wake_read, self._wake_write):
            if inherited is not None:
                inherited.close()
        self._state = threading.Lock()
        self.faults = FaultLog()
        self.numbering.renew()
        for stream in self._streams.values():
            stream.restart()
        closing = self._closing
        self._reset()
        self._closing = closing


def shared(address: Address, buffer_bytes: int) -> Producer:
    """The producer of this process for ``address``; its bound is the largest that was asked for."""
    with _SHARED_LOCK:
        producer = _SHARED.get(address)
        if producer is None:
            producer = _SHARED[address] = Producer(address, buffer_bytes)
        elif buffer_bytes > producer.buffer_bytes:
            producer.buffer_bytes = buffer_bytes
            producer.buffer.capacity = buffer_bytes * 3 // 4
        producer.users += 1
        return producer


def release(producer: Producer, timeout: float) -> None:
    """Give back a producer taken with :func:`shared`; the last user closes it."""
    with _SHARED_LOCK:
        producer.users -= 1
        last = producer.users == 0
        if last:
            del _SHARED[producer.address]
    if last:
        producer.close(timeout)


def _bytes_view(piece: Any) -> memoryview:
    return memoryview(piece).cast("B")


def _drain(connection: socket.socket) -> None:
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return


def _close_all() -> None:
    deadline = time.monotonic() + ATEXIT_TIMEOUT
    for producer in list(_PRODUCERS):
        producer.close(max(0.0, deadline - time.monotonic()))


def _renew_all() -> None:
    global _SHARED_LOCK  # noqa: PLW0603  another thread may have held it when the process forked
    _SHARED_LOCK = threading.Lock()
    for producer in list(_PRODUCERS):
        producer._after_fork()  # noqa: SLF001  this module's own


_PRODUCERS: "weakref.WeakSet[Producer]" = weakref.WeakSet()
_SHARED: dict[Address, Producer] = {}
_SHARED_LOCK = threading.Lock()
atexit.register(_close_all)
os.register_at_fork(after_in_child=_renew_all)
