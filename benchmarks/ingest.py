# ruff: noqa: D102, ARG002  the methods are those of the Sink protocol, which describes them
"""Rows per second from a producer's process to the daemon's learner queue, beside what the machine can do at best.

Three ways for the same bytes, each between two processes over a Unix socket, in turn, several rounds:

ingest          the real server on uvloop, session, sink and bounded queue, drained by a thread that discards; the
                producer writes batches made before, with ``BatchEncoder`` and ``sendmsg``, and waits for the last ACK
pyarrow stream  ``pa.ipc.new_stream`` writing to, and ``pa.ipc.open_stream`` reading from, a blocking socket's file
raw socket      ``sendall`` and ``recv_into`` one buffer of the size of a batch: no frames, no fresh memory

    python benchmarks/ingest.py [--quick] [--json FILE]

All sockets have buffers of the same size. Prints medians, and ``vs_pyarrow_stream`` and ``vs_raw_socket``: the median
over rounds of ingest's bytes per second divided by the other's in the same round. Rows are of width 576, the least of
the two ratios over the dtypes is what counts.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import uvloop
from hydrophone_schemas.activations import activation_schema
from hydrophone_schemas.wire import (
    PREAMBLE,
    BatchEncoder,
    FrameReceiver,
    FrameType,
    data_header,
    encode_control,
    ipc_schema,
    total_size,
)
from hydrophoned.ingest.producers import ProducerRegistry
from hydrophoned.ingest.queue import RowQueue
from hydrophoned.ingest.server import IngestServer
from hydrophoned.ingest.sink import RequestSpec, StreamSpec
from hydrophoned.rows import Rows
from machine import describe, versions

WIDTH = 576
SOCKET_BUFFER = 4 << 20
QUEUE_BYTES = 256 << 20
DISTINCT_BATCHES = 8
PIECES_PER_CALL = 512


class Load(NamedTuple):
    """What is sent: ``batches`` batches of ``rows`` rows of ``dtype``."""

    dtype: str
    rows: int
    batches: int

    @property
    def nbytes(self) -> int:
        """Bytes of activations sent."""
        return self.rows * self.batches * WIDTH * np.dtype(self.dtype).itemsize


def make_batches(load: Load) -> list[pa.RecordBatch]:
    """A few different batches, sent in turn."""
    generator = np.random.default_rng(0)
    schema = activation_schema(WIDTH, load.dtype)
    count = load.rows
    batches = []
    for _ in range(DISTINCT_BATCHES):
        values = generator.standard_normal(count * WIDTH, dtype=np.float32).astype(load.dtype)
        items = pa.array(values)
        columns = [
            pa.array(np.ones(count, np.uint64)),
            pa.array(np.zeros(count, np.uint16)),
            pa.array(np.arange(count, dtype=np.int32)),
            pa.array(np.zeros(count, np.uint8)),
            pa.array(np.arange(count, dtype=np.int32)),
            pa.array(np.full(count, 1_700_000_000_000_000)).cast(pa.timestamp("us")),
            pa.Array.from_buffers(schema.field("activation").type, count, [None], children=[items]),
        ]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=schema))
    return batches


def set_buffers(connection: socket.socket) -> None:
    """Give a socket the buffers that both sides use."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)


# -- producers: each runs in a process of its own, is ready when it has connected, and reports seconds -----------------


def send_ingest(path: str, load: Load, control: Connection) -> None:
    schema = activation_schema(WIDTH, load.dtype)
    encoder = BatchEncoder(schema)
    messages = [encoder.encode(batch) for batch in make_batches(load)]
    with socket.socket(socket.AF_UNIX) as connection:
        set_buffers(connection)
        connection.connect(path)
        receiver = FrameReceiver(expect_preamble=False)
        hello = {"protocol": 1, "producer": os.urandom(16), "name": "benchmark", "pid": os.getpid(), "capabilities": []}
        opened = {"model": "benchmark", "version": "1", "fingerprint": "", "site": f"layer.{load.dtype}"}
        request = {"request": 1, "id": "r", "model": "benchmark", "version": "1", "started": 1, "sample": 1.0}
        connection.sendall(
            PREAMBLE
            + encode_control(FrameType.HELLO, hello)
            + encode_control(FrameType.OPEN, opened | {"schema": ipc_schema(schema)}, channel=1)
            + encode_control(FrameType.REQUEST, request | {"attributes": {}}, sequence=1)
        )
        wait_for_ack(connection, receiver, 1)
        control.send("ready")
        control.recv()
        started = time.perf_counter()
        last = load.batches + 1
        acknowledged = 0
        for sequence in range(2, last + 1):
            message = messages[sequence % DISTINCT_BATCHES]
            send_all(connection, [data_header(total_size(message), channel=1, sequence=sequence), *message])
            acknowledged = max(acknowledged, read_acks(connection, receiver, socket.MSG_DONTWAIT))
        while acknowledged < last:  # the loop above may have read the last ACK already
            acknowledged = max(acknowledged, read_acks(connection, receiver, 0))
        control.send(time.perf_counter() - started)


def send_all(connection: socket.socket, pieces: list[Any]) -> None:
    views = [memoryview(piece).cast("B") for piece in pieces]
    while views:
        count = connection.sendmsg(itertools.islice(views, PIECES_PER_CALL))
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]


def read_acks(connection: socket.socket, receiver: FrameReceiver, flags: int) -> int:
    """Highest sequence acknowledged by what there is to read; 0 if nothing."""
    try:
        count = connection.recv_into(receiver.buffer(), 0, flags)
    except BlockingIOError:
        return 0
    assert count, "the daemon closed the connection"
    highest = 0
    for frame in receiver.received(count):
        assert frame.type is not FrameType.ERROR, frame.control()
        if frame.type is FrameType.ACK:
            highest = frame.sequence
    return highest


def wait_for_ack(connection: socket.socket, receiver: FrameReceiver, sequence: int) -> None:
    while read_acks(connection, receiver, 0) < sequence:
        pass


def send_pyarrow(path: str, load: Load, control: Connection) -> None:
    batches = make_batches(load)
    with socket.socket(socket.AF_UNIX) as connection:
        set_buffers(connection)
        connection.connect(path)
        with connection.makefile("wb") as file:
            control.send("ready")
            control.recv()
            started = time.perf_counter()
            with pa.ipc.new_stream(file, batches[0].schema) as writer:
                for number in range(load.batches):
                    writer.write_batch(batches[number % DISTINCT_BATCHES])
        connection.recv(1)
        control.send(time.perf_counter() - started)


def send_raw(path: str, load: Load, control: Connection) -> None:
    encoder = BatchEncoder(activation_schema(WIDTH, load.dtype))
    messages = [b"".join(encoder.encode(batch)) for batch in make_batches(load)]
    with socket.socket(socket.AF_UNIX) as connection:
        set_buffers(connection)
        connection.connect(path)
        control.send("ready")
        control.recv()
        started = time.perf_counter()
        for number in range(load.batches):
            connection.sendall(messages[number % DISTINCT_BATCHES])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        control.send(time.perf_counter() - started)


# -- receivers: they stay in this process --------------------------------------------------------------------------


class DiscardingSink:
    """One bounded queue for all streams, as the daemon has one for each, drained by a thread."""

    def __init__(self) -> None:
        self.queue = RowQueue(QUEUE_BYTES)
        self.counters: Counter[str] = Counter()
        self.rows = 0
        self._thread = threading.Thread(target=self._drain, name="drain", daemon=True)
        self._stopped = False
        self._thread.start()

    def _drain(self) -> None:
        while not self._stopped:
            rows = self.queue.get(timeout=0.25)
            if rows is not None:
                self.rows += rows.count

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()

    def open_stream(self, spec: StreamSpec, producer: str) -> int:
        return 1

    def open_request(self, spec: RequestSpec) -> int:
        return 1

    def put_rows(self, stream_key: int, rows: Rows) -> None:
        self.queue.put(rows)

    def put_tokens(self, request_key: int, sequence: int, position: int, pieces: list[str | None]) -> None: ...

    def put_outcome(self, request_id: str, model: str, labels: dict[str, Any], time: int, source: str) -> None: ...

    def put_report(self, producer: str, report: dict[str, Any]) -> None: ...

    def count(self, event: str, amount: int = 1) -> None:
        self.counters[event] += amount

    async def flush(self) -> None: ...

    def durable(self, producer: str) -> int:
        return 0


class Settings(NamedTuple):
    """Settings of the server, at their defaults but for the socket."""

    socket: Path | None
    socket_mode: int = 0o600
    tcp: str | None = None
    max_frame_bytes: int = 64 << 20
    frame_timeout_s: float = 30.0
    max_connections: int = 64


class DaemonThread:
    """The real server on uvloop, in a thread of its own."""

    def __init__(self, path: str) -> None:
        self.sink = DiscardingSink()
        self._ready = threading.Event()
        self._path = Path(path)
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), name="daemon")
        self._thread.start()
        self._ready.wait()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = IngestServer(self.sink, ProducerRegistry(), Settings(self._path), lambda: time.time_ns() // 1000)
        await server.start()
        self._ready.set()
        await self._stop.wait()
        await server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self.sink.stop()


def receive_pyarrow(connection: socket.socket, load: Load) -> None:
    rows = 0
    with connection.makefile("rb") as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            rows += batch.num_rows
    assert rows == load.rows * load.batches, rows
    connection.send(b"!")


def receive_raw(connection: socket.socket, load: Load) -> None:
    buffer = memoryview(bytearray(load.nbytes // load.batches + 65536))
    while connection.recv_into(buffer):
        pass
    connection.send(b"!")


def run_producer(target: Callable[..., None], path: str, load: Load, serve: Callable[[], None] | None = None) -> float:
    """Seconds of one transfer; ``serve`` receives it in this process while the producer runs."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(path, load, theirs))
    process.start()
    theirs.close()  # so that its end is noticed here
    server = threading.Thread(target=serve, daemon=True) if serve is not None else None
    if server is not None:
        server.start()
    assert ours.recv() == "ready"
    ours.send("go")
    seconds: float = ours.recv()
    process.join()
    if server is not None:
        server.join()
    return seconds


def run_blocking(
    send: Callable[..., None], receive: Callable[[socket.socket, Load], None], folder: Path, load: Load
) -> float:
    path = str(folder / f"{send.__name__}.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(1)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                set_buffers(connection)
                receive(connection, load)

        seconds = run_producer(send, path, load, serve)
    Path(path).unlink()
    return seconds


def run_ingest(folder: Path, load: Load) -> float:
    daemon = DaemonThread(str(folder / "ingest.sock"))
    try:
        seconds = run_producer(send_ingest, str(folder / "ingest.sock"), load)
        deadline = time.monotonic() + 10
        while daemon.sink.rows + daemon.sink.queue.dropped_rows < load.rows * load.batches:
            assert time.monotonic() < deadline, "rows went missing"
            time.sleep(0.001)
    finally:
        daemon.close()
    assert daemon.sink.queue.dropped_rows == 0, f"{daemon.sink.queue.dropped_rows} rows did not fit the queue"
    assert not daemon.sink.counters, daemon.sink.counters
    return seconds


def measure(load: Load, rounds: int, folder: Path) -> dict[str, list[float]]:
    """GB/s of each way in each round; the order turns from round to round."""
    ways: dict[str, Callable[[], float]] = {
        "ingest": lambda: run_ingest(folder, load),
        "pyarrow_stream": lambda: run_blocking(send_pyarrow, receive_pyarrow, folder, load),
        "raw_socket": lambda: run_blocking(send_raw, receive_raw, folder, load),
    }
    names = list(ways)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % 3 :] + names[: number % 3]:
            rates[name].append(load.nbytes / ways[name]() / 1e9)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 GB instead of 7 of 2 GB")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--batch-mib", type=float, default=2.0, help="bytes of activations in a batch, in MiB")
    args = parser.parse_args()
    rounds, total = (3, 1e9) if args.quick else (7, 2e9)
    results: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float16", "float32"):
            row_bytes = WIDTH * np.dtype(dtype).itemsize
            rows = max(1, int(args.batch_mib * 2**20 / row_bytes))
            load = Load(dtype, rows, max(DISTINCT_BATCHES, int(total / (rows * row_bytes))))
            rates = measure(load, rounds, Path(folder))
            results[dtype] = {"rows_per_batch": rows, "batches": load.batches, "gb_per_s": rates}
            for name, values in rates.items():
                rate = statistics.median(values)
                print(f"{dtype} {name:15} {rate:6.2f} GB/s  {rate * 1e9 / row_bytes / 1e6:6.2f} million rows/s")
            for other in ("pyarrow_stream", "raw_socket"):
                pairs = zip(rates["ingest"], rates[other], strict=True)
                ratios[f"{dtype}_vs_{other}"] = statistics.median(ours / theirs for ours, theirs in pairs)
    for other in ("pyarrow_stream", "raw_socket"):
        ratios[f"vs_{other}"] = min(ratios[f"{dtype}_vs_{other}"] for dtype in results)
    for name, ratio in ratios.items():
        print(f"{name} {ratio:.3f}")
    if args.json:
        document = {"ratios": ratios, "results": results, "machine": describe(), "versions": versions()}
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
