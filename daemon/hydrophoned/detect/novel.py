"""Which units of a stream are new, compared with a reference, and the latest of them."""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.novelty import NoveltyScorer
from hydrophoned.detect.units import Units

KEPT = 512
"""Novel units that are held, the latest ones."""


class NovelUnit(NamedTuple):
    """A unit with a p-value of at most the threshold: its request's key, when it ended in us, and its mean [d]."""

    request: int
    time: int
    p: float
    mean: Tensor


class NovelUnits:
    """Scores units against those of a reference [n, d]; ``p`` is the p-value up to which one counts as novel.

    Raises InsufficientReference for a reference that is too small.
    """

    def __init__(self, reference: Tensor, p: float, *, generator: torch.Generator) -> None:
        self.p = p
        self.scorer = NoveltyScorer(reference, generator=generator)
        self.novel = 0
        self.held: deque[NovelUnit] = deque(maxlen=KEPT)
        self.reference_share = float((self.scorer.reference_p <= p).double().mean())

    @property
    def units(self) -> int:
        """Units scored."""
        return self.scorer.units

    def update(self, units: Units) -> list[NovelUnit]:
        """Score units; those that are novel."""
        p = self.scorer.update(units.mean).p
        (places,) = (p <= self.p).nonzero(as_tuple=True)  # false for NaN
        found = [
            NovelUnit(int(units.request[at]), int(units.end[at]), float(p[at]), units.mean[at].clone())
            for at in places.tolist()
        ]
        self.novel += len(found)
        self.held.extend(found)
        return found

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly, but for the reference."""
        held = list(self.held)
        width = self.scorer.width
        return {
            **{f"scorer.{name}": value for name, value in self.scorer.state_dict().items()},
            "novel": self.novel,
            "request": torch.tensor([one.request for one in held], dtype=torch.int64),
            "time": torch.tensor([one.time for one in held], dtype=torch.int64),
            "p": torch.tensor([one.p for one in held], dtype=torch.float64),
            "mean": torch.stack([one.mean for one in held]) if held else torch.zeros(0, width),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        own = {name.removeprefix("scorer."): value for name, value in state.items() if name.startswith("scorer.")}
        self.scorer.load_state(own)
        self.novel = int(state["novel"])
        columns = (state["request"].tolist(), state["time"].tolist(), state["p"].tolist(), state["mean"])
        self.held = deque((NovelUnit(*one) for one in zip(*columns, strict=True)), maxlen=KEPT)
