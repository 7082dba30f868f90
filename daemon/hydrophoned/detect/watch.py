"""The watch over one stream: divides its units into strata, compares each with its reference, and tells of drifts.

A drift is what begins with an alarm and ends when none has been raised for a while: a change that stays is told once,
however often it is found again.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.comparison import Alarm, Comparison
from hydrophoned.detect.config import WatchConfig
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.fired import Encoder
from hydrophoned.detect.reference import Reference
from hydrophoned.detect.strata import ALL, MOST, REST
from hydrophoned.detect.units import UnitBuilder, Units
from hydrophoned.detect.watch_state import State
from hydrophoned.learn.metadata import RowMetadata

_QUIET: Final = 256
"""Units of a stratum without an alarm that end a drift, at least."""
_QUIET_FACTOR: Final = 4
"""That many times the longest wait between two alarms of a drift end it, if that is longer."""
_COUNTERS: Final = ("drifts", "_units", "_first", "_latest")


class Drift(NamedTuple):
    """A change of the stream, told when it was found. ``number`` counts the drifts of the stream, from 1."""

    number: int
    stratum: str
    alarm: Alarm
    reference: Reference
    dictionary_version: int


class Found(NamedTuple):
    """A drift, and what is needed to say more about it: the latest units of its stratum, and what encodes rows."""

    drift: Drift
    recent: Units
    encoder: Encoder | None


class Ended(NamedTuple):
    """No alarm since a while: the drift of this number has ended, ``time`` (us) being that of the last unit."""

    number: int
    time: int


class _Open:
    """A drift that goes on in a stratum."""

    def __init__(self, number: int, unit: int, time: int, longest_wait: int = 0) -> None:
        self.number, self.last, self.time, self.longest_wait = number, unit, time, longest_wait

    @property
    def quiet(self) -> int:
        """Units without an alarm that end it."""
        return max(_QUIET, _QUIET_FACTOR * self.longest_wait)


class StreamWatch:
    """Watches the requests of a stream of width d. ``attributes`` gives those of a request, by its key."""

    def __init__(
        self,
        width: int,
        config: WatchConfig,
        *,
        attributes: Callable[[int], Mapping[str, str]] = lambda _: {},
        device: torch.device | None = None,
    ) -> None:
        self.width, self.config = width, config
        self.generator = torch.Generator().manual_seed(config.seed)
        self.units = UnitBuilder(
            width,
            generator=self.generator,
            sample_rows=config.sample_rows,
            max_open=config.max_open,
            idle_us=int(config.idle_seconds * 1e6),
            device=device,
        )
        self.comparisons: dict[str, Comparison] = {}
        self.encoder: Encoder | None = None
        self.drifts = 0
        self._open: dict[str, _Open] = {}
        self._names: dict[str, None] = {}
        self._attributes = attributes
        self._units = 0
        self._first = self._latest = 0

    # -- units in -----------------------------------------------------------------------------------------------

    def update(self, x: Tensor, metadata: RowMetadata) -> list[Found | Ended]:
        """Take in finite rows x [n, d] as captured, without sinks; the drifts that have begun or ended."""
        return self.take(self.units.update(x, metadata))

    def flush(self) -> list[Found | Ended]:
        """End all open requests; the drifts that have begun or ended."""
        return self.take(self.units.flush())

    def take(self, units: Units) -> list[Found | Ended]:
        """Take in units that have ended; the drifts that have begun or ended."""
        if not units.count:
            return []
        if not self._units:
            self._first = int(units.end[0])
        self._units += units.count
        self._latest = max(self._latest, int(units.end.max()))
        told: list[Found | Ended] = []
        for stratum, own in self._divided(units):
            comparison = self._comparison(stratum)
            for alarm in comparison.take(own, self.rate):
                told += self._begun(stratum, comparison, alarm)
            told += self._ended(stratum, comparison)
        return told

    @property
    def rate(self) -> float | None:
        """Units that end in a second, since the watch began; None where no time has passed."""
        seconds = (self._latest - self._first) / 1e6
        return self._units / seconds if seconds > 0 else None

    @property
    def state(self) -> str:
        """``drifting`` while a drift goes on in any stratum, ``watching`` where all watch, else what hinders one."""
        if self._open:
            return "drifting"
        states = {one.state for one in self.comparisons.values()} or {"collecting"}
        return next(state for state in ("insufficient", "collecting", "watching") if state in states)

    @property
    def drift_since(self) -> int | None:
        """When the oldest drift that goes on was found, in us."""
        return min((one.time for one in self._open.values()), default=None)

    def rebaseline(self, *, name: str, source: str, units: int | None) -> list[Reference]:
        """Compare each stratum with its latest units or with those to come.

        With the ``source`` "recent" these are the latest ``units``, None: all that are kept. The references that are
        there at once. Raises InsufficientReference where none can be made; strata with too few units keep theirs.
        """
        made, problems = [], []
        for stratum, comparison in self.comparisons.items():
            if source != "recent":
                comparison.collect(name=name)
                self._open.pop(stratum, None)
                continue
            held = comparison.recent.all()
            try:
                comparison.use(held.take(slice(-(units or held.count), None)), self.rate, name=name, source=source)
            except InsufficientReference as error:
                problems.append(f"{stratum or 'the stream'}: {error}")
            else:
                self._open.pop(stratum, None)
                made.append(comparison.reference)
        if source == "recent" and not made:
            raise InsufficientReference("; ".join(problems) or "there are no units yet")
        return [one for one in made if one is not None]

    # -- dictionary ---------------------------------------------------------------------------------------------

    @property
    def wants_dictionary(self) -> bool:
        """Whether a newly published version is to be used; see :class:`Comparison`."""
        return self.encoder is None or all(one.wants_dictionary for one in self.comparisons.values())

    def use_dictionary(self, encoder: Encoder) -> None:
        """Tell features by ``encoder`` from now on."""
        self.encoder = encoder
        for comparison in self.comparisons.values():
            comparison.use_dictionary(encoder, self.rate)

    # -- inside -------------------------------------------------------------------------------------------------

    def _divided(self, units: Units) -> Iterator[tuple[str, Units]]:
        strata = self.config.strata
        if not strata.period_seconds and not strata.by:
            yield ALL, units
            return
        pairs = zip(units.start.tolist(), units.request.tolist(), strict=True)
        names = [self._known(strata.of(time, self._attributes(request))) for time, request in pairs]
        for name in dict.fromkeys(names):
            yield name, units.take(torch.tensor([one == name for one in names]))

    def _known(self, stratum: str) -> str:
        """A stratum that there is or may be; those seen first are kept apart."""
        if stratum not in self._names:
            if len(self._names) >= MOST:
                return REST
            self._names[stratum] = None
        return stratum

    def _comparison(self, stratum: str) -> Comparison:
        if stratum not in self.comparisons:
            self.comparisons[stratum] = made = Comparison(self.width, self.config, self._attributes)
            if self.encoder is not None:
                made.use_dictionary(self.encoder, self.rate)
        return self.comparisons[stratum]

    def _begun(self, stratum: str, comparison: Comparison, alarm: Alarm) -> list[Found | Ended]:
        """What an alarm begins, if it is no other sign of the drift that goes on."""
        going_on = self._open.get(stratum)
        if going_on is not None and alarm.unit - going_on.last <= going_on.quiet:
            going_on.longest_wait = max(going_on.longest_wait, alarm.unit - going_on.last)
            going_on.last = alarm.unit
            return []
        ended = [] if going_on is None else [Ended(going_on.number, alarm.time)]
        self.drifts += 1
        self._open[stratum] = _Open(self.drifts, alarm.unit, alarm.time)
        assert comparison.reference is not None  # noqa: S101  it has raised an alarm
        version = 0 if comparison.encoder is None else comparison.encoder.version
        drift = Drift(self.drifts, stratum, alarm, comparison.reference, version)
        return [*ended, Found(drift, comparison.recent.all(), comparison.encoder)]

    def _ended(self, stratum: str, comparison: Comparison) -> list[Ended]:
        going_on = self._open.get(stratum)
        if going_on is None or comparison.watched - going_on.last <= going_on.quiet:
            return []
        del self._open[stratum]
        return [Ended(going_on.number, self._latest)]

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """State to go on exactly, by part, but for the encoder."""
        names = list(self.comparisons)
        state: State = {
            "watch": {name: getattr(self, name) for name in _COUNTERS}
            | {"strata": names, "open": {name: vars(one) for name, one in self._open.items()}}
            | {"generator": self.generator.get_state()},
            "watch.units": self.units.state_dict(),
        }
        for number, name in enumerate(names):
            for part, own in self.comparisons[name].state_dict().items():
                state[f"watch.{number}.{part}"] = own
        return state

    def load_state(self, state: State, encoder: Encoder | None) -> None:
        """Take over a state of :meth:`state_dict` of a watch with the same width and settings, and its encoder."""
        own = state["watch"]
        for name in _COUNTERS:
            setattr(self, name, own[name])
        self.generator.set_state(own["generator"])
        self.units.load_state(state["watch.units"])
        self.encoder = encoder
        self._open = {
            name: _Open(one["number"], one["last"], one["time"], one["longest_wait"])
            for name, one in own["open"].items()
        }
        self.comparisons = {}
        self._names = dict.fromkeys(name for name in own["strata"] if name != REST)
        for number, name in enumerate(own["strata"]):
            prefix = f"watch.{number}."
            parts = {part.removeprefix(prefix): one for part, one in state.items() if part.startswith(prefix)}
            self.comparisons[name] = comparison = Comparison(self.width, self.config, self._attributes)
            comparison.load_state(parts, encoder)
