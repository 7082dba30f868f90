"""A cheap second tier and arbiter: whether a classifier that learns as it goes tells live units from the reference's.

The sequential classifier two-sample test (Lheritier & Cazals 2018, "A sequential non-parametric multivariate two-sample
test"; Podkopaev & Ramdas 2023, "Sequential predictive two-sample and independence testing"): each live unit x is paired
with a unit r of the reference, and bet on to be the live one of the two. With a classifier's logit f that has seen
neither,

    pay = 1 + lambda tanh((f(x) - f(r)) / s)

is 1 in the mean if x and r are exchangeable, since exchanging them turns the sign. Bets of several sizes lambda by
several classifiers begin anew with each block of 16 pairs and run side by side, as in the Shiryaev-Roberts procedure
(Shin, Ramdas & Rinaldo 2022, "E-detectors"): with e the product of a block's pays

    S <- (S + 1) e,        statistic = 16 mean of S,

so that the mean run length is at least the threshold.

That is exact as long as no r is used twice. One half of the reference whitens units and gives the classifiers what they
learn from; the r are the units of the other half in random order, and when they are used up they are used again. From
then on their mean is a constant with an error of its own, and a standard error of it, or more where the promise is long
for so many pairs, is taken off each pay. The classifiers must not learn from the r, or they would learn that error and
bet on it: with one half for both, the mean run length came to a tenth of what was promised.

The classifiers are logistic regressions on whitened coordinates, clipped at 3, and their squares, learned by gradient
steps that forget. A live unit is told from the mean of its half of the reference.
"""

import math
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from hydrophoned.detect.blocks import Blocks
from hydrophoned.detect.detector import Detection, Guarantee
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.projection import Projection, halves

LEAST_UNITS: Final = 64
"""Units of a reference, at least."""
_BLOCK: Final = 16
_AT_ONCE: Final = 16  # blocks: what is worked on stays in the cache
_CLIP: Final = 3.0
_FLAT: Final = 1e-4  # a feature that varies less is left out: rounding would be a change of it
_MEMORIES: Final = (2.0, 8.0, 32.0, 128.0)  # blocks
_BETS: Final = (0.1, 0.3, 0.8)
_SPREAD_MEMORY: Final = 16.0  # blocks
_SPENT: Final = 0.25  # of the false alarms there may be, on errors of the reference's means
_TINY: Final = 1e-20


class ClassifierDetector:
    """Bets that a classifier tells live units from the reference's. See the module.

    >>> generator = torch.Generator().manual_seed(0)
    >>> reference, units = torch.randn(400, 8, generator=generator), torch.randn(192, 8, generator=generator)
    >>> detector = ClassifierDetector(reference, run_length=5_000, generator=generator)
    >>> detector.update(units), [found.unit for found in detector.update(units[:64] + 1)]
    ([], [223, 255])
    """

    name: ClassVar[str] = "classifier"
    guarantee: ClassVar[Guarantee] = Guarantee.ASYMPTOTIC

    def __init__(
        self, reference: Tensor, *, run_length: float, generator: torch.Generator, projections: int = 640
    ) -> None:
        """For a ``reference`` [n, d], of which at most ``projections`` directions are looked at.

        Raises InsufficientReference for fewer than ``LEAST_UNITS`` finite units, or units that are all the same.
        """
        if not 1 <= run_length < math.inf:
            raise ValueError(f"run_length is {run_length}: it is a number of units, at least 1")
        learn, pairs = halves(reference, LEAST_UNITS, generator)
        self._map = Projection.of(learn, projections, generator)
        self._centre, self._scale = self._standard(learn, pairs)
        self._pairs = self._features(pairs[: len(pairs) // _BLOCK * _BLOCK])
        self.units = self.left_out = 0
        self._run_length = float(run_length)
        self._tolerance = _tolerance(self._run_length, len(self._pairs))
        self._blocks = Blocks(pairs.shape[1], _BLOCK, pairs.device)
        self._used = 0
        experts = len(_MEMORIES)
        self._keep = pairs.new_tensor([1 - 1 / memory for memory in _MEMORIES])[:, None]
        self._rate = 2 * (1 - self._keep).T / _BLOCK
        self._bets = torch.tensor(_BETS, dtype=torch.float64)
        self._weight = pairs.new_zeros(experts, self._pairs.shape[1])
        self._spread = pairs.new_full((experts,), 2.0)
        self._square = 0.5
        self._evidence = torch.zeros(experts, len(_BETS), dtype=torch.float64)

    def _standard(self, learn: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Centre [F], the mean of ``learn``, and scale [F] of features.

        Units that the whitening was made of vary less under it than others do: they are stretched, all coordinates
        alike, to vary as the pairs do.
        """
        y, other = self._map.apply(learn), self._map.apply(pairs).clamp_(-_CLIP, _CLIP)
        stretch = (other.square().mean() / y.clamp(-_CLIP, _CLIP).square().mean().clamp_min(_FLAT)).sqrt()
        y.mul_(stretch).clamp_(-_CLIP, _CLIP)
        deviation = torch.cat([other, other.square()], 1).std(0)
        if not bool((deviation > _FLAT).any()):
            raise InsufficientReference(
                f"the {len(pairs)} units of one half of the reference are all the same: no change can be told from them"
            )
        return torch.cat([y, y.square()], 1).mean(0), torch.where(deviation > _FLAT, 1 / deviation, 0.0)

    def _features(self, x: Tensor) -> Tensor:
        """Standardised features [n, F] of units x [n, d]."""
        y = self._map.apply(x).clamp_(-_CLIP, _CLIP)
        return torch.cat([y, y.square()], 1).sub_(self._centre).mul_(self._scale)

    @property
    def false_alarm_budget(self) -> float:
        """Promised mean number of units between false alarms."""
        return self._run_length

    @property
    def statistic(self) -> float:
        """Evidence after the last whole block of units."""
        return _BLOCK * float(self._evidence.mean())

    @property
    def threshold(self) -> float:
        """The statistic at which a detection is raised: the promised run length."""
        return self._run_length

    def update(self, x: Tensor) -> list[Detection]:
        """Watch units x [n, d], in order of time. Raises ReferenceMismatch for another width.

        A detection is told of the last unit of a block.
        """
        units, ends = self._blocks.take(x)
        self.units, self.left_out = self._blocks.units, self._blocks.left_out
        size = _AT_ONCE * _BLOCK
        parts = [self._bet(self._features(part)) for part in torch.split(units, size)] if ends else []
        return [
            Detection(ends[number * _AT_ONCE + block], statistic, self._run_length)
            for number, part in enumerate(parts)
            for block, statistic in part
        ]

    def _bet(self, x: Tensor) -> list[tuple[int, float]]:
        """Block and statistic of each detection in features x [16 k, F]."""
        told, fresh = self._told_apart(x)
        squares = told.square().mean((1, 2)).tolist()
        margins = []
        for square, once in zip(squares, fresh, strict=True):
            margins.append(0.0 if once else self._tolerance * (self._square / 2 / len(self._pairs)) ** 0.5)
            self._square += (square - self._square) / _SPREAD_MEMORY
        away = told.double().cpu() - torch.tensor(margins, dtype=torch.float64)[:, None, None]
        paid = torch.log1p(away[..., None] * self._bets).sum(1)
        found = []
        start = 0
        while start < len(paid):
            evidence = _side_by_side(paid[start:], self._evidence)
            statistic = _BLOCK * evidence.mean((1, 2))
            over = (statistic >= self._run_length).nonzero()
            if not len(over):
                self._evidence = evidence[-1]
                break
            first = int(over[0])
            found.append((start + first, float(statistic[first])))
            self._evidence = torch.zeros_like(self._evidence)
            start += first + 1
        return found

    def _told_apart(self, x: Tensor) -> tuple[Tensor, list[bool]]:
        """How surely each classifier tells each unit of features x [16 k, F] from that it is paired with, -1 to 1.

        [k, 16, classifiers], and of each block whether its pairs are used for the first time. Classifiers learn from a
        block after they have been asked.
        """
        margins, lengths, fresh = [], [], []
        for block in torch.split(x, _BLOCK):
            start = self._used % len(self._pairs)
            fresh.append(self._used < len(self._pairs))
            self._used += _BLOCK
            own = torch.nn.functional.linear(block, self._weight)
            margins.append(own - torch.nn.functional.linear(self._pairs[start : start + _BLOCK], self._weight))
            lengths.append(torch.linalg.vector_norm(self._weight, dim=1))
            missed = torch.sigmoid(own.neg_()).mul_(self._rate)
            self._weight.mul_(self._keep).addmm_(missed.T, block)
        margin = torch.stack(margins) / torch.stack(lengths).clamp_min(_TINY)[:, None]
        spreads = []
        for square in margin.square().mean(1):
            spreads.append(self._spread.sqrt())
            if bool(square.any()):  # the first weights are 0
                self._spread = self._spread.lerp(square, 1 / _SPREAD_MEMORY)
        return torch.tanh(margin / torch.stack(spreads)[:, None]), fresh

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            "used": self._used,
            "square": self._square,
            "weight": self._weight,
            "spread": self._spread,
            "evidence": self._evidence,
            **self._blocks.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict` of a detector with the same reference and settings."""
        self._blocks.load_state(state)
        self.units, self.left_out = self._blocks.units, self._blocks.left_out
        self._used, self._square = int(state["used"]), float(state["square"])
        for name in ("weight", "spread", "evidence"):
            own = getattr(self, f"_{name}")
            setattr(self, f"_{name}", state[name].to(own).clone())


def _tolerance(run_length: float, pairs: int) -> float:
    """Standard errors to be taken off a pay where the same ``pairs`` units serve for all of a long run: 1 at least.

    Bets along a constant error of u standard errors, t of which are taken off, grow by (u - t)^2 / (2 ``pairs``) a
    unit, and raise an alarm whenever they have grown by the logarithm of the threshold. u is normal; the mean number of
    such alarms is to be a small share of those that there may be.
    """
    growth = _SPENT * 2 * pairs * max(math.log(run_length / _BLOCK), 1.0) / run_length
    t = 1.0
    while (1 + t * t) * math.erfc(t / 2**0.5) / 2 - t * math.exp(-t * t / 2) / (2 * math.pi) ** 0.5 > growth:
        t += 0.05
    return t


def _side_by_side(paid: Tensor, evidence: Tensor) -> Tensor:
    """S <- (S + 1) e over the logarithms ``paid`` [k, ...] of e, from S = ``evidence``: each S, [k, ...]."""
    total = paid.cumsum(0)
    began = torch.exp(paid - total)  # of e before each block, the inverse product
    return total.exp() * (evidence + began.cumsum(0))
