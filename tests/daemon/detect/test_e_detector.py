import copy
import itertools
import math

import pytest
import torch
from hydrophoned.detect.bets import SIZES, inflation, paid
from hydrophoned.detect.detector import Guarantee
from hydrophoned.detect.e_detector import EDetector
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.evidence import Evidence
from hydrophoned.detect.tolerance import mean_run_length, taken_off, tolerance
from hydrophoned.detect.witnesses import CHUNK
from planted_units import WIDTH, alarms_of, contaminated, delays_of, shifted, spread, units


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(reference=600, run_length=2_000.0, seed=0):
    return EDetector(units(reference, generator(seed)), run_length=run_length, generator=generator(seed))


def fed(detector, x, size):
    return [found for part in x.split(size) for found in detector.update(part)]


# -- on nothing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reference", "tails"), [(1_000, 0.0), (1_000, 0.7), (150, 0.0), (64, 0.5)])
def test_alarms_on_nothing_are_as_rare_as_promised(reference, tails):
    alarms, watched = alarms_of(EDetector, range(12), run_length=500, reference=reference, tails=tails)
    assert alarms <= watched / 500


def test_it_is_not_silent_for_good():
    """A detector that never raises has no power either."""
    alarms, watched = alarms_of(EDetector, range(6), run_length=200, reference=1_000)
    assert alarms >= watched / 200 / 8


def test_where_nothing_changes_alarms_are_no_earlier_than_the_twins():
    _, earlier = delays_of(EDetector, lambda x: x, range(3), run_length=500)
    assert earlier == 0


# -- on changes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda x: shifted(x, 0.5), 40),
        (lambda x: shifted(x, 2.0), 16),
        (lambda x: spread(x, 2.0), 60),
        (lambda x: contaminated(x, 0.2, generator(5)), 60),
        (lambda x: x.mean(0) + 3 * (x - x.mean(0)), 12),
        (lambda x: x.mean(0) + (x - x.mean(0)) / 3, 40),
    ],
    ids=["shift", "large shift", "spread", "contamination", "wider", "narrower"],
)
def test_changes_are_found_soon(change, most):
    delay, earlier = delays_of(EDetector, change, range(7), run_length=5_000)
    assert delay <= most
    assert earlier >= 0.8


def test_a_small_reference_of_wide_units_is_quiet_and_still_finds_another_class():
    draw = generator()
    mixing = torch.randn(576, 576, generator=draw) * torch.arange(1, 577) ** -0.5
    own, other = torch.randn(64, 576, generator=draw) @ mixing, torch.randn(576, generator=draw) @ mixing
    detector = EDetector(own, run_length=2_000, generator=draw)
    assert detector.update(torch.randn(400, 576, generator=draw) @ mixing) == []
    found = detector.update(torch.randn(64, 576, generator=draw) @ mixing + 2 * other)
    assert 400 <= found[0].unit < 420


def test_the_direction_is_that_of_the_change_and_began_is_near_it():
    detector, change = make(run_length=5_000), torch.zeros(WIDTH)
    change[3] = 2.0
    assert detector.direction is None
    detector.update(units(300, generator(1)))
    found = detector.update(units(200, generator(2)) + change)
    assert detector.direction is not None
    assert float(detector.direction.norm()) == pytest.approx(1, abs=1e-4)
    assert float(detector.direction @ change) > 0
    before, after = units(500, generator(3)) @ detector.direction, units(500, generator(4)) @ detector.direction
    moved = float((after + detector.direction @ change).mean() - before.mean()) / float(before.std())
    assert moved > 1
    assert found[0].began is not None
    assert 285 <= found[0].began <= found[0].unit
    assert found[0].threshold == 5_000
    assert found[0].statistic >= 5_000


def test_a_change_of_spread_has_no_direction():
    detector, x = make(), units(300, generator(1))
    assert detector.update(x.mean(0) + 3 * (x - x.mean(0))) != []
    assert detector.direction is None


def test_after_a_detection_evidence_begins_anew():
    detector = make()
    found = detector.update(units(300, generator(1)) + 2)
    assert len(found) > 1
    assert all(later.began > earlier.unit for earlier, later in itertools.pairwise(found))


# -- contract ---------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_how_units_come():
    x = torch.cat([units(500, generator(1)), units(300, generator(2)) + 0.6])
    whole = make()
    expected = whole.update(x)
    assert expected
    for size in (7, CHUNK, 333):
        detector = make()
        assert fed(detector, x, size) == expected
        assert detector.statistic == whole.statistic
    one_by_one = make()
    assert fed(one_by_one, x[420:560], 1) == make().update(x[420:560])


def test_a_detection_is_told_with_the_unit_that_it_is_at():
    x = units(400, generator(2)) + 3
    first = make().update(x)[0].unit
    detector = make()
    assert detector.update(x[:first]) == []
    assert [found.unit for found in detector.update(x[first : first + 1])] == [first]


@pytest.mark.parametrize("at", [0, 41, 256, 517])
def test_a_state_goes_on_exactly(at):
    x = torch.cat([units(450, generator(1)), units(250, generator(2)) + 0.6])
    whole, second = make(), make()
    first = make()
    before = first.update(x[:at])
    state = copy.deepcopy(first.state_dict())
    first.update(x[:100])  # what is given is not what is kept
    second.load_state(state)
    after = second.update(x[at:])
    assert before + after == whole.update(x)
    mine, theirs = whole.state_dict(), second.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(torch.as_tensor(value).nan_to_num(), torch.as_tensor(theirs[name]).nan_to_num()), name


def test_memory_is_bounded():
    detector = make(run_length=1e12)
    detector.update(units(3_000, generator(1)))
    held = sum(value.nbytes for value in detector.state_dict().values() if isinstance(value, torch.Tensor))
    detector.update(units(3_000, generator(2)))
    assert held == sum(value.nbytes for value in detector.state_dict().values() if isinstance(value, torch.Tensor))


def test_units_that_are_not_finite_are_left_out_and_counted():
    x = units(300, generator(1))
    holed = torch.cat([x[:100], torch.full((2, WIDTH), torch.nan), x[100:]])
    holed = torch.cat([holed, torch.full((1, WIDTH), torch.inf), torch.full((1, WIDTH), 3e38)])
    clean, detector = make(), make()
    assert fed(detector, holed, 90) == clean.update(x) == []
    assert (detector.units, detector.left_out) == (300, 4)
    assert detector.statistic == clean.statistic
    found = detector.update(units(100, generator(2)) + 3)
    assert found[0].unit > 304, "units left out are counted in where a detection is"


def test_constant_coordinates_are_no_alarm_and_a_change_of_them_is():
    reference, x = units(600, generator()), units(400, generator(1))
    reference[:, 4] = x[:, 4] = 7.0
    detector = EDetector(reference, run_length=2_000, generator=generator())
    assert detector.update(x) == []
    x[:, 4] = 7.0 + reference.std(0).median() * 3
    assert detector.update(x)[0].unit < 400 + 60


@pytest.mark.parametrize("d", [1, 2, 5])
def test_few_coordinates(d):
    detector = EDetector(units(400, generator())[:, :d], run_length=2_000, generator=generator())
    assert detector.update(units(400, generator(1))[:, :d]) == []
    assert detector.update(units(200, generator(2))[:, :d] + 2)[0].unit < 400 + 60


def test_a_reference_that_does_not_do_is_refused():
    for reference, words in (
        (units(63, generator()), "63 finite units"),
        (torch.full((200, 4), 2.0), "the same"),
        (torch.cat([torch.zeros(199, 4), torch.ones(1, 4)]), "the same"),
    ):
        with pytest.raises(InsufficientReference, match=words):
            EDetector(reference, run_length=2_000, generator=generator())


@pytest.mark.parametrize("run_length", [0.5, math.inf, math.nan])
def test_a_run_length_is_a_number_of_units(run_length):
    with pytest.raises(ValueError, match="number of units"):
        make(run_length=run_length)


def test_units_and_states_of_another_width_are_refused():
    detector = make()
    with pytest.raises(ReferenceMismatch, match="width 32"):
        detector.update(torch.zeros(3, WIDTH + 1))
    narrow = EDetector(units(100, generator())[:, :5], run_length=2_000, generator=generator())
    with pytest.raises(ReferenceMismatch, match="width 5"):
        detector.load_state(narrow.state_dict())
    assert detector.update(torch.zeros(0, WIDTH)) == []


def test_what_it_says_of_itself():
    detector = make(run_length=3_000)
    assert (detector.name, detector.guarantee) == ("betting", Guarantee.RUN_LENGTH)
    assert detector.false_alarm_budget == detector.threshold == 3_000
    assert detector.statistic == 0


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["normal", "skewed", "two values"])
def test_bets_pay_at_most_one_in_the_mean_whatever_the_distribution(draw):
    h = torch.randn(200_000, generator=generator())
    if draw == "skewed":
        h = h.exp()
    elif draw == "two values":
        h = (h > 1.5).float()
    h = (h - h.mean()) / h.std()
    pays = paid(h[:, None], torch.zeros(1, len(SIZES))).exp()
    assert (pays.mean((0, 1)) <= 1.0 + 5e-3).all()
    assert (pays.mean((0, 1)) > 0.7).all()


def test_a_bet_without_a_score_pays_nothing():
    assert (paid(torch.full((4, 2), torch.nan), torch.zeros(2, len(SIZES))) == 0).all()


def test_evidence_is_restarted_at_each_unit():
    steps, unit = torch.randn(30, 4, 2, dtype=torch.float64, generator=generator()) / 3, torch.arange(31)
    evidence, found = Evidence.none((4, 2), torch.device("cpu")).after(steps, unit, 30, math.inf)
    expected = torch.zeros(4, 2, dtype=torch.float64)
    for step in steps:
        expected = (expected + 1) * step.exp()
    torch.testing.assert_close(evidence.restarted, expected)
    assert found == []
    half, _ = Evidence.none((4, 2), torch.device("cpu")).after(steps, unit, 11, math.inf)
    rest, _ = half.after(steps[11:], unit[11:], 19, math.inf)
    torch.testing.assert_close(rest.restarted, evidence.restarted)
    torch.testing.assert_close(rest.began, evidence.began)


def test_began_is_the_unit_after_the_least_of_what_was_paid():
    steps = torch.tensor([-1.0, -1.0, 0.5, -0.2, 2.0, 3.0], dtype=torch.float64).view(6, 1, 1)
    _, found = Evidence.none((1, 1), torch.device("cpu")).after(steps, torch.arange(10, 17), 6, 50.0)
    assert [(one.place, one.began) for one in found] == [(5, 12)]


def test_the_mean_run_length_is_the_threshold_where_a_score_has_no_error():
    drift = torch.tensor([-0.1, 0.0, 0.1])
    longer, same, shorter = mean_run_length(1e5, 0.3, drift).tolist()
    assert same == pytest.approx(1e5, rel=0.02)
    assert shorter < same / 10
    assert longer > 10 * same


def test_the_mean_run_length_is_that_of_a_simulation():
    bet, drift, threshold = 0.1, 0.05, 300.0
    draw, runs = generator(), []
    for _ in range(200):
        evidence, unit = 0.0, 0
        while evidence < threshold:
            shocks = torch.randn(512, generator=draw, dtype=torch.float64) * bet + bet * drift - bet**2 / 2
            for step in shocks.exp().tolist():
                evidence, unit = (evidence + 1) * step, unit + 1
                if evidence >= threshold:
                    break
        runs.append(unit)
    simulated = sum(runs) / len(runs)
    assert float(mean_run_length(threshold, bet, torch.tensor([drift]))) == pytest.approx(simulated, rel=0.12)


def test_fewer_units_and_longer_promises_are_taken_more_care_of():
    assert tolerance(1e5, 0.3, 1000**-0.5, 0.5) < tolerance(1e5, 0.3, 32**-0.5, 0.5) < 3
    assert tolerance(1e5, 0.3, 100**-0.5, 0.5) < tolerance(1e7, 0.3, 100**-0.5, 0.5)
    memories = [taken_off(1e5, 0.3, memory, 100, 100, 0.5) for memory in (8.0, 128.0, math.inf)]
    assert memories == sorted(memories)
    assert inflation(1e5, 3.0, 1000) < inflation(1e5, 3.0, 32) < inflation(1e5, 9.0, 32)
