"""Running mean and scale of a stream, and the rule that sets attention-sink rows apart."""

from typing import Any

import torch
from torch import Tensor


class Normaliser:
    """y = (x - mean) * scale, so that rows have mean squared norm d.

    Mean and scale are running moments (Chan et al. 1983, pairwise update, in float64) of the first ``freeze_after``
    rows; then they stay, since a dictionary is only valid for the transform it was learned under.
    """

    def __init__(self, width: int, freeze_after: int, device: torch.device) -> None:
        self.freeze_after = freeze_after
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.spread = torch.zeros((), dtype=torch.float64, device=device)  # sum of squared distances from the mean
        self._mean = self.mean.float()
        self._scale = 1.0

    @property
    def frozen(self) -> bool:
        """True once ``freeze_after`` rows were seen."""
        return self.count >= self.freeze_after

    @property
    def scale(self) -> float:
        """The one factor that brings the mean squared norm of centred rows to d."""
        return self._scale

    def update(self, x: Tensor) -> None:
        """Take in rows x [n, d]; does nothing once frozen."""
        if self.frozen or not len(x):
            return
        rows = x.double()
        n, mean = len(rows), rows.mean(0)
        delta = mean - self.mean
        total = self.count + n
        self.spread += (rows - mean).square().sum() + delta.square().sum() * (self.count * n / total)
        self.mean += delta * (n / total)
        self.count = total
        self._derive()

    def apply(self, x: Tensor) -> Tensor:
        """Normalised rows [n, d], float32."""
        return (x - self._mean).mul_(self._scale)

    def invert(self, y: Tensor) -> Tensor:
        """Rows in the model's own scale, from normalised ones."""
        return y / self._scale + self._mean

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {"mean": self.mean, "spread": self.spread, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.mean.copy_(state["mean"])
        self.spread.copy_(state["spread"])
        self.count = int(state["count"])
        self._derive()

    def _derive(self) -> None:
        self._mean = self.mean.float()
        variance = float(self.spread) / max(self.count, 1)
        # a constant stream has no scale: leave it as it is rather than divide by zero
        self._scale = (len(self.mean) / variance) ** 0.5 if variance > 1e-30 else 1.0


class SinkFilter:
    """Sets apart rows whose norm exceeds ``factor`` times the running median norm (attention sinks).

    In language models the first position and a few tokens have 25 to 150 times the median norm and most of the
    variance; they would dominate both gradient and fvu (Sun et al. 2024, "Massive Activations in LLMs"). The median
    is that of the last ``memory`` rows, sinks included.
    """

    def __init__(self, factor: float, device: torch.device, *, memory: int = 4096) -> None:
        self.factor = factor
        self.norms = torch.zeros(memory, device=device)
        self.seen = 0

    @property
    def median(self) -> float | None:
        """Running median norm, None before the first row."""
        known = min(self.seen, len(self.norms))
        return float(self.norms[:known].median()) if known else None

    def split(self, norms: Tensor) -> Tensor:
        """Bool [n]: which of the rows with these finite norms [n] are sinks; the median moves with them first."""
        slots = (torch.arange(len(norms), device=norms.device) + self.seen) % len(self.norms)
        self.norms[slots[-len(self.norms) :]] = norms[-len(self.norms) :]
        self.seen += len(norms)
        median = self.median
        return norms > self.factor * (median or 0.0)

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {"norms": self.norms, "seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.norms.copy_(state["norms"])
        self.seen = int(state["seen"])
