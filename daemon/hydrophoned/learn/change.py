"""Notices that a stream has changed so much that its dictionary must learn faster again."""

import math
from typing import Any, Final

_FAST_ROWS: Final = 4096
_SLOW_ROWS: Final = 65_536
_RISEN: Final = math.log(1.4)
_SETTLING_ROWS: Final = 16_384
_STATE: Final = ("fast", "slow", "before", "rows", "calls", "known")


class ChangeWatch:
    """Compares a fast and a slow mean of log fvu of fresh rows.

    A change is called when the fast mean (over some 4096 rows) exceeds the slow one (65,536) by log 1.4. For 16,384
    rows after a call the slow mean goes with the fast one: however far fvu rises then, it is one change. This is not an
    alarm with a stated false-alarm rate: a call that was not needed costs some rows of larger steps.
    """

    def __init__(self) -> None:
        self.fast = self.slow = self.before = 0.0
        self.rows = _SETTLING_ROWS
        self.calls = 0
        self.known = False

    def update(self, fvu: float, rows: int) -> float:
        """Take in the fvu of ``rows`` fresh rows; how far log fvu has risen in a change that goes on, else 0."""
        if not fvu > 0:
            return 0.0
        level = math.log(fvu)
        if not self.known:
            self.fast = self.slow = level
            self.known = True
        self.fast += (level - self.fast) * min(1.0, rows / _FAST_ROWS)
        self.rows += rows
        if self.rows < _SETTLING_ROWS:
            self.slow = self.fast
            return max(0.0, self.fast - self.before)
        # while it learns, fvu falls: the slow mean follows downwards as fast as the fast one does
        share = rows / (_FAST_ROWS if self.fast < self.slow else _SLOW_ROWS)
        self.slow += (self.fast - self.slow) * min(1.0, share)
        if self.fast < self.slow + _RISEN:
            return 0.0
        self.before, self.slow, self.rows = self.slow, self.fast, 0
        self.calls += 1
        return self.fast - self.before

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {f"change_{name}": getattr(self, name) for name in _STATE}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        for name in _STATE:
            setattr(self, name, type(getattr(self, name))(state[f"change_{name}"]))
