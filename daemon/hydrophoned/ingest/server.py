"""The server producers connect to: accepts, admits, watches and closes their connections."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from hydrophone_schemas.wire import ErrorCode

from hydrophoned.ingest.connection import Connection
from hydrophoned.ingest.listen import UnixSocket, check_inherited, listen_tcp
from hydrophoned.ingest.producers import ProducerRegistry
from hydrophoned.ingest.sink import Sink

_log = logging.getLogger(__name__)
_TICK_SECONDS: Final = 0.5
_CLOSE_SECONDS: Final = 1.0
_LINGERING: Final = 4


class IngestLimits(Protocol):
    """The settings the server needs; sizes in bytes, times in seconds."""

    @property
    def socket(self) -> Path | None:
        """Path of the Unix socket."""
        ...

    @property
    def socket_mode(self) -> int:
        """Its permissions."""
        ...

    @property
    def tcp(self) -> str | None:
        """HOST:PORT beside it."""
        ...

    @property
    def max_frame_bytes(self) -> int:
        """Largest frame."""
        ...

    @property
    def frame_timeout_s(self) -> float:
        """Time within which a frame that has begun must go on."""
        ...

    @property
    def max_connections(self) -> int:
        """Connections at a time."""
        ...


class IngestServer:
    """Accepts producers on a Unix socket, on TCP of the loopback interface, and on sockets it is given.

    ``now`` gives UTC in us; ``clock`` monotonic seconds, by which connections are timed out.
    """

    def __init__(
        self,
        sink: Sink,
        producers: ProducerRegistry,
        limits: IngestLimits,
        now: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sink, self.producers, self.limits, self.now, self.clock = sink, producers, limits, now, clock
        self.http: str | None = None
        self.socket_path: str | None = None
        self.tcp_address: str | None = None
        self._open: set[Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self._unix: UnixSocket | None = None
        self._watch: asyncio.Task[None] | None = None
        self._all_closed = asyncio.Event()
        self._closing = False
        self._complained = float("-inf")

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._open)

    async def start(self, *, http: str | None = None, inherited: list[socket.socket] | None = None) -> None:
        """Listen; ``inherited`` are listening sockets from the service manager. Raises CannotListen."""
        self.http = http
        try:
            for given in inherited or []:
                check_inherited(given)
                await self._listen(given)
            if self.limits.socket is not None and self.socket_path is None:
                self._unix = UnixSocket(Path(self.limits.socket), self.limits.socket_mode)
                await self._listen(self._unix.socket)
            if self.limits.tcp is not None:
                await self._listen(listen_tcp(self.limits.tcp))
        except BaseException:
            await self.close()
            raise
        self._watch = asyncio.create_task(self._watch_connections())

    async def close(self) -> None:
        """Take no new connections, tell those open, and close them; ends within about a second."""
        self._closing = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._unix is not None:
            self._unix.remove()
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        for connection in list(self._open):
            connection.fail(ErrorCode.SHUTTING_DOWN, "the daemon is shutting down")
        if self._open:
            self._all_closed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), _CLOSE_SECONDS)
        for connection in list(self._open):
            connection.abort()

    def check(self) -> None:
        """End the connections that are overdue; called twice a second."""
        now = self.clock()
        for connection in list(self._open):
            connection.check(now)

    def admit(self, connection: Connection) -> str | None:
        """Take up a new connection; says why it cannot stay, if so."""
        self._open.add(connection)
        if self._closing:
            return "the daemon is shutting down"
        most = self.limits.max_connections
        if sum(not known.closed for known in self._open) <= most:
            return None
        if len(self._open) > _LINGERING * most:  # too many even to wait for them to read why
            asyncio.get_running_loop().call_soon(connection.abort)
        return f"{most} connections are open already; ingest.max_connections"

    def forget(self, connection: Connection) -> None:
        """``connection`` has ended."""
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()

    def complain(self, message: str, *details: object) -> None:
        """Log a fault of a peer, at most one a second: peers must not be able to fill the log."""
        now = self.clock()
        if now - self._complained >= 1:
            self._complained = now
            _log.warning(message, *details)

    async def _listen(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        if listening.family == socket.AF_UNIX:
            self._listeners.append(await loop.create_unix_server(self._accept, sock=listening))
            path = listening.getsockname()
            self.socket_path = path if isinstance(path, str) else "@" + path[1:].decode(errors="replace")
        else:
            self._listeners.append(await loop.create_server(self._accept, sock=listening))
            host, port = listening.getsockname()[:2]
            self.tcp_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _accept(self) -> Connection:
        return Connection(self)

    async def _watch_connections(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.check()
