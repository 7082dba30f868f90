"""A peer that speaks the protocol: what the SDK sends, as rows, for tests to look at. Runs in a thread or a process."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from hydrophone_schemas.activations import read_schema
from hydrophone_schemas.errors import WireError
from hydrophone_schemas.wire import (
    SEQUENCED,
    Frame,
    FrameReceiver,
    FrameType,
    encode_control,
    read_ipc_batch,
    read_ipc_schema,
)


class Row(NamedTuple):
    request: str
    sequence: int
    position: int
    phase: int
    token: int | None
    x: bytes


class Sink:
    """Listens at ``path``; remembers producers over connections, as the daemon does."""

    def __init__(self, path: Path, *, refuse: str | None = None, max_frame: int = 64 << 20) -> None:
        self.path = path
        self.refuse = refuse
        self.max_frame = max_frame
        self.received: dict[bytes, int] = {}
        self.frames: list[tuple[FrameType, Any]] = []
        self.batches: list[tuple[str, pa.RecordBatch]] = []
        self.requests: dict[tuple[bytes, int], dict[str, Any]] = {}
        self.duplicates = 0
        self.gaps = 0
        self.silent = False
        self.changed = threading.Condition()
        self._connection: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> "Sink":
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close as a killed daemon does: the listener and the connection at once."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.drop()
        if self._thread is not None:
            self._thread.join(5)
        self.path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Break the connection."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def wait(self, condition: Callable[["Sink"], bool], timeout: float = 10) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self), timeout), "the sink did not get what was expected"

    def of_type(self, kind: FrameType) -> list[Any]:
        return [body for found, body in self.frames if found is kind]

    def rows(self, stream_suffix: str = "") -> list[Row]:
        rows = []
        for stream, producer, batch in self.batches:
            if not stream.endswith(stream_suffix):
                continue
            x = _values(batch)
            columns = [batch.column(name).to_pylist() for name in ("request", "sequence", "position", "phase", "token")]
            for index, (number, sequence, position, phase, token) in enumerate(zip(*columns, strict=True)):
                known = self.requests[producer, number]
                rows.append(Row(known["id"], sequence, position, phase, token, x[index].tobytes()))
        return rows

    def values(self, stream_suffix: str = "") -> np.ndarray:
        return np.concatenate([_values(batch) for stream, _, batch in self.batches if stream.endswith(stream_suffix)])

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._connection = connection
            with connection, contextlib.suppress(OSError, WireError):
                self._serve(connection)
            self._connection = None

    def _serve(self, connection: socket.socket) -> None:
        receiver = FrameReceiver()
        streams: dict[int, tuple[str, pa.Schema]] = {}
        producer = b""
        while count := connection.recv_into(receiver.buffer()):
            numbered = False
            for frame in receiver.received(count):
                if frame.type is FrameType.HELLO:
                    producer = frame.control()["producer"]
                    if self.silent:
                        continue
                    self._send(connection, FrameType.WELCOME, {
                        "protocol": 1, "daemon": "sink", "capabilities": [], "max_frame": self.max_frame,
                        "received": self.received.setdefault(producer, 0), "durable": 0, "http": "127.0.0.1:1",
                    })  # fmt: skip
                elif frame.type is FrameType.OPEN:
                    body = frame.control()
                    schema = read_ipc_schema(body["schema"])
                    read_schema(schema)
                    name = f"{body['model']}@{body['version']}/{body['site']}"
                    streams[frame.channel] = (name, schema)
                    if self.refuse:
                        error = {"code": self.refuse, "detail": "as the test wants", "fatal": False}
                        self._send(connection, FrameType.ERROR, error, channel=frame.channel)
                    else:
                        self._send(connection, FrameType.OPENED, {"stream": name}, channel=frame.channel)
                elif frame.type is FrameType.FLUSH:
                    self._send(connection, FrameType.FLUSHED, frame.control())
                elif frame.type is FrameType.BYE:
                    return
                self._keep(frame, producer, streams)
                numbered |= frame.type in SEQUENCED
            if numbered:
                self._send(connection, FrameType.ACK, {"received": self.received[producer], "durable": 0})

    def _keep(self, frame: Frame, producer: bytes, streams: dict[int, tuple[str, pa.Schema]]) -> None:
        with self.changed:
            if frame.type in SEQUENCED:
                last = self.received[producer]
                if frame.sequence <= last:
                    self.duplicates += 1
                    return
                self.gaps += frame.sequence - last - 1
                self.received[producer] = frame.sequence
            if frame.type is FrameType.DATA:
                name, schema = streams[frame.channel]
                batch = read_ipc_batch(frame.payload, schema)
                batch.validate(full=True)
                self.batches.append((name, producer, batch))
            else:
                body = frame.control()
                self.frames.append((frame.type, body))
                if frame.type is FrameType.REQUEST:
                    self.requests[producer, body["request"]] = body
            self.changed.notify_all()

    @staticmethod
    def _send(connection: socket.socket, kind: FrameType, body: dict[str, Any], channel: int = 0) -> None:
        connection.sendall(encode_control(kind, body, channel=channel))


def _values(batch: pa.RecordBatch) -> np.ndarray:
    column = batch.column("activation")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


class Discarding(Sink):
    """Only counts what was received, as to how far a producer may forget."""

    def _keep(self, frame: Frame, producer: bytes, streams: dict[int, tuple[str, pa.Schema]]) -> None:  # noqa: ARG002  as in Sink
        if frame.type in SEQUENCED:
            self.received[producer] = max(self.received[producer], frame.sequence)


def discard(path: str) -> None:
    """Serve producers at ``path`` and discard what they send, until killed."""
    sink = Discarding(Path(path))
    sink.start()
    print("ready", flush=True)  # noqa: T201  the parent waits for it
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)


if __name__ == "__main__":
    discard(sys.argv[1])
