"""The streams of this daemon: each with its queue, its learner's thread and its checkpoints."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
import torch
from hydrophone_schemas.names import StreamId

from hydrophoned.attributes import RequestAttributes
from hydrophoned.detect.config import WatchConfig
from hydrophoned.ingest.errors import StreamConflict, WidthMismatch
from hydrophoned.ingest.queue import RowQueue
from hydrophoned.ingest.sink import StreamSpec
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.errors import CheckpointError, InvalidConfig, OtherOrigin
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.memory import learner_bytes
from hydrophoned.learn.whitening import Whitening
from hydrophoned.runtime.checkpoint import State, load_checkpoint, save_checkpoint
from hydrophoned.runtime.control import read_control
from hydrophoned.runtime.placement import settle, step_clock
from hydrophoned.runtime.versions import Origin, VersionWriter, check_origin, last_given
from hydrophoned.runtime.watching import WATCH, Watching
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
        idle_seconds: float,
        control_file: Callable[[str], Path | None] = lambda _: None,
        attributes: RequestAttributes | None = None,
        keep_versions: int = 1,
        given: Callable[[int], tuple[int, int]] = lambda _: (0, 1),
        watch_config: Callable[[str], WatchConfig | None] = lambda _: None,
        drifts_told: Callable[[int], tuple[int, Mapping[str, int]]] = lambda _: (0, {}),
    ) -> None:
        self._directory, self._learner_config, self._publish, self._now = directory, learner_config, publish, now
        self._device, self._queue_bytes, self._max_streams = device, queue_bytes, max_streams
        self._keep, self._niceness, self._control_file = keep_checkpoints, niceness, control_file
        self._idle_seconds, self._attributes = idle_seconds, attributes
        self._keep_versions, self._given = keep_versions, given
        self._watch_config, self._drifts_told = watch_config, drifts_told
        self._version_writer = VersionWriter()
        self._resumed: dict[str, State] = {}
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

    def versions(self, stream_id: str) -> Path:
        """The folder of a stream's versions; there may be none yet."""
        return self._folder(stream_id) / "versions"

    def flush_versions(self) -> None:
        """Wait until the versions published so far are on disk; blocks."""
        self._version_writer.flush()

    def close(self) -> None:
        """Write the versions that wait; blocks. No learner may run any more."""
        self._version_writer.close()

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
            lambda: self._placed_learner(key, spec),
            self._publish,
            self._now,
            niceness=self._niceness,
            device=self._device,
            idle_seconds=self._idle_seconds,
            make_watching=lambda learner: self._make_watching(key, spec, learner),
        )
        stream = Stream(key, spec, created, worker)
        self._by_id[name] = self._by_key[key] = stream
        worker.start()
        return stream

    def _placed_learner(self, key: int, spec: StreamSpec) -> StreamLearner:
        need = learner_bytes(self._learner_config(str(spec.id)), spec.width, half=True).total
        return settle(str(spec.id), self._device, need, lambda device: self._make_learner(key, spec, device))

    def _make_learner(self, key: int, spec: StreamSpec, device: torch.device) -> StreamLearner:
        learner = self._resumed_learner(key, spec, device)
        name, directory = str(spec.id), self.versions(str(spec.id))
        try:
            last = last_given(directory)
        except CheckpointError as error:
            _log.error("the last version of %s cannot be read: %s", name, error)
            last = None
        version, next_id = self._given(key)
        learner.reserve(version, next_id)
        if last is not None:
            learner.reserve(*last)
        origin, keep = _origin(spec), self._keep_versions
        learner.on_version = lambda artefact: self._version_writer.put(directory, artefact, name, origin, keep=keep)
        return learner

    def _make_watching(self, key: int, spec: StreamSpec, learner: StreamLearner) -> Watching | None:
        """The stream's watch, resumed from the learner's checkpoint where that holds one.

        Drifts and references may have been told since then: their numbers are not given again.
        """
        name = str(spec.id)
        config = self._watch_config(name)
        if config is None:
            return None
        watching = Watching(name, learner, config, self._attributes)
        state = self._resumed.pop(name, None)
        if state is not None:
            watching.load_state(state)
        watching.reserve(*self._drifts_told(key))
        return watching

    def _resumed_learner(self, key: int, spec: StreamSpec, device: torch.device) -> StreamLearner:
        config = self._learner_config(str(spec.id))
        folder = self._folder(str(spec.id))
        try:
            found = load_checkpoint(folder)
            if found is None:
                return self._new_learner(key, spec, config, device)
            state, about = found
            check_origin(f"the checkpoint in {folder}", _origin_of(about), _origin(spec))
            saved = about["learner"]
            if (saved["features"], saved["k"]) != (config.features, config.k):
                _log.warning(
                    "stream %s goes on with features=%s, k=%s of its checkpoint; the config's features=%s, k=%s apply "
                    "to new streams",
                    *(spec.id, saved["features"], saved["k"], config.features, config.k),
                )
            normalise = saved.get("normalise", "scale")
            if normalise != config.normalise:
                _log.warning(
                    "stream %s goes on with normalise=%s of its checkpoint; the config's %s applies to new streams",
                    *(spec.id, normalise, config.normalise),
                )
            config = replace(config, normalise=normalise, **{name: saved[name] for name in _KEPT})
            learner = StreamLearner(
                key, spec.width, config, device=device, clock=step_clock(device), attributes=self._attributes
            )
            learner.load_state(state)
            self._resumed[str(spec.id)] = {part: own for part, own in state.items() if part.startswith(WATCH)}
        except (CheckpointError, KeyError) as error:
            aside = folder.with_name(f"{folder.name}.damaged-{self._now()}")
            shutil.move(folder, aside)
            if not isinstance(error, OtherOrigin) and (aside / "versions").exists():
                folder.mkdir()
                shutil.move(aside / "versions", folder)  # they are whole, and ids go on from them
            _log.error("stream %s begins anew: %s; the folder was moved to %s", spec.id, error, aside)
            return self._new_learner(key, spec, self._learner_config(str(spec.id)), device)
        _log.info("stream %s resumed after %d learned rows", spec.id, learner.rows_learned)
        return learner

    def _new_learner(self, key: int, spec: StreamSpec, config: LearnerConfig, device: torch.device) -> StreamLearner:
        """A learner that knows nothing yet; raises FormatError or LearnError where its control rows cannot be had."""
        control = self._control(spec, config) if config.normalise == "control" else None
        clock = step_clock(device)
        return StreamLearner(
            key, spec.width, config, device=device, control=control, clock=clock, attributes=self._attributes
        )

    def _control(self, spec: StreamSpec, config: LearnerConfig) -> Whitening:
        path = self._control_file(str(spec.id))
        if path is None:
            raise InvalidConfig(f"learn.normalise = control of stream {spec.id} needs learn.control_file")
        whitening, report = read_control(path, spec.width, sink_norm_factor=config.sink_norm_factor)
        _log.info("stream %s is whitened by control rows: %s", spec.id, report)
        if whitening.remark is not None:
            _log.warning("stream %s is %s", spec.id, whitening.remark)
        return whitening

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


def _origin(spec: StreamSpec) -> Origin:
    return Origin(spec.fingerprint, spec.id.site, spec.width)


def _origin_of(about: dict[str, Any]) -> Origin:
    """What a checkpoint says that it belongs to."""
    return Origin(about["fingerprint"], about["stream"].partition("/")[2], about["width"])
