"""A cheap first tier: sums over windows of many lengths, of coordinates, their squares and Fourier features.

Units are whitened by one half of the reference, and projected on random directions where they have more coordinates
than ``projections``. By one matrix product a batch each unit becomes its features: the coordinates y, clipped at 3;
their squares; the sum of these; and cos(w.y + b) with w normal, of the length that a Gaussian kernel of the reference's
median distance wants (Rahimi & Recht 2007, "Random features for large-scale kernel machines"). They are standardised on
the other half, and added up over blocks of 16 units and the windows of :mod:`~hydrophoned.detect.scan_windows`.

Each statistic of each window is taken by how far out it is in its own tail: (T - q) / e, with q the 0.9 quantile and e
the mean excess over it. The evidence is the largest of these, and its threshold a bootstrap's: streams are drawn from
the second half with replacement, and standardised by another draw of as many units. (The live stream is standardised by
a finite sample, too. Without that second draw the mean run length came to a fifth of what was promised.)

Small windows find a large change soon; a small shift is found later than by a detector that learns its direction,
because all features add noise.
"""

import math
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.blocks import Blocks
from hydrophoned.detect.detector import Detection, Guarantee
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.projection import Projection, halves
from hydrophoned.detect.scan_windows import Groups, Windows, calibrated

LEAST_UNITS: Final = 64
"""Units of a reference, at least."""
_CLIP: Final = 3.0
_AT_ONCE: Final = 64  # blocks: what is worked on stays in the cache
_FLAT: Final = 1e-4  # a feature that varies less is left out: rounding would be a change of it
_PAIRED: Final = 300  # units whose distances tell the kernel's width


class ScanDetector:
    """Watches sums over windows, all at once. See the module.

    >>> generator = torch.Generator().manual_seed(0)
    >>> reference, units = torch.randn(400, 8, generator=generator), torch.randn(192, 8, generator=generator)
    >>> detector = ScanDetector(reference, run_length=5_000, generator=generator)
    >>> detector.update(units), [found.unit for found in detector.update(units[:32] + 1)]
    ([], [207, 223])
    """

    name: ClassVar[str] = "scan"
    guarantee: ClassVar[Guarantee] = Guarantee.ASYMPTOTIC

    def __init__(
        self,
        reference: Tensor,
        *,
        run_length: float,
        generator: torch.Generator,
        projections: int = 640,
        frequencies: int = 64,
        block: int = 16,
        windows: int = 7,
    ) -> None:
        """For a ``reference`` [n, d], in blocks of ``block`` units and so many ``windows``, each twice the one before.

        No window is longer than half of the reference.

        Raises InsufficientReference for fewer than ``LEAST_UNITS`` finite units, or units that are all the same.
        """
        if not 1 <= run_length < math.inf:
            raise ValueError(f"run_length is {run_length}: it is a number of units, at least 1")
        fit, held_out = halves(reference, LEAST_UNITS, generator)
        self._features = _Features.of(fit, held_out, projections, frequencies, generator)
        self.units = self.left_out = 0
        self._run_length = float(run_length)
        groups = Groups(self._features.coordinates, frequencies)
        features = self._features.sums(held_out, 1)
        # over a longer window the error of the reference's own mean is the larger part
        windows = min(windows, max(1, int(math.log2(len(held_out) / block)) + 1))
        self._tails, self._threshold = calibrated(
            features, groups, block=block, windows=windows, run_length=run_length, generator=generator
        )
        self._windows = Windows(groups, windows, held_out.device)
        self._blocks = Blocks(held_out.shape[1], block, held_out.device)
        self._statistic = 0.0

    @property
    def false_alarm_budget(self) -> float:
        """Promised mean number of units between false alarms."""
        return self._run_length

    @property
    def statistic(self) -> float:
        """The largest excess of a window, in mean excesses, after the last whole block; 0 where none is in its tail."""
        return self._statistic

    @property
    def threshold(self) -> float:
        """The statistic at which a detection is raised."""
        return self._threshold

    def update(self, x: Tensor) -> list[Detection]:
        """Watch units x [n, d], in order of time. Raises ReferenceMismatch for another width.

        A detection is told of the last unit of a block.
        """
        units, ends = self._blocks.take(x)
        self.units, self.left_out = self._blocks.units, self._blocks.left_out
        size = self._blocks.size
        found = []
        for first in range(0, len(ends), _AT_ONCE):
            sums = self._features.sums(units[first * size : (first + _AT_ONCE) * size], size)
            for block, statistic, blocks in self._scan(sums):
                unit = ends[first + block]
                found.append(Detection(unit, statistic, self._threshold, max(0, unit + 1 - blocks * size)))
        return found

    def _scan(self, sums: Tensor) -> list[tuple[int, float, int]]:
        """Block, statistic and blocks of the window of each detection in sums [k, p] of blocks."""
        found = []
        start = 0
        while start < len(sums):
            evidence, window = self._tails.evidence(self._windows.add(sums[start:]))
            over = (evidence >= self._threshold).nonzero()
            if not len(over):
                self._statistic = max(float(evidence[-1]), 0.0)
                break
            first = int(over[0])
            found.append((start + first, float(evidence[first]), 1 << int(window[first])))
            self._windows.clear()
            self._statistic = 0.0
            start += first + 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {"statistic": self._statistic} | self._blocks.state_dict() | self._windows.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict` of a detector with the same reference and settings."""
        self._blocks.load_state(state)
        self.units, self.left_out = self._blocks.units, self._blocks.left_out
        self._windows.load_state(state)
        self._statistic = float(state["statistic"])


class _Features(NamedTuple):
    """Features of units: those of ``centre`` [d] and ``matrix`` [d, m + r], standardised by ``mean`` and ``scale`` [p].

    There are m ``coordinates`` and r Fourier features with ``phase`` [r], in all p = 2 m + r + 1.
    """

    centre: Tensor
    matrix: Tensor
    phase: Tensor
    coordinates: int
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(
        cls, fit: Tensor, held_out: Tensor, projections: int, frequencies: int, generator: torch.Generator
    ) -> "_Features":
        """Whitened by ``fit`` [a, d], standardised on ``held_out`` [b, d]."""
        onto = Projection.of(fit, projections, generator)
        y = onto.apply(held_out[:_PAIRED])
        width = torch.pdist(y).median().clamp_min(_FLAT)
        drawn = torch.randn(onto.width, frequencies, generator=generator).to(y)
        phase = (2 * math.pi * torch.rand(frequencies, generator=generator)).to(y)
        matrix = torch.cat([onto.matrix, onto.matrix @ (drawn / width)], 1)
        plain = cls(onto.centre, matrix, phase, onto.width, y.new_zeros(()), y.new_ones(()))
        deviation, mean = torch.std_mean(plain.sums(held_out, 1), dim=0)
        if not bool((deviation > _FLAT).any()):
            raise InsufficientReference(
                f"the {len(held_out)} units of one half of the reference are all the same: no change can be told by it"
            )
        return plain._replace(mean=mean, scale=torch.where(deviation > _FLAT, 1 / deviation, 0.0))

    def sums(self, x: Tensor, block: int) -> Tensor:
        """Sums over blocks of ``block`` units x [k block, d], in their standard deviations: [k, p]."""
        m, count = self.coordinates, len(x) // block
        z = (x - self.centre) @ self.matrix
        y = z[:, :m].clamp_(-_CLIP, _CLIP).view(count, block, m)
        waves = z[:, m:].add_(self.phase).cos_().view(count, block, -1)
        squares = y.square().sum(1)
        total = torch.cat([y.sum(1), squares, waves.sum(1), squares.sum(1, keepdim=True)], 1)
        return total.sub_(self.mean * block).mul_(self.scale / block**0.5)
