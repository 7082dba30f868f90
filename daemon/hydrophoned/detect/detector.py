"""The contract of a detector: what watches a stream of units for a change.

A unit is what may be taken as exchangeable while nothing changes: the mean of a request's rows, or a row where rows do
not depend on each other. Neighbouring tokens are never units.
"""

from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor


class Guarantee(StrEnum):
    """What holds while nothing changes, if units are exchangeable with those of the reference."""

    RUN_LENGTH = "run_length"
    """The mean number of units between false alarms is at least the budget, for any number of looks."""
    ASYMPTOTIC = "asymptotic"
    """It is so for large references, by simulation on them; not proven for a finite one."""
    NONE = "none"
    """No promise: for looking, not for alarms."""


class Detection(NamedTuple):
    """A detector's statistic reached its threshold at unit ``unit``, counted from 0 since the detector was made.

    ``began`` is the detector's own estimate of the first changed unit, None where it has none. ``features`` of a
    dictionary are those that raised it, none where it cannot tell.
    """

    unit: int
    statistic: float
    threshold: float
    began: int | None = None
    features: tuple[int, ...] = ()


class Detector(Protocol):
    """Watches units, a batch [n, d] at a time, against the reference that it was made with.

    The result must not depend on how units are split into batches. After a detection the evidence begins anew, the
    reference stays. Units that hold NaN or Inf are left out and counted: arithmetic never raises an alarm.
    """

    name: ClassVar[str]
    guarantee: ClassVar[Guarantee]

    units: int
    """Units watched, those left out not counted."""
    left_out: int
    """Units that were not finite."""

    @property
    def false_alarm_budget(self) -> float:
        """Promised mean number of units between false alarms."""
        ...

    @property
    def statistic(self) -> float:
        """Evidence now, on the scale of the threshold."""
        ...

    @property
    def threshold(self) -> float:
        """The statistic at which a detection is raised."""
        ...

    def update(self, x: Tensor) -> list[Detection]:
        """Watch units x [n, d], in order of time. Raises ReferenceMismatch for another width."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers to go on exactly."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict` of a detector with the same reference and settings."""
        ...
