"""A backend on a real store, and a real server on loopback in front of it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from aiohttp import ClientSession
from aiohttp.web import TCPSite
from generated import SECOND, GeneratedStream, as_table
from hydrophone_schemas.rest import (
    DictionaryQuality,
    DriftState,
    DriftStatus,
    FvuByFeatures,
    LabelRun,
    LabelRunState,
    NoveltyCluster,
    ProducerReport,
    SelfReport,
    StabilityRun,
    StabilityState,
    Stage,
    StreamStatus,
)
from hydrophoned.api import (
    EncodedRows,
    NumberedFeatures,
    ReconstructedRows,
    Refused,
    Unavailable,
    create_app,
    create_runner,
)
from hydrophoned.store import DetectionReader, Store, StoreReader, StoreWriter, label_table
from yarl import URL

WIDTH, K = 8, 3


class StoreDrift:
    """The watches of a backend: what is stored is real, how they stand is set by the test."""

    def __init__(self, store: Store) -> None:
        self.reader = DetectionReader(store)
        self.watches: dict[str, DriftStatus] = {}
        self.groups: list[NoveltyCluster] = []

    def status(self, stream_id: str) -> DriftStatus:
        """What the test put into ``watches``."""
        off = dict.fromkeys(DriftStatus.model_fields) | {"stream": stream_id, "state": DriftState.OFF, "strata": []}
        return self.watches.get(stream_id) or DriftStatus(**off)

    async def rebaseline(self, stream_id: str, body: object) -> DriftStatus:
        """The watch as the test has it; of the latest ten requests no reference can be made."""
        if stream_id not in self.watches:
            raise Refused(409, "not-watched", f"{stream_id} is not watched")
        if body.units is not None and body.units <= 10:
            raise Refused(409, "insufficient-reference", f"there are {body.units}")
        return self.watches[stream_id]

    async def clusters(self, stream_id: str) -> list[NoveltyCluster]:
        """What the test put into ``groups``."""
        if stream_id not in self.watches:
            raise Refused(409, "not-watched", f"{stream_id} is not watched")
        return self.groups


class StoreBackend:
    """A backend whose stored figures are real and whose live figures are set by the test."""

    version = "0.0.1"

    def __init__(self, store: Store, generated: list[GeneratedStream]) -> None:
        self.store = store
        self.reader = StoreReader(store)
        self.writer = StoreWriter(store)
        self.drift = StoreDrift(store)
        self.generated = generated
        self.time = generated[0].end if generated else 0
        self.reasons: list[str] = []
        self.busy = False
        self.outcomes: list[tuple] = []
        self.events = {"frames_bad": 3}
        self.run = LabelRun(state=LabelRunState.IDLE)
        self.twins: dict[str, tuple] = {}
        self.live = {stream.id: self._status(stream) for stream in generated}

    def _status(self, stream: GeneratedStream) -> StreamStatus:
        model, _, rest = stream.id.partition("@")
        version, _, site = rest.partition("/")
        return StreamStatus(
            id=stream.id, stream_key=stream.key, model=model, version=version, site=site, width=WIDTH, dtype="float32",
            fingerprint="f" * 16, created=datetime(2026, 1, 1, tzinfo=UTC), features=stream.features, k=K,
            dictionary_version=1, rows_received=1000, rows_dropped={"queue_full": 5}, rows_quarantined=2, rows_sink=4,
            rows_scored=900, rows_learned=800, queue_rows=7, queue_bytes=700, lag_seconds=0.5,
            learner_rows_per_second=123.0, fvu=0.25, l0=3.0, dead_fraction=None, features_alive=None, mean_norm=3.0,
            median_norm=2.5, sink_norm_factor=5.0,
            producers=[ProducerReport(producer="p1", connected=True, fires=9, forwards=10, dropped={"pressure": 2})],
        )  # fmt: skip

    def now(self) -> int:
        return self.time

    def streams(self) -> list[StreamStatus]:
        return list(self.live.values())

    def stream(self, stream_id: str) -> StreamStatus | None:
        return self.live.get(stream_id)

    async def encode(self, stream_id: str, x: np.ndarray) -> EncodedRows:
        """The K largest coordinates of each row: a dictionary of the axes, so that tests know the answer."""
        if self.busy:
            raise Unavailable("the learner is behind")
        assert x.dtype == np.float32
        assert stream_id in self.live
        finite = np.isfinite(x).all(axis=1)
        index = np.argsort(-np.where(np.isfinite(x), x, 0), axis=1, kind="stable")[:, :K].astype(np.int32)
        value = np.take_along_axis(x, index, axis=1)
        return EncodedRows(index, value, np.linalg.norm(np.nan_to_num(x).astype(np.float64), axis=1) > 100, finite)

    async def reconstruct(self, stream_id: str, x: np.ndarray) -> ReconstructedRows:
        """What the K largest coordinates rebuild of each row: the others are 0."""
        codes = await self.encode(stream_id, x)
        row = np.zeros_like(x)
        np.put_along_axis(row, codes.index, codes.value, axis=1)
        row = np.where((codes.finite & ~codes.sink)[:, None], row, x)
        return ReconstructedRows(row, codes.sink, codes.finite, 3)

    async def quality(self, stream_id: str) -> DictionaryQuality:
        if self.busy:
            raise Unavailable("the learner is behind")
        assert stream_id in self.live
        return DictionaryQuality(
            dictionary_version=1, time=datetime.fromtimestamp(self.time / SECOND, UTC), rows=512, l0=3.0,
            fvu_by_features=[FvuByFeatures(features=1, fvu=0.8), FvuByFeatures(features=K, fvu=0.25)],
            density=[1, 0, 0, 0, 2, 3, 1], density_edges=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1], density_rows=900,
        )  # fmt: skip

    async def feature_ids(self, stream_id: str) -> NumberedFeatures:
        """Ids begin at 1000."""
        if self.busy:
            raise Unavailable("the learner is behind")
        return NumberedFeatures(1000 + np.arange(self.live[stream_id].features), 3)

    async def put_labels(self, stream_key: int, labels: list) -> None:
        self.writer.put({"label": label_table(stream_key, labels)})
        assert self.writer.flush(10)

    def start_labelling(self, stream_id: str, body: object) -> LabelRun:
        """A run that never ends."""
        if self.run.state is LabelRunState.RUNNING:
            raise Refused(409, "labelling-in-progress", f"features of {self.run.stream} are being labelled")
        now = datetime.fromtimestamp(self.time / SECOND, UTC)
        self.run = LabelRun(state=LabelRunState.RUNNING, stream=stream_id, method=body.method, started=now)
        return self.run

    def labelling(self) -> LabelRun:
        return self.run

    def start_stability(self, stream_id: str, body: object) -> StabilityRun:
        """A run that never ends."""
        assert body.passes
        if any(run.state is StabilityState.RUNNING for run, _ in self.twins.values()):
            raise Refused(409, "stability-in-progress", "a twin is being learned")
        now = datetime.fromtimestamp(self.time / SECOND, UTC)
        run = StabilityRun(state=StabilityState.RUNNING, stream=stream_id, started=now)
        self.twins[stream_id] = run, self.stability(stream_id)[1]
        return run

    def stability(self, stream_id: str) -> tuple:
        """What the test put into ``twins``."""
        return self.twins.get(stream_id, (StabilityRun(state=StabilityState.NONE, stream=stream_id), None))

    def put_outcome(self, request_id: str, model: str, labels: dict, time: int, source: str) -> None:
        self.outcomes.append((request_id, model, labels, time, source))
        row = {
            "request_id": [request_id], "model": [model], "time": [time], "received": [self.time], "source": [source],
            "labels": [json.dumps(labels)],
        }  # fmt: skip
        self.writer.put({"outcome": as_table("outcome", row)}, patience_seconds=0)

    def ready(self) -> list[str]:
        return self.reasons

    def self_report(self) -> SelfReport:
        now = datetime.fromtimestamp(self.time / SECOND, UTC)
        return SelfReport(
            version=self.version, pid=1, started=now, time=now, cpu_seconds=1.5, rss_bytes=1 << 20, threads=5,
            connections=2, stages=[Stage(name="ingest", cpu_seconds=0.5), Stage(name="store")],
            store=self.writer.report(), counters=self.events,
        )  # fmt: skip

    def counters(self) -> dict[str, int]:
        return self.events


class Got(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Api:
    """Calls a server that lives for one ``together`` block, or for one call."""

    def __init__(self, backend: StoreBackend, **options: object) -> None:
        self.backend, self.options = backend, options

    def together(self, scenario: Callable[["Session"], Awaitable[object]]) -> object:
        async def main() -> object:
            runner = create_runner(create_app(self.backend, **self.options))
            await runner.setup()
            try:
                site = TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                host, port = runner.addresses[0][:2]
                async with ClientSession() as client:
                    return await scenario(Session(client, f"http://{host}:{port}"))
            finally:
                await runner.cleanup()

        return asyncio.run(main())

    def get(self, path: str, **options: object) -> Got:
        return self.call("GET", path, **options)

    def post(self, path: str, **options: object) -> Got:
        return self.call("POST", path, **options)

    def call(self, method: str, path: str, **options: object) -> Got:
        return self.together(lambda session: session.call(method, path, **options))


class Session:
    def __init__(self, client: ClientSession, base: str) -> None:
        self.client, self.base = client, base

    async def call(self, method: str, path: str, **options: object) -> Got:
        # the path goes out exactly as it is written here
        async with self.client.request(method, URL(self.base + path, encoded=True), **options) as response:
            return Got(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: object) -> Got:
        return await self.call("GET", path, **options)
