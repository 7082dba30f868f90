"""The main detector of a change in dense units: bets that they go on being away from the reference as they were lately.

One half of a reference gives the features (:mod:`.unit_features`): a unit's direction y in whitened coordinates, y^2,
and its size. What recent units are away from that half is a direction, a witness (:mod:`.witnesses`), learnt before a
unit is seen; the unit's score along it is compared with those of the other half, which the witness knows nothing of.
Bets of three sizes on each score pay at most 1 in the mean while nothing changes (:mod:`.bets`), for which what a
finite reference cannot tell is taken off (:mod:`.tolerance`); their evidence is restarted at each unit, and averaged
(:mod:`.evidence`).

Witnesses are of the last 8, 16 and 32 units, anew for each unit, and of the last 2, 8, 32 and 128 blocks of 16, all
coordinates or those that are away for more than chance, of y and of y^2. The size is bet on both ways.
"""

import math
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.bets import SIZES, inflation, paid
from hydrophoned.detect.blocks import representable
from hydrophoned.detect.detector import Detection, Guarantee
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.evidence import Evidence, Reached
from hydrophoned.detect.projection import halves
from hydrophoned.detect.tolerance import taken_off
from hydrophoned.detect.unit_features import UnitFeatures
from hydrophoned.detect.witnesses import CHUNK, Calibration, Scores, Witnesses

LEAST_UNITS: Final = 64
"""Units of a reference, at least."""
SHARE: Final = 0.5
"""Of the false alarms that there may be: what tolerances are made for, on the worst assumptions."""
_EXPERTS: Final = Witnesses.columns + 2
_LEAST_SPREAD: Final = 1e-3
_COUNTERS: Final = ("units", "left_out", "_count", "_told")


class _Size(NamedTuple):
    """Mean and standard deviation of the logarithm of a unit's size, float32 []."""

    mean: Tensor
    deviation: Tensor


class EDetector:
    """Watches dense units for a change of any kind. See the module.

    ``direction`` [d] is what to project raw units on to see the last detected change, of length 1 and positive towards
    it: the witness of y with most evidence. None before one, and where none of these has reached the threshold by
    itself: a change of spread or size has no direction.

    >>> generator = torch.Generator().manual_seed(0)
    >>> reference, units = torch.randn(400, 8, generator=generator), torch.randn(192, 8, generator=generator)
    >>> detector = EDetector(reference, run_length=5_000, generator=generator)
    >>> detector.update(units), [found.unit for found in detector.update(units[:64] + 1)][:1]
    ([], [201])
    """

    name: ClassVar[str] = "betting"
    guarantee: ClassVar[Guarantee] = Guarantee.RUN_LENGTH

    def __init__(
        self, reference: Tensor, *, run_length: float, generator: torch.Generator, share: float = SHARE
    ) -> None:
        """For a ``reference`` [n, d].

        Raises InsufficientReference for fewer than ``LEAST_UNITS`` finite units, or units that are all the same.
        """
        if not 1 <= run_length < math.inf:
            raise ValueError(f"run_length is {run_length}: it is a number of units, at least 1")
        learn, calibrate = halves(reference, LEAST_UNITS, generator)
        if any(bool((half == half[0]).all()) for half in (learn, calibrate)):
            raise InsufficientReference(
                f"all units of one half of the reference's {len(learn) + len(calibrate)} are the same: too few vary to "
                "tell anything of a change"
            )
        self._run_length = float(run_length)
        each = run_length * _EXPERTS * len(SIZES)  # what a bet alone must reach
        self._features = UnitFeatures(learn)
        values, size = self._features.of(calibrate)
        squared = values[0].square().sum(1)
        kurtosis = 3 * float(squared.square().mean() / squared.mean().square())
        calibration = Calibration(values, inflation(each, kurtosis, len(calibrate)), generator)
        self._witnesses = Witnesses(self._features.mean, self._features.deviation, calibration)
        self._size = _size_of(size, each)
        memories = [*Witnesses.memories, math.inf, math.inf]
        margins = [[taken_off(each, bet, of, len(learn), len(calibrate), share) for bet in SIZES] for of in memories]
        self._margin = torch.tensor(margins, device=reference.device)
        self._evidence = Evidence.none((_EXPERTS, len(SIZES)), reference.device)
        self._now = self._evidence
        self._waiting = reference.new_zeros(CHUNK, reference.shape[1], dtype=torch.float32)
        self._numbers = torch.zeros(CHUNK + 1, dtype=torch.int64, device=reference.device)
        self._count = self._told = 0
        self.units = self.left_out = 0
        self.direction: Tensor | None = None

    @property
    def false_alarm_budget(self) -> float:
        """Promised mean number of units between false alarms."""
        return self._run_length

    @property
    def statistic(self) -> float:
        """Evidence after the last unit."""
        return self._now.statistic

    @property
    def threshold(self) -> float:
        """The statistic at which a detection is raised: the promised run length."""
        return self._run_length

    def update(self, x: Tensor) -> list[Detection]:
        """Watch units x [n, d], in order of time. Raises ReferenceMismatch for another width."""
        width = self._waiting.shape[1]
        if x.ndim != 2 or x.shape[1] != width:
            raise ReferenceMismatch(
                f"units of shape {list(x.shape)} were given; those of the reference have width {width}"
            )
        x = x.to(self._waiting)
        number = torch.arange(len(x), device=x.device) + self.units + self.left_out
        finite = representable(x)
        if not bool(finite.all()):
            x, number = x[finite], number[finite]
            self.left_out += len(finite) - len(x)
        self.units += len(x)
        found: list[Detection] = []
        while len(x):
            taken = min(CHUNK - self._count, len(x))
            self._waiting[self._count : self._count + taken] = x[:taken]
            self._numbers[self._count : self._count + taken] = number[:taken]
            self._count += taken
            x, number = x[taken:], number[taken:]
            self._numbers[self._count] = self._numbers[self._count - 1] + 1
            found += self._watch()
        return found

    def _watch(self) -> list[Detection]:
        """Bet on the waiting units, always as many, so that results do not depend on how they came."""
        features = self._features.of(self._waiting)
        scores = self._witnesses.of(features.values)
        size = ((features.size - self._size.mean) / self._size.deviation)[:, None]
        logarithms = paid(torch.cat([scores.score, size, -size], 1), self._margin)
        self._now, reached = self._evidence.after(logarithms, self._numbers, self._count, self._run_length)
        new, self._told = reached[self._told :], len(reached)
        if new:
            self.direction = self._raw(scores, new[-1])
        found = [Detection(int(self._numbers[one.place]), one.statistic, self._run_length, one.began) for one in new]
        if self._count == CHUNK:
            self._witnesses.keep(scores)
            self._evidence, self._count, self._told = self._now, 0, 0
        return found

    def _raw(self, scores: Scores, reached: Reached) -> Tensor | None:
        evidence, column = reached.evidence[: Witnesses.lines].amax(1).max(0)
        if float(evidence) < self._run_length:
            return None
        along = self._witnesses.along(scores, reached.place, int(column))
        return torch.nn.functional.normalize(self._features.whitening.unwhitened(along[:, None])[:, 0], dim=0)

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        state: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        state |= {"waiting": self._waiting.clone(), "numbers": self._numbers.clone()}
        state |= {} if self.direction is None else {"direction": self.direction}
        for name, part in (("evidence", self._evidence), ("now", self._now), ("witnesses", self._witnesses)):
            state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict` of a detector with the same reference and settings."""
        width = self._waiting.shape[1]
        if state["waiting"].shape[1] != width:
            raise ReferenceMismatch(
                f"the state is of units of width {state['waiting'].shape[1]}; those of the reference have {width}"
            )
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        self._waiting = state["waiting"].to(self._waiting).clone()
        self._numbers = state["numbers"].to(self._numbers).clone()
        self.direction = state["direction"].to(self._waiting).clone() if "direction" in state else None
        self._evidence = Evidence.from_state(_part(state, "evidence."), self._evidence)
        self._now = Evidence.from_state(_part(state, "now."), self._now)
        self._witnesses.load_state(_part(state, "witnesses."))


def _part(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _size_of(size: Tensor, threshold: float) -> _Size:
    """Of sizes [n] of the calibrating units, the deviation overstated for what it is not known by."""
    mean, variance = size.mean(), size.var()
    kurtosis = float((size - mean).pow(4).mean() / variance.square().clamp_min(1e-30))
    factor = inflation(threshold, max(kurtosis, 1.0), len(size))
    return _Size(mean, (variance * factor).sqrt().clamp_min(_LEAST_SPREAD))
