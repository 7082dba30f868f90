"""Sums of blocks over windows of 1, 2, 4, ... blocks, what is told of each, and how large it gets by chance.

The windows that end at the latest block and are each twice as long as the one before are those of Lai (1995,
"Sequential changepoint detection in quality control and dynamical systems"): a change of any age fills one of them at
least half.
"""

import math
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

KINDS: Final = 7
"""Statistics of a window."""
_REFERENCES: Final = 64
_STREAMS: Final = 2  # of each reference
_BLOCKS: Final = 65_536  # of all streams together, at most
_POOL: Final = 8192  # units that streams are drawn from, at most
_MARGIN: Final = 2.0  # standard errors
_QUANTILE: Final = 0.9
_LEVELS: Final = 256
_LEAST_ALARMS: Final = 8
_MOST: Final = 1e30


class Groups(NamedTuple):
    """How p = 2 m + r + 1 features are grouped: m coordinates, m squares, r Fourier features, sum of the squares."""

    coordinates: int
    frequencies: int

    @property
    def features(self) -> int:
        """Features p."""
        return 2 * self.coordinates + self.frequencies + 1

    def statistics(self, sums: Tensor) -> Tensor:
        """Each group's sum of squares and largest square, and the last one's square: [k, 7] of sums [k, p]."""
        squares = sums.square()
        parts = torch.split(squares, [self.coordinates, self.coordinates, self.frequencies, 1], dim=1)
        told = [one for part in parts[:3] for one in (part.sum(1), part.amax(1) if part.shape[1] else part.sum(1))]
        return torch.stack([*told, parts[3][:, 0]], 1)


class Windows:
    """The sums of the latest blocks, by which all windows are kept up, each in one addition a block."""

    def __init__(self, groups: Groups, windows: int, device: torch.device) -> None:
        self.groups, self.windows = groups, windows
        self.blocks = 0
        # of window l the last 2^l sums, by which the next longer one is made
        self._past = [torch.zeros(1 << window, groups.features, device=device) for window in range(windows - 1)]

    def add(self, sums: Tensor) -> Tensor:
        """The statistics [k, windows, 7], -inf of a window that is not full, after each of k more sums [k, p]."""
        count = len(sums)
        found = sums.new_empty(count, self.windows, KINDS)
        for window in range(self.windows):
            found[:, window] = self.groups.statistics(sums) / (1 << window)
            found[: max(0, (1 << window) - 1 - self.blocks), window] = -torch.inf
            if window < self.windows - 1:
                whole = torch.cat([self._past[window], sums])
                self._past[window] = whole[count:].clone()
                sums = sums + whole[:count]
        self.blocks += count
        return found

    def clear(self) -> None:
        """Begin anew."""
        self.blocks = 0
        for past in self._past:
            past.zero_()

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {"blocks": self.blocks} | {f"past_{window}": past for window, past in enumerate(self._past)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.blocks = int(state["blocks"])
        for window, past in enumerate(self._past):
            past.copy_(state[f"past_{window}"])


class Tails(NamedTuple):
    """Where the tail of each statistic begins, and its mean excess: float32 [windows, 7]."""

    begin: Tensor
    excess: Tensor

    @classmethod
    def of(cls, statistics: Tensor) -> "Tails":
        """Those of statistics [s, k, windows, 7] of s streams of k blocks."""
        begin, excess = [], []
        for window in range(statistics.shape[2]):
            full = statistics[:, (1 << window) - 1 :, window].flatten(0, 1).double()
            low = full.kthvalue(max(1, math.ceil(_QUANTILE * len(full))), dim=0).values
            over = full > low
            begin.append(low)
            excess.append((full - low).clamp_min(0).sum(0) / over.sum(0).clamp_min(1))
        flat = torch.stack(excess)
        return cls(torch.stack(begin).float(), torch.where(flat > 0, flat, torch.inf).float())

    def evidence(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Of statistics [k, windows, 7] the largest excess in mean excesses, and the window it is of: [k], [k]."""
        out = ((statistics - self.begin) / self.excess).nan_to_num_(nan=-_MOST, posinf=_MOST, neginf=-_MOST)
        return out.amax(2).max(1)


def calibrated(
    features: Tensor, groups: Groups, *, block: int, windows: int, run_length: float, generator: torch.Generator
) -> tuple[Tails, float]:
    """The tails, and the threshold at which streams like standardised ``features`` [n, p] have a mean run length.

    Streams are drawn from ``features`` with replacement, several to be standardised by each of 64 other such draws of n
    units. The threshold is that at which the mean over these of alarms per unit, and two standard errors of it, are at
    most 1 / run_length. Beyond the run lengths that can be drawn the logarithm of the run length is taken to be linear
    in the threshold, as for an exponential tail.
    """
    features = features[:_POOL]
    length = max(2 * run_length / block, 4 << windows)
    length = int(min(length, _BLOCKS / (_REFERENCES * _STREAMS)))
    streams = torch.stack(
        [one for _ in range(_REFERENCES) for one in _drawn(features, groups, block, windows, length, generator)]
    )
    tails = Tails.of(streams)
    record = torch.stack([tails.evidence(one)[0] for one in streams]).cummax(1).values
    return tails, _threshold(record.view(_REFERENCES, _STREAMS, length), run_length / block)


def _drawn(
    features: Tensor, groups: Groups, block: int, windows: int, length: int, generator: torch.Generator
) -> list[Tensor]:
    """Statistics [length, windows, 7] of streams standardised by one reference."""
    n = len(features)
    again = torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n).to(features) / n
    mean = again @ features
    variance = again @ features.square() - mean.square()
    scale = torch.where(variance > 0, variance, torch.inf).rsqrt()
    found = []
    for _ in range(_STREAMS):
        units = torch.randint(n, (length, block), generator=generator).to(features.device)
        sums = torch.nn.functional.embedding_bag(units, features, mode="sum")
        sums = (sums - mean * block) * (scale / block**0.5)
        found.append(Windows(groups, windows, features.device).add(sums))
    return found


def _threshold(record: Tensor, run_length: float) -> float:
    """From the highest evidence so far [references, streams, k], for a mean run length in blocks."""
    references, _, length = record.shape
    some = record.flatten().sort().values[:: max(1, record.numel() // _LEVELS)]
    level = torch.unique(torch.cat([some, record[..., -1].flatten()]))
    # record rises, so the blocks below a level are those before the first at or above it
    below = torch.stack([torch.searchsorted(one, level) for one in record.flatten(0, 1).contiguous()])
    below = below.view(references, -1, len(level)).double()
    alarms = (below < length).sum(1)
    rate = alarms / (below.sum(1) + alarms)
    rate = rate.mean(0) + _MARGIN * rate.std(0) / references**0.5
    enough = alarms.sum(0) >= _LEAST_ALARMS
    level, length_at = level[enough].double(), (1 / rate[enough]).cummax(0).values
    if float(length_at[-1]) >= run_length:
        return float(level[int((length_at < run_length).sum())])
    far = length_at > length_at[-1] / _LEAST_ALARMS
    x, y = level[far], length_at[far].log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    # of an exponential tail in its mean excesses it is 1
    return float(x[-1]) + (math.log(run_length) - float(y[-1])) / (slope if slope > 0 else 1.0)
