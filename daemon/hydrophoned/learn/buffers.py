"""Bounded stores of rows: the shuffle buffer that training draws from, and the uniform reservoir."""

from typing import Any

import torch
from torch import Tensor

from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.placement import put


class ShuffleBuffer:
    """Breaks up the order of arrival: neighbouring rows of a request are strongly correlated.

    Holds up to ``capacity`` normalised rows [d]; once full, each ``batch`` rows that come in push out as many drawn
    uniformly at random. Every row leaves exactly once.
    """

    def __init__(self, width: int, capacity: int, batch: int, generator: torch.Generator, device: torch.device) -> None:
        self.rows = torch.zeros(max(capacity, batch), width, device=device)
        self.batch = batch
        self.count = 0
        self._generator = generator

    @property
    def content(self) -> Tensor:
        """The rows held now [count, d]."""
        return self.rows[: self.count]

    def push(self, y: Tensor) -> list[Tensor]:
        """Take in rows y [n, d]; return the batches they push out."""
        out = []
        while len(y):
            if self.count == len(self.rows):
                out.append(self.draw(self.batch))
            room = min(len(self.rows) - self.count, len(y))
            self.rows[self.count : self.count + room] = y[:room]
            self.count += room
            y = y[room:]
        return out

    def draw(self, count: int) -> Tensor:
        """Remove and return up to ``count`` rows drawn at random."""
        count = min(count, self.count)
        chosen = torch.randperm(self.count, generator=self._generator)[:count]
        # close the gaps: the rows at the end that were not drawn move into the holes before them; which ones is worked
        # out in main memory, where the draw is known, so that a GPU need not be waited for
        end = self.count - count
        taken = torch.zeros(self.count, dtype=torch.bool)
        taken[chosen] = True
        holes = taken[:end].nonzero().squeeze(1)
        movers = (~taken[end:]).nonzero().squeeze(1) + end
        device = self.rows.device
        drawn = self.rows[put(chosen, device)]
        self.rows[put(holes, device)] = self.rows[put(movers, device)]
        self.count = end
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """The rows held."""
        return {"rows": self.content.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        rows = state["rows"]
        self.count = len(rows)
        self.rows[: self.count] = rows


class Reservoir:
    """Uniform sample of all rows seen (Vitter 1985, algorithm R), as captured, with their metadata."""

    def __init__(self, width: int, capacity: int, generator: torch.Generator, device: torch.device) -> None:
        self.rows = torch.zeros(capacity, width, device=device)
        self.metadata = RowMetadata.empty(capacity, device)
        self.seen = 0
        self._generator = generator

    @property
    def count(self) -> int:
        """Rows held."""
        return min(self.seen, len(self.rows))

    def sample(self, count: int) -> Tensor:
        """``count`` of the rows held, drawn with replacement [count, d]."""
        chosen = torch.randint(self.count, (count,), generator=self._generator)
        return self.rows[put(chosen, self.rows.device)]

    def update(self, x: Tensor, metadata: RowMetadata) -> None:
        """Offer rows x [n, d] with their metadata."""
        n, capacity = len(x), len(self.rows)
        if not n or not capacity:
            return
        slots, source = kept_slots(self.seen, n, capacity, self._generator)
        if len(slots):
            slots, source = put(slots, x.device), put(source, x.device)
            self.rows.index_copy_(0, slots, x[source])
            self.metadata.put(slots, metadata.take(source))
        self.seen += n

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            "rows": self.rows[: self.count].clone(),
            "seen": self.seen,
            **{f"metadata.{name}": column[: self.count].clone() for name, column in self.metadata._asdict().items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.seen = int(state["seen"])
        self.rows[: self.count] = state["rows"]
        for name, column in self.metadata._asdict().items():
            column[: self.count] = state[f"metadata.{name}"]


def kept_slots(seen: int, n: int, capacity: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of n new rows a uniform sample of ``capacity`` keeps after ``seen`` rows, by algorithm R: (slots, rows).

    Both are int64 on the host; slots are distinct and rise.
    """
    number = torch.arange(seen + 1, seen + n + 1, dtype=torch.int64)
    # row t goes to a slot uniform in 0..t-1 and is kept if that slot exists (t <= capacity: its own slot)
    slot = (torch.rand(n, generator=generator, dtype=torch.float64) * number).long()
    slot = torch.where(number <= capacity, number - 1, slot)
    kept = (slot < capacity).nonzero().squeeze(1)
    # of several rows for one slot the last one stays, as if they had come one by one
    ordered, order = slot[kept].sort(stable=True)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    return ordered[last], kept[order[last]]
