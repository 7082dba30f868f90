"""Units of one kind against their reference: takes the reference, and feeds the detectors."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.budget import SHORTEST
from hydrophoned.detect.config import WatchConfig
from hydrophoned.detect.detector import Detection, Guarantee
from hydrophoned.detect.e_detector import EDetector
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.fired import Encoder, Fired, fired_in
from hydrophoned.detect.firing import FiringDetector
from hydrophoned.detect.novel import NovelUnit, NovelUnits
from hydrophoned.detect.novel_share import NovelShare
from hydrophoned.detect.novelty import LEAST_UNITS
from hydrophoned.detect.recent import RecentUnits
from hydrophoned.detect.recent_findings import RecentFindings
from hydrophoned.detect.reference import Reference, make_reference
from hydrophoned.detect.units import Units
from hydrophoned.detect.watch_state import State, of_reference, of_units, to_reference, to_units

SHARES: Final = {"betting": 0.45, "firing": 0.45, "novel_share": 0.1}
"""Of the budget, by detector."""
NEXT: Final = "next"
_MOST_TRIES: Final = 16
_COUNTERS: Final = ("problem", "watched", "references", "name", "source", "_wanted", "_phase", "_encoded_since")


class Alarm(NamedTuple):
    """A detector's alarm at the ``unit``-th unit watched since the reference was taken, which ended at ``time`` (us).

    ``began`` is how many units before that the change began by the detector's own estimate, None where it has none;
    ``direction`` [d] is what the change is along, of raw units, None where the detector does not tell; ``features`` are
    those that raised it, none where it does not tell.
    """

    detector: str
    guarantee: Guarantee
    unit: int
    time: int
    statistic: float
    threshold: float
    run_length: float
    began: int | None
    direction: Tensor | None
    features: tuple[int, ...] = ()


class Comparison:
    """Compares units of width d with a reference: the first ``reference_units`` of them, or others (:meth:`use`)."""

    def __init__(self, width: int, config: WatchConfig, attributes: Callable[[int], Mapping[str, str]]) -> None:
        self.width, self.config, self._attributes = width, config, attributes
        self.reference: Reference | None = None
        self.encoder: Encoder | None = None
        self.betting: EDetector | None = None
        self.firing: FiringDetector | None = None
        self.novel: NovelUnits | None = None
        self.found_novel: list[NovelUnit] = []
        self.recent = RecentUnits(width, config.sample_rows, config.recent_units)
        self.findings = RecentFindings(config.recent_units)
        self._fired_reference: Fired | None = None
        self.problem: str | None = None
        self.watched = 0
        self.references = 0
        self.name, self.source = "default", NEXT
        self._generator = torch.Generator().manual_seed(config.seed)
        self._collecting = Units.none(width, config.sample_rows)
        self._wanted = config.reference_units
        self._phase = 0
        self._encoded_since = 0

    @property
    def detectors(self) -> list[EDetector | FiringDetector | NovelShare]:
        """Those that watch now."""
        share = None if self.novel is None else self.novel.share
        return [one for one in (self.betting, self.firing, share) if one is not None]

    @property
    def state(self) -> str:
        """``collecting``, ``watching``, or ``insufficient``: what was collected does not do, more is waited for."""
        if self.reference is not None:
            return "watching"
        return "collecting" if self.problem is None else "insufficient"

    @property
    def collected(self) -> int:
        """Units collected for a reference; 0 once it is there."""
        return self._collecting.count

    @property
    def wanted(self) -> int:
        """Units that the reference is to have."""
        return self._wanted

    def take_novel(self) -> list[NovelUnit]:
        """Novel units since the last call."""
        found, self.found_novel = self.found_novel, []
        return found

    def take(self, units: Units, rate: float | None) -> list[Alarm]:
        """Take in units that have ended; ``rate`` is how many of the whole stream end in a second."""
        if self.reference is None:
            room = max(1, self._wanted - self._collecting.count)
            self._collecting = self._collecting.join(units.take(slice(0, room)))
            units = units.take(slice(room, None))
            if self._collecting.count >= self._wanted:
                self._begin(rate)
            return self.take(units, rate) if units.count else []
        return self._watch(self._thinned(units))

    # -- reference ----------------------------------------------------------------------------------------------

    def use(self, units: Units, rate: float | None, *, name: str, source: str) -> None:
        """Compare with ``units`` from now on. Raises InsufficientReference, and then goes on as before."""
        made = int(units.end.max()) if units.count else 0
        reference = make_reference(
            units,
            name=name,
            version=self.references + 1,
            source=source,
            made=made,
            generator=self._generator,
            attributes=self._attributes,
        )
        betting = self._make_betting(reference, rate)
        self.reference, self.betting, self.firing = reference, betting, None
        self.novel = self._make_novel(reference, rate)
        self.references, self.name, self.source, self.problem = reference.version, name, source, None
        self._collecting = Units.none(self.width, self.config.sample_rows)
        self._reset()
        self._make_firing(rate)

    def collect(self, *, name: str) -> None:
        """Compare with the units to come, once there are enough of them."""
        self.name, self.source, self.problem = name, NEXT, None
        self.reference = self.betting = self.firing = self.novel = None
        self._collecting = Units.none(self.width, self.config.sample_rows)
        self._wanted = self.config.reference_units
        self._reset()

    def _begin(self, rate: float | None) -> None:
        """Make the reference of what was collected; where it does not do, wait for twice as much."""
        try:
            self.use(self._collecting, rate, name=self.name, source=self.source)
        except InsufficientReference as error:
            self.problem = str(error)
            if self._collecting.count < _MOST_TRIES * self.config.reference_units:
                self._wanted = 2 * self._collecting.count
            else:  # no more is kept; the newer half may do better
                self._collecting = self._collecting.take(slice(self._collecting.count // 2, None))

    def _reset(self) -> None:
        self.recent.clear()
        self.findings.clear()
        self.watched = self._phase = self._encoded_since = 0

    def _make_betting(self, reference: Reference, rate: float | None) -> EDetector:
        return EDetector(
            reference.units.mean,
            run_length=self._run_length(reference, rate, "betting"),
            generator=self._drawn(reference),
        )

    def _make_novel(self, reference: Reference, rate: float | None) -> NovelUnits | None:
        run_length = self._run_length(reference, rate, "novel_share")
        return self._novel(reference, run_length) if reference.units.count >= LEAST_UNITS else None

    def _novel(self, reference: Reference, run_length: float) -> NovelUnits:
        generator = self._drawn(reference)
        return NovelUnits(reference.units.mean, self.config.novel_p, run_length=run_length, generator=generator)

    def _run_length(self, reference: Reference, rate: float | None, detector: str) -> float:
        """In units that are looked at. It is the same for all strata: each spends of the budget as it has units."""
        looked_at = None if rate is None else rate / reference.thin
        return self.config.budget.run_length(looked_at, SHARES[detector])

    def _drawn(self, reference: Reference) -> torch.Generator:
        """Random numbers that are the same whenever a detector is made for this reference."""
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + reference.version)

    # -- dictionary ---------------------------------------------------------------------------------------------

    @property
    def wants_dictionary(self) -> bool:
        """Whether a newly published version is to be used: not more often than a reference's worth of units.

        A dictionary that goes on learning is no change of the stream: features are told by the version that encodes
        both the reference and what is compared with it, and evidence begins anew when that is replaced.
        """
        if self.encoder is None or self.reference is None:
            return True
        return self.watched - self._encoded_since >= self.config.reference_units

    def use_dictionary(self, encoder: Encoder, rate: float | None) -> None:
        """Tell features by ``encoder`` from now on."""
        self.encoder = encoder
        self._make_firing(rate)

    def _make_firing(self, rate: float | None) -> None:
        self.firing = None
        self._encoded_since = self.watched
        self._fired_reference = None
        self.findings.forget_features()
        if self.encoder is None or self.reference is None or not self.config.sample_rows:
            return
        try:
            self._fired_reference = fired_in(self.reference.units, self.encoder)
            self.firing = FiringDetector(
                self._fired_reference,
                features=self.encoder.features,
                run_length=self._run_length(self.reference, rate, "firing"),
                generator=self._drawn(self.reference),
            )
        except InsufficientReference as error:
            self.problem = str(error)

    def fired(self, encoder: Encoder) -> tuple[Fired, Fired] | None:
        """What fired in the reference and in the latest units by ``encoder``, which tells features now."""
        if self.reference is None or not self.config.sample_rows:
            return None
        if self._fired_reference is None:
            self._fired_reference = fired_in(self.reference.units, encoder)
        recent = self.findings.fired()
        if recent is None:
            recent = fired_in(self.recent.all(), encoder)
            self.findings.tell_features(recent)
        return self._fired_reference, recent

    def told_novel(self) -> tuple[Tensor, Tensor] | None:
        """Which units of the reference and which of the latest ones are novel, bool; None where it is not told."""
        recent = self.findings.novel()
        return None if self.novel is None or recent is None else (self.novel.of_reference, recent)

    # -- watching -----------------------------------------------------------------------------------------------

    def _thinned(self, units: Units) -> Units:
        thin = self.reference.thin if self.reference else 1
        if thin == 1:
            return units
        kept = units.take(slice((-self._phase) % thin, None, thin))
        self._phase = (self._phase + units.count) % thin
        return kept

    def _watch(self, units: Units) -> list[Alarm]:
        if self.betting is None or not units.count:
            return []
        first = self.watched
        self.watched += units.count
        self.recent.add(units)
        alarms = [self._alarm(self.betting, one, 0, first, units) for one in self.betting.update(units.mean)]
        fired = None
        if self.firing is not None and self.encoder is not None:
            fired = fired_in(units, self.encoder)
            found = self.firing.update(fired)
            alarms += [self._alarm(self.firing, one, self._encoded_since, first, units) for one in found]
        if self.novel is not None:
            novel, told = self.novel.update(units)
            self.found_novel += novel
            if self.novel.share is not None:
                alarms += [self._alarm(self.novel.share, one, 0, first, units) for one in told]
        self.findings.add(units.count, fired, None if self.novel is None else self.novel.latest)
        return sorted(alarms, key=lambda alarm: alarm.unit)

    def _alarm(
        self, detector: EDetector | FiringDetector | NovelShare, found: Detection, made: int, first: int, units: Units
    ) -> Alarm:
        """``found`` of a detector that was made after ``made`` units; ``units`` are those from ``first`` on."""
        unit = made + found.unit
        place = min(max(unit - first, 0), units.count - 1)
        return Alarm(
            detector=detector.name,
            guarantee=detector.guarantee,
            unit=unit,
            time=int(units.end[place]),
            statistic=found.statistic,
            threshold=found.threshold,
            run_length=detector.false_alarm_budget,
            began=None if found.began is None else max(0, found.unit - found.began),
            direction=detector.direction if isinstance(detector, EDetector) else None,
            features=found.features,
        )

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """State to go on exactly, by part, but for the encoder."""
        own: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        own |= {"generator": self._generator.get_state()}
        own |= {one.name + ".run_length": one.false_alarm_budget for one in self.detectors}
        state: State = {"": own, "collecting": of_units(self._collecting), "recent": of_units(self.recent.all())}
        state["findings"] = self.findings.state_dict()
        if self.reference is not None:
            state["reference"] = of_reference(self.reference)
        if self.novel is not None:
            state["novel"] = self.novel.state_dict()
        return state | {one.name: one.state_dict() for one in (self.betting, self.firing) if one is not None}

    def load_state(self, state: State, encoder: Encoder | None) -> None:
        """Take over a state of :meth:`state_dict` of one with the same width and settings, and its encoder."""
        own = state[""]
        for name in _COUNTERS:
            setattr(self, name, own[name])
        self._generator.set_state(own["generator"])
        self._collecting = to_units(state["collecting"])
        self.recent.clear()
        self.recent.add(to_units(state["recent"]))
        self.findings.load_state(state["findings"])
        self.encoder = encoder
        if "reference" not in state:
            return
        self.reference = to_reference(state["reference"])
        self.betting = EDetector(
            self.reference.units.mean,
            run_length=own["betting.run_length"],
            generator=self._drawn(self.reference),
        )
        self.betting.load_state(state["betting"])
        if "novel" in state:
            self.novel = self._novel(self.reference, own.get("novel_share.run_length", SHORTEST))
            self.novel.load_state(state["novel"])
        if "firing" in state and encoder is not None:
            self._fired_reference = fired_in(self.reference.units, encoder)
            self.firing = FiringDetector(
                self._fired_reference,
                features=encoder.features,
                run_length=own["firing.run_length"],
                generator=self._drawn(self.reference),
            )
            self.firing.load_state(state["firing"])
