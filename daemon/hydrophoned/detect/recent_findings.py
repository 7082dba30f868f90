"""What was found in the latest units of a stream, kept so that no row has to be looked at twice."""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.fired import Fired


class _Part(NamedTuple):
    """Some units that came together."""

    units: int
    fired: Fired | None
    novel: Tensor | None


class RecentFindings:
    """Which features fired in the latest ``capacity`` units, and which of the units were novel."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._parts: deque[_Part] = deque()
        self.count = 0

    def add(self, units: int, fired: Fired | None, novel: Tensor | None) -> None:
        """Take in so many units, ``novel`` bool [units]; None: not known. The oldest beyond the capacity go."""
        if not units:
            return
        self._parts.append(_Part(units, fired, novel))
        self.count += units
        while self.count - self._parts[0].units >= self.capacity:
            self.count -= self._parts.popleft().units
        over = self.count - self.capacity
        if over > 0:
            units, fired, novel = self._parts[0]
            fired = None if fired is None else fired.part(over, units)
            self._parts[0] = _Part(units - over, fired, None if novel is None else novel[over:])
            self.count = self.capacity

    def forget_features(self) -> None:
        """Forget which features fired: another dictionary tells them now."""
        self._parts = deque(part._replace(fired=None) for part in self._parts)

    def tell_features(self, fired: Fired) -> None:
        """Take in which features fired in all of the units."""
        self._parts = deque([_Part(self.count, fired, self.novel())])

    def fired(self) -> Fired | None:
        """Of all units, the oldest first; None where it is not known of some, or there are none."""
        known = [part.fired for part in self._parts if part.fired is not None]
        return Fired.joined(known) if 0 < len(known) == len(self._parts) else None

    def novel(self) -> Tensor | None:
        """Bool, likewise."""
        known = [part.novel for part in self._parts if part.novel is not None]
        return torch.cat(known) if 0 < len(known) == len(self._parts) else None

    def clear(self) -> None:
        """Forget them."""
        self._parts.clear()
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        """What is known of all units."""
        fired, novel = self.fired(), self.novel()
        return (
            {"count": self.count}
            | ({} if fired is None else {"offsets": fired.offsets, "feature": fired.feature})
            | ({} if novel is None else {"novel": novel})
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.clear()
        fired = Fired(state["offsets"], state["feature"]) if "offsets" in state else None
        self.add(state["count"], fired, state.get("novel"))
