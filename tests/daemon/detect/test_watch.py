"""The watch over one stream: reference, alarms, drifts, strata, state."""

import pytest
import torch
from hydrophoned.detect.comparison import SHARES
from hydrophoned.detect.config import WatchConfig
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.strata import ALL, MOST, REST, Strata
from hydrophoned.detect.units import Units
from hydrophoned.detect.watch import Ended, Found, StreamWatch
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.metadata import RowMetadata

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


def test_a_change_is_told_once_and_ends():
    watch = StreamWatch(WIDTH, config())
    assert watch.take(units(500, seed=1)) == []
    told = [one for part in range(8) for one in watch.take(units(50, seed=50 + part, start=500 + 50 * part, shift=1.5))]
    assert kinds(told) == ["Found"]
    (found,) = told
    assert isinstance(found, Found)
    assert (found.drift.number, found.drift.stratum, found.drift.reference.version) == (1, ALL, 1)
    assert 200 <= found.drift.alarm.unit <= 240
    assert found.drift.alarm.time == (300 + found.drift.alarm.unit) * SECOND
    assert found.drift.alarm.statistic >= found.drift.alarm.threshold
    assert found.recent.request[-1] >= 300 + found.drift.alarm.unit
    assert (watch.state, watch.drift_since) == ("drifting", found.drift.alarm.time)
    told = [one for part in range(12) for one in watch.take(units(100, seed=80 + part, start=900 + 100 * part))]
    assert kinds(told) == ["Ended"]
    assert isinstance(told[0], Ended)
    assert told[0].number == 1
    assert (watch.state, watch.drifts) == ("watching", 1)


def test_features_that_fire_more_often_are_told_by_the_firing_detector_too():
    watch = StreamWatch(WIDTH, config())
    watch.use_dictionary(Signs())
    watch.take(units(300, seed=1))
    assert watch.comparisons[ALL].firing is not None
    told = watch.take(units(200, seed=2, start=300, shift=1.5))
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
    assert kinds(shifted) == ["Found"]
    (made,) = watch.rebaseline(name="deploy", source="recent", units=250)
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
    assert [one.drift.stratum for one in told] == ["tenant=b"]


def test_phases_of_a_period_are_strata_and_there_are_not_too_many():
    assert Strata(86_400.0, 4).of(23 * HOUR, {}) == "phase=3"
    watch = StreamWatch(WIDTH, config(strata=Strata(by=("user",))), attributes=lambda key: {"user": str(key)})
    watch.take(units(100, seed=0))
    assert len(watch.comparisons) == MOST + 1
    assert watch.comparisons[REST].collected == 100 - MOST


@pytest.mark.parametrize("when", [100, 450])
def test_state_goes_on_exactly(when):
    watch = StreamWatch(WIDTH, config())
    watch.use_dictionary(Signs())
    watch.take(units(when, seed=1))
    other = StreamWatch(WIDTH, config())
    other.load_state(watch.state_dict(), Signs())
    for part in range(10):
        more = units(60, seed=10 + part, start=when + 60 * part, shift=1.5 if part > 5 else 0.0)
        told, again = watch.take(more), other.take(more)
        assert kinds(told) == kinds(again)
        for one, same in zip(told, again, strict=True):
            assert one.drift.alarm[:8] == same.drift.alarm[:8]
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
