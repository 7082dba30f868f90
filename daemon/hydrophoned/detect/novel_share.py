"""Drift of how many units are novel."""

from typing import Any, ClassVar, Final

from torch import Tensor

from hydrophoned.detect.detector import Detection, Guarantee
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch

ODDS: Final = (1.5, 3.0, 8.0, 30.0)
"""What the odds of a novel unit are bet to have grown by."""
_COUNTERS: Final = ("units", "left_out", "novel", "_seen", "_seen_novel")
_EVIDENCE: Final = ("_restarted", "_run", "_run_began", "_run_seen", "_run_novel")


class NovelShare:
    """Watches the share of novel units: of p-values that are at most ``level``.

    What is known of the share is c novel ones among n units of the reference, whose p-values are ranks among each other
    (:attr:`~hydrophoned.detect.novelty.NoveltyScorer.reference_p`), and s among t units watched since. If a unit is
    exchangeable with all of these, then it is novel with probability

        q = (c + s) / (n + 1 + t)

    exactly, given them: a ball drawn from Polya's urn. No true share is assumed and none has to be known, however small
    the reference. A bet that the odds have grown by f pays

        e = f^novel / (1 - q + f q)

    which is 1 in the mean. Bets of four sizes run side by side, R <- (R + 1) e for each (Shiryaev-Roberts; Shin, Ramdas
    & Rinaldo 2022, "E-detectors"), and their mean less the number of units is a martingale: the mean run length is at
    least the threshold, and an alarm within T units has a probability of at most T / threshold, over references as well
    as units.

    Only a novel unit raises a detection. After one the units since the change began are forgotten; those before it go
    on telling what is usual. A share that grows so slowly that it is learnt as it grows is not found. A share that
    falls is no novelty.

    A unit is its p-value: tensors are [n, 1]. NaN is left out and counted.
    """

    name: ClassVar[str] = "novel_share"
    guarantee: ClassVar[Guarantee] = Guarantee.RUN_LENGTH

    units: int
    """Units watched, those left out not counted."""
    left_out: int
    """Units that were not finite."""
    novel: int
    """Novel ones of those watched."""

    def __init__(self, reference: Tensor, *, run_length: float, level: float = 0.01) -> None:
        """For the p-values [n, 1] of a reference's units.

        Raises InsufficientReference where none of them is novel: about 1 / ``level`` units are needed at least.
        """
        if not 1 <= run_length < float("inf"):
            raise ValueError(f"run_length is {run_length}: it is a number of units, at least 1")
        if not 0 < level < 1:
            raise ValueError(f"level is {level}: it is a p-value between 0 and 1")
        _check(reference)
        known = reference[reference.isfinite()]
        self._known, self._known_novel = len(known), int((known <= level).sum())
        if not self._known_novel:
            raise InsufficientReference(
                f"none of the reference's {len(known)} p-values is {level} or less: more than {round(1 / level)} units "
                "are needed to tell how many are novel"
            )
        self.level, self._run_length = level, float(run_length)
        self.units = self.left_out = self.novel = self._seen = self._seen_novel = 0
        self._begin()

    def _begin(self) -> None:
        """Evidence anew."""
        self._restarted = [0.0] * len(ODDS)
        # CUSUMs tell when a change began, and what had been seen before it
        self._run = [1.0] * len(ODDS)
        self._run_began = [self.units + self.left_out] * len(ODDS)
        self._run_seen = [self._seen] * len(ODDS)
        self._run_novel = [self._seen_novel] * len(ODDS)

    @property
    def false_alarm_budget(self) -> float:
        """Promised mean number of units between false alarms."""
        return self._run_length

    @property
    def statistic(self) -> float:
        """Evidence now, on the scale of the threshold."""
        return sum(self._restarted) / len(ODDS)

    @property
    def threshold(self) -> float:
        """The statistic at which a detection is raised."""
        return self._run_length

    @property
    def share(self) -> float:
        """Share of novel units, of the reference and of what was watched and not found to have changed."""
        return (self._known_novel + self._seen_novel) / (self._known + self._seen)

    def update(self, x: Tensor) -> list[Detection]:
        """Watch units with p-values x [n, 1], in order of time. Raises ReferenceMismatch for another shape."""
        _check(x)
        found = []
        for p in x[:, 0].tolist():
            unit = self.units + self.left_out
            if not abs(p) < float("inf"):
                self.left_out += 1
                continue
            novel = p <= self.level
            self._watch(novel, unit)
            statistic = self.statistic
            if novel and statistic >= self._run_length:
                most = max(range(len(ODDS)), key=self._run.__getitem__)
                found.append(Detection(unit, statistic, self._run_length, self._run_began[most]))
                self._seen, self._seen_novel = self._run_seen[most], self._run_novel[most]
                self._begin()
        return found

    def _watch(self, novel: bool, unit: int) -> None:
        share = (self._known_novel + self._seen_novel) / (self._known + 1 + self._seen)
        for place, odds in enumerate(ODDS):
            paid = (odds if novel else 1.0) / (1 - share + odds * share)
            self._restarted[place] = (self._restarted[place] + 1) * paid
            if self._run[place] <= 1:
                self._run[place], self._run_began[place] = 1.0, unit
                self._run_seen[place], self._run_novel[place] = self._seen, self._seen_novel
            self._run[place] *= paid
        self.units += 1
        self.novel += novel
        self._seen += 1
        self._seen_novel += novel

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers to go on exactly."""
        of_reference = {"reference_units": self._known, "reference_novel": self._known_novel}
        counters = {name.removeprefix("_"): getattr(self, name) for name in _COUNTERS}
        return of_reference | counters | {name.removeprefix("_"): list(getattr(self, name)) for name in _EVIDENCE}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`. Raises ReferenceMismatch for that of another reference."""
        theirs = (state["reference_units"], state["reference_novel"])
        if theirs != (self._known, self._known_novel):
            raise ReferenceMismatch(
                f"the state is of a reference with {theirs[1]} novel of {theirs[0]} units, not {self._known_novel} of "
                f"{self._known}"
            )
        for name in _COUNTERS:
            setattr(self, name, int(state[name.removeprefix("_")]))
        for name in _EVIDENCE:
            setattr(self, name, list(state[name.removeprefix("_")]))


def _check(x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != 1:
        raise ReferenceMismatch(f"p-values of shape {list(x.shape)} were given: one for each unit is needed, [n, 1]")
