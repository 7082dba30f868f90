"""Drift of how often features fire: one alarm for all features of a dictionary."""

from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from hydrophoned.detect.detector import Detection, Guarantee
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.fired import Fired
from hydrophoned.detect.firing_bets import BETS, feature_bets
from hydrophoned.detect.firing_witness import Witnesses

LEAST_UNITS: Final = 200
"""Units of a reference, at least."""
_BLOCK: Final = 16
_WIDE: Final = 512  # features of a dictionary that make a block one unit longer
_SPAN: Final = 256
_TOGETHER: Final = 0.2  # share of the witnesses in the statistic
_MOST_PAID: Final = 50.0  # logarithm, in a block
_MOST_NAMED: Final = 16
_MOST: Final = float(torch.finfo(torch.float32).max)


class FiringDetector:
    """Watches how often each of F features fires, against a reference, and raises one alarm for all of them.

    Each feature's firings are bet on at three ratios of its odds (:mod:`~hydrophoned.detect.firing_bets`), and the sum
    of the firings of those that lately fire more is bet on as well (:mod:`~hydrophoned.detect.firing_witness`). Bets
    begin anew with each block of b units and run side by side, as in the Shiryaev-Roberts procedure (Shin, Ramdas &
    Rinaldo 2022, "E-detectors: a nonparametric framework for sequential change detection"): with e the payment of a
    block

        S <- (S + 1) e,        statistic = b (0.8 mean of S over features + 0.2 mean of S over witnesses),

    which is b times the blocks watched in the mean while nothing changes, however features depend on each other, so
    that the mean run length is at least the threshold. A mean over features finds one that changes much: what it has
    been paid has only to reach the number of features times the threshold; witnesses find many that change little.

    The rates are known from a reference only; see the two modules for the margins that this takes. Units are
    exchangeable with those of the reference while nothing changes. A feature that goes on never or always firing adds
    nothing that could reach the threshold.

    ``update`` has no units that are not finite to leave out: ``left_out`` stays 0.
    """

    name: ClassVar[str] = "firing"
    guarantee: ClassVar[Guarantee] = Guarantee.RUN_LENGTH

    def __init__(self, reference: Fired, *, features: int, run_length: float, generator: torch.Generator) -> None:
        """For a dictionary of ``features`` features. ``generator`` halves the reference.

        Raises InsufficientReference for fewer than ``LEAST_UNITS`` units, ReferenceMismatch for features that the
        dictionary has not.
        """
        if features < 1:
            raise ValueError(f"a dictionary of {features} features has nothing to watch")
        if not 1 <= run_length < float("inf"):
            raise ValueError(f"run_length is {run_length}: it is a number of units, at least 1")
        if reference.units < LEAST_UNITS:
            raise InsufficientReference(
                f"the reference has {reference.units} units: rates of features need {LEAST_UNITS} at least"
            )
        self.features, self.units, self.left_out = features, 0, 0
        self.reference_units = reference.units
        self._run_length = float(run_length)
        self._block = max(_BLOCK, 1 << (features // _WIDE).bit_length() >> 1)
        self._span = max(_SPAN, 4 * self._block)
        self._check(reference)
        learn, centre = _halves(reference, features, generator)
        fired = learn + centre
        bets = feature_bets(fired, reference.units, self._run_length, self._block)
        half = reference.units // 2
        self._witnesses = Witnesses(learn / (reference.units - half), centre / half, half, self._run_length)
        device = fired.device
        paid = torch.ones(Witnesses.bets, device=device)
        (self._turned,) = bets.turned.nonzero(as_tuple=True)
        self._turned_ratio = bets.log_ratio[self._turned]
        self._turned_place = (self._turned[:, None] * BETS + torch.arange(BETS, device=device)).flatten()
        self._log_ratio = bets.log_ratio.masked_fill(bets.turned[:, None], 0)
        self._rest = torch.cat([bets.rest.flatten(), paid])
        together = paid * (_TOGETHER / len(paid))
        self._weight = torch.cat([bets.weight.flatten() * (1 - _TOGETHER), together]) * self._block
        self._evidence = torch.zeros_like(self._rest)
        self._leading = torch.zeros(features, device=device)
        self._waiting = _none(device)
        self._spanned = _none(device)

    @property
    def false_alarm_budget(self) -> float:
        """Promised mean number of units between false alarms."""
        return self._run_length

    @property
    def threshold(self) -> float:
        """The statistic at which a detection is raised: the promised run length."""
        return self._run_length

    @property
    def statistic(self) -> float:
        """Evidence after the last whole block of units."""
        return min(float(torch.dot(self._evidence, self._weight)), _MOST)

    @property
    def evidence(self) -> Tensor:
        """Each feature's part in the statistic at the last detection, float32 [F]; 0 before the first."""
        return self._leading

    def update(self, x: Fired) -> list[Detection]:
        """Watch units, in order of time. Raises ReferenceMismatch for features that the dictionary has not."""
        self._check(x)
        x = Fired(x.offsets.to(self._evidence.device), x.feature.to(self._evidence.device))
        first = self.units - self._waiting.units
        self.units += x.units
        waiting = Fired.joined([self._waiting, x])
        found: list[Detection] = []
        done, whole = 0, waiting.units // self._block * self._block
        while done < whole:
            count = min(whole - done, self._span - self._spanned.units)
            found += self._watch(waiting.part(done, done + count), first + done)
            done += count
        self._waiting = _own(waiting.part(done, waiting.units))
        return found

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            "units": self.units,
            "evidence": self._evidence,
            "leading": self._leading,
            **{f"waiting_{name}": value for name, value in self._waiting._asdict().items()},
            **{f"spanned_{name}": value for name, value in self._spanned._asdict().items()},
            **{f"witness_{name}": value for name, value in self._witnesses.state_dict().items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict` of a detector with the same reference and settings."""
        if state["evidence"].shape != self._evidence.shape:
            raise ReferenceMismatch(
                f"the state is of {state['leading'].numel()} features, this detector watches {self.features}"
            )
        device = self._evidence.device
        self.units = int(state["units"])
        self._evidence.copy_(state["evidence"])
        self._leading = state["leading"].to(device).clone()
        self._waiting = Fired(*(state[f"waiting_{name}"].to(device) for name in Fired._fields))
        self._spanned = Fired(*(state[f"spanned_{name}"].to(device) for name in Fired._fields))
        self._witnesses.load_state({name: state[f"witness_{name}"] for name in self._witnesses.state_dict()})

    def _check(self, x: Fired) -> None:
        if not len(x.feature):
            return
        low, high = (int(value) for value in x.feature.aminmax())
        if low < 0 or high >= self.features:
            raise ReferenceMismatch(
                f"feature {low if low < 0 else high} fired, but the reference is of a dictionary of {self.features}"
            )

    def _watch(self, part: Fired, first: int) -> list[Detection]:
        """Bet on whole blocks of one span, the first unit of which is ``first``."""
        blocks = part.units // self._block
        feature, unit = part.feature.long(), _units(part)
        block = unit.div(self._block, rounding_mode="floor")
        together = self._witnesses.pay(feature, unit, blocks, self._block)
        found = self._bet(feature, block, together, first)
        self._spanned = _own(Fired.joined([self._spanned, part]))
        if self._spanned.units == self._span:
            self._witnesses.learn(self._spanned.feature.long(), _units(self._spanned), self._span)
            self._spanned = _none(feature.device)
        return found

    def _bet(self, feature: Tensor, block: Tensor, together: Tensor, first: int) -> list[Detection]:
        """Bet on blocks in which ``feature`` int64 [m] fired, in ``block`` int64 [m], rising; once for each unit."""
        blocks = len(together)
        key = block * self.features + feature
        counts = torch.zeros(blocks * self.features, device=feature.device)
        counts.scatter_add_(0, key, torch.ones_like(key, dtype=torch.float32))
        # a feature that fires several times in a block is paid in several places, the same
        paid = _paid(counts.index_select(0, key)[:, None] * self._log_ratio.index_select(0, feature)).flatten()
        place = (feature[:, None] * BETS + torch.arange(BETS, device=feature.device)).flatten()
        sizes = (torch.bincount(block, minlength=blocks) * BETS).tolist()
        turned = None
        if len(self._turned):
            silent = self._block - counts.view(blocks, self.features)[:, self._turned]
            turned = _paid(silent[:, :, None] * self._turned_ratio).flatten(1)
        found = []
        evidence, rest = self._evidence, self._rest
        of_witnesses = evidence[-Witnesses.bets :]
        for i, (where, pay, pay_together) in enumerate(
            zip(torch.split(place, sizes), torch.split(paid, sizes), together, strict=True)
        ):
            torch.addcmul(rest, evidence, rest, out=evidence)
            evidence.scatter_(0, where, evidence.index_select(0, where).mul_(pay))
            if turned is not None:
                evidence[self._turned_place] *= turned[i]
            of_witnesses.mul_(pay_together)
            statistic = self.statistic
            if statistic >= self._run_length:
                self._leading = (evidence * self._weight)[: -Witnesses.bets].view(-1, BETS).sum(1)
                unit, named = first + (i + 1) * self._block - 1, _named(self._leading, statistic)
                found.append(Detection(unit, statistic, self._run_length, features=named))
                evidence.zero_()
        return found


def _named(part: Tensor, statistic: float) -> tuple[int, ...]:
    """The fewest features that make up half of what all have in the statistic, at most 16, the largest part first.

    None where witnesses have most of it: many changed a little.
    """
    whole = float(part.sum(dtype=torch.float64))
    if not whole > statistic / 2:
        return ()
    most, feature = part.double().topk(min(_MOST_NAMED, len(part)))
    count = int((most.cumsum(0) < whole / 2).sum()) + 1
    return tuple(feature[:count].tolist())


def _paid(logarithm: Tensor) -> Tensor:
    return logarithm.clamp_(max=_MOST_PAID).exp_()


def _none(device: torch.device) -> Fired:
    return Fired(torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(0, dtype=torch.int32, device=device))


def _units(x: Fired) -> Tensor:
    """The unit in which each feature of ``x`` fired, int64."""
    unit = torch.arange(x.units, device=x.offsets.device)
    return unit.repeat_interleave(x.offsets.diff(), output_size=len(x.feature))


def _own(x: Fired) -> Fired:
    """The same in memory of its own: a view would keep the whole batch that it is of."""
    return Fired(x.offsets.clone(), x.feature.clone())


def _halves(reference: Fired, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Units of each half in which each feature fired, int64 [F]; the first half has the odd unit."""
    order = torch.randperm(reference.units, generator=generator, device=generator.device)
    second = torch.zeros(reference.units, dtype=torch.int64, device=order.device)
    second[order[: reference.units // 2]] = 1
    half = second.to(reference.offsets.device)[_units(reference)]
    counts = torch.bincount(half * features + reference.feature.long(), minlength=2 * features)
    learn, centre = counts.view(2, features)
    return learn, centre
