"""The watch over one stream: divides its units into strata, compares each with its reference, and tells of drifts.

A drift is what begins with an alarm and ends when none has been raised for a while: a change that stays is told once,
however often it is found again.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.change_point import LEAST_UNITS
from hydrophoned.detect.comparison import Alarm, Comparison
from hydrophoned.detect.config import WatchConfig
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.fired import Encoder, Fired
from hydrophoned.detect.open_drift import OpenDrift
from hydrophoned.detect.reference import Reference
from hydrophoned.detect.strata import ALL, MOST, REST
from hydrophoned.detect.units import UnitBuilder, Units
from hydrophoned.detect.watch_state import State
from hydrophoned.learn.metadata import RowMetadata

_COUNTERS: Final = ("drifts", "_units", "_first", "_latest")


class Drift(NamedTuple):
    """A change of the stream, begun by ``alarm``. ``number`` counts the drifts of the stream, from 1.

    ``dictionary_version`` is that by which features are told, 0 where they are not.
    """

    number: int
    stratum: str
    alarm: Alarm
    reference: Reference
    dictionary_version: int


class Found(NamedTuple):
    """A drift, and what is needed to say more about it: the latest units of its stratum, and what encodes rows.

    It is told when it is found, ``telling`` 0, and again when more has come to tell of (:mod:`.open_drift`). ``recent``
    are the units up to the latest alarm, ``since`` of them after that of the drift, and ``earlier`` units were watched
    before them. ``fired`` are the features that fired in the units of the reference and in ``recent``, ``novel`` bool
    says which units were novel, each None where it is not known.
    """

    drift: Drift
    recent: Units
    encoder: Encoder | None
    telling: int
    since: int
    earlier: int
    fired: tuple[Fired, Fired] | None
    novel: tuple[Tensor, Tensor] | None


class Ended(NamedTuple):
    """No alarm since a while: the drift of this number has ended, ``time`` (us) being that of the last unit."""

    number: int
    time: int


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
        self._open: dict[str, OpenDrift] = {}
        self._closed: list[Found | Ended] = []
        self._reserved: dict[str, int] = {}
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
        told = self.take_closed()
        if not units.count:
            return told
        if not self._units:
            self._first = int(units.end[0])
        self._units += units.count
        self._latest = max(self._latest, int(units.end.max()))
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
        return min((one.alarm.time for one in self._open.values()), default=None)

    def rebaseline(self, *, name: str, source: str, units: int | None) -> list[Reference]:
        """Compare each stratum with its latest units or with those to come.

        With the ``source`` "recent" these are the latest ``units``, None: all that are kept. The references that are
        there at once. Raises InsufficientReference where none can be made; strata with too few units keep theirs.
        """
        made, problems = [], []
        for stratum, comparison in self.comparisons.items():
            if source != "recent":
                self._closed += self._closing(stratum, comparison)
                comparison.collect(name=name)
                self._open.pop(stratum, None)
                continue
            held = comparison.recent.all()
            closing = self._closing(stratum, comparison)
            try:
                comparison.use(held.take(slice(-(units or held.count), None)), self.rate, name=name, source=source)
            except InsufficientReference as error:
                problems.append(f"{stratum or 'the stream'}: {error}")
            else:
                self._closed += closing
                self._open.pop(stratum, None)
                made.append(comparison.reference)
        if source == "recent" and not made:
            raise InsufficientReference("; ".join(problems) or "there are no units yet")
        return [one for one in made if one is not None]

    def take_closed(self) -> list[Found | Ended]:
        """What is to be told of the drifts that another reference has ended, since the last call."""
        told, self._closed = self._closed, []
        return told

    def reserve(self, drifts: int, references: Mapping[str, int]) -> None:
        """Go on from these numbers, the highest of drifts and of each stratum's references that are known of."""
        self.drifts = max(self.drifts, drifts)
        self._reserved = dict(references)
        for stratum, comparison in self.comparisons.items():
            comparison.references = max(comparison.references, references.get(stratum, 0))

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
            made.references = self._reserved.get(stratum, 0)
            if self.encoder is not None:
                made.use_dictionary(self.encoder, self.rate)
        return self.comparisons[stratum]

    def _begun(self, stratum: str, comparison: Comparison, alarm: Alarm) -> list[Found | Ended]:
        """What an alarm begins, if it is no other sign of the drift that goes on."""
        going_on = self._open.get(stratum)
        if going_on is not None and not going_on.over(alarm.unit):
            if not going_on.sign(alarm.unit) or not self._held(going_on, comparison):
                return []
            again = self._found(stratum, going_on, comparison)
            going_on.tell()
            return [again]
        ended = [] if going_on is None else self._closing(stratum, comparison, alarm.time)
        self.drifts += 1
        version = 0 if comparison.encoder is None else comparison.encoder.version
        self._open[stratum] = opened = OpenDrift(self.drifts, alarm, version)
        found = self._found(stratum, opened, comparison)
        opened.tell()
        return [*ended, found]

    @staticmethod
    def _held(going_on: OpenDrift, comparison: Comparison) -> bool:
        """Whether units up to the last sign of a drift are still held, so that it can be told again."""
        return going_on.last + 1 - (comparison.watched - comparison.recent.count) >= LEAST_UNITS

    def _found(self, stratum: str, going_on: OpenDrift, comparison: Comparison) -> Found:
        """The drift, told by the units up to its last sign."""
        assert comparison.reference is not None  # noqa: S101  it has raised an alarm
        encoder, alarm = comparison.encoder, going_on.alarm
        version = 0 if encoder is None else encoder.version
        if version != going_on.dictionary_version:
            alarm = alarm._replace(features=())  # features of another version
        earlier = comparison.watched - comparison.recent.count
        count = going_on.last + 1 - earlier
        if count < LEAST_UNITS:
            count = comparison.recent.count
        fired = None if encoder is None else comparison.fired(encoder)
        novel = comparison.told_novel()
        return Found(
            Drift(going_on.number, stratum, alarm, comparison.reference, version),
            comparison.recent.all().take(slice(0, count)),
            encoder,
            going_on.tellings,
            going_on.last - going_on.alarm.unit,
            earlier,
            None if fired is None else (fired[0], fired[1].part(0, count)),
            None if novel is None else (novel[0], novel[1][:count]),
        )

    def _closing(self, stratum: str, comparison: Comparison, time: int | None = None) -> list[Found | Ended]:
        """What is to be told of the stratum's drift, if one goes on, when it is over at ``time`` (us; None: now)."""
        going_on = self._open.get(stratum)
        if going_on is None:
            return []
        held = self._held(going_on, comparison)
        last = [self._found(stratum, going_on, comparison)] if going_on.unfinished and held else []
        return [*last, Ended(going_on.number, self._latest if time is None else time)]

    def _ended(self, stratum: str, comparison: Comparison) -> list[Found | Ended]:
        going_on = self._open.get(stratum)
        if going_on is None or not going_on.over(comparison.watched):
            return []
        told = self._closing(stratum, comparison)
        del self._open[stratum]
        return told

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """State to go on exactly, by part, but for the encoder."""
        names = list(self.comparisons)
        state: State = {
            "watch": {name: getattr(self, name) for name in _COUNTERS}
            | {"strata": names, "open": list(self._open), "generator": self.generator.get_state()},
            "watch.units": self.units.state_dict(),
        }
        for number, one in enumerate(self._open.values()):
            state[f"watch.open.{number}"] = one.state_dict()
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
            name: OpenDrift.of_state(state[f"watch.open.{number}"]) for number, name in enumerate(own["open"])
        }
        self._closed = []
        self.comparisons = {}
        self._names = dict.fromkeys(name for name in own["strata"] if name != REST)
        for number, name in enumerate(own["strata"]):
            prefix = f"watch.{number}."
            parts = {part.removeprefix(prefix): one for part, one in state.items() if part.startswith(prefix)}
            self.comparisons[name] = comparison = Comparison(self.width, self.config, self._attributes)
            comparison.load_state(parts, encoder)
