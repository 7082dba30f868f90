"""The open statistics window of a stream, and its closing into Arrow tables."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from hydrophone_schemas import tables
from torch import Tensor

from hydrophoned.learn.examples import TopExamples
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.record_batch import record_batch
from hydrophoned.learn.request_rows import DistinctRequests, RequestRows
from hydrophoned.learn.statistics import FeatureStatistics, WindowOf

_COUNTERS = ("rows", "rows_sink", "rows_quarantined", "rows_late", "rows_scored", "rows_learned")


class Scores(NamedTuple):
    """Sums over scored rows: of squares of errors and of normalised rows, of norms as captured, of active pairs.

    ``full`` rows have no pair left that is not active; ``row_sum`` is float64 [d].
    """

    rows: int
    squared_error: float
    squared_norm: float
    norm_sum: float
    active: int
    full: int
    row_sum: Tensor

    @classmethod
    def of(cls, misfit: Tensor, norms: Tensor, value: Tensor) -> "Scores":
        """Of a dictionary's ``misfit`` [2 + d] on n rows, norms as captured [n] and codes' values [n, k].

        Everything comes from the device in one piece: a GPU is waited for once.
        """
        active = value > 0
        counts = [norms.sum(dtype=torch.float64), active.sum().double(), active.all(1).sum().double()]
        told = torch.cat([torch.stack(counts), misfit]).cpu()
        norm_sum, pairs, full, squared_error, squared_norm = told[:5].tolist()
        return cls(len(norms), squared_error, squared_norm, norm_sum, int(pairs), int(full), told[5:])


class OpenWindow:
    """Counts and sums over the rows of one window [start, end), in us; sums in float64.

    Windows are aligned to multiples of their length and never overlap: one that is cut short by a flush ends at its
    last row, and the next begins there; rows older than the start of the open window are late, and counted in it.
    """

    def __init__(self, stream_key: int, length_us: int, width: int) -> None:
        self.stream_key, self.length_us, self.width = stream_key, length_us, width
        self.start: int = 0
        self.end: int | None = None
        self.latest = 0
        self.closed_until = 0
        self.rows = self.rows_sink = self.rows_quarantined = self.rows_late = 0
        self.rows_scored = self.rows_learned = 0
        self._clear()

    def _clear(self) -> None:
        for name in _COUNTERS:
            setattr(self, name, 0)
        self.squared_error = self.squared_norm = self.norm_sum = 0.0
        self.active = 0
        self.row_sum = torch.zeros(self.width, dtype=torch.float64)
        self._requests = RequestRows()

    def open(self, time: int) -> None:
        """Begin the window that holds ``time``, or the first one not yet closed if that is later."""
        time = max(time, self.closed_until)
        aligned = time - time % self.length_us
        self.start, self.end = max(aligned, self.closed_until), aligned + self.length_us
        self.latest = self.start

    def ended(self, now: int) -> bool:
        """True when ``now`` is at or past the end."""
        return self.end is not None and now >= self.end

    def ahead_of(self, now: int) -> bool:
        """True when windows reach so far beyond ``now`` that the clock must have been set back."""
        return max(self.start if self.end is not None else 0, self.closed_until) > now + self.length_us

    def add_rows(self, metadata: RowMetadata, *, rows_sink: int, rows_quarantined: int, rows_late: int) -> None:
        """Count rows as they come, before any is set apart."""
        self.rows += len(metadata.request)
        self.latest = max(self.latest, int(metadata.time.max()))
        self.rows_sink += rows_sink
        self.rows_quarantined += rows_quarantined
        self.rows_late += rows_late
        self._requests.add(DistinctRequests.of(metadata))

    def add_scores(self, scores: Scores) -> float | None:
        """Add scored rows. Returns the fvu of these rows alone; None below two rows or without variance."""
        self.rows_scored += scores.rows
        self.squared_error += scores.squared_error
        self.squared_norm += scores.squared_norm
        self.row_sum += scores.row_sum
        self.norm_sum += scores.norm_sum
        self.active += scores.active
        return _fvu(scores.squared_error, scores.squared_norm, scores.row_sum, scores.rows)

    @property
    def fvu(self) -> float | None:
        """Squared error over squared distance from the window's own mean; None below two rows or without variance."""
        return _fvu(self.squared_error, self.squared_norm, self.row_sum, self.rows_scored)

    @property
    def mean_norm(self) -> float | None:
        """Mean Euclidean norm of scored rows, as captured."""
        return self.norm_sum / self.rows_scored if self.rows_scored else None

    @property
    def l0(self) -> float | None:
        """Mean number of active features per scored row."""
        return self.active / self.rows_scored if self.rows_scored else None

    def close(
        self,
        statistics: FeatureStatistics,
        examples: TopExamples,
        *,
        dead_fraction: float | None,
        median_norm: float | None,
        dictionary_version: int,
        early: bool = False,
    ) -> dict[str, pa.RecordBatch]:
        """The window's tables by name; afterwards it is empty and not open. ``early`` cuts it after its last row."""
        assert self.end is not None  # noqa: S101  only an open window is closed
        merged = self._requests.merged()
        start, end = self.start, min(self.end, self.latest + 1) if early else self.end
        known = int((merged[0] >= 0).sum())
        stream = {
            "stream_key": self.stream_key,
            "window_start": start,
            "window_end": end,
            **{name: getattr(self, name) for name in _COUNTERS},
            "requests": known,
            "fvu": self.fvu,
            "l0": self.l0,
            "dead_fraction": dead_fraction,
            "mean_norm": self.mean_norm,
            "median_norm": median_norm,
            "features_fired": int((statistics.fired > 0).sum()) if self.rows_scored else None,
            "dictionary_version": dictionary_version,
        }
        closed = {
            "stream_window": record_batch({name: [value] for name, value in stream.items()}, tables.STREAM_WINDOW),
            **statistics.close(WindowOf(self.stream_key, start, end), dictionary_version),
            "example": self._examples(examples, end, dictionary_version),
            "request_rows": record_batch(
                {
                    "request_key": merged[0],
                    "stream_key": np.full(len(merged[0]), self.stream_key),
                    "window_start": np.full(len(merged[0]), start),
                    "rows": merged[1],
                    "rows_prompt": merged[1] - merged[2],
                    "rows_decode": merged[2],
                },
                tables.REQUEST_ROWS,
            ),
        }
        self._clear()
        self.end, self.closed_until = None, end
        return closed

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            "start": self.start,
            "end": -1 if self.end is None else self.end,
            "latest": self.latest,
            "closed_until": self.closed_until,
            **{name: getattr(self, name) for name in _COUNTERS},
            "squared_error": self.squared_error,
            "squared_norm": self.squared_norm,
            "norm_sum": self.norm_sum,
            "active": self.active,
            "row_sum": self.row_sum.clone(),
            "requests": torch.from_numpy(self._requests.merged()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.start = int(state["start"])
        self.end = None if state["end"] < 0 else int(state["end"])
        for name in (*_COUNTERS, "active", "latest", "closed_until"):
            setattr(self, name, int(state[name]))
        for name in ("squared_error", "squared_norm", "norm_sum"):
            setattr(self, name, float(state[name]))
        self.row_sum = state["row_sum"].clone()
        self._requests.load(state["requests"].numpy())

    def _examples(self, examples: TopExamples, written: int, version: int) -> pa.RecordBatch:
        feature, slot = examples.take_fresh()
        metadata = RowMetadata._make(column[feature, slot].cpu().numpy() for column in examples.metadata)
        count = len(feature)
        return record_batch(
            {
                "stream_key": np.full(count, self.stream_key),
                "feature": feature.cpu().numpy(),
                "value": examples.value[feature, slot].cpu().numpy(),
                "score": examples.score[feature, slot].cpu().numpy(),
                "request_key": metadata.request,
                "sequence": metadata.sequence,
                "position": metadata.position,
                "token": pa.array(metadata.token, mask=np.asarray(metadata.token) < 0),
                "time": metadata.time,
                "written": np.full(count, written),
                "dictionary_version": np.full(count, version),
            },
            tables.EXAMPLE,
        )


def _fvu(squared_error: float, squared_norm: float, row_sum: Tensor, rows: int) -> float | None:
    if rows < 2:
        return None
    variance = squared_norm - float(row_sum.square().sum()) / rows
    return squared_error / variance if variance > 1e-9 * squared_norm else None
