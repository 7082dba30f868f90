"""One connection: a thin asyncio shell around :class:`~hydrophoned.ingest.session.IngestSession`."""

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Final, cast

from hydrophone_schemas.errors import WireError
from hydrophone_schemas.wire import ErrorCode, Frame, FrameReceiver

from hydrophoned.ingest.session import IngestSession, Reaction

if TYPE_CHECKING:
    from hydrophoned.ingest.server import IngestServer

_log = logging.getLogger(__name__)
GREETING_SECONDS: Final = 10.0
"""Within which a peer has to say HELLO."""
LINGER_SECONDS: Final = 5.0
"""For which a connection that was closed waits for its peer to read the last frames and close too."""
MAX_UNREAD_BYTES: Final = 1 << 20
"""What a peer may leave unread before its connection is cut."""
MAX_FLUSHES: Final = 1024
"""Flushes of one connection that may wait at once."""
_FAULT: Final = "%s: a connection was closed by an error of the daemon; the others go on"
_SOCKET_BUFFER_BYTES: Final = 4 << 20
_DISCARDED: Final = memoryview(bytearray(64 << 10))
"""Where bytes go that come after a connection was closed; nobody reads them."""


class Connection(asyncio.BufferedProtocol):
    """The kernel writes received bytes straight into the frame they belong to.

    A fault of the peer, or of the daemon, ends this connection and no other.
    """

    def __init__(self, server: "IngestServer") -> None:
        self._server = server
        self._limits = server.limits
        self._receiver = FrameReceiver(max_frame=self._limits.max_frame_bytes)
        self._session = IngestSession(
            server.sink, server.producers, self, http=server.http, max_frame=self._limits.max_frame_bytes
        )
        self._transport: asyncio.Transport | None = None
        self._since = self._progress = server.clock()
        self._closed_at: float | None = None
        self._flushes: list[int] = []
        self._flusher: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """True once our side has ended; the peer may still read."""
        return self._closed_at is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the peer or tell it why not."""
        self._transport = cast("asyncio.Transport", transport)
        peer: socket.socket | None = transport.get_extra_info("socket")
        if peer is not None and peer.family != socket.AF_UNIX:  # a Unix socket has its sender's buffer alone
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        refusal = self._server.admit(self)
        if refusal is not None:
            self._server.sink.count("connections_rejected")
            self.fail(ErrorCode.TOO_MANY, refusal)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  asyncio's signature
        """Where the next bytes belong."""
        return self._receiver.buffer() if self._closed_at is None else _DISCARDED

    def buffer_updated(self, nbytes: int) -> None:
        """React to what the ``nbytes`` complete."""
        if self._closed_at is not None:
            return
        self._progress = self._server.clock()
        try:
            try:
                self._take(self._receiver.received(nbytes))
            except WireError as fault:
                self._take(self._receiver.before_fault)
                if self._closed_at is None:
                    self._server.sink.count(f"errors_{fault.code}")
                    self.fail(ErrorCode(fault.code), fault.detail)
        except Exception:  # noqa: BLE001  whatever it is, the other connections go on
            self._server.sink.count("errors_internal")
            _log.exception(_FAULT, self._peer())
            self.fail(ErrorCode.INTERNAL, "an error of the daemon, which its log describes")

    def eof_received(self) -> bool:
        """Close our side too; what was cut off is counted."""
        if self._receiver.partial and self._closed_at is None:
            self._server.sink.count("connections_cut")
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """Forget the connection; its producer may come back."""
        self._server.forget(self)
        self._session.disconnected()
        if self._flusher is not None:
            self._flusher.cancel()

    def check(self, now: float) -> None:
        """End a connection that does not greet, stops in the middle of a frame, or stays after it was closed."""
        limit = self._limits.frame_timeout_s
        greeting = min(GREETING_SECONDS, limit)
        if self._closed_at is not None:
            if now - self._closed_at > LINGER_SECONDS:
                self.abort()
        elif self._session.producer is None and now - self._since > greeting:
            self._time_out(f"no HELLO within {greeting:g} s")
        elif self._receiver.partial and now - self._progress > limit:
            self._time_out(f"a frame began and nothing followed for {limit:g} s")

    def fail(self, code: ErrorCode, detail: str) -> None:
        """Say why, and close."""
        if self._transport is None or self._closed_at is not None:
            return
        self._server.complain("%s: connection closed: %s: %s", self._peer(), code, detail)
        self._transport.write(self._session.error(code, detail))
        self._close()

    def abort(self) -> None:
        """Close without waiting for the peer."""
        if self._transport is not None:
            self._transport.abort()

    def _time_out(self, detail: str) -> None:
        self._server.sink.count("connections_timed_out")
        self.fail(ErrorCode.TIMEOUT, detail)

    def _take(self, frames: list[Frame]) -> None:
        if frames:
            self._act(self._session.receive(frames, self._server.now()))

    def _act(self, reaction: Reaction) -> None:
        if reaction.fault is not None:
            _log.error(_FAULT, self._peer(), exc_info=reaction.fault)
        if isinstance(reaction.superseded, Connection):
            self._server.sink.count("connections_superseded")
            reaction.superseded.fail(ErrorCode.SUPERSEDED, "the same producer has connected anew")
        if reaction.send:
            self._write(b"".join(reaction.send))
        self._flushes += reaction.flushes
        if reaction.close:
            self._close()
        elif len(self._flushes) > MAX_FLUSHES:
            self.fail(ErrorCode.TOO_MANY, f"more than {MAX_FLUSHES} flushes wait")
        elif self._flushes and self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._closed_at is not None:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._server.sink.count("connections_unread")
            self._server.complain("%s: connection cut: the peer reads nothing", self._peer())
            self.abort()

    def _close(self) -> None:
        """End our side; the peer's end closes the connection.

        Closing at once, with bytes of the peer unread, would reset the connection, and it might never see why.
        """
        if self._transport is not None and self._closed_at is None:
            self._closed_at = self._server.clock()
            self._transport.write_eof()

    async def _flush(self) -> None:
        """Flush until no token waits; those that come during a flush have the next one in common."""
        while self._flushes:
            tokens, self._flushes = self._flushes, []
            try:
                await self._server.sink.flush()
            except Exception as error:  # noqa: BLE001  whatever it is, its producer is told
                self._server.sink.count("flushes_failed")
                _log.exception("a flush failed; its producer is told")
                detail = f"flush {tokens} failed: {type(error).__name__}"
                self._write(self._session.error(ErrorCode.FLUSH_FAILED, detail))
            else:
                self._write(b"".join(map(self._session.flushed, tokens)) + self._session.ack())
        self._flusher = None

    def _peer(self) -> str:
        producer = self._session.producer
        return f"producer {producer.name or producer.id}" if producer is not None else "unknown producer"
