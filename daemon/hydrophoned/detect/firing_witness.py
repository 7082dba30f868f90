"""Bets on the sum of the firings of many features: for changes that no single one shows."""

import math
from typing import Any, Final

import torch
from torch import Tensor

SPANS: Final = (2, 16)
"""Spans of units that a witness is learnt from."""
_BETS: Final = (0.1, 0.3)  # stakes, per standard deviation of the sum
_SOFT: Final = 0.5
_LEAST_EXPECTED: Final = 4.0  # firings of a feature, in what a witness is learnt from
_MOST_DEVIATIONS: Final = 6.0
_MOST_STAKE: Final = 0.9
_MOST_PAID: Final = 50.0  # logarithm, in a block
_FLAT: Final = 1e-6


class Witnesses:
    """Weights v >= 0 of F features, learnt from the last 2 and 16 spans, and bets on the next span's sums h = v . x.

    A feature's weight is (z - 1/2)+ / sqrt(e), with z the deviation of its firings from the e expected by the rate in
    one half of the reference. For a stake s, a unit pays

        1 + s (min(h, m + 6 d) - m) / d,        s m / d <= 0.9,

    with d the standard deviation of h in the last span, and m the mean of h by the rates in the *other* half of the
    reference, plus a tolerance: whatever the features' dependence, the mean payment is at most 1 where they fire at
    rates that give h a mean of m. The tolerance is d log(4 A) / (s n) for a promised run length A and n units in that
    half: as in :func:`~hydrophoned.detect.firing_bets.feature_bets`, the error of the half's mean then adds nothing to
    the payments' mean over the 2 log(4 A) / s^2 units in which a shift of h by s d is found. Only more firings are bet
    on: of the k of a code, what some features lose others have.
    """

    bets: Final = len(SPANS) * len(_BETS)

    def __init__(self, learn: Tensor, centre: Tensor, units: int, run_length: float) -> None:
        """From the rates ``learn`` and ``centre``, float32 [F], in halves of ``units`` units each."""
        self._learn, self._centre, self._units = learn, centre, units
        device = learn.device
        self._stakes = torch.tensor(_BETS, device=device).repeat(len(SPANS), 1)  # [2, 2]
        self._tolerance = math.log(run_length * self.bets) / (self._stakes * units)  # [2, 2], standard deviations
        self._counts = torch.zeros(max(SPANS), len(learn), device=device)  # of the last spans, in a ring
        self._sums = torch.zeros(len(SPANS), len(learn), device=device)
        self._spans = 0
        self._weight = torch.zeros(len(SPANS), len(learn), device=device)
        self._mean = torch.zeros(len(SPANS), device=device)
        self._deviation = torch.zeros(len(SPANS), device=device)  # 0 where there is no witness
        self._scales: dict[int, tuple[Tensor, Tensor]] = {}

    def pay(self, feature: Tensor, unit: Tensor, blocks: int, block: int) -> Tensor:
        """What each bet pays in each of ``blocks`` blocks of units, float32 [blocks, 4].

        ``feature`` int64 [m] fired in ``unit`` int64 [m], counted from 0. Without a witness nothing is paid.
        """
        h = self._summed(feature, unit, blocks * block).T[:, :, None]  # [n, 2, 1]
        d = self._deviation.clamp_min(_FLAT)[:, None]
        m = self._mean[:, None] + self._tolerance * d  # [2, 2]
        stake = torch.minimum(self._stakes, _MOST_STAKE * d / m.clamp_min(_FLAT))
        paid = torch.log1p(stake * ((h - m) / d).clamp_(max=_MOST_DEVIATIONS))
        total = torch.exp(paid.reshape(blocks, block, self.bets).sum(1).clamp_(-_MOST_PAID, _MOST_PAID))
        return total * (self._deviation > 0).repeat_interleave(len(_BETS))

    def learn(self, feature: Tensor, unit: Tensor, units: int) -> None:
        """Take in a span of ``units`` units, of which ``feature`` fired in ``unit``, and learn anew."""
        counts = torch.bincount(feature, minlength=len(self._learn)).to(self._learn)
        for sums, spans in zip(self._sums, SPANS, strict=True):
            past = self._counts[(self._spans - spans) % max(SPANS)]  # zeros while there are not as many
            sums.add_(counts).sub_(past)
        self._counts[self._spans % max(SPANS)] = counts
        self._spans += 1
        for sums, spans, weight in zip(self._sums, SPANS, self._weight, strict=True):
            by, less = self._scale(min(spans, self._spans) * units)
            torch.mul(sums, by, out=weight).sub_(less).clamp_min_(0)
        self._mean = self._weight @ self._centre
        deviation = self._summed(feature, unit, units).std(1)
        self._deviation = torch.where(deviation > _FLAT, deviation, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            "counts": self._counts,
            "sums": self._sums,
            "spans": self._spans,
            "weight": self._weight,
            "mean": self._mean,
            "deviation": self._deviation,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        for name in ("counts", "sums", "weight", "mean", "deviation"):
            getattr(self, f"_{name}").copy_(state[name])
        self._spans = int(state["spans"])

    def _scale(self, units: int) -> tuple[Tensor, Tensor]:
        """Float32 [F] a and b: a feature with c firings in ``units`` units has the weight (a c - b)+."""
        if units not in self._scales:
            expected = self._learn.double() * units
            variance = expected * (1 - self._learn.double()).clamp_min(1 / self._units) * (1 + units / self._units)
            by = (variance * expected).rsqrt()
            less = expected * by + _SOFT * expected.rsqrt()
            thin = expected < _LEAST_EXPECTED
            self._scales = {held: self._scales[held] for held in list(self._scales)[-len(SPANS) :]}
            self._scales[units] = by.masked_fill(thin, 0).float(), less.masked_fill(thin, 0).float()
        return self._scales[units]

    def _summed(self, feature: Tensor, unit: Tensor, units: int) -> Tensor:
        """The sums h of each unit, float32 [2, units]."""
        h = torch.zeros(len(SPANS), units, device=feature.device)
        for weight, out in zip(self._weight, h, strict=True):
            out.scatter_add_(0, unit, weight.index_select(0, feature))
        return h
