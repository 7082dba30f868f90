import math

import pytest
import torch
from hydrophoned.detect.classifier import ClassifierDetector, _side_by_side, _tolerance
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from planted_units import WIDTH, alarms_of, contaminated, delays_of, shifted, spread, units


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tails", [0.0, 0.5])
@pytest.mark.parametrize("reference", [150, 1_000])
def test_alarms_on_nothing_are_as_rare_as_promised(tails, reference):
    alarms, watched = alarms_of(ClassifierDetector, range(12), run_length=500, reference=reference, tails=tails)
    promised = watched / 500
    assert alarms <= promised + 2.3 * promised**0.5
    assert alarms > 0, "a detector that never raises has no power either"


def test_a_small_reference_that_is_used_many_times_over_keeps_a_long_promise():
    alarms, watched = alarms_of(ClassifierDetector, range(6), run_length=10_000, reference=200, times=4)
    assert alarms <= watched / 10_000 + 2.3 * (watched / 10_000) ** 0.5


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda x: shifted(x, 0.5), 96),
        (lambda x: shifted(x, 2.0), 48),
        (lambda x: spread(x, 2.0), 144),
        (lambda x: contaminated(x, 0.2, generator(5)), 144),
    ],
    ids=["shift", "large shift", "spread", "contamination"],
)
def test_changes_are_found_soon(change, most):
    delay, earlier = delays_of(ClassifierDetector, change, range(7), run_length=5_000)
    assert delay <= most
    assert earlier >= 0.8


def test_where_nothing_changes_alarms_are_no_earlier_than_the_twins():
    _, earlier = delays_of(ClassifierDetector, lambda x: x, range(3), run_length=500)
    assert earlier == 0


def test_pays_are_fair_while_pairs_are_used_once():
    """The mean evidence after k blocks is k of its units, whatever the classifiers have learned."""
    found = []
    for seed in range(300):
        drawn = generator(seed)
        detector = ClassifierDetector(units(192, drawn)[:, :4], run_length=1e9, generator=drawn)
        detector.update(units(96, drawn)[:, :4])
        found.append(detector.statistic / 96)
    mean, error = sum(found) / 300, torch.tensor(found).std().item() / 300**0.5
    assert abs(mean - 1) <= 3 * error
    assert error < 0.2


def test_side_by_side_is_one_after_the_other():
    paid, evidence = torch.randn(20, 3, dtype=torch.float64, generator=generator()), torch.rand(3, dtype=torch.float64)
    expected = []
    for pay in paid.exp():
        expected.append((expected[-1] if expected else evidence).add(1).mul(pay))
    torch.testing.assert_close(_side_by_side(paid, evidence), torch.stack(expected))


def test_fewer_pairs_and_longer_promises_are_taken_more_care_of():
    assert _tolerance(500, 1_000) == 1.0
    assert 1.0 < _tolerance(20_000, 150) < _tolerance(200_000, 150) < 3
    assert _tolerance(1e6, 10_000) < _tolerance(1e6, 1_000)


def test_wide_units_are_projected():
    mixing = torch.randn(200, 200, generator=generator(1))
    known = torch.randn(300, 200, generator=generator()) @ mixing
    detector = ClassifierDetector(known, run_length=2_000, generator=generator(), projections=20)
    fresh = torch.randn(256, 200, generator=generator(2)) @ mixing
    assert detector.update(fresh) == []
    assert detector.update(shifted(fresh, 1.0)) != []


def test_more_coordinates_than_units():
    detector = ClassifierDetector(torch.randn(80, 300, generator=generator()), run_length=2_000, generator=generator())
    assert detector.update(torch.randn(500, 300, generator=generator(1))) == []
    assert detector.update(torch.randn(300, 300, generator=generator(2)) + 1) != []


def test_coordinates_that_do_not_vary_raise_nothing():
    known = units(400, generator(1))
    known[:, 3], known[:, 4] = 1e6, 0.0
    same = units(1_000, generator(2))
    same[:, 3], same[:, 4] = 1e6 + 0.06, 0.0  # one step of float32 away
    detector = ClassifierDetector(known, run_length=20_000, generator=generator())
    assert detector.update(same) == []
    assert math.isfinite(detector.statistic)


def test_references_that_do_not_do():
    with pytest.raises(InsufficientReference, match="60 finite units of 60: 64"):
        ClassifierDetector(units(60, generator()), run_length=9, generator=generator())
    with pytest.raises(InsufficientReference, match="all 64 units of the reference are the same"):
        ClassifierDetector(torch.ones(64, WIDTH), run_length=9, generator=generator())
    with pytest.raises(ValueError, match="run_length is inf"):
        ClassifierDetector(units(64, generator()), run_length=math.inf, generator=generator())


def test_a_state_of_another_width_is_refused():
    one = ClassifierDetector(units(64, generator()), run_length=9, generator=generator())
    other = ClassifierDetector(units(64, generator())[:, :5], run_length=9, generator=generator())
    with pytest.raises(ReferenceMismatch, match=f"width {WIDTH}; those of the reference have 5"):
        other.load_state(one.state_dict())


@pytest.mark.long
@pytest.mark.parametrize("run_length", [2_000, 20_000])
def test_long_promises_hold(run_length):
    alarms, watched = alarms_of(ClassifierDetector, range(20), run_length=run_length, reference=2_000, times=20)
    assert alarms <= watched / run_length
    assert alarms > 0
