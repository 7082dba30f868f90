"""Settings of the watch over streams."""

from pydantic import Field

from hydrophoned.detect.config import WatchConfig
from hydrophoned.detect.strata import Strata
from hydrophoned.runtime.section import Names, Section

_HOUR_SECONDS = 3600.0
_DAY_SECONDS = 86_400.0


class DriftConfig(Section):
    """The watch over streams for drift and novelty: what it compares with, and how many false alarms there may be."""

    enabled: bool = Field(True, description="whether streams are watched")
    reference_units: int = Field(
        1000, ge=64, le=100_000, description="requests of a reference: the first ones of a stream, or of a new baseline"
    )
    recent_units: int = Field(
        1024, ge=64, le=100_000, description="latest requests that are held, to tell what a drift is about"
    )
    sample_rows: int = Field(
        4,
        ge=0,
        le=64,
        description="rows kept of each of these requests, to be encoded anew when the dictionary changes; 0: it is not "
        "told which features change",
    )
    idle_seconds: float = Field(
        5.0, gt=0, le=86_400, description="seconds after its last row from which a request counts as ended"
    )
    max_open_requests: int = Field(
        256, ge=1, le=100_000, description="requests that may be open at a time; beyond it the oldest counts as ended"
    )
    false_alarms: float = Field(
        1.0, gt=0, le=1e6, description="false alarms that a stream may raise in period_days, all detectors together"
    )
    period_days: float = Field(30.0, gt=0, le=36_500, description="that period, in days")
    strata_period_hours: float = Field(
        0.0,
        ge=0,
        le=24 * 366,
        description="period of the traffic, such as 24, by whose phases it is divided: each is compared with its own "
        "reference; 0: it is not divided so",
    )
    strata_phases: int = Field(6, ge=2, le=24, description="phases of that period, all of one length")
    strata_by: Names = Field(
        (),
        max_length=4,
        description="attributes of requests, such as tenant or route, by whose values the traffic is divided; of all "
        "parts the first 24 are kept apart",
    )
    novel_p: float = Field(
        0.01, gt=0, lt=1, description="a request counts as novel where so small a share of the reference is as unusual"
    )

    def watch_config(self, seed: int) -> WatchConfig | None:
        """These settings as a watch takes them; None where nothing is watched."""
        if not self.enabled:
            return None
        return WatchConfig(
            reference_units=self.reference_units,
            recent_units=self.recent_units,
            sample_rows=self.sample_rows,
            idle_seconds=self.idle_seconds,
            max_open=self.max_open_requests,
            false_alarms=self.false_alarms,
            period_seconds=self.period_days * _DAY_SECONDS,
            novel_p=self.novel_p,
            strata=Strata(self.strata_period_hours * _HOUR_SECONDS, self.strata_phases, self.strata_by),
            seed=seed,
        )
