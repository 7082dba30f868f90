"""Which features fired in which units."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from hydrophoned.detect.units import Units
from hydrophoned.learn.dictionary import Codes


class Encoder(Protocol):
    """What makes codes of raw rows, always in the same way."""

    features: int
    version: int

    def encode(self, x: Tensor) -> Codes:
        """Codes of raw rows x [n, d]."""
        ...


class Fired(NamedTuple):
    """The distinct features that fired in each of n units, unit by unit.

    Those of unit i are ``feature[offsets[i] : offsets[i + 1]]``, int32, rising; ``offsets`` is int64 [n + 1].
    """

    offsets: Tensor
    feature: Tensor

    @property
    def units(self) -> int:
        """Units n."""
        return len(self.offsets) - 1

    @classmethod
    def none(cls) -> Self:
        """No units."""
        return cls(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))

    @classmethod
    def joined(cls, parts: Sequence["Fired"]) -> Self:
        """The units of all ``parts``, at least one, in their order."""
        starts = itertools.accumulate((len(part.feature) for part in parts[:-1]), initial=0)
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=True)]
        return cls(torch.cat([parts[0].offsets[:1], *offsets]), torch.cat([part.feature for part in parts]))

    def part(self, start: int, stop: int) -> "Fired":
        """The units from ``start`` until before ``stop``; in the same memory."""
        offsets = self.offsets[start : stop + 1]
        low, high = int(offsets[0]), int(offsets[-1])
        return Fired(offsets - low, self.feature[low:high])


def fired_in(units: Units, encoder: Encoder) -> Fired:
    """The features that fired in the sampled rows of each of the units."""
    count, rows, width = units.sample.shape
    if not count:
        return Fired.none()
    kept = torch.arange(rows) < units.sampled[:, None]
    codes = encoder.encode(units.sample[kept].view(-1, width))
    of_unit = kept.nonzero()[:, 0]
    active = codes.value > 0
    place = (of_unit[:, None] * encoder.features + codes.index.long())[active]
    place = torch.unique(place)
    unit = torch.div(place, encoder.features, rounding_mode="floor")
    offsets = torch.zeros(count + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(unit, minlength=count), 0, out=offsets[1:])
    return Fired(offsets, (place - unit * encoder.features).to(torch.int32))
