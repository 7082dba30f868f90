"""What a stream's dictionary is learned from: normalised rows, mixed over time, within a budget, and after a change."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.learn.budget import Budget
from hydrophoned.learn.buffers import Reservoir, ShuffleBuffer
from hydrophoned.learn.change import ChangeWatch
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.dictionary import StepReport
from hydrophoned.learn.normaliser import Normaliser
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from hydrophoned.learn.whitening import Whitening

_COUNTERS: Final = ("rows_learned", "rows_skipped", "rows_replayed", "version")
_QUICKENED: Final = 0.4
"""After a change this share of the first step size is in force again, and as much more as log fvu has risen."""


class Renormalised(NamedTuple):
    """The transform y' = (y - shift) * factor that rows went through from now on."""

    shift: Tensor
    factor: float


class Trainer:
    """Turns rows into training steps.

    Until there is a dictionary (``version`` 0) rows wait as they are, and mean and scale follow them; both are frozen
    with the first dictionary. A batch is drawn at random from the shuffle buffer and topped up with rows from the
    reservoir, a uniform sample of all that was ever seen, so that what has become rare is not forgotten. Over budget,
    whole batches are skipped: they are random draws, so those that are learned from remain a uniform sample.

    Rows are whitened by ``control`` where ``config.normalise`` says so; a state that is loaded brings its own.
    ``clock`` gives seconds that only rise, for ``config.learn_time_share``; without one that is no limit.
    """

    def __init__(
        self,
        width: int,
        config: LearnerConfig,
        reservoir: Reservoir,
        generator: torch.Generator,
        device: torch.device,
        *,
        control: Whitening | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.config, self.reservoir = config, reservoir
        self.dictionary = SparseAutoencoder(
            DictionaryConfig(
                width=width,
                features=config.features_for(width),
                variant=config.variant,
                k=config.k_for(width),
                learning_rate=config.learning_rate,
                dead_after_rows=config.dead_after_rows,
            ),
            generator=generator,
            device=device,
        )
        self.normaliser = Normaliser(width, config.normaliser_rows, device, kind=config.normalise, whitening=control)
        self.buffer = ShuffleBuffer(width, config.buffer_for(width), config.batch_rows, generator, device)
        self._warmup_rows = config.warmup_for(width)
        self.change = ChangeWatch()
        self.on_step: Callable[[StepReport], None] | None = None
        self.version = 0
        self.rows_learned = self.rows_skipped = self.rows_replayed = 0
        self.budget = Budget(config.learn_rows_per_second, config.learn_time_share, clock)

    def apply(self, x: Tensor) -> Tensor:
        """Normalised rows [n, d] of rows as captured."""
        return self.normaliser.apply(x)

    def take(self, x: Tensor, y: Tensor, time: int) -> None:
        """Learn from rows in time: x as captured and y normalised [n, d], the last of them taken at ``time`` (us)."""
        if not self.version:
            self.normaliser.update(x)
        for batch in self.buffer.push(y if self.version else x):
            drawn = batch
            if not self.version:  # the batch left the buffer as it was captured
                self.publish()
                drawn = self.apply(batch)
            if self.budget.allows(len(drawn), time):
                self.train(drawn)
            else:
                self.rows_skipped += len(drawn)
        if not self.version and self.buffer.count >= self._warmup_rows:
            self.publish()

    def publish(self) -> None:
        """Make the first dictionary from the rows held; mean and scale stay from here on."""
        self.normaliser.freeze()
        content = self.buffer.content
        for start in range(0, len(content), self.config.batch_rows):  # it may be large: no copy of all of it
            part = content[start : start + self.config.batch_rows]
            part.copy_(self.apply(part))
        self.dictionary.initialise(content)
        self.version = 1

    def train(self, batch: Tensor) -> None:
        """One step on normalised rows, with rows of the reservoir beside them."""
        extra = round(len(batch) * self.config.replay_share)
        extra = extra if self.reservoir.count > extra else 0
        with self.budget.step():
            rows = torch.cat([batch, self.apply(self.reservoir.sample(extra))]) if extra else batch
            report = self.dictionary.partial_fit(rows)
        if self.on_step is not None:
            self.on_step(report)
        self.rows_replayed += extra
        self.rows_learned += len(batch)

    def train_some(self, rows: int) -> None:
        """One step on up to ``rows`` rows of the buffer."""
        self.train(self.buffer.draw(rows))

    def observe(self, fvu: float, rows: int) -> None:
        """Take note of the fvu of fresh rows; when it has risen for good, steps become large again."""
        rise = self.change.update(fvu, rows)
        if rise:
            self.dictionary.quicken(min(1.0, _QUICKENED + rise))

    def renormalise(self) -> Renormalised | None:
        """Adapt mean and scale where fresh rows have left them far behind; what was done, or None.

        The dictionary is rewritten so that it says the same of the same rows, with activations ``factor`` times as
        large: indices and directions stay.
        """
        change = self.normaliser.renew() if self.version else None
        if change is None:
            return None
        shift, factor = change
        content = self.buffer.content
        content.sub_(shift).mul_(factor)
        self.dictionary.transform_input(shift, factor)
        self.version += 1
        return Renormalised(shift, factor)

    def state_dict(self) -> dict[str, Any]:
        """Counters; the parts have states of their own."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "_budget_time": self.budget.time,
            "_budget": self.budget.rows,
            **self.change.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        self.budget.time, self.budget.rows = int(state["_budget_time"]), float(state["_budget"])
        self.change.load_state(state)
