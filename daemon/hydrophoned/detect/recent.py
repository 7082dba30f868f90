"""The latest units of a stream, in order."""

from collections import deque

import torch

from hydrophoned.detect.units import Units


class RecentUnits:
    """The latest ``capacity`` units of width d, with their sampled rows."""

    def __init__(self, width: int, sample_rows: int, capacity: int) -> None:
        self.capacity = capacity
        self._none = Units.none(width, sample_rows)
        self._parts: deque[Units] = deque()
        self.count = 0

    def add(self, units: Units) -> None:
        """Take in units; the oldest beyond the capacity go."""
        if not units.count:
            return
        self._parts.append(units)
        self.count += units.count
        while self.count - self._parts[0].count >= self.capacity:
            self.count -= self._parts.popleft().count
        if self.count > self.capacity:
            self._parts[0] = self._parts[0].take(slice(self.count - self.capacity, None))
            self.count = self.capacity

    def all(self) -> Units:
        """All of them, the oldest first."""
        if len(self._parts) > 1:
            columns = zip(*self._parts, strict=True)
            self._parts = deque([Units(*(torch.cat(column) for column in columns))])
        return self._parts[0] if self._parts else self._none

    def clear(self) -> None:
        """Forget them."""
        self._parts.clear()
        self.count = 0
