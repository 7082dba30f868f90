"""Learns a dictionary of rows that are all there: what a stream's learner does, without windows, examples and a clock.

The same parts in the same order as :mod:`.learner`: rows that are not finite and sink rows are set apart, the others
normalised, shuffled in a buffer and learned. Held-out rows are scored afterwards with what was learned.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.learn.buffers import Reservoir
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.dictionary import StepReport
from hydrophoned.learn.errors import LearnError, WidthMismatch
from hydrophoned.learn.normaliser import SinkFilter
from hydrophoned.learn.trainer import Trainer
from hydrophoned.learn.whitening import Whitening

_KEEP: Final = 0.95  # of a smoothed figure at each step


class Progress(NamedTuple):
    """How far training is. Figures are smoothed over some twenty steps, and None before the first.

    ``rows_seen`` counts all rows given, ``rows_sink`` and ``rows_quarantined`` those set apart, ``rows_per_second`` is
    since the beginning.
    """

    rows_seen: int
    rows_learned: int
    rows_sink: int
    rows_quarantined: int
    rows_per_second: float | None
    fvu: float | None
    l0: float | None
    dead_fraction: float | None


class Score(NamedTuple):
    """Of ``rows`` rows that are no sinks: fraction of variance unexplained, mean active latents; None without rows.

    ``fvu`` is of normalised rows, as everywhere, and ``fvu_raw`` of rows as they are: where they are whitened it says
    how much of the wide directions is left out.
    """

    rows: int
    rows_sink: int
    fvu: float | None
    l0: float | None
    fvu_raw: float | None


class OfflineTrainer:
    """Makes a dictionary of rows of width d and trains it; see the module.

    ``config`` is a stream learner's; ``control`` is what rows are whitened by where its ``normalise`` is "control".
    """

    def __init__(
        self,
        width: int,
        config: LearnerConfig,
        *,
        device: torch.device | None = None,
        control: Whitening | None = None,
    ) -> None:
        self.width, self.config = width, config
        self.device = device or torch.device("cpu")
        self.generator = torch.Generator().manual_seed(config.seed)
        self.sinks = SinkFilter(config.sink_norm_factor, self.device)
        # what was seen long ago comes again with the next pass over the files: nothing is replayed
        nothing = Reservoir(width, 0, self.generator, self.device)
        self.trainer = Trainer(width, config, nothing, self.generator, self.device, control=control)
        self.trainer.on_step = self._learned
        self.dictionary, self.normaliser = self.trainer.dictionary, self.trainer.normaliser
        self.rows_seen = self.rows_sink = self.rows_quarantined = 0
        self._figures: tuple[float, float, float] | None = None

    def train(self, batches: Iterable[tuple[float, NDArray[np.float32]]]) -> Iterator[Progress]:
        """Learn rows [n, d], each batch given with the time at which it came, in seconds; a report after each.

        When they end, what the shuffle buffer holds is learned too. Raises WidthMismatch, and LearnError when there
        were fewer rows to learn than ``config.fewest_rows_for`` their width.
        """
        begun = now = math.nan
        for now, rows in batches:
            begun = now if math.isnan(begun) else begun
            self._take(self._rows(rows))
            yield self._progress(now - begun)
        if not self.trainer.version:
            fewest = self.config.fewest_rows_for(self.width)
            if self.trainer.buffer.count < fewest:
                raise LearnError(
                    f"{self.trainer.buffer.count} rows are too few to learn from: at least {fewest} are needed, of "
                    f"{self.rows_seen} given {self.rows_sink} were sinks and {self.rows_quarantined} not finite"
                )
            self.trainer.publish()
        while self.trainer.buffer.count:
            self.trainer.train_some(self.config.batch_rows)
        yield self._progress(now - begun)

    def score(self, batches: Iterable[NDArray[np.float32]]) -> Score:
        """Score rows [n, d] with the dictionary as it is; nothing is learned. Variance is around their own mean."""
        sinks = active = 0
        normalised, raw = (_Unexplained(self.width, self.device) for _ in range(2))
        most = self.sinks.factor * (self.sinks.median or math.inf)
        for batch in batches:
            x = self._rows(batch)
            norms = x.norm(dim=1)
            x, far = x[norms <= most], norms.isfinite() & (norms > most)
            y = self.normaliser.apply(x)
            codes = self.dictionary.encode(y)
            error = self.dictionary.decode(codes) - y
            normalised.add(y, error)
            if self.normaliser.whitening is not None:
                raw.add(x - self.normaliser.whitening.centre, self.normaliser.invert_difference(error))
            sinks, active = sinks + int(far.sum()), active + int((codes.value > 0).sum())
        count = normalised.rows
        if not count:
            return Score(0, sinks, None, None, None)
        fvu = normalised.share
        return Score(count, sinks, fvu, active / count, fvu if self.normaliser.whitening is None else raw.share)

    def _rows(self, rows: NDArray[np.float32]) -> Tensor:
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise WidthMismatch(f"rows of shape {rows.shape} given to a dictionary of width {self.width}")
        return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).to(self.device)

    def _take(self, x: Tensor) -> None:
        norms = x.norm(dim=1)
        finite = norms.isfinite()
        sink = torch.zeros_like(finite)
        sink[finite] = self.sinks.split(norms[finite])
        self.rows_seen += len(x)
        self.rows_sink += int(sink.sum())
        self.rows_quarantined += int((~finite).sum())
        kept = x[finite & ~sink]
        if not len(kept):
            return
        self.trainer.take(kept, self.normaliser.apply(kept), 0)

    def _learned(self, report: StepReport) -> None:
        new = (float(report.fvu), float(report.l0), float(report.dead_fraction))
        if self._figures is None:
            self._figures = new
        else:  # the last batch of all may be of a few rows, whose fvu says little
            weight = (1 - _KEEP) * report.rows / self.config.batch_rows
            fvu, l0, dead = (old + weight * (one - old) for old, one in zip(self._figures, new, strict=True))
            self._figures = (fvu, l0, dead)

    def _progress(self, seconds: float) -> Progress:
        rate = self.rows_seen / seconds if seconds > 0 else None
        figures = self._figures or (None, None, None)
        learned = self.dictionary.rows_learned
        return Progress(self.rows_seen, learned, self.rows_sink, self.rows_quarantined, rate, *figures)


class _Unexplained:
    """Sums of squared errors, and of rows around their own mean, in float64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.rows = 0
        self._error = torch.zeros((), dtype=torch.float64, device=device)
        self._square = torch.zeros_like(self._error)
        self._total = torch.zeros(width, dtype=torch.float64, device=device)

    def add(self, x: Tensor, error: Tensor) -> None:
        """Take in rows x [n, d] and what is left of them."""
        self._error += error.double().square().sum()
        self._square += x.double().square().sum()
        self._total += x.double().sum(0)
        self.rows += len(x)

    @property
    def share(self) -> float | None:
        """Share of the variance that is left; None where there is none."""
        variance = float(self._square - self._total.square().sum() / max(self.rows, 1))
        return float(self._error) / variance if variance > 0 else None
