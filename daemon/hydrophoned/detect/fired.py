"""Which features fired in which units."""

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
