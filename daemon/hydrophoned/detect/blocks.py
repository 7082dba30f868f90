"""Units in blocks of a fixed number, however they come in batches."""

from typing import Any

import torch
from torch import Tensor

from hydrophoned.detect.errors import ReferenceMismatch


class Blocks:
    """Cuts units of ``width`` coordinates into blocks of ``size``; what is left of a batch waits for the next one.

    Units that are not finite are left out and counted.
    """

    def __init__(self, width: int, size: int, device: torch.device) -> None:
        self.size = size
        self.units = self.left_out = 0
        self._waiting = torch.zeros(0, width, device=device)

    @property
    def width(self) -> int:
        """Coordinates d of a unit."""
        return self._waiting.shape[1]

    def take(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Take in units x [n, d]: the whole blocks that there are now, [k size, d], and where each of them ended.

        Places count the units that were taken in, those left out as well. Raises ReferenceMismatch for another width.
        """
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ReferenceMismatch(
                f"units of shape {list(x.shape)} were given; those of the reference have width {self.width}"
            )
        x = x.to(self._waiting)
        given, before = self.units + self.left_out, len(self._waiting)
        (place,) = representable(x).nonzero(as_tuple=True)
        kept = x if len(place) == len(x) else x[place]
        self.units += len(kept)
        self.left_out += len(x) - len(kept)
        waiting = torch.cat([self._waiting, kept])
        whole = len(waiting) // self.size * self.size
        self._waiting = waiting[whole:].clone()
        return waiting[:whole], (place[self.size - 1 - before :: self.size] + given).tolist()

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {"units": self.units, "left_out": self.left_out, "waiting": self._waiting}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`. Raises ReferenceMismatch for another width."""
        if state["waiting"].shape[1] != self.width:
            raise ReferenceMismatch(
                f"the state is of units of width {state['waiting'].shape[1]}; those of the reference have {self.width}"
            )
        self.units, self.left_out = int(state["units"]), int(state["left_out"])
        self._waiting = state["waiting"].to(self._waiting).clone()


def representable(x: Tensor) -> Tensor:
    """Bool [n]: which units x [n, d] are finite, and small enough that their squared length is."""
    good: Tensor = torch.linalg.vector_norm(x, dim=1).square().isfinite()
    return good
