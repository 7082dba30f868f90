"""Firings of features with known rates: which of F fired in each of n units, drawn without the n x F table."""

import math
from typing import NamedTuple

import torch
from hydrophoned.detect.fired import Fired
from torch import Tensor

TOPICS = 32


class Firings(NamedTuple):
    """Firings of features: ``key`` int64 is unit times F plus feature, rising, each once."""

    key: Tensor
    features: int
    units: int

    def fired(self, start: int = 0, stop: int | None = None) -> Fired:
        """Those of units ``start`` to ``stop``."""
        stop = self.units if stop is None else stop
        low, high = torch.searchsorted(self.key, torch.tensor([start, stop]) * self.features).tolist()
        key = self.key[low:high] - start * self.features
        unit = key // self.features
        offsets = torch.zeros(stop - start + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(unit, minlength=stop - start), 0, out=offsets[1:])
        return Fired(offsets, (key - unit * self.features).int())

    def plus(self, other: "Firings") -> "Firings":
        """What fired in either."""
        return self._replace(key=torch.cat([self.key, other.key]).unique())

    def after(self, units: int) -> "Firings":
        """The same with so many units before, in which nothing fires."""
        return Firings(self.key + units * self.features, self.features, self.units + units)

    def counts(self, window: int) -> Tensor:
        """Units of each whole window in which each feature fired, float32 [n // window, F]."""
        windows = self.units // window
        place = self.key // self.features // window * self.features + self.key % self.features
        counts = torch.bincount(place, minlength=(windows + 1) * self.features)
        return counts[: windows * self.features].view(windows, self.features).float()


def rates(features: int, generator: torch.Generator) -> Tensor:
    """Rates [F] between 1e-4 and 0.1, log-uniform."""
    return 1e-4 * torch.exp(math.log(1000) * torch.rand(features, generator=generator))


def draw(rate: Tensor, units: int, generator: torch.Generator) -> Firings:
    """Units in which features fire independently of each other: of ``rate`` [F] in each of ``units``."""
    return _of_groups(rate[None], torch.zeros(units, dtype=torch.int64), generator)


def topics(features: int, generator: torch.Generator) -> Tensor:
    """By how much rates are multiplied in each of 32 topics, [32, F]; 1 in the mean over topics."""
    factor = torch.randn(TOPICS, features, generator=generator).exp()
    return factor / factor.mean(0)


def draw_by_topic(rate: Tensor, factor: Tensor, topic: Tensor, generator: torch.Generator) -> Firings:
    """Units each of a ``topic`` [n], in which features fire at ``rate`` [F] times ``factor`` [32, F] of the topic."""
    return _of_groups((rate * factor).clamp_max(0.9), topic, generator)


def _of_groups(rate: Tensor, group: Tensor, generator: torch.Generator) -> Firings:
    """Firings of ``rate`` [g, F] in units of a group [n].

    Poisson numbers of mean -log(1 - p) in each cell are one or more with chance p. They are drawn for each group and
    feature, and fall anywhere in the group: that is the same.
    """
    groups, features = rate.shape
    size = torch.bincount(group, minlength=groups)
    number = torch.poisson(-torch.log1p(-rate) * size[:, None], generator=generator).long()
    cell = torch.arange(groups * features).repeat_interleave(number.view(-1))
    chosen = cell // features
    within = (torch.rand(len(cell), generator=generator, dtype=torch.float64) * size[chosen]).long()
    first = torch.cat([torch.zeros(1, dtype=torch.int64), size.cumsum(0)[:-1]])
    unit = torch.argsort(group, stable=True)[first[chosen] + within]
    return Firings((unit * features + cell % features).unique(), features, len(group))
