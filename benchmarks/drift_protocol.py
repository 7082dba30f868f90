"""How run lengths and delays are counted, the same for every detector.

Run length: units watched over alarms raised while nothing changes, with the exact 95% bounds of a Poisson count on each
side; where no alarm was raised, the lower bound says it.

Delay: a stream changes after 480 units; its twin, of the same seed, reference and units, does not. The delay of a
stream is from the change to the first alarm after it; streams with an alarm before the change are left out, those
without any after it count as longer than what was watched. A detector's delay for a change is the median over streams.
It counts only where at least 0.9 of the alarms come earlier than the twin's: one that raises alarms by chance has
delays as well, but not earlier ones.
"""

import bisect
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BEFORE, AFTER = 480, 4000
"""Units before the change, and watched after it."""
EARLIER = 0.9
BOOTSTRAPS = 1000


# -- processes ---------------------------------------------------------------------------------------------------------


def each(task: Callable[..., Any], arguments: Iterable[Any], processes: int) -> list[Any]:
    """What ``task`` gives for each of ``arguments``, in their order; in so many processes of one thread."""
    arguments = list(arguments)
    if processes == 1:
        return [task(argument) for argument in arguments]
    # forked: they share the model's rows, and torch has run on one thread only
    with multiprocessing.get_context("fork").Pool(min(processes, len(arguments)), _begin) as pool:
        return pool.map(task, arguments, chunksize=1)


def _begin() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def processors() -> int:
    """Usable processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- run lengths -------------------------------------------------------------------------------------------------------


class RunLength(NamedTuple):
    """Units watched and alarms raised while nothing changed."""

    units: int
    alarms: int

    @property
    def point(self) -> float:
        """Units over alarms; over one where there was none."""
        return self.units / max(1, self.alarms)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper 95% bound, each one-sided; infinite above where there was no alarm."""
        most = _poisson_mean(self.alarms, 0.05)
        least = _poisson_mean(self.alarms - 1, 0.95) if self.alarms else 0.0
        return self.units / most, self.units / least if least else math.inf

    def plus(self, other: "RunLength") -> "RunLength":
        """Both together."""
        return RunLength(self.units + other.units, self.alarms + other.alarms)


def _poisson_mean(count: int, chance: float) -> float:
    """The mean at which a Poisson variable is at most ``count`` with that chance."""
    low, high = 0.0, count + 10 * math.sqrt(count + 1) + 10
    for _ in range(60):
        mean = (low + high) / 2
        terms = (math.exp(number * math.log(mean) - mean - math.lgamma(number + 1)) for number in range(count + 1))
        low, high = (mean, high) if math.fsum(terms) > chance else (low, mean)
    return (low + high) / 2


# -- traces: where a detector raises an alarm, at a level set afterwards -------------------------------------------


class Trace(Protocol):
    """What a detector made of one stream."""

    def alarms(self, level: float) -> list[int]:
        """Places of its alarms at a level."""
        ...

    def levels(self) -> list[float]:
        """The levels there are, those with most alarms first."""
        ...


class Scores(NamedTuple):
    """A statistic after each unit: an alarm where it is above the level, then none for ``quiet`` units.

    What a detector does after an alarm, beginning with an empty window, is not computed anew for each level.
    """

    values: NDArray[np.float32]
    quiet: int

    def alarms(self, level: float) -> list[int]:
        """Places of the alarms."""
        found: list[int] = []
        for place in (self.values > level).nonzero()[0].tolist():
            if not found or place > found[-1] + self.quiet:
                found.append(place)
        return found

    def levels(self) -> list[float]:
        """Each of its highest values."""
        values = np.unique(self.values[self.values > -math.inf])
        return values[-max(100, len(values) // 4) :].tolist()


def scores(values: Tensor, quiet: int) -> Scores:
    """Scores of a tensor."""
    return Scores(values.float().numpy(), quiet)


class Alarms(NamedTuple):
    """Alarms at each of a few levels."""

    at: list[list[int]]

    def alarms(self, level: float) -> list[int]:
        """Places of the alarms."""
        return self.at[int(level)]

    def levels(self) -> list[float]:
        """Their numbers."""
        return [float(number) for number in range(len(self.at))]


def level_for(traces: Sequence[Trace], units: int, run_length: float) -> float:
    """The level whose measured run length over all traces, ``units`` in all, is nearest to the one wanted."""
    levels = sorted({level for trace in traces for level in trace.levels()})

    def apart(number: int) -> float:
        alarms = sum(len(trace.alarms(levels[number])) for trace in traces)
        return math.log(RunLength(units, alarms).point / run_length)

    above = bisect.bisect_left(range(len(levels)), 0.0, key=apart)
    near = [number for number in (above - 1, above) if 0 <= number < len(levels)]
    return levels[min(near, key=lambda number: abs(apart(number)))]


# -- delays ------------------------------------------------------------------------------------------------------------


class Delays(NamedTuple):
    """Delay of each stream in units, infinite without an alarm and None where one came before the change.

    ``earlier`` is the share of the alarms that came earlier than the twin's.
    """

    of_stream: list[float | None]
    earlier: float

    @property
    def median(self) -> float:
        """Median over the streams that had no alarm before the change; infinite if half had none after it."""
        known = [delay for delay in self.of_stream if delay is not None]
        return statistics.median(known) if known else math.inf

    @property
    def streams(self) -> int:
        """Streams that had no alarm before the change."""
        return sum(delay is not None for delay in self.of_stream)

    @property
    def counts(self) -> bool:
        """Whether it was detection rather than chance."""
        return self.earlier >= EARLIER and self.median < math.inf


def delays(changed: Sequence[list[int]], twins: Sequence[list[int]]) -> Delays:
    """Delays of the alarms of streams that changed, beside those of their twins, from places of alarms."""
    found: list[float | None] = []
    earlier = []
    for alarms, others in zip(changed, twins, strict=True):
        first = next((place for place in alarms if place >= BEFORE), None)
        other = next((place for place in others if place >= BEFORE), None)
        if others and others[0] < BEFORE:
            found.append(None)
            continue
        found.append(math.inf if first is None else first - BEFORE + 1)
        if first is not None:
            earlier.append(other is None or first < other)
    return Delays(found, statistics.fmean(earlier) if earlier else 0.0)


def ratio(ours: Delays, theirs: Delays) -> tuple[float, float, float]:
    """Ratio of medians, with the 95% interval of a bootstrap over streams, which both were given."""
    pairs = list(zip(ours.of_stream, theirs.of_stream, strict=False))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(pairs), (BOOTSTRAPS, len(pairs)), generator=generator).tolist()
    found = sorted(_of_medians([pairs[place] for place in some]) for some in drawn)
    middle = _of_medians([(one, None) for one in ours.of_stream] + [(None, one) for one in theirs.of_stream])
    return middle, found[BOOTSTRAPS // 40], found[-BOOTSTRAPS // 40 - 1]


def _of_medians(pairs: list[tuple[float | None, float | None]]) -> float:
    """Of delays, those longer than what was watched taken as that long."""
    ours, theirs = ([min(one, AFTER) for one in column if one is not None] for column in zip(*pairs, strict=True))
    return statistics.median(ours) / statistics.median(theirs) if ours and theirs else math.nan
