"""A stream's watch beside its learner, in the learner's thread: what it finds becomes rows of the store's tables."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor

from hydrophoned.attributes import RequestAttributes
from hydrophoned.detect.comparison import SHARES, Comparison
from hydrophoned.detect.config import WatchConfig
from hydrophoned.detect.reference import Reference
from hydrophoned.detect.watch import Ended, Found, StreamWatch
from hydrophoned.learn.frozen import FrozenEncoder
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.runtime.checkpoint import State
from hydrophoned.runtime.drift_tables import drift_tables, ended_table, novel_table, reference_table

_log = logging.getLogger(__name__)
WATCH: Final = "watch"
"""Parts of a checkpoint that begin so are a watch's."""
_ENCODER: Final = "watch.encoder"
_SILENCE_SECONDS: Final = 60.0


class Watching:
    """Listens to a learner and watches its stream. An error here is logged and counted; the learner goes on."""

    def __init__(
        self, name: str, learner: StreamLearner, config: WatchConfig, attributes: RequestAttributes | None = None
    ) -> None:
        self.name, self.learner = name, learner
        self.attributes = attributes or RequestAttributes(())
        self.watch = self._new(config)
        self.errors = 0
        self.problem: str | None = None
        self._told_error = -_SILENCE_SECONDS
        self._told_references: dict[str, int] = {}
        self._rows = self._rows_before = 0
        self._quiet_since = 0
        learner.listener = self

    def _new(self, config: WatchConfig) -> StreamWatch:
        return StreamWatch(self.learner.width, config, attributes=self.attributes.of, device=self.learner.device)

    # -- listening ----------------------------------------------------------------------------------------------

    def rows(self, x: Tensor, metadata: RowMetadata) -> None:
        """Finite rows without sinks, as captured."""
        self._rows += len(x)
        self._guarded(lambda: self._tell(self.watch.update(x, metadata)))

    def published(self, version: int) -> None:
        """A version of the dictionary was published."""
        self._guarded(lambda: self._use_dictionary(version))

    def advance(self, now: int) -> None:
        """Let time pass to ``now`` (UTC us): when no row has come for a while, the open requests have ended."""
        if self._rows != self._rows_before or self.learner.rows_staged:  # those may be of requests that are open
            self._rows_before, self._quiet_since = self._rows, now
        elif now - self._quiet_since > self.watch.units.idle_us and self.watch.units.open:
            self._guarded(lambda: self._tell(self.watch.flush()))

    def _use_dictionary(self, version: int) -> None:
        if self.watch.wants_dictionary:
            trainer = self.learner.trainer
            self.watch.use_dictionary(
                FrozenEncoder(trainer.dictionary, trainer.normaliser, version, self.learner.identity.ids)
            )

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  counted, shown and logged; the learner must go on
            self.errors += 1
            self.problem = f"{type(error).__name__}: {error}"
            if time.monotonic() - self._told_error > _SILENCE_SECONDS:
                self._told_error = time.monotonic()
                _log.exception("the watch over %s failed on some rows; it goes on with the next", self.name)

    # -- questions ----------------------------------------------------------------------------------------------

    def rebaseline(self, name: str, source: str, units: int | None) -> dict[str, Any]:
        """Take another reference: the latest ``units`` (``source`` "recent"), or the next ones ("next").

        Raises InsufficientReference where there are too few, and then keeps the one it has.
        """
        made = self.watch.rebaseline(name=name, source=source, units=units)
        self._tell(self.watch.take_closed())
        return {"references": [_told(one) for one in made], "wanted": self.watch.config.reference_units}

    def clusters(self) -> list[dict[str, Any]]:
        """The latest novel requests in groups that resemble each other; times in us."""
        parts = [one.novel for one in self.watch.comparisons.values() if one.novel is not None]
        return [group for part in parts for group in part.clusters()]

    def status(self) -> dict[str, Any]:
        """What is watched, against what, and how near to an alarm; plain values, times in us."""
        watch = self.watch
        strata = [self._stratum(name, one) for name, one in watch.comparisons.items()]
        return {
            "state": watch.state,
            "problem": self.problem,
            "units_per_second": watch.rate,
            "budget": watch.config.budget._asdict(),
            "drifts": watch.drifts,
            "drift_since": watch.drift_since,
            "strata": strata,
            "novelty": self._novelty(),
        }

    def _novelty(self) -> dict[str, Any] | None:
        parts = [one.novel for one in self.watch.comparisons.values() if one.novel is not None]
        if not parts:
            return None
        units, novel = sum(one.units for one in parts), sum(one.novel for one in parts)
        return {
            "units": units,
            "novel": novel,
            "share": novel / units if units else None,
            "p": self.watch.config.novel_p,
            "reference_share": sum(one.reference_share for one in parts) / len(parts),
        }

    def _stratum(self, name: str, comparison: Comparison) -> dict[str, Any]:
        rate = self.watch.rate
        reference = comparison.reference
        thin = 1 if reference is None else reference.thin
        return {
            "stratum": name,
            "state": comparison.state,
            "problem": comparison.problem,
            "watched": comparison.watched,
            "collected": comparison.collected,
            "wanted": comparison.wanted,
            "reference": None if reference is None else _told(reference),
            "detectors": [
                {
                    "name": one.name,
                    "guarantee": str(one.guarantee),
                    "statistic": float(one.statistic),
                    "threshold": float(one.threshold),
                    "run_length": float(one.false_alarm_budget),
                    "seconds": one.false_alarm_budget * thin / rate if rate else None,
                    "share": SHARES[one.name],
                    "units": one.units,
                    "left_out": one.left_out,
                    "dictionary_version": (
                        comparison.encoder.version if one is comparison.firing and comparison.encoder else None
                    ),
                }
                for one in comparison.detectors
            ],
        }

    # -- telling ------------------------------------------------------------------------------------------------

    def _tell(self, told: list[Found | Ended]) -> None:
        self._tell_references()
        self._tell_novel()
        for one in told:
            if isinstance(one, Ended):
                self.learner.tell(ended_table(self.learner.stream_key, one))
                _log.info("stream %s: drift %d is over", self.name, one.number)
                continue
            self.learner.tell(
                drift_tables(
                    self.learner.stream_key,
                    one,
                    attributes=self.attributes.of,
                    newest_version=self.learner.dictionary_version,
                    generator=self.watch.generator,
                )
            )
            drift = one.drift
            if one.telling:
                _log.info("stream %s: drift %d is told again, %d requests later", self.name, drift.number, one.since)
                continue
            _log.warning(
                "stream %s drifts (number %d): %s, after %d requests against reference %s",
                *(self.name, drift.number, drift.alarm.detector, drift.alarm.unit + 1, drift.reference.version),
            )

    def _tell_novel(self) -> None:
        for comparison in self.watch.comparisons.values():
            found = comparison.take_novel()
            if found and comparison.reference is not None:
                version = comparison.reference.version
                self.learner.tell(novel_table(self.learner.stream_key, version, found))

    def _tell_references(self) -> None:
        for stratum, comparison in self.watch.comparisons.items():
            reference = comparison.reference
            if reference is not None and self._told_references.get(stratum, 0) < reference.version:
                self._told_references[stratum] = reference.version
                self.learner.tell(reference_table(self.learner.stream_key, stratum, reference))

    # -- state --------------------------------------------------------------------------------------------------

    def reserve(self, drifts: int, references: Mapping[str, int]) -> None:
        """Go on from these numbers, the highest that the store has of drifts and of each stratum's references."""
        self.watch.reserve(drifts, references)

    def state_dict(self) -> State:
        """State to go on exactly, by part."""
        state = self.watch.state_dict()
        if isinstance(self.watch.encoder, FrozenEncoder):
            state[_ENCODER] = self.watch.encoder.state_dict()
        return state

    def load_state(self, state: State) -> None:
        """Take over a state of :meth:`state_dict`; where it does not fit, the watch begins anew and says so."""
        if not state:
            return
        try:
            encoder = None
            if _ENCODER in state:
                encoder = FrozenEncoder.of_state(state[_ENCODER], self.learner.trainer.dictionary.config)
            self.watch.load_state(state, encoder)
            self._told_references = {
                name: one.reference.version for name, one in self.watch.comparisons.items() if one.reference is not None
            }
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            _log.error("the watch over %s begins anew, since its state does not fit: %r", self.name, error)
            self.watch = self._new(self.watch.config)


def _told(reference: Reference) -> dict[str, Any]:
    return {
        "name": reference.name,
        "version": reference.version,
        "source": reference.source,
        "made": reference.made,
        "units": reference.units.count,
        "since": int(reference.units.start.min()),
        "until": int(reference.units.end.max()),
        "units_per_second": reference.units_per_second,
        "autocorrelation_time": reference.autocorrelation_time,
        "thin": reference.thin,
        "halves_p": reference.halves_p,
    }
