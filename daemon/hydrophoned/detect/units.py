"""Units of a stream: one summary of each request, since rows of a request depend on each other and requests do not."""

from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.learn.metadata import RowMetadata

MAX_ROWS: Final = 4096
"""Rows of a request that its unit is made of; later ones are not looked at."""

_NOT_KNOWN: Final = -1
_BLOCK: Final = 64
"""Consecutive rows that make a unit where their request is not known."""


class Units(NamedTuple):
    """Of m requests, in the order in which they ended: ``mean`` float32 [m, d] of their ``rows`` int64 [m] rows.

    ``sample`` bfloat16 [m, r, d] are some of the rows, of which the first ``sampled`` int64 [m] count, drawn uniformly.
    ``request`` int64 [m] is the daemon's key, -1 for a block of rows without; ``start`` and ``end`` int64 [m] are the
    times of the first and last row, in us. All in main memory.
    """

    mean: Tensor
    rows: Tensor
    request: Tensor
    start: Tensor
    end: Tensor
    sample: Tensor
    sampled: Tensor

    @classmethod
    def none(cls, width: int, sample_rows: int) -> Self:
        """No units."""
        empty = torch.zeros(0, dtype=torch.int64)
        sample = torch.zeros(0, sample_rows, width, dtype=torch.bfloat16)
        return cls(torch.zeros(0, width), empty, empty, empty, empty, sample, empty)

    @property
    def count(self) -> int:  # type: ignore[override]  # units are counted, not searched for in a tuple
        """Units m."""
        return len(self.rows)

    def take(self, index: Tensor | slice) -> Self:
        """Those at ``index``."""
        return type(self)(*(column[index] for column in self))

    def join(self, other: "Units") -> Self:
        """Self followed by ``other``."""
        return type(self)(*(torch.cat(pair) for pair in zip(self, other, strict=True)))

    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(column.numel() * column.element_size() for column in self)


class UnitBuilder:
    """Adds up the rows of each request, and hands it on once it has ended.

    A request has ended when no row of it has come for ``idle_us`` of the rows' own time, or when ``max_open`` others
    have been open since its last row. One that comes back after that begins another unit. The requests open at any
    time are a table of ``max_open`` rows of width d.
    """

    def __init__(
        self,
        width: int,
        *,
        generator: torch.Generator,
        sample_rows: int = 4,
        max_open: int = 256,
        idle_us: int = 5_000_000,
        device: torch.device | None = None,
    ) -> None:
        self.width, self.sample_rows, self.max_open, self.idle_us = width, sample_rows, max_open, idle_us
        self._generator = generator
        self._sum = torch.zeros(max_open, width, device=device)
        self._sample = torch.zeros(max_open, sample_rows, width, dtype=torch.bfloat16, device=device)
        self._priority = torch.full((max_open, sample_rows), -1.0, dtype=torch.float64)
        self._rows = np.zeros(max_open, dtype=np.int64)
        self._start = np.zeros(max_open, dtype=np.int64)
        self._end = np.zeros(max_open, dtype=np.int64)
        self._slots: dict[int, int] = {}  # of each open request, the one unseen for longest first
        self._block = -2  # keys below -1 stand for blocks of rows without a request
        self._block_rows = 0
        self._now = 0

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._slots)

    def update(self, x: Tensor, metadata: RowMetadata) -> Units:
        """Take in finite rows x [n, d] in order; the units that ended before or among them."""
        if not len(x):
            return Units.none(self.width, self.sample_rows)
        x = x.to(self._sum.device)
        request = self._keys(metadata.request.cpu().numpy())
        time = metadata.time.cpu().numpy()
        # a batch may reach over a longer time than that: who goes on in it has not ended before it
        ended = [self._close_idle(int(time.min()))]
        keys, first, place = np.unique(request, return_index=True, return_inverse=True)
        by_arrival = np.argsort(first)
        for start in range(0, len(keys), self.max_open):
            some = by_arrival[start : start + self.max_open]
            ended.append(self._make_room(keys[some].tolist()))
            slot_of = np.full(len(keys), -1)
            slot_of[some] = [self._slots[key] for key in keys[some].tolist()]
            slots = slot_of[place]
            inside = (slots >= 0).nonzero()[0]
            self._add(x, inside, slots[inside], time)
        ended.append(self._close_idle(int(time.max())))
        return _joined(ended)

    def flush(self) -> Units:
        """End all open requests."""
        return self._close(list(self._slots))

    def _keys(self, request: NDArray[np.int64]) -> NDArray[np.int64]:
        """Requests, with a key of its own for each block of rows whose request is not known."""
        unknown = request == _NOT_KNOWN
        count = int(unknown.sum())
        if not count:
            return request
        keys = request.copy()
        block = (self._block_rows + np.arange(count)) // _BLOCK
        keys[unknown] = self._block - block
        self._block -= (self._block_rows + count) // _BLOCK
        self._block_rows = (self._block_rows + count) % _BLOCK
        return keys

    def _make_room(self, keys: list[int]) -> Units:
        """Give ``keys`` a slot each, in that order; the units that had to end for it."""
        known = {key: self._slots.pop(key) for key in keys if key in self._slots}
        fresh = [key for key in keys if key not in known]
        over = len(self._slots) + len(keys) - self.max_open
        ended = self._close(list(self._slots)[: max(0, over)])
        used = {*self._slots.values(), *known.values()}
        free = (slot for slot in range(self.max_open) if slot not in used)
        for key, slot in zip(fresh, free, strict=False):
            known[key] = slot
            self._rows[slot] = 0
            self._sum[slot] = 0
            self._priority[slot] = -1.0
        self._slots.update({key: known[key] for key in keys})
        return ended

    def _add(self, x: Tensor, inside: NDArray[np.int64], slots: NDArray[np.int64], time: NDArray[np.int64]) -> None:
        rank = _rank_within(slots)
        fits = self._rows[slots] + rank < MAX_ROWS
        new = (self._rows[slots] == 0) & (rank == 0)
        self._start[slots[new]] = self._end[slots[new]] = time[inside[new]]
        np.maximum.at(self._end, slots, time[inside])
        np.minimum.at(self._start, slots, time[inside])
        inside, slots = inside[fits], slots[fits]
        if not len(inside):
            return
        np.add.at(self._rows, slots, 1)
        rows = x[torch.from_numpy(inside).to(x.device)]
        self._sum.index_add_(0, torch.from_numpy(slots).to(x.device), rows)
        if self.sample_rows:
            self._draw(rows, torch.from_numpy(slots))

    def _draw(self, rows: Tensor, slots: Tensor) -> None:
        """Keep the rows of highest random priority of each slot: a uniform sample without replacement."""
        priority = torch.rand(len(slots), generator=self._generator, dtype=torch.float64)
        order = torch.argsort(priority, descending=True)
        order = order[torch.argsort(slots[order], stable=True)]
        rank = torch.from_numpy(_rank_within(slots[order].numpy()))
        order, rank = order[rank < self.sample_rows], rank[rank < self.sample_rows]
        touched, local = torch.unique_consecutive(slots[order], return_inverse=True)
        offered = torch.full((len(touched), self.sample_rows), -1.0, dtype=torch.float64)
        offered[local, rank] = priority[order]
        drawn = torch.zeros(len(touched), self.sample_rows, self.width, dtype=torch.bfloat16, device=rows.device)
        device = rows.device
        drawn[local.to(device), rank.to(device)] = rows[order.to(device)].bfloat16()
        best, which = torch.cat([self._priority[touched], offered], 1).topk(self.sample_rows, dim=1)
        self._priority[touched] = best
        there, which = touched.to(device), which.to(device)
        both = torch.cat([self._sample[there], drawn], 1)
        self._sample[there] = both[torch.arange(len(there), device=device)[:, None], which]

    def _close_idle(self, now: int) -> Units:
        self._now = max(self._now, now)
        limit = self._now - self.idle_us
        return self._close([key for key, slot in self._slots.items() if self._end[slot] < limit])

    def _close(self, keys: list[int]) -> Units:
        if not keys:
            return Units.none(self.width, self.sample_rows)
        keys = sorted(keys, key=lambda key: (self._end[self._slots[key]], key))
        slots = np.array([self._slots.pop(key) for key in keys])
        index = torch.from_numpy(slots)
        there = index.to(self._sum.device)
        rows = torch.from_numpy(self._rows[slots])
        mean = self._sum[there].cpu() / rows[:, None]
        request = torch.tensor([max(key, _NOT_KNOWN) for key in keys], dtype=torch.int64)
        start, end = torch.from_numpy(self._start[slots]), torch.from_numpy(self._end[slots])
        sampled = (self._priority[index] >= 0).sum(1)
        return Units(mean, rows, request, start, end, self._sample[there].cpu(), sampled)

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly; the generator's is its owner's."""
        slots = np.array(list(self._slots.values()), dtype=np.int64)
        index = torch.from_numpy(slots)
        there = index.to(self._sum.device)
        return {
            "key": torch.tensor(list(self._slots), dtype=torch.int64),
            "sum": self._sum[there],
            "sample": self._sample[there],
            "priority": self._priority[index],
            "rows": torch.from_numpy(self._rows[slots]),
            "start": torch.from_numpy(self._start[slots]),
            "end": torch.from_numpy(self._end[slots]),
            "block": self._block,
            "block_rows": self._block_rows,
            "now": self._now,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        keys = state["key"].tolist()
        if len(keys) > self.max_open or state["sum"].shape[1] != self.width:
            raise ValueError(
                f"{len(keys)} requests of width {state['sum'].shape[1]}: {self.max_open} fit, {self.width}"
            )
        self._slots = {key: slot for slot, key in enumerate(keys)}
        count = len(keys)
        self._sum[:count] = state["sum"]
        self._sample[:count] = state["sample"]
        self._priority[:count] = state["priority"]
        for name in ("rows", "start", "end"):
            getattr(self, f"_{name}")[:count] = state[name].numpy()
        self._block, self._block_rows, self._now = (int(state[name]) for name in ("block", "block_rows", "now"))


def _joined(parts: list[Units]) -> Units:
    whole = parts[0]
    for part in parts[1:]:
        if part.count:
            whole = whole.join(part) if whole.count else part
    return whole


def _rank_within(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each entry, how many before it are of the same group."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    new = np.ones(len(group), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    starts = new.nonzero()[0]
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - starts[np.cumsum(new) - 1]
    return rank
