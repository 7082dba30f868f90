"""The watch over one stream: reference, alarms, drifts, strata, state."""

import pytest
import torch
from hydrophoned.detect.comparison import SHARES
from hydrophoned.detect.config import WatchConfig
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.fired import fired_in
from hydrophoned.detect.strata import ALL, MOST, REST, Strata
from hydrophoned.detect.units import Units
from hydrophoned.detect.watch import Ended, Found, StreamWatch
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.runtime.checkpoint import copy_state, load_checkpoint, save_checkpoint

WIDTH = 24
SECOND = 1_000_000
HOUR = 3600 * SECOND


def config(**changes):
    return WatchConfig(**{"reference_units": 300, "false_alarms": 1.0, "period_seconds": 86_400.0, **changes})


def units(count, *, seed, start=0, shift=0.0, every=SECOND):
    """Units of one row each, one a second."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, WIDTH, generator=generator)
    mean[:, :3] += shift
    number = torch.arange(start, start + count)
    ones = torch.ones(count, dtype=torch.int64)
    time = number * every
    sample = mean[:, None].expand(count, 4, WIDTH).bfloat16()
    return Units(mean, ones, number, time, time, sample, ones * 4)


class Signs:
    """Tells of each coordinate whether it is above 1: features that fire in a sixth of the rows."""

    features = WIDTH

    def __init__(self, version=1, features=WIDTH):
        self.version, self.features = version, features

    def encode(self, x):
        return Codes(torch.arange(WIDTH).expand(len(x), WIDTH).to(torch.int32), (x - 1).relu())


def kinds(told):
    return [type(one).__name__ for one in told]


def fed(watch, *parts, size=50):
    """What is told of units given ``size`` at a time; each part is a count of units, their shift, and a seed."""
    told, start = [], watch._units
    for count, shift, seed in parts:
        given = units(count, seed=seed, start=start, shift=shift)
        start += count
        for first in range(0, count, size):
            told += watch.take(given.take(slice(first, first + size)))
    return told


def test_the_first_units_are_the_reference_and_the_rest_is_watched():
    watch = StreamWatch(WIDTH, config())
    assert watch.state == "collecting"
    watch.take(units(200, seed=1))
    assert (watch.state, watch.comparisons[ALL].collected) == ("collecting", 200)
    watch.take(units(250, seed=2, start=200))
    assert watch.state == "watching"
    own = watch.comparisons[ALL]
    assert (own.reference.units.count, own.watched, own.recent.count, own.collected) == (300, 150, 150, 0)
    assert watch.rate == pytest.approx(450 / 449)
    # a false alarm a day, at a unit a second, divided among the detectors
    assert own.betting.false_alarm_budget == pytest.approx(86_400 / SHARES["betting"], rel=0.01)
    assert [one.name for one in own.detectors] == ["betting", "novel_share"]
    assert sum(SHARES.values()) == pytest.approx(1.0)


def test_what_does_not_change_raises_nothing():
    for seed in range(3):
        watch = StreamWatch(WIDTH, config())
        watch.use_dictionary(Signs())
        told = [one for part in range(10) for one in watch.take(units(130, seed=100 * seed + part, start=130 * part))]
        assert told == []
        assert watch.state == "watching"


def test_a_change_is_one_drift_and_ends():
    watch = StreamWatch(WIDTH, config())
    assert watch.take(units(500, seed=1)) == []
    told = [one for part in range(8) for one in watch.take(units(50, seed=50 + part, start=500 + 50 * part, shift=1.5))]
    assert kinds(told) == ["Found"] * 3
    found = told[0]
    assert isinstance(found, Found)
    assert [one.telling for one in told] == [0, 1, 2]
    assert len({(one.drift.number, one.drift.alarm[:8]) for one in told}) == 1
    assert (found.drift.number, found.drift.stratum, found.drift.reference.version) == (1, ALL, 1)
    assert 200 <= found.drift.alarm.unit <= 240
    assert found.drift.alarm.time == (300 + found.drift.alarm.unit) * SECOND
    assert found.drift.alarm.statistic >= found.drift.alarm.threshold
    assert found.recent.request[-1] == 300 + found.drift.alarm.unit
    assert (watch.state, watch.drift_since) == ("drifting", found.drift.alarm.time)
    told = [one for part in range(12) for one in watch.take(units(100, seed=80 + part, start=900 + 100 * part))]
    assert kinds(told) == ["Ended"]
    assert isinstance(told[0], Ended)
    assert told[0].number == 1
    assert (watch.state, watch.drifts) == ("watching", 1)


def test_a_drift_is_told_again_when_more_has_come_to_tell_of_by_the_units_up_to_a_sign_that_it_goes_on():
    watch = StreamWatch(WIDTH, config())
    told = fed(watch, (500, 0, 1), (400, 1.5, 2))
    assert [one.telling for one in told] == [0, 1, 2]
    assert told[0].since == 0
    assert 64 <= told[1].since < 96
    assert 256 <= told[2].since < 288
    for one in told:
        assert one.earlier == 0
        assert one.recent.count == one.drift.alarm.unit + one.since + 1
        assert one.recent.request[0] == 300
    # weak: the next sign is late, and what is told is of all that came until then
    watch = StreamWatch(WIDTH, config())
    watch.take(units(500, seed=1))
    told = [one for part in range(8) for one in watch.take(units(100, seed=50 + part, start=500, shift=0.4))]
    assert len(told) >= 2
    assert told[1].since > 128


def test_what_is_told_does_not_depend_on_how_units_come_in():
    told = []
    for size in (1000, 37):
        watch = StreamWatch(WIDTH, config())
        watch.use_dictionary(Signs())
        told.append(fed(watch, (500, 0, 1), (400, 1.5, 2), (500, 0, 3), size=size))
    assert kinds(told[0]) == kinds(told[1]) == ["Found", "Found", "Found", "Ended"]
    for one, same in zip(told[0][:3], told[1][:3], strict=True):
        assert (one.telling, one.since, one.drift.alarm.unit) == (same.telling, same.since, same.drift.alarm.unit)
        assert torch.equal(one.recent.mean, same.recent.mean)
        assert torch.equal(one.fired[1].feature, same.fired[1].feature)
        assert torch.equal(one.novel[1], same.novel[1])


def test_a_short_change_is_told_to_its_last_sign_when_it_is_over():
    watch = StreamWatch(WIDTH, config())
    told = fed(watch, (500, 0, 1), (50, 2.5, 2), (600, 0, 3))
    assert kinds(told) == ["Found", "Found", "Ended"]
    assert [one.telling for one in told[:2]] == [0, 1]
    assert 0 < told[1].since < 64
    assert 530 <= told[1].recent.request[-1] < 560
    # nothing has come since it was told
    assert kinds(fed(StreamWatch(WIDTH, config()), (500, 0, 1), (12, 2.5, 2), (600, 0, 3))) == ["Found", "Ended"]


def test_what_was_found_in_units_is_kept_and_told_of_those_up_to_the_sign():
    watch = StreamWatch(WIDTH, config(recent_units=200))
    watch.use_dictionary(Signs())
    encoder = watch.encoder
    asked = []
    encoder.encode, encode = lambda x: asked.append(len(x)) or encode(x), encoder.encode
    told = fed(watch, (500, 0, 1), (400, 1.5, 2))
    assert sum(asked) == 900 * 4  # of each request once
    for one in told:
        assert one.fired[1].units == one.recent.count == len(one.novel[1])
        for found, again in zip(one.fired, (one.drift.reference.units, one.recent), strict=True):
            fresh = fired_in(again, Signs())
            assert torch.equal(found.feature, fresh.feature)
            assert torch.equal(found.offsets, fresh.offsets)
        assert len(one.novel[0]) == 300
        assert one.novel[1][-40:].double().mean() > one.novel[0].double().mean()
    assert [one.earlier > 0 for one in told] == [True, True, True]
    assert [one.earlier + one.recent.count for one in told] == [one.drift.alarm.unit + 1 + one.since for one in told]


def test_a_drift_over_another_version_of_the_dictionary_is_told_by_that():
    watch = StreamWatch(WIDTH, config())
    watch.use_dictionary(Signs(1))
    first = fed(watch, (500, 0, 1), (40, 1.5, 2))
    again = Signs(2)
    again.encode = lambda x: Codes(torch.arange(WIDTH).expand(len(x), WIDTH).to(torch.int32), (x - 2).relu())
    watch.use_dictionary(again)
    second = fed(watch, (60, 1.5, 3))
    assert [(one.drift.dictionary_version, one.telling) for one in first + second] == [(1, 0), (2, 1)]
    assert torch.equal(second[0].fired[1].feature, fired_in(second[0].recent, again).feature)
    assert torch.equal(second[0].fired[0].feature, fired_in(second[0].drift.reference.units, again).feature)
    assert second[0].drift.alarm.features == ()


def test_the_firing_detector_says_which_features_raised_it():
    class Rare(Signs):
        """Three features, each of one coordinate of a row."""

        features = 3

        def encode(self, x):
            fires = torch.stack([x[:, 3] > 1.6, x[:, 4] > 1.6, x[:, 5] > 1], 1)
            return Codes(torch.arange(3).expand(len(x), 3).to(torch.int32), fires.float())

    watch = StreamWatch(WIDTH, config())
    watch.use_dictionary(Rare())
    assert fed(watch, (500, 0, 1)) == []
    given = units(200, seed=2, start=500)
    odd = torch.arange(0, 200, 2)
    given.sample[odd, :, 3] = 2.0  # rows change and means do not
    told = watch.take(given)
    assert told[0].drift.alarm.detector == "firing"
    assert told[0].drift.alarm.features == (0,)
    other = StreamWatch(WIDTH, config())
    other.load_state(watch.state_dict(), Rare())
    assert same(tuple(other._open[ALL].state_dict().items()), tuple(watch._open[ALL].state_dict().items()))


def test_features_that_fire_more_often_are_told_by_the_firing_detector_too():
    watch = StreamWatch(WIDTH, config())
    watch.use_dictionary(Signs())
    watch.take(units(300, seed=1))
    assert watch.comparisons[ALL].firing is not None
    told = watch.take(units(60, seed=2, start=300, shift=1.5))
    assert kinds(told) == ["Found"]
    assert told[0].drift.dictionary_version == 1
    assert told[0].encoder is watch.encoder


def test_another_version_of_the_dictionary_is_no_alarm():
    watch = StreamWatch(WIDTH, config(reference_units=200))
    watch.use_dictionary(Signs(1))
    told = watch.take(units(200, seed=1))
    for version in range(2, 8):
        assert not watch.wants_dictionary
        told += watch.take(units(200, seed=version, start=200 * (version - 1)))
        assert watch.wants_dictionary
        encoder = Signs(version)
        encoder.encode = lambda x, by=version: Codes(
            torch.arange(WIDTH).expand(len(x), WIDTH).to(torch.int32), (x - by / 4).relu()
        )
        watch.use_dictionary(encoder)
        assert watch.comparisons[ALL].firing.units == 0
    assert told == []


def test_a_reference_that_does_not_do_waits_for_more_and_says_why():
    watch = StreamWatch(WIDTH, config(reference_units=64))
    same = units(64, seed=1)
    watch.take(same._replace(mean=torch.ones(64, WIDTH)))
    assert watch.state == "insufficient"
    assert "all 64 units of the reference are the same" in watch.comparisons[ALL].problem
    watch.take(units(1000, seed=2, start=64))
    assert watch.state == "watching"
    assert watch.comparisons[ALL].reference.units.count >= 64


def test_rebaselining_takes_what_came_last_or_what_comes_next():
    watch = StreamWatch(WIDTH, config())
    with pytest.raises(InsufficientReference, match="no units"):
        watch.rebaseline(name="deploy", source="recent", units=None)
    watch.take(units(400, seed=1))
    with pytest.raises(InsufficientReference, match="needs 64"):
        watch.rebaseline(name="deploy", source="recent", units=20)
    assert watch.comparisons[ALL].references == 1
    shifted = [one for part in range(6) for one in watch.take(units(50, seed=5 + part, start=400 + 50 * part, shift=2))]
    assert kinds(shifted) == ["Found"] * 3
    (made,) = watch.rebaseline(name="deploy", source="recent", units=250)
    assert watch.take_closed() == [Ended(1, 699 * SECOND)]
    assert watch.take_closed() == []
    assert (made.name, made.version, made.source, made.units.count) == ("deploy", 2, "recent", 250)
    assert watch.state == "watching"
    assert watch.take(units(300, seed=20, start=800, shift=2)) == []
    assert watch.rebaseline(name="again", source="next", units=None) == []
    assert watch.state == "collecting"
    watch.take(units(300, seed=21, start=1100))
    assert watch.comparisons[ALL].reference.name == "again"
    assert watch.comparisons[ALL].references == 3


def test_each_stratum_has_its_own_reference():
    """Two tenants that differ, in a mix that changes: no drift, until one of them changes."""
    watch = StreamWatch(
        WIDTH,
        config(reference_units=200, strata=Strata(by=("tenant",))),
        attributes=lambda key: {"tenant": "ab"[key % 2]},
    )

    def mixed(count, seed, start, *, share=2, shift=0.0):
        given = units(count, seed=seed, start=start)
        request = torch.arange(start, start + count) * share
        given.mean[request % 2 == 1] += 3.0
        given.mean[(request % 2 == 1).nonzero().squeeze(1), :3] += shift
        return given._replace(request=request)

    assert watch.take(mixed(500, 1, 0, share=1)) == []
    assert list(watch.comparisons) == ["tenant=a", "tenant=b"]
    assert watch.state == "watching"
    assert watch.take(mixed(300, 2, 500, share=2)) == []  # only a
    told = [one for part in range(6) for one in watch.take(mixed(50, 9 + part, 800 + 50 * part, share=1, shift=2.0))]
    assert {(one.drift.stratum, one.drift.number) for one in told} == {("tenant=b", 1)}


def test_another_reference_ends_the_drifts_that_go_on_and_tells_them_once_more():
    for source, units_wanted in (("next", None), ("recent", 64)):
        watch = StreamWatch(WIDTH, config())
        told = fed(watch, (500, 0, 1), (50, 2, 2))
        assert [one.telling for one in told] == [0]
        with pytest.raises(InsufficientReference):
            watch.rebaseline(name="too few", source="recent", units=10)
        assert watch.take_closed() == []
        assert watch.state == "drifting"
        watch.rebaseline(name="x", source=source, units=units_wanted)
        found, ended = watch.take_closed()
        assert (found.drift.number, found.telling, ended) == (1, 1, Ended(1, 549 * SECOND))
        assert found.drift.reference.version == 1
        assert 20 < found.since < 50
        assert found.recent.count == found.drift.alarm.unit + found.since + 1
        assert watch.state == ("collecting" if source == "next" else "watching")
        assert watch.drift_since is None
    # whoever asks for units first is told then
    watch = StreamWatch(WIDTH, config())
    fed(watch, (500, 0, 1), (12, 2.5, 2))
    watch.rebaseline(name="x", source="next", units=None)
    assert kinds(watch.take(units(0, seed=0))) == ["Ended"]


def test_numbers_go_on_from_those_that_are_reserved():
    watch = StreamWatch(WIDTH, config())
    watch.reserve(4, {ALL: 2, "tenant=a": 9})
    told = fed(watch, (500, 0, 1), (50, 2, 2))
    assert (told[0].drift.number, told[0].drift.reference.version, watch.drifts) == (5, 3, 5)
    watch.reserve(2, {ALL: 1})
    assert (watch.drifts, watch.comparisons[ALL].references) == (5, 3)
    watch.reserve(8, {ALL: 6})
    assert watch.rebaseline(name="x", source="recent", units=None)[0].version == 7


def test_phases_of_a_period_are_strata_and_there_are_not_too_many():
    assert Strata(86_400.0, 4).of(23 * HOUR, {}) == "phase=3"
    watch = StreamWatch(WIDTH, config(strata=Strata(by=("user",))), attributes=lambda key: {"user": str(key)})
    watch.take(units(100, seed=0))
    assert len(watch.comparisons) == MOST + 1
    assert watch.comparisons[REST].collected == 100 - MOST


def same(one, other):
    """Whether two tellings, or parts of them, are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        return type(one) is type(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return isinstance(one, Signs) or one == other


@pytest.mark.parametrize("when", [100, 450, 800, 900], ids=["collecting", "watching", "drifting", "told again"])
def test_state_goes_on_exactly(when, tmp_path):
    whole = units(600, seed=1).join(units(500, seed=2, start=600, shift=1.5)).join(units(400, seed=3, start=1100))
    watch = StreamWatch(WIDTH, config())
    watch.use_dictionary(Signs())
    before = watch.take(whole.take(slice(0, when)))
    save_checkpoint(tmp_path, copy_state(watch.state_dict()), {})
    other = StreamWatch(WIDTH, config())
    other.load_state(load_checkpoint(tmp_path)[0], Signs())
    assert same(tuple(watch.state_dict()["watch"].items()), tuple(other.state_dict()["watch"].items()))
    told = []
    for start in range(when, 1500, 60):
        more = whole.take(slice(start, start + 60))
        told += watch.take(more)
        assert same(tuple(told[len(told) - len(again) :] if (again := other.take(more)) else ()), tuple(again))
    assert kinds(before + told) == ["Found", "Found", "Found", "Ended"]
    assert (watch.state, watch.drifts) == (other.state, other.drifts)
    assert watch.comparisons[ALL].betting.statistic == other.comparisons[ALL].betting.statistic


def test_units_are_made_of_rows():
    watch = StreamWatch(WIDTH, config(reference_units=64, idle_seconds=1.0))
    empty = RowMetadata.empty(640, torch.device("cpu"))
    rows = torch.randn(640, WIDTH, generator=torch.Generator().manual_seed(0))
    metadata = empty._replace(request=torch.arange(640) // 8, time=torch.arange(640) * SECOND)
    watch.update(rows[:320], metadata.take(slice(0, 320)))
    assert watch.comparisons[ALL].collected == 39
    watch.update(rows[320:], metadata.take(slice(320, 640)))
    assert watch.comparisons[ALL].watched == 79 - 64
    watch.flush()
    assert watch.comparisons[ALL].watched == 80 - 64
