"""One stream's learner: rows in; a dictionary, closed windows, examples and a reservoir out. No clock, no I/O."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.learn.assessment import DENSITY_EDGES, Assessment, as_numbers, assess, density
from hydrophoned.learn.buffers import Reservoir
from hydrophoned.learn.code_sample import CodeSample
from hydrophoned.learn.config import EXACT, LearnerConfig
from hydrophoned.learn.errors import CheckpointError, WidthMismatch
from hydrophoned.learn.examples import TopExamples
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.normaliser import SinkFilter
from hydrophoned.learn.statistics import FeatureStatistics
from hydrophoned.learn.trainer import Trainer
from hydrophoned.learn.window import OpenWindow
from hydrophoned.rows import Rows

_MIN_WARMUP_ROWS = 64
_STALE_STAGING_US = 1_000_000
_COUNTERS = ("rows_seen", "rows_sink", "rows_quarantined", "rows_late", "rows_scored", "rows_full", "_last_step")
_LAST = ("last_fvu", "last_l0", "last_mean_norm")
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
    rows not yet trained on), and then goes to the shuffle buffer from which training draws.
    """

    def __init__(
        self, stream_key: int, width: int, config: LearnerConfig, *, device: torch.device | None = None
    ) -> None:
        self.stream_key, self.width, self.config = stream_key, width, config
        self.device = device or torch.device("cpu")
        self.features, self.k = config.features_for(width), config.k_for(width)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.sinks = SinkFilter(config.sink_norm_factor, self.device)
        self.statistics = FeatureStatistics(self.features, self.device)
        self.examples = TopExamples(self.features, config.examples_per_feature, self.device)
        self.reservoir = Reservoir(width, config.reservoir_rows, self.generator, self.device)
        code_width = min(self.features, self.k if config.variant in EXACT else 2 * self.k)
        self.sample = CodeSample(code_width, config.code_sample_rows, config.seed + 1, self.device)
        self.trainer = Trainer(width, config, self.reservoir, self.generator, self.device)
        self.dictionary, self.normaliser = self.trainer.dictionary, self.trainer.normaliser
        self.buffer = self.trainer.buffer
        self.window = OpenWindow(stream_key, int(config.window_seconds * 1e6), width)
        self.rows_seen = self.rows_sink = self.rows_quarantined = self.rows_late = self.rows_scored = 0
        self.rows_full = 0
        self.last_fvu: float | None = None
        self.last_l0: float | None = None
        self.last_mean_norm: float | None = None
        self.assessment: Assessment | None = None
        self._closed: list[dict[str, pa.RecordBatch]] = []
        self._staged: list[tuple[Tensor, RowMetadata]] = []
        self._staged_rows = 0
        self._last_step = 0

    # -- rows in ------------------------------------------------------------------------------------------------

    def observe(self, rows: Rows) -> None:
        """Take in rows; whole chunks are scored and learned at once, the rest waits for more."""
        if rows.activation.ndim != 2 or rows.activation.shape[1] != self.width:
            raise WidthMismatch(f"rows of shape {rows.activation.shape} given to a stream of width {self.width}")
        size = self.config.batch_rows
        start = 0
        while start < rows.count:
            stop = min(start + size - self._staged_rows, rows.count)
            part = rows.slice(start, stop)
            self._staged.append((_to_float(part, self.device), RowMetadata.of(part, self.device)))
            self._staged_rows += stop - start
            start = stop
            if self._staged_rows == size:
                self._process_staged()

    def advance(self, now: int) -> None:
        """Let time pass to ``now`` (UTC us): stale staged rows are handled, windows that have ended are closed."""
        if self._staged and now - int(self._staged[0][1].time[0]) > _STALE_STAGING_US:
            self._process_staged()
        if self.window.ended(now):
            self._close_window()
        if self.window.ahead_of(now):
            self._close_window(early=True)
            self.window.closed_until = 0
        patience = int(self.config.patience_seconds * 1e6)
        if now - self._last_step > patience:
            self._last_step = now
            if not self.dictionary_version and self.buffer.count >= _MIN_WARMUP_ROWS:
                self.trainer.publish()
            elif self.dictionary_version and self.buffer.count >= self.config.batch_rows:
                self._learn(lambda: self.trainer.train_some(self.config.batch_rows))

    def flush(self) -> None:
        """Handle and learn everything held back, and close the window."""
        self._process_staged()
        if not self.dictionary_version and self.buffer.count >= _MIN_WARMUP_ROWS:
            self.trainer.publish()
        while self.dictionary_version and self.buffer.count:
            self._learn(lambda: self.trainer.train_some(self.config.batch_rows))
        self._close_window(early=True)

    def take_closed(self) -> list[dict[str, pa.RecordBatch]]:
        """Windows closed since the last call: record batches by table name."""
        closed, self._closed = self._closed, []
        return closed

    @property
    def dictionary_version(self) -> int:
        """0 before there is a dictionary; rises when its meaning is transformed."""
        return self.trainer.version

    @property
    def rows_learned(self) -> int:
        """Fresh rows that went through a training step."""
        return self.trainer.rows_learned

    @property
    def dead_rows(self) -> int:
        """Rows after which a silent feature counts as dead."""
        return self.config.dead_rows_for(self.width)

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
        parts = []
        # in chunks as everything else: products with all features at once would take gigabytes, and keep them
        for part in torch.where(replaced, rows, 0.0).split(self.config.batch_rows):
            codes = self.dictionary.encode(self.normaliser.apply(part), exact=True)
            parts.append(self.normaliser.invert(self.dictionary.decode(codes)))
        rebuilt = torch.where(replaced, torch.cat(parts), rows)
        return Reconstructed(*(part.cpu().numpy() for part in (rebuilt, sink, finite)), self.dictionary_version)

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
            "rows_buffered": self.buffer.count + self._staged_rows,
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
            "rows_full": self.rows_full,
        }

    def quality(self) -> dict[str, Any]:
        """How good the dictionary is, on rows it was not trained on; unknown is None."""
        return {
            "dictionary_version": self.dictionary_version,
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
        if not self._staged:
            return
        x = torch.cat([part[0] for part in self._staged]) if len(self._staged) > 1 else self._staged[0][0]
        metadata = self._staged[0][1]
        for part in self._staged[1:]:
            metadata = metadata.join(part[1])
        self._staged, self._staged_rows = [], 0
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
                self._process(x[inside], metadata.take(inside))
            self._close_window()
            x, metadata = x[~inside], metadata.take(~inside)

    def _process(self, x: Tensor, metadata: RowMetadata) -> None:
        norms = x.norm(dim=1)
        finite = norms.isfinite()
        sink = torch.zeros_like(finite)
        sink[finite] = self.sinks.split(norms[finite])
        keep = finite & ~sink
        late = int((metadata.time < self.window.start).sum())
        self.rows_seen += len(x)
        self.rows_sink += int(sink.sum())
        self.rows_quarantined += int((~finite).sum())
        self.rows_late += late
        self.window.add_rows(metadata, rows_sink=int(sink.sum()), rows_quarantined=int((~finite).sum()), rows_late=late)
        if not bool(keep.all()):
            x, norms, metadata = x[keep], norms[keep], metadata.take(keep)
        if not len(x):
            return
        y = self.trainer.apply(x)
        if self.dictionary_version:
            self._score(y, norms, metadata)
        self.reservoir.update(x, metadata)  # after scoring, before learning: what is replayed has been scored
        self._learn(lambda: self.trainer.take(x, y, int(metadata.time.max())))
        self._last_step = max(self._last_step, int(metadata.time.max()))
        self._renormalise(x)

    def _learn(self, step: Callable[[], None]) -> None:
        before = self.rows_learned
        step()
        self.window.rows_learned += self.rows_learned - before

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

    def _score(self, y: Tensor, norms: Tensor, metadata: RowMetadata) -> None:
        codes = self.dictionary.encode(y)
        error = self.dictionary.decode(codes).sub_(y)
        self.statistics.update(codes)
        self.examples.update(codes, metadata, self.rows_scored)
        self.sample.update(codes, metadata)
        fvu = self.window.add_scores(y, error, norms, active=int((codes.value > 0).sum()))
        self.rows_scored += len(y)
        if codes.value.shape[1] > self.k:  # rows have differing numbers of active features
            self.rows_full += int((codes.value > 0).all(1).sum())
        if fvu is not None:
            self.trainer.observe(fvu, len(y))
        if self.assessment is None or self.assessment.time < self.window.start:  # once in a window
            self.assessment = assess(self.dictionary, codes, y, int(metadata.time.max()))
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


def _to_float(rows: Rows, device: torch.device) -> Tensor:
    """Activations as float32 [n, d] on ``device``; one copy at most."""
    tensor = torch.from_numpy(rows.activation)
    if rows.dtype == "bfloat16":
        tensor = tensor.view(torch.bfloat16)
    return tensor.to(device, torch.float32)
