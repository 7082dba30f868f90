"""What was found in the latest units of a stream, kept so that no row has to be looked at twice."""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.fired import Fired


class _Part(NamedTuple):
    count: int
    fired: Fired | None
    novel: Tensor | None


class RecentFindings:
    """Which features fired in the latest ``capacity`` units, and which of the units were novel."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._parts: deque[_Part] = deque()
        self.count = 0

    def add(self, count: int, fired: Fired | None, novel: Tensor | None) -> None:
        """Take in ``count`` units, ``novel`` bool [count]; None: not known. The oldest beyond the capacity go."""
        if not count:
            return
        self._parts.append(_Part(count, fired, novel))
        self.count += count
        while self.count - self._parts[0].count >= self.capacity:
            self.count -= self._parts.popleft().count
        over = self.count - self.capacity
        if over > 0:
            part = self._parts[0]
            fired = None if part.fired is None else part.fired.part(over, part.count)
            novel = None if part.novel is None else part.novel[over:]
            self._parts[0] = _Part(part.count - over, fired, novel)
            self.count = self.capacity

    def forget_features(self) -> None:
        """Forget which features fired: another dictionary tells them now."""
        self._parts = deque(part._replace(fired=None) for part in self._parts)

    def tell_features(self, fired: Fired) -> None:
        """Take in which features fired in all of the units."""
        novel = self.novel()
        self._parts = deque([_Part(self.count, fired, novel)])

    def fired(self) -> Fired | None:
        """Of all units, the oldest first; None where it is not known of some, or there are none."""
        whole = self._whole()
        return None if whole is None else whole.fired

    def novel(self) -> Tensor | None:
        """Bool, likewise."""
        whole = self._whole()
        return None if whole is None else whole.novel

    def _whole(self) -> _Part | None:
        if len(self._parts) > 1:
            fired = [part.fired for part in self._parts if part.fired is not None]
            novel = [part.novel for part in self._parts if part.novel is not None]
            known = len(self._parts)
            if not (0 < len(fired) < known or 0 < len(novel) < known):
                one = _Part(
                    self.count,
                    Fired.joined(fired) if fired else None,
                    torch.cat(novel) if novel else None,
                )
                self._parts = deque([one])
            else:
                return _Part(
                    self.count,
                    Fired.joined(fired) if len(fired) == known else None,
                    torch.cat(novel) if len(novel) == known else None,
                )
        return self._parts[0] if self._parts else None

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
