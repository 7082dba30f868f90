"""The daemon: wires ingest, learners, store and API together, and owns their lives."""

import asyncio
import json
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from hydrophone_schemas import tables

from hydrophoned.api import HttpServer
from hydrophoned.attributes import RequestAttributes
from hydrophoned.ingest.producers import ProducerRegistry
from hydrophoned.ingest.server import IngestServer
from hydrophoned.ingest.sink import RequestSpec, StreamSpec
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.rows import Rows
from hydrophoned.runtime import systemd
from hydrophoned.runtime.backend import DaemonBackend
from hydrophoned.runtime.checkpoint import State, copy_state, load_json, write_json_atomically
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.config import Config
from hydrophoned.runtime.labels import Labelling
from hydrophoned.runtime.recorder import Recorder
from hydrophoned.runtime.stability import StabilityRuns
from hydrophoned.runtime.streams import StreamRegistry
from hydrophoned.runtime.worker import LearnerWorker
from hydrophoned.store import DetectionReader, Store, StoreReader, StoreWriter

_log = logging.getLogger(__name__)
_HOUSEKEEPING_SECONDS = 1.0
_CLOCK_TOLERANCE_US = 60_000_000
_RETENTION_SECONDS = 3600.0
_LATEST_REQUESTS = 10_000
"""Requests of a former run whose rows may still come, and be split by what they were like."""


class Ready(NamedTuple):
    """Where a started daemon listens."""

    socket: str | None
    tcp: str | None
    http: str | None
    pid: int


class Daemon:
    """One daemon on one data directory. It is the :class:`~hydrophoned.ingest.sink.Sink` of its ingest server.

    Everything here runs on the event loop's thread, but for learners and the store's writer, which have their own.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.counters: Counter[str] = Counter()
        self.started = now_us()
        self.last_checkpoint: int | None = None
        self.checkpoint_problem: str | None = None
        data_dir = Path(config.daemon.data_dir)
        data_dir.mkdir(parents=True, exist_ok=True)
        self._producers_file = data_dir / "producers.json"
        self.store = Store(data_dir / "hydrophone.duckdb")
        self.reader = StoreReader(self.store)
        self.writer = StoreWriter(self.store)
        self.recorder = Recorder(self._put_now)
        self.attributes = RequestAttributes({*config.split_by, *config.drift.strata_by}, others=config.drift.enabled)
        self.streams = StreamRegistry(
            data_dir / "streams",
            self._learner_config,
            self._publish,
            now_us,
            device=_device(config.learn.device),
            queue_bytes=config.ingest.queue_bytes,
            max_streams=config.ingest.max_streams,
            keep_checkpoints=config.store.keep_checkpoints,
            niceness=config.daemon.nice,
            idle_seconds=config.learn.idle_seconds,
            control_file=lambda stream_id: config.learn_for(stream_id).control_file,
            attributes=self.attributes,
            keep_versions=config.store.keep_versions,
            given=self.reader.last_given,
            watch_config=config.watch_config,
            drifts_told=DetectionReader(self.store).last_told,
        )
        self.producers = ProducerRegistry(max_requests=config.ingest.max_requests)
        self.labelling = Labelling(self.reader, self.writer, config.labels, now_us, niceness=config.daemon.nice)
        self.stability = StabilityRuns(self.streams, now_us, niceness=config.daemon.nice)
        self._durable: dict[str, int] = {}
        self._next_request = 1
        self._checkpointing = asyncio.Lock()
        self._last_try = time.monotonic()

    # -- sink of the ingest server ------------------------------------------------------------------------------

    def open_stream(self, spec: StreamSpec, producer: str) -> int:
        """Key of the stream; raises StreamConflict or WidthMismatch."""
        stream, new = self.streams.open(spec, producer)
        if new:
            _log.info("stream %s opened, width %d, %s", stream.id, spec.width, spec.dtype)
            row = {
                "stream_key": stream.key,
                "id": stream.id,
                **spec.id._asdict(),
                "fingerprint": spec.fingerprint,
                "width": spec.width,
                "dtype": spec.dtype,
                "created": stream.created,
            }
            self._put_now({"stream": pa.RecordBatch.from_pylist([row], schema=tables.STREAM)})
        return stream.key

    def open_request(self, spec: RequestSpec) -> int:
        """Key of a new request."""
        key, self._next_request = self._next_request, self._next_request + 1
        self.recorder.request(key, spec)
        self.attributes.add(key, spec.attributes)
        return key

    def put_rows(self, stream_key: int, rows: Rows) -> None:
        """Queue rows for their learner; never blocks. Times beyond the daemon's own clock are set back to it."""
        limit = now_us() + _CLOCK_TOLERANCE_US
        if rows.time.max() > limit:
            self.count("rows_from_the_future", int((rows.time > limit).sum()))
            rows = rows._replace(time=np.minimum(rows.time, limit))
        self.streams.by_key(stream_key).worker.put(rows)

    def put_tokens(self, request_key: int, sequence: int, position: int, pieces: list[str | None]) -> None:
        """Keep token strings, which the producer opted in to send."""
        self.recorder.tokens(request_key, sequence, position, pieces)

    def put_outcome(self, request_id: str, model: str, labels: dict[str, Any], time: int, source: str) -> None:
        """Keep what the user told of a request."""
        self.recorder.outcome(request_id, model, labels, time, now_us(), source)

    def put_report(self, producer: str, report: dict[str, Any]) -> None:
        """Keep a producer's counters; the registry has them already."""

    def count(self, event: str, amount: int = 1) -> None:
        """Count an event of ingestion."""
        self.counters[event] += amount

    async def flush(self) -> None:
        """Learn everything received so far, close its windows and store them."""
        for stream in self.streams:
            await asyncio.wrap_future(stream.worker.call(lambda learner: learner.flush()))
        await self._flush_store()

    def durable(self, producer: str) -> int:
        """Highest sequence of ``producer`` that a checkpoint covers."""
        return self._durable.get(producer, 0)

    # -- life ---------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Take up streams, requests and producers of a former run."""
        if self.config.split_by or self.config.drift.enabled:
            for row in self.reader.latest_attributes(_LATEST_REQUESTS).to_pylist():
                self.attributes.add(row["request_key"], json.loads(row["attributes"]))
        self.streams.restore(_stream_rows(self.reader))
        self.stability.restore()
        self._next_request = self.reader.max_request_key() + 1
        saved = load_json(self._producers_file)
        if saved is not None:
            self.producers.load_state(saved["producers"])
            self._durable = {producer: int(sequence) for producer, sequence in saved["durable"].items()}
            self._next_request = max(self._next_request, int(saved["next_request"]))

    async def checkpoint(self) -> None:
        """Write every stream's state, then what of each producer it covers. Raises what went wrong."""
        async with self._checkpointing:
            self._last_try = time.monotonic()
            covered = self.producers.received()
            producers = self.producers.state_dict()
            for stream in self.streams:
                copied = partial(_copied, stream.worker)
                state, config = await asyncio.wrap_future(stream.worker.call(copied, on_device=False))
                await asyncio.to_thread(self.streams.save, stream, state, config)
            await self._flush_store()
            document = {"producers": producers, "durable": covered, "next_request": self._next_request}
            await asyncio.to_thread(write_json_atomically, self._producers_file, document)
            self._durable = covered
            self.last_checkpoint = now_us()

    async def keep_house(self) -> None:
        """Once a second: hand over requests; when due: checkpoint and retention. Ends when cancelled."""
        next_retention = time.monotonic()
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            await self._attempt("requests_failed", "requests could not be handed to the store", self._hand_over())
            if time.monotonic() - self._last_try >= self.config.store.checkpoint_seconds:
                problem = await self._attempt(
                    "checkpoints_failed", "checkpoint failed; the last one stays", self.checkpoint()
                )
                self.checkpoint_problem = None if problem is None else f"the last checkpoint failed: {problem}"
            if time.monotonic() >= next_retention:
                next_retention = time.monotonic() + _RETENTION_SECONDS
                await self._attempt("retentions_failed", "retention failed; next try in an hour", self._retain())

    async def _attempt(self, event: str, message: str, work: Awaitable[None]) -> Exception | None:
        """Do ``work``; what goes wrong is counted, logged and returned, and the daemon goes on."""
        try:
            await work
        except Exception as error:  # noqa: BLE001  housekeeping goes on, whatever it is
            self.count(event)
            _log.exception(message)
            return error
        return None

    async def _hand_over(self) -> None:
        self.recorder.flush()

    async def close(self) -> None:
        """Learn what is queued, checkpoint, end the threads and close the store, within the configured time."""
        limit = self.config.daemon.shutdown_timeout_s
        await self.labelling.close()
        await self.stability.close()
        try:
            await asyncio.wait_for(self.checkpoint(), limit)
        except TimeoutError:
            _log.warning("rows were still queued after %.0f s of shutting down; they are lost", limit)
        except Exception:  # noqa: BLE001  logged; the rest is to be closed all the same
            _log.exception("the last checkpoint failed; the one before stays")
        for stream in self.streams:
            stream.worker.stop()
        for stream in self.streams:
            await asyncio.to_thread(stream.worker.join, limit)
        await asyncio.to_thread(self.streams.close)
        await asyncio.to_thread(self.writer.close, limit)
        self.store.close()

    def _publish(self, batches: dict[str, pa.RecordBatch]) -> None:
        """Give a closed window to the store's writer; a learner may wait for it, but not long."""
        self.writer.put(batches)

    def _put_now(self, batches: dict[str, pa.RecordBatch]) -> None:
        """Give tables to the store's writer without waiting; what it cannot take it counts as lost."""
        self.writer.put(batches, patience_seconds=0)

    async def _flush_store(self) -> None:
        self.recorder.flush()
        limit = self.config.daemon.shutdown_timeout_s
        if not await asyncio.to_thread(self.writer.flush, limit):
            raise RuntimeError(
                f"the store did not take everything within {limit:.0f} s: {self.writer.report().problem}"
            )

    async def _retain(self) -> None:
        store = self.config.store
        kept = await asyncio.to_thread(
            self.store.retain,
            now_us(),
            max_age_us=int(store.retention_days * 86_400e6),
            max_bytes=store.max_bytes,
            examples_per_feature=self.config.learn.examples_per_feature,
        )
        if any(kept):
            _log.info("retention deleted %s", kept)

    def _learner_config(self, stream_id: str) -> LearnerConfig:
        return self.config.learner_config(stream_id)


def _copied(worker: LearnerWorker, learner: StreamLearner) -> tuple[State, LearnerConfig]:
    """A copy of all that a stream's thread has, and the settings it is of; in that thread."""
    return copy_state(worker.state_dict(learner)), learner.config


async def run(
    config: Config,
    ready: Callable[[Ready], None] | None = None,
    stop: asyncio.Event | None = None,
    *,
    inherited: list[socket.socket] | None = None,
) -> int:
    """Run a daemon until SIGTERM, SIGINT, the end of its parent, or ``stop``; return the exit status.

    ``ready`` is called once it listens; ``inherited`` are listening sockets from the service manager. Signal handlers
    are set only where the loop runs in the main thread. Raises StoreError, IngestError or OSError when it cannot start.
    """
    torch.set_num_threads(config.daemon.threads)
    stop = stop or asyncio.Event()
    _watch(config, stop)
    daemon = Daemon(config)
    daemon.restore()
    server = IngestServer(daemon, daemon.producers, config.ingest, now_us)
    address = config.http.address
    http = None if address is None else HttpServer(DaemonBackend(daemon, server), address)
    tasks = [asyncio.create_task(daemon.keep_house())]
    try:
        url = None if http is None else await http.start()
        await server.start(http=url, inherited=inherited)
        if ready is not None:
            ready(Ready(server.socket_path, server.tcp_address, url, os.getpid()))
        tasks.append(asyncio.create_task(_feed_watchdog()))  # until the store is closed, which takes time
        await stop.wait()
        systemd.notify("STOPPING=1")
        _log.info("stopping: no new rows; learning what is queued")
    finally:
        await server.close()
        if http is not None:
            await http.close()
        tasks[0].cancel()
        await daemon.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return 0


def _watch(config: Config, stop: asyncio.Event) -> None:
    """Set ``stop`` on SIGTERM, SIGINT, and when the pipe ``parent_fd`` closes because the parent has ended."""
    loop = asyncio.get_running_loop()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    descriptor = config.daemon.parent_fd
    if descriptor is not None:

        def parent_ended() -> None:
            if not os.read(descriptor, 1):
                loop.remove_reader(descriptor)
                stop.set()

        loop.add_reader(descriptor, parent_ended)


async def _feed_watchdog() -> None:
    """Tell the service manager that the loop is alive, twice in each period it asks for."""
    period = systemd.watchdog_seconds()
    while period is not None:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(period / 2)


def _stream_rows(reader: StoreReader) -> list[dict[str, Any]]:
    table = reader.streams()
    created = table["created"].cast(pa.int64()).to_pylist()
    return [row | {"created": time} for row, time in zip(table.to_pylist(), created, strict=True)]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
