"""In how many requests each feature has fired."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.learn.placement import put
from hydrophoned.learn.request_rows import DistinctRequests

SIDE_BY_SIDE: Final = 512
"""Requests whose rows may come mixed while the counts stay exact."""

_UNKNOWN: Final = 0
_FEWEST: Final = 64
_LANES: Final = 8  # flags of 8 features are added in one word
_MOST_ADDED: Final = 255  # a flag's byte holds no more
_NOT_KNOWN: Final = -1


class RequestCounts:
    """Distinct requests in which each of F features fired in the open window.

    A table of flags has a row for each of the latest ``side_by_side`` requests and a byte for each feature that fired
    in it. A new request takes the row of the one unseen for longest, whose flags are added to the counts. So a count is
    exact, whatever the number of requests, as long as no request comes back after that many others have had rows;
    features that fire in a row of one that does, or in a row whose request is not known, have an unknown count in
    that window.
    """

    def __init__(self, features: int, device: torch.device, *, side_by_side: int = SIDE_BY_SIDE) -> None:
        self.features, self.side_by_side = features, side_by_side
        # at least one column more, for pairs that are not active, and a whole number of words
        self._columns = (features // _LANES + 1) * _LANES
        self._counts = torch.zeros(self._columns, dtype=torch.int32, device=device)
        self._flags = torch.zeros(1, self._columns, dtype=torch.uint8, device=device)
        self._slots: dict[int, int] = {}  # of each request that has one, the one unseen for longest first
        self._left: set[int] = set()  # requests whose row another one has taken

    def update(self, feature: Tensor, requests: DistinctRequests) -> None:
        """Take in ``feature`` int64 [n, k], F where there is none, of rows of ``requests``."""
        for start in range(0, len(requests.key), self.side_by_side):
            stop = min(start + self.side_by_side, len(requests.key))
            slots = self._seen(requests.key[start:stop].tolist())
            if stop - start == len(requests.key):
                self._mark(feature, slots[requests.place])
                return
            inside = ((requests.place >= start) & (requests.place < stop)).nonzero()[0]
            self._mark(feature[put(torch.from_numpy(inside), feature.device)], slots[requests.place[inside] - start])

    def requests(self) -> tuple[Tensor, Tensor]:
        """Requests by feature, int32 [F], and which of these are known, bool [F]."""
        held = torch.arange(1, len(self._flags), device=self._flags.device)
        counts = self._counts + self._added(held)
        return counts[: self.features], self._flags[_UNKNOWN, : self.features] == 0

    def clear(self) -> None:
        """Begin a new window."""
        self._counts.zero_()
        self._flags.zero_()
        self._slots, self._left = {}, set()

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        flags = np.packbits(self._flags.cpu().numpy(), axis=1)
        held = list(self._slots.items())
        return {
            "counts": self._counts,
            "flags": torch.from_numpy(flags),
            "slots": torch.tensor(held, dtype=torch.int64).reshape(len(held), 2),
            "left": torch.tensor(sorted(self._left), dtype=torch.int64),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        flags = np.unpackbits(state["flags"].cpu().numpy(), axis=1, count=self._columns)
        self._counts.copy_(state["counts"])
        self._flags = torch.from_numpy(flags).to(self._counts.device)
        self._slots = dict(state["slots"].tolist())
        self._left = set(state["left"].tolist())

    def _seen(self, keys: list[int]) -> NDArray[np.int64]:
        """The rows of requests that now have rows, at most ``side_by_side`` of them; new ones are given one."""
        found = {key: slot for key in keys if (slot := self._slots.pop(key, None)) is not None}
        self._slots.update(found)  # seen last, so that none of them gives way to another one
        fresh = [key for key in keys if key not in found and key != _NOT_KNOWN and key not in self._left]
        found.update(zip(fresh, self._free(len(fresh)), strict=True))
        self._slots.update((key, found[key]) for key in fresh)
        return np.array([found.get(key, _UNKNOWN) for key in keys], dtype=np.int64)

    def _free(self, count: int) -> Iterator[int]:
        """``count`` rows of flags that are all 0."""
        used = len(self._slots) + 1
        grown = min(used + count, self.side_by_side + 1) - used
        self._grow(used + grown)
        yielded = list(range(used, used + grown))
        if grown < count:
            leaving = [key for key, _ in zip(self._slots, range(count - grown), strict=False)]
            slots = [self._slots.pop(key) for key in leaving]
            self._left.update(leaving)
            taken = put(torch.tensor(slots), self._flags.device)
            self._counts += self._added(taken)
            self._flags.index_fill_(0, taken, 0)
            yielded += slots
        return iter(yielded)

    def _grow(self, rows: int) -> None:
        if rows <= len(self._flags):
            return
        rows = min(max(rows, _FEWEST, 2 * len(self._flags)), self.side_by_side + 1)
        grown = torch.zeros(rows, self._columns, dtype=torch.uint8, device=self._flags.device)
        grown[: len(self._flags)] = self._flags
        self._flags = grown

    def _mark(self, feature: Tensor, slots: NDArray[np.int64]) -> None:
        place = feature + put(torch.from_numpy(slots * self._columns), feature.device)[:, None]
        self._flags.view(-1).index_fill_(0, place.reshape(-1), 1)

    def _added(self, slots: Tensor) -> Tensor:
        """For each feature, how many of these rows have its flag: int32 [columns]."""
        words, total = self._flags.view(torch.int64), torch.zeros_like(self._counts)
        for start in range(0, len(slots), _MOST_ADDED):
            total += words[slots[start : start + _MOST_ADDED]].sum(0).view(torch.uint8)
        return total
