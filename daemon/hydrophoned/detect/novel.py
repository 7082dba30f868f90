"""Which units of a stream are new, compared with a reference, and the latest of them."""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.clusters import clusters
from hydrophoned.detect.detector import Detection
from hydrophoned.detect.novel_share import NovelShare
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

    ``share`` watches how many are, with ``run_length`` units between false alarms; None where the reference has too few
    units to tell how many there should be. Raises InsufficientReference for a reference that is too small to score by.
    """

    def __init__(self, reference: Tensor, p: float, *, run_length: float, generator: torch.Generator) -> None:
        self.p = p
        self._generator = generator
        self.scorer = NoveltyScorer(reference, generator=generator)
        self.novel = 0
        self.held: deque[NovelUnit] = deque(maxlen=KEPT)
        self.latest = torch.zeros(0, dtype=torch.bool)
        """Which of the units of the last update were novel."""
        self.reference_share = float((self.scorer.reference_p <= p).double().mean())
        self.share: NovelShare | None = None
        if self.reference_share > 0:
            self.share = NovelShare(self.scorer.reference_p[:, None], run_length=run_length, level=p)

    @property
    def units(self) -> int:
        """Units scored."""
        return self.scorer.units

    @property
    def of_reference(self) -> Tensor:
        """Which of the reference's units are novel among the others, bool [n]."""
        return self.scorer.reference_p <= self.p

    def update(self, units: Units) -> tuple[list[NovelUnit], list[Detection]]:
        """Score units; those that are novel, and the alarms that there are more of them than there were."""
        p = self.scorer.update(units.mean).p
        alarms = [] if self.share is None else self.share.update(p[:, None])
        self.latest = p <= self.p  # false for NaN
        (places,) = self.latest.nonzero(as_tuple=True)
        found = [
            NovelUnit(int(units.request[at]), int(units.end[at]), float(p[at]), units.mean[at].clone())
            for at in places.tolist()
        ]
        self.novel += len(found)
        self.held.extend(found)
        return found, alarms

    def clusters(self) -> list[dict[str, Any]]:
        """The held units in groups that resemble each other: size, requests, cohesion, first and last time in us."""
        held = list(self.held)
        if not held:
            return []
        mean = torch.stack([one.mean for one in held])
        groups = []
        for group in clusters(mean, self.scorer.whiten(mean), generator=self._generator):
            members = [held[at] for at in group.members.tolist()]
            times = [one.time for one in members]
            groups.append(
                {
                    "size": group.size,
                    "requests": [one.request for one in members],
                    "cohesion": group.cohesion,
                    "first": min(times),
                    "last": max(times),
                }
            )
        return groups

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly, but for the reference."""
        held = list(self.held)
        width = self.scorer.width
        return {
            **{f"scorer.{name}": value for name, value in self.scorer.state_dict().items()},
            **({} if self.share is None else {f"share.{name}": own for name, own in self.share.state_dict().items()}),
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
        if self.share is not None:
            own = {name.removeprefix("share."): value for name, value in state.items() if name.startswith("share.")}
            self.share.load_state(own)
        self.novel = int(state["novel"])
        columns = (state["request"].tolist(), state["time"].tolist(), state["p"].tolist(), state["mean"])
        self.held = deque((NovelUnit(*one) for one in zip(*columns, strict=True)), maxlen=KEPT)
