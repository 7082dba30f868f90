"""What the API sees of the running daemon."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import psutil
from hydrophone_schemas import __version__
from hydrophone_schemas.rest import (
    DictionaryQuality,
    FvuByFeatures,
    LabelRun,
    LabelRunBody,
    ProducerReport,
    SelfReport,
    StabilityRun,
    StabilityRunBody,
    Stage,
    StreamStatus,
)
from numpy.typing import NDArray

from hydrophoned.api.backend import ArtefactFiles, EncodedRows, FoundStability, NumberedFeatures, ReconstructedRows
from hydrophoned.api.errors import Unavailable
from hydrophoned.ingest.server import IngestServer
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.runtime import versions
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.drift_view import DriftView
from hydrophoned.runtime.label_evidence import feature_ids
from hydrophoned.runtime.questions import FeatureQuestions
from hydrophoned.runtime.streams import Stream
from hydrophoned.runtime.traffic_questions import TrafficQuestions
from hydrophoned.runtime.versions import version_row
from hydrophoned.store import DetectionReader, Label, StoreReader, label_table
from hydrophoned.store.questions import QuestionReader

if TYPE_CHECKING:
    from hydrophoned.runtime.daemon import Daemon

_ASK_SECONDS = 20.0
T = TypeVar("T")
_REPORTED = ("fires", "forwards", "captured", "sampled_out", "padding", "sent", "acked")
_FROM_LEARNER = (
    "features",
    "k",
    "dictionary_version",
    "rows_quarantined",
    "rows_sink",
    "rows_scored",
    "rows_learned",
    "rows_skipped",
    "rows_replayed",
    "rows_full",
    "changes",
    "transforms",
    "variant",
    "normalise",
    "learning_rate",
    "fvu",
    "l0",
    "dead_fraction",
    "features_alive",
    "features_fired",
    "features_revived",
    "mean_norm",
    "median_norm",
    "sink_norm_factor",
)


class DaemonBackend:
    """Implements :class:`hydrophoned.api.backend.Backend` over a running daemon."""

    def __init__(self, daemon: "Daemon", server: IngestServer) -> None:
        self._daemon, self._server = daemon, server
        self._process = psutil.Process()
        asked = QuestionReader(daemon.store)
        self.questions = FeatureQuestions(daemon.streams, asked)
        self.traffic = TrafficQuestions(daemon.streams, asked, daemon.writer, now_us)
        self.drift = DriftView(daemon.streams, DetectionReader(daemon.store), asked, daemon.writer, self._ask)

    @property
    def version(self) -> str:
        """Version of the daemon."""
        return __version__

    @property
    def reader(self) -> StoreReader:
        """Reads the store."""
        return self._daemon.reader

    def now(self) -> int:
        """UTC time in microseconds."""
        return now_us()

    def streams(self) -> list[StreamStatus]:
        """Live figures of every stream, by id."""
        return [self._status(stream) for stream in sorted(self._daemon.streams, key=lambda stream: stream.id)]

    def stream(self, stream_id: str) -> StreamStatus | None:
        """Live figures of one stream."""
        stream = self._daemon.streams.get(stream_id)
        return None if stream is None else self._status(stream)

    async def encode(self, stream_id: str, x: NDArray[np.float32]) -> EncodedRows:
        """Codes of rows x [n, d]; raises Unavailable when the learner does not answer in time."""
        return EncodedRows(*await self._ask(stream_id, lambda learner: learner.encode(x)))

    async def reconstruct(self, stream_id: str, x: NDArray[np.float32]) -> ReconstructedRows:
        """Rows x [n, d] rebuilt from their codes; raises Unavailable when the learner does not answer in time."""
        return ReconstructedRows(*await self._ask(stream_id, lambda learner: learner.reconstruct(x)))

    async def quality(self, stream_id: str) -> DictionaryQuality:
        """How good the stream's dictionary is; raises Unavailable when the learner does not answer in time."""
        told = await self._ask(stream_id, lambda learner: learner.quality())
        assessed = told.pop("assessed")
        by_count = assessed and assessed["fvu_by_count"]
        return DictionaryQuality(
            **told,
            time=assessed and _time(assessed["time"]),
            rows=assessed["rows"] if assessed else 0,
            l0=assessed and assessed["l0"],
            fvu_by_features=by_count and [FvuByFeatures(features=count, fvu=fvu) for count, fvu in by_count],
        )

    async def feature_ids(self, stream_id: str) -> NumberedFeatures:
        """The id of each feature; raises Unavailable when the learner does not answer in time."""
        return await self._ask(
            stream_id, lambda learner: NumberedFeatures(feature_ids(learner), learner.dictionary_version)
        )

    async def publish(self, stream_id: str) -> dict[str, Any]:
        """Publish the stream's dictionary; raises Unavailable when the learner does not answer in time."""
        published = await self._ask(stream_id, lambda learner: learner.publish(now_us()))
        await asyncio.to_thread(self._daemon.streams.flush_versions)
        await asyncio.to_thread(self._daemon.writer.flush, _ASK_SECONDS)
        return version_row(published)

    def versions_kept(self, stream_id: str) -> set[int]:
        """The versions on disk."""
        return set(versions.numbers(self._daemon.streams.versions(stream_id)))

    def artefact(self, stream_id: str, version: int) -> ArtefactFiles | None:
        """A version's files; None where they are not kept."""
        return versions.artefact_files(versions.folder_of(self._daemon.streams.versions(stream_id), version))

    async def put_labels(self, stream_key: int, labels: Sequence[Label]) -> None:
        """Store labels; raises Unavailable when that does not succeed in time."""
        writer = self._daemon.writer
        stored = writer.put({"label": label_table(stream_key, labels)}, patience_seconds=0)
        if not stored or not await asyncio.to_thread(writer.flush, _ASK_SECONDS):
            raise Unavailable(f"the store did not take the labels: {writer.problem or 'it is behind'}")

    def start_labelling(self, stream_id: str, body: LabelRunBody) -> LabelRun:
        """Begin automatic labelling; raises Refused."""
        return self._daemon.labelling.start(self._stream(stream_id), body)

    def labelling(self) -> LabelRun:
        """The run in progress, or the last one."""
        return self._daemon.labelling.run

    def start_stability(self, stream_id: str, body: StabilityRunBody) -> StabilityRun:
        """Begin to learn a twin; raises Refused."""
        return self._daemon.stability.start(self._stream(stream_id), body)

    def stability(self, stream_id: str) -> tuple[StabilityRun, FoundStability | None]:
        """The latest run, and the latest answer."""
        return self._daemon.stability.of(stream_id)

    def _stream(self, stream_id: str) -> Stream:
        stream = self._daemon.streams.get(stream_id)
        if stream is None:
            raise Unavailable(f"stream {stream_id} is not open")
        return stream

    async def _ask(self, stream_id: str, question: Callable[[StreamLearner], T]) -> T:
        stream = self._stream(stream_id)
        future = asyncio.wrap_future(stream.worker.call(question, after_queued=False))
        try:
            return await asyncio.wait_for(future, _ASK_SECONDS)
        except (TimeoutError, RuntimeError) as error:
            raise Unavailable(f"the learner of {stream_id} did not answer: {error or 'it is busy'}") from error

    def put_outcome(self, request_id: str, model: str, labels: dict[str, Any], time: int, source: str) -> None:
        """Record what the user told of a request."""
        self._daemon.put_outcome(request_id, model, labels, time, source)

    def ready(self) -> list[str]:
        """What stands in the way of taking rows and answering."""
        reasons = [
            f"the learner of {stream.id} has ended" for stream in self._daemon.streams if not stream.worker.alive
        ]
        if self._daemon.checkpoint_problem is not None:
            reasons.append(self._daemon.checkpoint_problem)
        problem = self._daemon.writer.report().problem
        if problem is not None:
            reasons.append(f"the store cannot be written: {problem}")
        return reasons

    def self_report(self) -> SelfReport:
        """The daemon's own processor time, memory, lags and drops."""
        with self._process.oneshot():
            times, memory = self._process.cpu_times(), self._process.memory_info()
            threads = self._process.num_threads()
        return SelfReport(
            version=__version__,
            pid=os.getpid(),
            started=_time(self._daemon.started),
            time=_time(now_us()),
            cpu_seconds=times.user + times.system,
            rss_bytes=memory.rss,
            threads=threads,
            connections=self._server.connections,
            stages=self._stages(),
            store=self._daemon.writer.report(),
            last_checkpoint=None if self._daemon.last_checkpoint is None else _time(self._daemon.last_checkpoint),
            counters=dict(self.counters()),
        )

    def counters(self) -> Mapping[str, int]:
        """Events counted since the start."""
        return self._daemon.counters

    def _status(self, stream: Stream) -> StreamStatus:
        worker, spec = stream.worker, stream.spec
        known = worker.status
        return StreamStatus(
            id=stream.id,
            stream_key=stream.key,
            model=spec.id.model,
            version=spec.id.version,
            site=spec.id.site,
            width=spec.width,
            dtype=spec.dtype,
            fingerprint=spec.fingerprint,
            created=_time(stream.created),
            rows_received=worker.rows_in,
            rows_dropped=worker.dropped(),
            queue_rows=worker.queue.rows,
            queue_bytes=worker.queue.nbytes,
            lag_seconds=worker.lag_seconds,
            learner_rows_per_second=worker.rows_per_second if worker.rows_in else None,
            producers=self._producers(stream),
            **{name: known.get(name) for name in _FROM_LEARNER},
        )

    def _producers(self, stream: Stream) -> list[ProducerReport]:
        reports = []
        for producer in self._daemon.producers.of_stream(stream.id):
            reported = {name: producer.report.get(name) for name in _REPORTED} if producer.report else {}
            reports.append(
                ProducerReport(
                    producer=producer.id,
                    name=producer.name,
                    connected=producer.connected,
                    reported=None if producer.reported is None else _time(producer.reported),
                    dropped=(producer.report or {}).get("dropped", {}),
                    **reported,
                )
            )
        return reports

    def _stages(self) -> list[Stage]:
        streams = list(self._daemon.streams)
        stages = [Stage(name="ingest", rows=sum(stream.worker.rows_in for stream in streams))]
        for stream in streams:
            worker = stream.worker
            stages.append(
                Stage(
                    name=f"learn {stream.id}",
                    cpu_seconds=worker.cpu_seconds,
                    queue_rows=worker.queue.rows,
                    queue_bytes=worker.queue.nbytes,
                    queue_capacity_bytes=worker.queue.max_bytes,
                    rows=worker.status.get("rows_seen"),
                    dropped=worker.dropped(),
                    lag_seconds=worker.lag_seconds,
                )
            )
        store = self._daemon.writer.report()
        stages.append(
            Stage(
                name="store",
                queue_rows=store.queue_rows,
                queue_bytes=store.queue_bytes,
                rows=store.rows_written,
                dropped=store.rows_lost,
                lag_seconds=store.lag_seconds,
            )
        )
        return stages


def _time(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)
