"""Evidence of many bets side by side, restarted at every unit, and since when it grows.

With e >= 0 what a bet pays for a unit, at most 1 in the mean while nothing changes,

    R <- (R + 1) e

grows by 1 a unit in the mean, and so does the mean of R over bets: it reaches A after A units in the mean at the
earliest (Shiryaev-Roberts; Shin, Ramdas & Rinaldo 2022, "E-detectors: a nonparametric framework for sequential change
detection"). A bet that pays 0 loses what it has, not what it will have.
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Reached(NamedTuple):
    """The mean of ``evidence`` [m, s], R of each bet, reached the threshold at place ``place`` of the units given.

    ``began`` is the first unit since when the bet with most of it grew more than it shrank: where a CUSUM's run starts.
    """

    place: int
    statistic: float
    evidence: Tensor
    began: int


class Evidence(NamedTuple):
    """R, float64 [m, s]; how much the logarithm of what was paid is above its least, and the unit after that, int64."""

    restarted: Tensor
    above: Tensor
    began: Tensor

    @classmethod
    def none(cls, shape: tuple[int, int], device: torch.device) -> Self:
        """Before the first unit."""
        zeros = torch.zeros(shape, dtype=torch.float64, device=device)
        return cls(zeros, zeros, torch.zeros(shape, dtype=torch.int64, device=device))

    @property
    def statistic(self) -> float:
        """Mean of R over bets."""
        return float(self.restarted.mean())

    def after(self, paid: Tensor, unit: Tensor, count: int, threshold: float) -> tuple["Evidence", list[Reached]]:
        """Evidence after the first ``count`` of ``paid`` [n, m, s], float64 logarithms, and where it was reached.

        ``unit`` int64 [n + 1] are the units' numbers, and that of the next. After the threshold is reached evidence
        begins anew.
        """
        evidence, start = self, 0
        found: list[Reached] = []
        total = paid.cumsum(0)
        while start < count:
            own = total[start:] - (total[start - 1] if start else 0.0)
            fresh = (paid[start:] - own).exp_().cumsum(0)  # of what was paid before each unit, the inverse
            restarted = own.exp() * (evidence.restarted + fresh)
            statistic = restarted.mean((1, 2))
            over = (statistic[: count - start] >= threshold).nonzero()
            last = int(over[0]) if len(over) else count - start - 1
            above, began = evidence._run(own[: last + 1], unit[start : start + last + 2])
            if not len(over):
                return Evidence(restarted[last].clone(), above, began), found
            most = int(began.flatten()[restarted[last].argmax()])
            found.append(Reached(start + last, float(statistic[last]), restarted[last].clone(), most))
            nothing = torch.zeros_like(evidence.restarted)
            start += last + 1
            evidence = Evidence(nothing, nothing, torch.full_like(began, int(unit[start])))
        return evidence, found

    def _run(self, own: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """``above`` and ``began`` after ``own`` [n, m, s], running totals, of units with numbers [n + 1]."""
        zeros = torch.zeros_like(self.above)[None]
        path = torch.cat([zeros, self.above[None], self.above + own])
        least, place = path.min(0)
        began = torch.where(place == 0, self.began, unit[(place - 1).clamp_min(0)])
        return path[-1] - least, began

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return self._asdict()

    @classmethod
    def from_state(cls, state: dict[str, Any], like: "Evidence") -> "Evidence":
        """That of a :meth:`state_dict`, for the bets and on the device of ``like``."""
        return cls(*(state[name].to(own).clone() for name, own in like._asdict().items()))
