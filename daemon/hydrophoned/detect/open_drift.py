"""A drift that goes on: the signs of it, and when it is told again."""

from typing import Any, Final

from hydrophoned.detect.comparison import Alarm
from hydrophoned.detect.detector import Guarantee

AGAIN: Final = (64, 256)
"""Units after the alarm with which it is told again, each time by the next sign that it goes on."""
_QUIET: Final = 256
"""Units of a stratum without an alarm that end a drift, at least."""
_QUIET_FACTOR: Final = 4
"""That many times the longest wait between two alarms of a drift end it, if that is longer."""


class OpenDrift:
    """A drift that goes on in a stratum, since ``alarm``; ``number`` counts those of the stream.

    Each further alarm is a sign of it, ``last`` is the unit of the latest one. It has been told ``tellings`` times, the
    last time by the units up to that of number ``told``: up to a sign, so that they are of the change and not of what
    came after it. The alarm's features are those of ``dictionary_version``, 0 where there was none.
    """

    def __init__(self, number: int, alarm: Alarm, dictionary_version: int) -> None:
        self.number, self.alarm, self.dictionary_version = number, alarm, dictionary_version
        self.last = self.told = alarm.unit
        self.longest_wait = self.tellings = 0

    @property
    def quiet(self) -> int:
        """Units without an alarm that end it."""
        return max(_QUIET, _QUIET_FACTOR * self.longest_wait)

    def over(self, unit: int) -> bool:
        """Whether it is over by ``unit``, if that is the latest one or raises an alarm."""
        return unit - self.last > self.quiet

    def sign(self, unit: int) -> bool:
        """Take ``unit`` for a sign that it goes on; whether it is to be told again, by the units up to there."""
        self.longest_wait = max(self.longest_wait, unit - self.last)
        self.last = unit
        return any(self.told < self.alarm.unit + after <= unit for after in AGAIN)

    @property
    def unfinished(self) -> bool:
        """Whether signs have come since it was told, and it would have been told again had it gone on."""
        return self.last > self.told < self.alarm.unit + AGAIN[-1]

    def tell(self) -> None:
        """It was told by the units up to the last sign."""
        self.told = self.last
        self.tellings += 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values to go on exactly."""
        alarm = {f"alarm.{name}": value for name, value in self.alarm._asdict().items() if value is not None}
        return {name: value for name, value in vars(self).items() if name != "alarm"} | alarm

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "OpenDrift":
        """The drift whose state this is."""
        alarm: dict[str, Any] = {name: state.get(f"alarm.{name}") for name in Alarm._fields}
        alarm |= {"guarantee": Guarantee(alarm["guarantee"]), "features": tuple(alarm["features"])}
        drift = cls(state["number"], Alarm(**alarm), state["dictionary_version"])
        for name in ("last", "told", "longest_wait", "tellings"):
            setattr(drift, name, state[name])
        return drift
