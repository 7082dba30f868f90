"""How many false alarms there may be, and what that means in units."""

from typing import Final, NamedTuple

SHORTEST: Final = 500.0
"""Units: no run length is promised below this; at fewer units in a period, the period is longer than it was asked
for."""
LONGEST: Final = 1_000_000.0
"""Units: none is promised above this, whatever the traffic; then there may be more alarms than asked for."""


class Budget(NamedTuple):
    """``false_alarms`` in ``period_seconds`` of one stream, all its detectors together."""

    false_alarms: float
    period_seconds: float

    def run_length(self, units_per_second: float | None, share: float) -> float:
        """Mean units between false alarms of a detector that may spend ``share`` of the budget.

        Of a stream whose rate is not known it is that of one unit in ten seconds.

        >>> Budget(1, 30 * 86_400).run_length(0.05, 0.5)
        259200.0
        """
        rate = 0.1 if units_per_second is None else units_per_second
        wanted = self.period_seconds * rate / (self.false_alarms * share)
        return min(max(wanted, SHORTEST), LONGEST)


def rate_of(start: int, end: int, units: int) -> float | None:
    """Units per second between two times in us; None where no time has passed.

    >>> rate_of(0, 20_000_000, 10)
    0.5
    """
    return units / ((end - start) / 1e6) if end > start else None
