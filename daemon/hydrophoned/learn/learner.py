"""One stream's learner: rows in; a dictionary, closed windows, examples and a reservoir out. No clock, no I/O."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.attributes import RequestAttributes
from hydrophoned.learn.assessment import DENSITY_EDGES, Assessment, as_numbers, assess, density
from hydrophoned.learn.buffers import Reservoir
from hydrophoned.learn.code_sample import CodeSample
from hydrophoned.learn.config import EXACT, LearnerConfig
from hydrophoned.learn.errors import CheckpointError, NoDictionary, WidthMismatch
from hydrophoned.learn.examples import TopExamples
from hydrophoned.learn.identity import FeatureIds
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.normaliser import SinkFilter
from hydrophoned.learn.placement import MAIN_MEMORY, move, put
from hydrophoned.learn.publication import FIRST, REQUESTED, TRANSFORM, Artefact, Publication, Published
from hydrophoned.learn.request_rows import DistinctRequests
from hydrophoned.learn.staging import Staging
from hydrophoned.learn.statistics import FeatureStatistics
from hydrophoned.learn.trainer import Trainer
from hydrophoned.learn.whitening import Whitening
from hydrophoned.learn.window import OpenWindow, Scores
from hydrophoned.rows import Rows

_STALE_STAGING_US = 1_000_000
_COUNTERS = ("rows_seen", "rows_sink", "rows_quarantined", "rows_late", "rows_scored", "rows_full", "_last_step")
_LAST = ("last_fvu", "last_l0", "last_mean_norm")
_ON_HOST = ("sinks", "window", "_staging", "identity", "publication")
"""What stays in main memory, whatever the device."""
_PARTS = (
    "dictionary",
    "normaliser",
    "sinks",
    "statistics",
    "examples",
    "sample",
    "buffer",
    "reservoir",
    "trainer",
    "identity",
    "publication",
    "window",
)


class Encoded(NamedTuple):
    """Codes of rows given from outside.

    ``index`` int32 [n, k] and ``value`` float32 [n, k]; ``sink`` and ``finite`` are bool [n]. Rows that are not
    finite have index -1 and value 0.
    """

    index: NDArray[np.int32]  # type: ignore[assignment]  # see Codes
    value: NDArray[np.float32]
    sink: NDArray[np.bool_]
    finite: NDArray[np.bool_]


class Listener(Protocol):
    """What is told of a stream's rows and versions, in the learner's thread. It must not raise."""

    def rows(self, x: Tensor, metadata: RowMetadata) -> None:
        """Finite rows x [n, d] as captured, without sinks, on the learner's device; metadata in main memory."""
        ...

    def published(self, version: int) -> None:
        """The dictionary as it is now was published as ``version``."""
        ...


class Reconstructed(NamedTuple):
    """Rows given from outside, as the dictionary rebuilds them.

    ``row`` float32 [n, d], in the model's own scale; ``sink`` and ``finite`` are bool [n]. Sink rows and rows that are
    not finite are as they were given. ``dictionary_version`` is that of the dictionary that rebuilt them.
    """

    row: NDArray[np.float32]
    sink: NDArray[np.bool_]
    finite: NDArray[np.bool_]
    dictionary_version: int


class StreamLearner:
    """Learns a dictionary of one stream while it runs, and keeps its statistics.

    Rows are handled in chunks of ``batch_rows``, so that how they were split into batches does not matter. Each chunk
    is first scored with the dictionary as it is (fvu, l0, feature statistics and examples are therefore always of
    rows not yet trained on), and then goes to the shuffle buffer from which training draws. ``control`` and
    ``clock`` are as in :class:`~hydrophoned.learn.trainer.Trainer`; ``attributes`` are what the statistics may be split
    by.
    """

    def __init__(
        self,
        stream_key: int,
        width: int,
        config: LearnerConfig,
        *,
        device: torch.device | None = None,
        control: Whitening | None = None,
        clock: Callable[[], float] | None = None,
        attributes: RequestAttributes | None = None,
    ) -> None:
        self.stream_key, self.width, self.config = stream_key, width, config
        self.device = device or MAIN_MEMORY
        self.home = self.device
        self.features, self.k = config.features_for(width), config.k_for(width)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.sinks = SinkFilter(config.sink_norm_factor, MAIN_MEMORY)  # which rows are kept has to be known there
        self.statistics = FeatureStatistics(
            self.features,
            self.device,
            split_by=config.split_by,
            attributes=attributes,
            request_features=config.request_features_per_window,
        )
        self.examples = TopExamples(self.features, config.examples_per_feature, self.device)
        self.reservoir = Reservoir(width, config.reservoir_rows, self.generator, self.device)
        code_width = min(self.features, self.k if config.variant in EXACT else 2 * self.k)
        self.sample = CodeSample(code_width, config.code_sample_rows, config.seed + 1, self.device)
        self.trainer = Trainer(width, config, self.reservoir, self.generator, self.device, control=control, clock=clock)
        self.dictionary, self.normaliser = self.trainer.dictionary, self.trainer.normaliser
        self.buffer = self.trainer.buffer
        self.identity = FeatureIds()
        self.publication = Publication(stream_key, config, self.trainer, self.reservoir, self.identity)
        self.on_version: Callable[[Artefact], None] | None = None
        self.listener: Listener | None = None
        self.window = OpenWindow(stream_key, int(config.window_seconds * 1e6), width)
        self.rows_seen = self.rows_sink = self.rows_quarantined = self.rows_late = self.rows_scored = 0
        self.rows_full = 0
        self.last_fvu: float | None = None
        self.last_l0: float | None = None
        self.last_mean_norm: float | None = None
        self.assessment: Assessment | None = None
        self._closed: list[dict[str, pa.RecordBatch]] = []
        self._published: list[dict[str, pa.RecordBatch]] = []
        self._staging = Staging()
        self._last_step = 0

    # -- rows in ------------------------------------------------------------------------------------------------

    def observe(self, rows: Rows) -> None:
        """Take in rows; whole chunks are scored and learned at once, the rest waits for more."""
        if rows.activation.ndim != 2 or rows.activation.shape[1] != self.width:
            raise WidthMismatch(f"rows of shape {rows.activation.shape} given to a stream of width {self.width}")
        size = self.config.batch_rows
        start = 0
        while start < rows.count:
            stop = min(start + size - self._staging.count, rows.count)
            self._staging.add(rows.slice(start, stop))
            start = stop
            if self._staging.count == size:
                self._process_staged()

    def advance(self, now: int) -> None:
        """Let time pass to ``now`` (UTC us): stale staged rows are handled, windows that have ended are closed."""
        since = self._staging.since
        if since is not None and now - since > _STALE_STAGING_US:
            self._process_staged()
        if self.window.ended(now):
            self._close_window()
        if self.window.ahead_of(now):
            self._close_window(early=True)
            self.window.closed_until = 0
        patience = int(self.config.patience_seconds * 1e6)
        if now - self._last_step > patience and not self.parked:
            self._last_step = now
            if not self.dictionary_version and self.buffer.count >= self.config.fewest_rows_for(self.width):
                self._learn(self.trainer.publish)
            elif self.dictionary_version and self.buffer.count >= self.config.batch_rows:
                self._learn(lambda: self.trainer.train_some(self.config.batch_rows))

    def flush(self) -> None:
        """Handle and learn everything held back, and close the window."""
        self._process_staged()
        if not self.dictionary_version and self.buffer.count >= self.config.fewest_rows_for(self.width):
            self._learn(self.trainer.publish)
        while self.dictionary_version and self.buffer.count:
            self._learn(lambda: self.trainer.train_some(self.config.batch_rows))
        self._close_window(early=True)

    def take_closed(self) -> list[dict[str, pa.RecordBatch]]:
        """Windows closed since the last call: record batches by table name."""
        closed, self._closed = self._closed, []
        return closed

    def take_published(self) -> list[dict[str, pa.RecordBatch]]:
        """What is to be told of versions published since the last call: record batches by table name."""
        published, self._published = self._published, []
        return published

    def tell(self, tables: dict[str, pa.RecordBatch]) -> None:
        """Hand on tables of a listener's with the next that are taken."""
        self._published.append(tables)

    def publish(self, time: int) -> Published:
        """Publish the dictionary as it is at ``time`` (UTC us); the window ends.

        Raises NoDictionary before there is one.
        """
        if not self.dictionary_version:
            raise NoDictionary(f"there is no dictionary to publish yet: {self.rows_seen} rows have been seen")
        return self._publish(REQUESTED, time)

    def reserve(self, version: int, next_id: int, ids: Tensor | None = None) -> None:
        """Go on numbering after a learner that was ahead of this one: see ``Publication`` and ``FeatureIds``."""
        self.identity.reserve(next_id)
        self.publication.reserve(version, ids)

    @property
    def dictionary_version(self) -> int:
        """The last published version; 0 before there is a dictionary."""
        return self.publication.version

    @property
    def rows_staged(self) -> int:
        """Rows taken in that wait for more before they are handled."""
        return self._staging.count

    @property
    def rows_learned(self) -> int:
        """Fresh rows that went through a training step."""
        return self.trainer.rows_learned

    @property
    def dead_rows(self) -> int:
        """Rows after which a silent feature counts as dead."""
        return self.config.dead_rows_for(self.width)

    # -- place --------------------------------------------------------------------------------------------------

    def to(self, device: torch.device) -> None:
        """Go on on ``device`` for good. Raises torch.OutOfMemoryError where it has no room."""
        self._move(device)
        self.home = device

    def park(self) -> None:
        """Leave the device for main memory until :meth:`wake`; there all works, but patience trains nothing."""
        if self.device != MAIN_MEMORY:
            self._move(MAIN_MEMORY)

    def wake(self) -> None:
        """Come back to the device. Raises torch.OutOfMemoryError where it has no room."""
        if self.parked:
            self._move(self.home)

    @property
    def parked(self) -> bool:
        """True between :meth:`park` and :meth:`wake`."""
        return self.device != self.home

    def _move(self, device: torch.device) -> None:
        parts = tuple(part for name, part in vars(self).items() if name not in _ON_HOST)
        with self.dictionary.moving():
            move(parts, device, apart=tuple(getattr(self, name) for name in _ON_HOST))
        self.device = device

    # -- questions ----------------------------------------------------------------------------------------------

    def encode(self, x: NDArray[np.float32]) -> Encoded:
        """Codes of rows x [n, d], in the model's own scale. Raises WidthMismatch."""
        rows, sink, finite = self._given(x)
        codes = self.dictionary.encode(self.normaliser.apply(torch.where(finite[:, None], rows, 0.0)), exact=True)
        order = codes.value.argsort(dim=1, descending=True)
        index = codes.index.gather(1, order).masked_fill(~finite[:, None], -1)
        value = codes.value.gather(1, order).masked_fill(~finite[:, None], 0.0)
        return Encoded(*(part.cpu().numpy() for part in (index, value, sink, finite)))

    def reconstruct(self, x: NDArray[np.float32]) -> Reconstructed:
        """Rows x [n, d], in the model's own scale, rebuilt from their codes. Raises WidthMismatch."""
        rows, sink, finite = self._given(x)
        replaced = (finite & ~sink)[:, None]
        rebuilt, size = rows.clone(), self.config.batch_rows
        # in chunks, as learning has them: products of all rows with all features would keep their memory afterwards
        for part in (slice(start, start + size) for start in range(0, len(rows), size)):
            y = self.normaliser.apply(torch.where(replaced[part], rows[part], 0.0))
            y_hat = self.dictionary.decode(self.dictionary.encode(y, exact=True))
            rebuilt[part] = torch.where(replaced[part], self.normaliser.invert(y_hat), rows[part])
        row, is_sink, is_finite = (one.cpu().numpy() for one in (rebuilt, sink, finite))
        return Reconstructed(row, is_sink, is_finite, self.dictionary_version)

    def status(self) -> dict[str, Any]:
        """Figures of the stream as it stands; unknown is None."""
        scored = self.rows_scored > 0
        dead = self.statistics.dead_fraction(self.dead_rows) if scored else None
        return {
            "rows_seen": self.rows_seen,
            "rows_sink": self.rows_sink,
            "rows_quarantined": self.rows_quarantined,
            "rows_late": self.rows_late,
            "rows_scored": self.rows_scored,
            "rows_learned": self.rows_learned,
            "rows_buffered": self.buffer.count + self._staging.count,
            "fvu": self.last_fvu,
            "l0": self.last_l0,
            "mean_norm": self.last_mean_norm,
            "dead_fraction": dead,
            "features_alive": None if dead is None else round(self.features * (1 - dead)),
            "features_fired": int(self.statistics.fired_ever.sum()) if scored else None,
            "features": self.features,
            "k": self.k,
            "dictionary_version": self.dictionary_version,
            "median_norm": self.sinks.median,
            "sink_norm_factor": self.sinks.factor,
            "reservoir_rows": self.reservoir.count,
            "features_revived": self.dictionary.rows_revived_total,
            "rows_skipped": self.trainer.rows_skipped,
            "rows_replayed": self.trainer.rows_replayed,
            "changes": self.trainer.change.calls,
            "transforms": len(self.normaliser.transforms),
            "learning_rate": self.dictionary.learning_rate,
            "variant": self.config.variant,
            "normalise": self.config.normalise,
            "rows_full": self.rows_full,
        }

    def quality(self) -> dict[str, Any]:
        """How good the dictionary is, on rows it was not trained on; unknown is None."""
        return {
            "dictionary_version": self.dictionary_version,
            "digest": self.publication.digest,
            "assessed": None if self.assessment is None else as_numbers(self.assessment),
            "density_edges": list(DENSITY_EDGES),
            "density": density(self.statistics.fired_in_all, self.rows_scored),
            "density_rows": self.rows_scored,
        }

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State to go on exactly, by part: tensors and plain numbers. Staged rows are handled first."""
        self._process_staged()
        return {
            "learner": {name: getattr(self, name) for name in _COUNTERS}
            | {"generator": self.generator.get_state()}
            | {name: getattr(self, name) for name in _LAST if getattr(self, name) is not None},
            **{name: getattr(self, name).state_dict() for name in _PARTS},
        }

    def load_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Take over a state of :meth:`state_dict` of a learner with the same width and config.

        Raises CheckpointError when a part is missing or of another shape.
        """
        try:
            own = state["learner"]
            for name in _PARTS:
                getattr(self, name).load_state(state[name])
            for name in _COUNTERS:
                setattr(self, name, int(own[name]))
            for name in _LAST:
                setattr(self, name, own.get(name))
            self.generator.set_state(own["generator"])
        except torch.OutOfMemoryError:  # no fault of the state
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"state does not fit this learner (width {self.width}, features {self.features}): {error!r}"
            ) from error

    # -- inside -------------------------------------------------------------------------------------------------

    def _given(self, x: NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows x from outside as a tensor [n, d], and bool [n] each: which are sinks, which are finite."""
        if x.ndim != 2 or x.shape[1] != self.width:
            raise WidthMismatch(f"rows of shape {x.shape} given to a stream of width {self.width}")
        rows = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(self.device)
        norms = rows.norm(dim=1)
        finite = norms.isfinite()
        return rows, finite & (norms > self.sinks.factor * (self.sinks.median or math.inf)), finite

    def _process_staged(self) -> None:
        if not self._staging.count:
            return
        rows, metadata = self._staging.take()
        x = put(rows, self.device).to(torch.float32)
        # a chunk may reach over the end of the window: its rows are told apart by their own time
        while len(x):
            end = self.window.end
            if end is None:
                self.window.open(int(metadata.time.min()))
                continue
            inside = metadata.time < end
            if bool(inside.all()):
                self._process(x, metadata)
                return
            if bool(inside.any()):
                self._process(_chosen(x, inside), metadata.take(inside))
            self._close_window()
            x, metadata = _chosen(x, ~inside), metadata.take(~inside)

    def _process(self, x: Tensor, metadata: RowMetadata) -> None:
        norms = x.norm(dim=1)
        known = norms.cpu()  # a GPU is waited for here, and once more for the scores
        finite = known.isfinite()
        sink = torch.zeros_like(finite)
        sink[finite] = self.sinks.split(known[finite])
        keep = finite & ~sink
        late = int((metadata.time < self.window.start).sum())
        self.rows_seen += len(x)
        self.rows_sink += int(sink.sum())
        self.rows_quarantined += int((~finite).sum())
        self.rows_late += late
        self.window.add_rows(metadata, rows_sink=int(sink.sum()), rows_quarantined=int((~finite).sum()), rows_late=late)
        if not bool(keep.all()):
            x, norms, metadata = _chosen(x, keep), _chosen(norms, keep), metadata.take(keep)
        if not len(x):
            return
        time = int(metadata.time.max())
        if self.listener is not None:
            self.listener.rows(x, metadata)
        requests = DistinctRequests.of(metadata)  # before it leaves main memory
        metadata = metadata.to(self.device)
        y = self.trainer.apply(x)
        if self.dictionary_version:
            self._score(y, norms, metadata, requests, time)
        self._last_step = max(self._last_step, time)
        self.reservoir.update(x, metadata)  # after scoring, before learning: what is replayed has been scored
        self._learn(lambda: self.trainer.take(x, y, time))
        self._renormalise(x)

    def _learn(self, step: Callable[[], None]) -> None:
        before = self.rows_learned
        step()
        self.window.rows_learned += self.rows_learned - before
        due = self.publication.due()
        if due is not None:
            self._publish(due, self._last_step)

    def _publish(self, reason: str, time: int) -> Published:
        if reason != FIRST:
            self._close_window(early=True)  # each window is of one version
        published = self.publication.publish(reason, time, pack=self.on_version is not None)
        begun = torch.from_numpy(published.begun).to(self.device)
        self.examples.forget(begun)
        self.sample.forget(begun)
        self._published.append(published.tables)
        if self.on_version is not None and published.artefact is not None:
            self.on_version(published.artefact)
        if self.listener is not None:
            self.listener.published(published.version)
        return published

    def _renormalise(self, x: Tensor) -> None:
        """Let the trainer adapt mean and scale; the window ends there, so that each is of one transform."""
        if self.normaliser.frozen:
            self.normaliser.update(x)
        done = self.trainer.renormalise()
        if done is None:
            return
        self._close_window(early=True)
        self.examples.rescale(done.factor)
        self.sample.rescale(done.factor)
        self._publish(TRANSFORM, self._last_step)

    def _score(self, y: Tensor, norms: Tensor, metadata: RowMetadata, requests: DistinctRequests, time: int) -> None:
        codes = self.dictionary.encode(y)
        self.statistics.update(codes, metadata, requests)
        self.examples.update(codes, metadata, self.rows_scored)
        self.sample.update(codes, metadata)
        scores = Scores.of(self.dictionary.misfit(codes, y), norms, codes.value)
        fvu = self.window.add_scores(scores)
        self.rows_scored += len(y)
        if codes.value.shape[1] > self.k:  # rows have differing numbers of active features
            self.rows_full += scores.full
        if fvu is not None:
            self.trainer.observe(fvu, len(y))
        if self.assessment is None or self.assessment.time < self.window.start:  # once in a window
            self.assessment = assess(self.dictionary, codes, y, time)
        self.last_fvu, self.last_l0, self.last_mean_norm = self.window.fvu, self.window.l0, self.window.mean_norm

    def _close_window(self, *, early: bool = False) -> None:
        if self.window.end is None:
            return
        dead = self.statistics.dead_fraction(self.dead_rows) if self.rows_scored else None
        self._closed.append(
            self.window.close(
                self.statistics,
                self.examples,
                dead_fraction=dead,
                median_norm=self.sinks.median,
                dictionary_version=self.dictionary_version,
                early=early,
            )
        )
        self.statistics.reset_window()


def _chosen(x: Tensor, which: Tensor) -> Tensor:
    """Rows of x, on any device, that bool [n] ``which`` in main memory says."""
    return x[put(which.nonzero().squeeze(1), x.device)]
