"""Notices that a stream has changed so much that its dictionary must learn faster again."""

import math
from typing import Any, Final

_FAST_ROWS: Final = 4096
_SLOW_ROWS: Final = 65_536
_RISEN: Final = 1.25
_REST_ROWS: Final = 16_384


class ChangeWatch:
    """Compares a fast and a slow mean of log fvu of fresh rows.

    A change is called when the fast mean (over some 4096 rows) exceeds the slow one (65,536) by log 1.25, not within
    16,384 rows of the last call; the slow mean then begins anew at the fast one. Not an alarm with a stated false-alarm
    rate: a call that was not needed costs some rows of larger steps.
    """

    def __init__(self) -> None:
        self.fast = self.slow = 0.0
        self.known = False
        self.rows = 0

    def update(self, fvu: float, rows: int) -> bool:
        """Take in the fvu of ``rows`` fresh rows; True when a change is called."""
        if not fvu > 0:
            return False
        level = math.log(fvu)
        if not self.known:
            self.fast = self.slow = level
            self.known = True
        self.fast += (level - self.fast) * min(1.0, rows / _FAST_ROWS)
        # while it learns, fvu falls: the slow mean follows downwards as fast as the fast one does
        share = rows / (_FAST_ROWS if self.fast < self.slow else _SLOW_ROWS)
        self.slow += (self.fast - self.slow) * min(1.0, share)
        self.rows += rows
        if self.rows < _REST_ROWS or self.fast < self.slow + math.log(_RISEN):
            return False
        self.slow, self.rows = self.fast, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            "change_fast": self.fast,
            "change_slow": self.slow,
            "change_rows": self.rows,
            "change_known": int(self.known),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.fast, self.slow = float(state["change_fast"]), float(state["change_slow"])
        self.rows, self.known = int(state["change_rows"]), bool(state["change_known"])
