"""Settings of a stream's watch."""

from dataclasses import dataclass

from hydrophoned.detect.budget import Budget
from hydrophoned.detect.strata import UNDIVIDED, Strata


@dataclass(frozen=True)
class WatchConfig:
    """What is watched, and how many false alarms there may be.

    The first ``reference_units`` requests make the reference. ``sample_rows`` rows of each unit are kept, for the
    reference and for the latest ``recent_units``. A request has ended ``idle_seconds`` after its last row.
    One is novel whose p-value is at most ``novel_p``.
    """

    reference_units: int = 1000
    recent_units: int = 1024
    sample_rows: int = 4
    idle_seconds: float = 5.0
    max_open: int = 256
    false_alarms: float = 1.0
    period_seconds: float = 30 * 86_400.0
    novel_p: float = 0.01
    strata: Strata = UNDIVIDED
    seed: int = 0

    @property
    def budget(self) -> Budget:
        """False alarms of all detectors together."""
        return Budget(self.false_alarms, self.period_seconds)
