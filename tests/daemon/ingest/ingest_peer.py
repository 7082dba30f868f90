# ruff: noqa: ARG002, ASYNC110  a Sink has the arguments it has; the loop is let run, nothing is waited for by time
"""What tests of ingestion stand on: a sink that records, a peer that speaks bytes, a server with a clock."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from hydrophone_schemas.activations import activation_schema
from hydrophone_schemas.wire import (
    PREAMBLE,
    BatchEncoder,
    FrameReceiver,
    FrameType,
    data_header,
    encode_control,
    ipc_schema,
)
from hydrophoned.ingest.errors import StreamConflict, WidthMismatch
from hydrophoned.ingest.producers import ProducerRegistry
from hydrophoned.ingest.server import IngestServer

WIDTH = 8
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
PRODUCER = bytes(range(16))


class RecordingSink:
    """Keeps what it is given; streams are told apart and refused as the daemon does it."""

    def __init__(self):
        self.counters = Counter()
        self.streams, self.requests = {}, []
        self.rows, self.tokens, self.outcomes, self.reports = [], [], [], []
        self.covered = 0
        self.fault = None
        self.may_flush = asyncio.Event()
        self.may_flush.set()
        self.flushes = 0

    def open_stream(self, spec, producer):
        known = self.streams.setdefault(str(spec.id), spec)
        if known.width != spec.width:
            raise WidthMismatch(f"{spec.id} has width {known.width}, not {spec.width}")
        if known.fingerprint != spec.fingerprint:
            raise StreamConflict(f"{spec.id} is of another model")
        return list(self.streams).index(str(spec.id)) + 100

    def open_request(self, spec):
        self.requests.append(spec)
        return len(self.requests) + 1000

    def put_rows(self, stream_key, rows):
        if self.fault is not None:
            raise self.fault
        self.rows.append((stream_key, rows))

    def put_tokens(self, request_key, sequence, position, pieces):
        self.tokens.append((request_key, sequence, position, pieces))

    def put_outcome(self, request_id, model, labels, time, source):
        self.outcomes.append((request_id, model, labels, time, source))

    def put_report(self, producer, report):
        self.reports.append((producer, report))

    def count(self, event, amount=1):
        self.counters[event] += amount

    async def flush(self):
        self.flushes += 1
        await self.may_flush.wait()
        if self.fault is not None:
            raise self.fault

    def durable(self, producer):
        return self.covered


def record_batch(count=3, *, width=WIDTH, dtype="float32", request=1, tokens=None, **columns):
    values = (np.arange(count * width) % 251).astype(NUMPY[dtype])
    schema = activation_schema(width, dtype)
    items = pa.Array.from_buffers(schema.field("activation").type.value_type, len(values), [None, pa.py_buffer(values)])
    given = {
        "request": np.full(count, request),
        "sequence": np.zeros(count),
        "position": np.arange(count),
        "phase": np.zeros(count),
        "time": np.full(count, 1_700_000_000_000_000),
    } | columns
    arrays = []
    for field in schema:
        if field.name == "token":
            arrays.append(pa.array(tokens or [None if i % 2 else i for i in range(count)], pa.int32()))
        elif field.name == "activation":
            arrays.append(pa.Array.from_buffers(field.type, count, [None], children=[items]))
        elif field.name == "time":
            arrays.append(pa.array(np.asarray(given["time"], np.int64)).cast(field.type))
        else:
            arrays.append(pa.array(np.asarray(given[field.name]).astype(field.type.to_pandas_dtype())))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def message(batch):
    return b"".join(map(bytes, BatchEncoder(batch.schema).encode(batch)))


def hello(producer=PRODUCER, **fields):
    body = {"protocol": 1, "producer": producer, "name": "test", "pid": 1, "sdk": "0", "capabilities": []}
    return encode_control(FrameType.HELLO, body | fields)


def open_stream(channel=1, *, width=WIDTH, dtype="float32", **fields):
    body = {"model": "m", "version": "1", "fingerprint": "f", "site": "layers.0"}
    schema = ipc_schema(activation_schema(width, dtype))
    return encode_control(FrameType.OPEN, body | {"schema": schema} | fields, channel=channel)


def request(sequence, number=1, **fields):
    body = {"request": number, "id": f"r{number}", "model": "m", "version": "1", "started": 5, "sample": 1.0}
    return encode_control(FrameType.REQUEST, body | {"attributes": {}} | fields, sequence=sequence)


def data(sequence, batch=None, *, channel=1):
    payload = message(record_batch() if batch is None else batch)
    return data_header(len(payload), channel=channel, sequence=sequence) + payload


def frames(raw):
    receiver = FrameReceiver(expect_preamble=False)
    found = receiver.feed(raw)
    assert not receiver.partial
    return found


def decoded(sent):
    """Frames sent by the daemon, as (type, channel, body)."""
    return [(frame.type, frame.channel, frame.control()) for frame in frames(b"".join(sent))]


async def until(holds):
    """Let the loop run until ``holds()``; the time limit of the test ends what never does."""
    while not holds():
        await asyncio.sleep(0)


class Limits(NamedTuple):
    socket: Path | None
    socket_mode: int = 0o600
    tcp: str | None = None
    max_frame_bytes: int = 1 << 20
    frame_timeout_s: float = 30.0
    max_connections: int = 4


class Clock:
    """Monotonic seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Peer:
    """A client that speaks bytes."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.receiver = FrameReceiver(expect_preamble=False)
        self.pending = []

    def send(self, *parts):
        self.writer.write(b"".join(parts))

    async def frame(self):
        """The next frame as (type, channel, body); None at the end of the connection."""
        while not self.pending:
            received = await self.reader.read(1 << 16)
            if not received:
                return None
            self.pending += self.receiver.feed(received)
        frame = self.pending.pop(0)
        return frame.type, frame.channel, frame.control()

    async def until(self, kind):
        """Body of the next frame of a type."""
        while (frame := await self.frame()) is not None:
            if frame[0] is kind:
                return frame[2]
        raise AssertionError(f"the connection ended before {kind.name}")

    async def end(self):
        """All frames up to the end of the connection."""
        found = []
        while (frame := await self.frame()) is not None:
            found.append(frame)
        return found

    async def greet(self, *more, producer=PRODUCER):
        self.send(PREAMBLE, hello(producer), *more)
        return await self.until(FrameType.WELCOME)

    def close(self):
        self.writer.close()


class Harness:
    """A server on a Unix socket, with its sink and clock; ``run`` gives it to an async test."""

    def __init__(self, folder, loop_factory):
        self.folder, self._loop_factory = folder, loop_factory
        self.path = folder / "ingest.sock"
        self.clock = Clock()
        self.producers = ProducerRegistry()

    def run(self, test, **limits):
        async def body():
            self.sink = RecordingSink()
            self.peers = []
            self.server = IngestServer(
                self.sink, self.producers, Limits(self.path, **limits), lambda: 7_000_000, self.clock
            )
            await self.server.start(http="http://127.0.0.1:1")
            try:
                await asyncio.wait_for(test(), 20)
            finally:
                for peer in self.peers:
                    peer.close()
                await self.server.close()

        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(body())

    async def connect(self):
        self.peers.append(Peer(*await asyncio.open_unix_connection(str(self.path))))
        return self.peers[-1]

    async def count(self, event):
        """Wait until an event is counted."""
        await until(lambda: self.sink.counters[event])

    async def empty(self):
        """Wait until no connection is open."""
        await until(lambda: not self.server.connections)

    async def healthy(self):
        """A fresh producer is served."""
        peer = await self.connect()
        await peer.greet(open_stream(1, site="health"), request(1), data(2), producer=b"h" * 16)
        while (await peer.until(FrameType.ACK))["received"] < 2:
            pass
