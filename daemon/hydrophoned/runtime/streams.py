"""The streams of this daemon: each with its queue, its learner's thread and its checkpoints."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
import torch
from hydrophone_schemas.names import StreamId

from hydrophoned.ingest.errors import StreamConflict, WidthMismatch
from hydrophoned.ingest.queue import RowQueue
from hydrophoned.ingest.sink import StreamSpec
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.errors import CheckpointError
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.runtime.checkpoint import State, load_checkpoint, save_checkpoint
from hydrophoned.runtime.worker import LearnerWorker

_log = logging.getLogger(__name__)
_KEPT: Final = (
    "variant",
    "features",
    "k",
    "batch_rows",
    "buffer_rows",
    "reservoir_rows",
    "code_sample_rows",
    "examples_per_feature",
)
"""Settings that a stream keeps from its checkpoint, since its state has their shapes."""


@dataclass
class Stream:
    """One stream as the daemon runs it."""

    key: int
    spec: StreamSpec
    created: int
    worker: LearnerWorker
    producers: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        """``name@version/site``."""
        return str(self.spec.id)


class StreamRegistry:
    """Opens streams and gives each its learner, resumed from its checkpoint where there is one."""

    def __init__(
        self,
        directory: Path,
        learner_config: Callable[[str], LearnerConfig],
        publish: Callable[[dict[str, pa.RecordBatch]], None],
        now: Callable[[], int],
        *,
        device: torch.device,
        queue_bytes: int,
        max_streams: int,
        keep_checkpoints: int,
        niceness: int,
    ) -> None:
        self._directory, self._learner_config, self._publish, self._now = directory, learner_config, publish, now
        self._device, self._queue_bytes, self._max_streams = device, queue_bytes, max_streams
        self._keep, self._niceness = keep_checkpoints, niceness
        self._by_id: dict[str, Stream] = {}
        self._by_key: dict[int, Stream] = {}

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._by_key.values()))

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, stream_id: str) -> Stream | None:
        """The stream of this id, None if there is none."""
        return self._by_id.get(stream_id)

    def by_key(self, key: int) -> Stream:
        """The stream of this key."""
        return self._by_key[key]

    def open(self, spec: StreamSpec, producer: str) -> tuple[Stream, bool]:
        """The stream that ``spec`` asks for, and whether it is new.

        Raises WidthMismatch or StreamConflict when a stream of that id exists with another width or fingerprint,
        StreamConflict also when there are too many streams.
        """
        known = self._by_id.get(str(spec.id))
        if known is not None:
            self._check(known.spec, spec)
            known.producers.add(producer)
            return known, False
        if len(self) >= self._max_streams:
            raise StreamConflict(
                f"stream {spec.id} would be number {len(self) + 1}; ingest.max_streams = {self._max_streams} are open"
            )
        stream = self._start(max(self._by_key, default=0) + 1, spec, self._now())
        stream.producers.add(producer)
        return stream, True

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """Take up the streams of a former run, given as rows of the ``stream`` table with times in us."""
        for row in rows:
            spec = StreamSpec(
                StreamId(row["model"], row["version"], row["site"]), row["fingerprint"], row["width"], row["dtype"]
            )
            self._start(row["stream_key"], spec, row["created"])

    def save(self, stream: Stream, state: State, config: LearnerConfig) -> None:
        """Write ``state`` as a checkpoint of ``stream``; blocks on the disk."""
        about = {
            "stream": stream.id,
            "fingerprint": stream.spec.fingerprint,
            "width": stream.spec.width,
            "learner": asdict(config),
        }
        save_checkpoint(self._folder(stream.id), state, about, keep=self._keep)

    def _start(self, key: int, spec: StreamSpec, created: int) -> Stream:
        name = str(spec.id)
        worker = LearnerWorker(
            name,
            RowQueue(self._queue_bytes),
            lambda: self._make_learner(key, spec),
            self._publish,
            self._now,
            niceness=self._niceness,
        )
        stream = Stream(key, spec, created, worker)
        self._by_id[name] = self._by_key[key] = stream
        worker.start()
        return stream

    def _make_learner(self, key: int, spec: StreamSpec) -> StreamLearner:
        config = self._learner_config(str(spec.id))
        folder = self._folder(str(spec.id))
        try:
            found = load_checkpoint(folder)
            if found is None:
                return StreamLearner(key, spec.width, config, device=self._device)
            state, about = found
            saved = about["learner"]
            if (saved["features"], saved["k"]) != (config.features, config.k):
                _log.warning(
                    "stream %s goes on with features=%s, k=%s of its checkpoint; the config's features=%s, k=%s apply "
                    "to new streams",
                    *(spec.id, saved["features"], saved["k"], config.features, config.k),
                )
            config = replace(config, **{name: saved[name] for name in _KEPT})
            learner = StreamLearner(key, spec.width, config, device=self._device)
            learner.load_state(state)
        except (CheckpointError, KeyError) as error:
            aside = folder.with_name(f"{folder.name}.damaged-{self._now()}")
            shutil.move(folder, aside)
            _log.error("stream %s begins anew: %s; the folder was moved to %s", spec.id, error, aside)
            return StreamLearner(key, spec.width, self._learner_config(str(spec.id)), device=self._device)
        _log.info("stream %s resumed after %d learned rows", spec.id, learner.rows_learned)
        return learner

    def _folder(self, stream_id: str) -> Path:
        return self._directory / quote(stream_id, safe="@.-_")

    @staticmethod
    def _check(known: StreamSpec, asked: StreamSpec) -> None:
        if known.width != asked.width:
            raise WidthMismatch(
                f"stream {known.id} has rows of width {known.width}; this producer sends width {asked.width}. "
                "Give the changed model another name or version."
            )
        if known.fingerprint != asked.fingerprint:
            raise StreamConflict(
                f"stream {known.id} is learned from a model with fingerprint {known.fingerprint}; this producer's "
                f"model has {asked.fingerprint}. Give the changed model another name or version."
            )
