"""Parts of a stream's traffic that are each compared with their own kind: hours of the day, tenants, routes."""

from collections.abc import Mapping
from typing import Final, NamedTuple

MOST: Final = 24
"""Strata of a stream; what comes beyond them is one more, together."""
REST: Final = "rest"
ALL: Final = ""
"""The one stratum of a stream that is not divided."""


class Strata(NamedTuple):
    """How units are divided: by their phase in a period (0: not) of ``phases`` equal parts, and ``by`` attributes."""

    period_seconds: float = 0.0
    phases: int = 6
    by: tuple[str, ...] = ()

    def of(self, time: int, attributes: Mapping[str, str]) -> str:
        """The stratum of a unit that began at ``time`` (UTC us) and has these attributes.

        >>> day = Strata(86_400, 6, ("tenant",))
        >>> day.of(5 * 3_600_000_000, {"tenant": "a"}), day.of(0, {}), Strata().of(7, {"tenant": "a"})
        ('phase=1,tenant=a', 'phase=0,tenant=', '')
        """
        parts = []
        if self.period_seconds:
            into = (time / 1e6) % self.period_seconds
            parts.append(f"phase={min(int(into / self.period_seconds * self.phases), self.phases - 1)}")
        parts += [f"{name}={attributes.get(name, '')}" for name in self.by]
        return ",".join(parts)


UNDIVIDED: Final = Strata()
