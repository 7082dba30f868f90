"""What is written of a drift: since when, by what its detector watches, and from which units."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hydrophone_schemas.tables import TABLES
from hydrophoned.detect.comparison import Alarm
from hydrophoned.detect.detector import Guarantee
from hydrophoned.detect.fired import Fired
from hydrophoned.detect.reference import make_reference
from hydrophoned.detect.units import Units
from hydrophoned.detect.watch import Drift, Found
from hydrophoned.runtime.drift_tables import drift_tables

WIDTH, FEATURES = 16, 300
SECOND = 1_000_000


class Coder:
    features, version = FEATURES, 3


def units(mean, start=0):
    number = torch.arange(start, start + len(mean))
    ones = torch.ones_like(number)
    time = number * SECOND
    return Units(mean, ones, number, time, time + SECOND // 2, mean[:, None].bfloat16(), ones)


def tenant(key):
    return {"tenant": "ab"[key * 7919 % 13 % 2]}


def fired(rate, count, generator):
    """Features that fire at ``rate`` [F] in each unit, whatever the others do."""
    fires = torch.rand(count, len(rate), generator=generator) < rate
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), fires.sum(1).cumsum(0)])
    return Fired(offsets, fires.nonzero()[:, 1].to(torch.int32))


def found(
    seed, *, detector="betting", changed=60, before=240, shift=0.0, factor=1.0, novel=0.01, features=(), began=None,
    since=0, earlier=0, telling=0,
):  # fmt: skip
    """A drift of which ``changed`` units are after the change and ``before`` unlike that, of 600 in the reference."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(600 + before + changed, WIDTH, generator=generator)
    mean[600 + before :, :4] += shift
    rate = torch.full((FEATURES,), 0.05)
    more = rate.clone()
    more[:5] *= factor
    count = before + changed
    parts = [fired(rate, before, generator), fired(more, changed, generator)]
    share = torch.full((count,), 0.01)
    share[before:] = novel
    flags = torch.rand(600, generator=generator) < 0.01, torch.rand(count, generator=generator) < share
    reference = make_reference(
        units(mean[:600]), name="default", version=2, source="next", made=600 * SECOND, generator=generator,
        attributes=tenant,
    )  # fmt: skip
    alarm = Alarm(
        detector, Guarantee.RUN_LENGTH, earlier + count - 1 - since, (600 + count) * SECOND, 900.0, 800.0, 800.0, began,
        None, tuple(features),
    )  # fmt: skip
    return Found(
        Drift(5, "", alarm, reference, 3), units(mean[600:], 600), Coder(), telling, since, earlier,
        (fired(rate, 600, generator), Fired.joined(parts)), flags,
    )  # fmt: skip


def told(one):
    tables = drift_tables(
        9, one, attributes=tenant, newest_version=4,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for name, batch in tables.items():
        assert batch.schema.equals(TABLES[name]), name
    (row,) = tables["detection"].to_pylist()
    return row, {name: batch for name, batch in tables.items() if name != "detection"}


def at(row, name):
    """Seconds of a time of the row, in requests since the first that was watched."""
    return None if row[name] is None else row[name].timestamp() - 600


def test_a_shift_is_dated_and_every_row_says_to_which_telling_it_belongs():
    row, others = told(found(0, shift=1.5, telling=2, since=40))
    assert abs(at(row, "change_time") - 240) <= 2
    assert at(row, "change_low") <= 240 <= at(row, "change_high")
    assert (row["number"], row["telling"], row["units_after"]) == (5, 2, 300 - at(row, "change_time"))
    assert row["shift"] > 1
    assert set(others) == {"detection_feature", "detection_request", "detection_attribute"}
    for batch in others.values():
        assert set(batch["telling"].to_pylist()) <= {2}
        assert set(batch["number"].to_pylist()) <= {5}
    assert set(others["detection_feature"]["units_after"].to_pylist()) == {row["units_after"]}
    keys = np.array(others["detection_request"]["request_key"])
    assert (keys >= 840).all()


def test_an_alarm_of_the_firing_detector_is_dated_by_the_features_that_it_names():
    errors, covered, by_means = [], 0, 0
    for seed in range(8):
        row, others = told(found(seed, detector="firing", factor=4.0, features=[0, 1, 2, 3, 4]))
        errors.append(abs(at(row, "change_time") - 240))
        covered += at(row, "change_low") <= 240 <= at(row, "change_high")
        by_means += told(found(seed, detector="betting", factor=4.0))[0]["change_time"] is not None
        changed = others["detection_feature"].to_pylist()
        assert changed[0]["feature"] in range(5)
        assert changed[0]["q"] <= 0.1
        assert row["changed_features"] == sum(one["q"] <= 0.1 for one in changed)
    assert np.median(errors) <= 4
    assert covered >= 7
    assert by_means <= 2  # means did not change


def test_where_the_named_features_tell_no_time_the_means_are_asked():
    row, _ = told(found(1, detector="firing", shift=1.5, features=[20]))
    assert abs(at(row, "change_time") - 240) <= 2


def test_an_alarm_of_novel_requests_is_dated_by_their_share():
    dated = [told(found(seed, detector="novel_share", novel=0.4, began=61))[0] for seed in range(8)]
    assert np.median([abs(at(row, "change_time") - 240) for row in dated]) <= 6
    assert sum(at(row, "change_low") <= 240 <= at(row, "change_high") for row in dated) >= 7
    # without more of them there is no time, and what is told is of the units since the alarm's own estimate
    row, _ = told(found(1, detector="novel_share", shift=1.5, began=61, since=20))
    assert (row["change_time"], row["change_low"], row["change_high"]) == (None, None, None)
    assert row["units_after"] == 62 + 20


def test_without_a_time_the_units_since_the_alarm_are_told_of():
    row, _ = told(found(3, since=64))
    assert row["change_time"] is None
    assert row["units_after"] == 16 + 64


def test_a_change_before_all_units_that_are_held_has_no_time_but_a_latest_one():
    kept = found(4, shift=1.5, before=0, changed=200)
    assert at(told(kept)[0], "change_time") == 0
    row, others = told(kept._replace(earlier=100))
    assert (row["change_time"], row["change_low"]) == (None, None)
    assert at(row, "change_high") <= 5
    assert row["units_after"] == 200
    assert others["detection_request"].num_rows == 20


@pytest.mark.parametrize("detector", ["betting", "firing", "novel_share"])
def test_of_a_false_alarm_nothing_is_told_for_sure(detector):
    dated = changed = requests = attributes = 0
    for seed in range(20):
        row, others = told(found(seed, detector=detector, features=[7, 8, 9], began=50, since=200, telling=2))
        dated += row["change_time"] is not None
        changed += row["changed_features"] > 0
        requests += others["detection_request"].num_rows > 0
        attributes += sum(one["share_q"] <= 0.1 for one in others["detection_attribute"].to_pylist())
    assert dated <= 5  # 1 or 2 expected
    assert changed <= 5
    assert requests <= 5
    assert attributes <= 4


def test_features_that_are_not_known_are_null_and_not_none():
    one = found(0, shift=1.5)._replace(encoder=None, fired=None)
    row, others = told(one)
    assert row["changed_features"] is None
    assert others["detection_feature"].num_rows == 0
    assert isinstance(others["detection_feature"], pa.RecordBatch)
    row, others = told(found(0, changed=4, before=0, shift=5.0))
    assert (row["changed_features"], row["shift"], row["units_after"], others) == (None, None, 4, {})
