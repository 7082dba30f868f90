"""What live units are compared with."""

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.autocorrelation import autocorrelation_time
from hydrophoned.detect.budget import rate_of
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.units import Units

FEWEST: Final = 64
"""Units of the smallest reference."""
_PERMUTATIONS: Final = 199
_BLOCKS: Final = 16


class Reference(NamedTuple):
    """A named, versioned sample of units. ``source`` says where they are from: "first", "recent" or "given".

    ``made`` is when, in us. Units that are next to each other in time resemble each other for ``autocorrelation_time``
    units (1: not at all; None: not known); every ``thin``-th one is looked at, here as in the stream. ``halves_p`` is
    the p-value of the hypothesis that its first and its second half are alike: a small one says that the stream was
    changing while the reference was taken. ``attributes`` are those of each unit's request.
    """

    name: str
    version: int
    source: str
    made: int
    units: Units
    autocorrelation_time: float | None
    thin: int
    halves_p: float
    attributes: list[dict[str, str]]

    @property
    def units_per_second(self) -> float | None:
        """Rate of units that are looked at; None where all are of one time."""
        units = self.units
        return rate_of(int(units.end.min()), int(units.end.max()), units.count)


def make_reference(
    units: Units,
    *,
    name: str,
    version: int,
    source: str,
    made: int,
    generator: torch.Generator,
    attributes: Callable[[int], Mapping[str, str]] = lambda _: {},
) -> Reference:
    """A reference of ``units`` in order of time, thinned as they need it. Raises InsufficientReference."""
    finite = units.mean.isfinite().all(1)
    units = units.take(finite)
    tau = autocorrelation_time(units.mean, generator=generator)
    thin = 1 if tau is None or tau < 2 else math.ceil(tau)
    kept = units.take(slice(None, None, thin))
    if kept.count < FEWEST:
        thinned = f", of which every {thin}th can be taken as independent" if thin > 1 else ""
        raise InsufficientReference(
            f"a reference needs {FEWEST} units at least; there are {units.count} finite ones{thinned}"
        )
    if not bool((kept.mean.std(0) > 0).any()):
        raise InsufficientReference(f"all {kept.count} units of the reference are the same")
    named = [dict(attributes(key)) for key in kept.request.tolist()]
    return Reference(name, version, source, made, kept, tau, thin, halves_p(kept.mean, generator=generator), named)


def halves_p(x: Tensor, *, generator: torch.Generator) -> float:
    """P-value that the first and the second half of units x [n, d] in order of time are alike in mean and variance.

    Squared distance of the halves' means of standardised coordinates and of their squares, against 199 other ways to
    give the units, in 16 blocks of neighbours, to two halves.
    """
    y = (x - x.mean(0)) / x.std(0).clamp_min(1e-30)
    y = torch.where(x.std(0) > 0, y, 0.0).clamp_(-6, 6)
    blocks = torch.tensor_split(torch.cat([y, (y.square() - y.square().mean(0)) / 2**0.5], 1), _BLOCKS)
    means = torch.stack([block.mean(0) for block in blocks])
    ways = torch.stack([torch.randperm(_BLOCKS, generator=generator) for _ in range(_PERMUTATIONS)])
    own = torch.cat([torch.arange(_BLOCKS)[None], ways])
    sides = torch.ones(len(own), _BLOCKS).scatter_(1, own[:, : _BLOCKS // 2], -1.0)
    distances = (sides @ means).square().sum(1)
    return float((distances >= distances[0] * (1 - 1e-6)).sum()) / len(own)
