"""The sample rate: what the user asked for, lowered while the buffer is under pressure."""

from random import Random
from typing import Final

_FLOOR: Final = 1 / 1024
_RECOVERY: Final = 1.25
"""Growth of the factor each second once the pressure has gone."""


class Sampler:
    """Decides for each request whether its rows are taken.

    ``base`` is the rate asked for, in 0..1. Each :meth:`tick` under pressure (buffer more than half full, or rows
    dropped since the last tick) halves the factor on it; each tick with the buffer nearly empty lets it recover.

    >>> sampler = Sampler(1.0, Random(0))
    >>> sampler.tick(fill=0.9, dropped=0)
    >>> sampler.rate
    0.5
    """

    def __init__(self, base: float, random: Random) -> None:
        self._base = base
        self._factor = 1.0
        self._random = random

    @property
    def rate(self) -> float:
        """Probability with which a request is taken now."""
        return self._base * self._factor

    def draw(self) -> bool:
        """Whether the next request is taken."""
        rate = self._base * self._factor
        return rate >= 1.0 or self._random.random() < rate

    def tick(self, *, fill: float, dropped: int) -> None:
        """Account for the last second: ``fill`` of the buffer in 0..1 and rows ``dropped`` for want of room."""
        if fill > 0.5 or dropped:
            self._factor = max(_FLOOR, self._factor / 2)
        elif fill < 0.1:
            self._factor = min(1.0, self._factor * _RECOVERY)
