import math

import numpy as np
import pytest
import torch
from firings_made import joined, rates, split, topical, twins, units
from hydrophoned.detect.detector import Guarantee
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.fired import Fired
from hydrophoned.detect.firing import LEAST_UNITS, FiringDetector
from hydrophoned.detect.firing_bets import BETS, feature_bets

F = 4608
REFERENCE = 8000


def detector(reference, features=F, run_length=2000.0, seed=0):
    return FiringDetector(
        reference, features=features, run_length=run_length, generator=torch.Generator().manual_seed(seed)
    )


def silent(n):
    return Fired(torch.zeros(n + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))


def always(feature, n):
    return Fired(torch.arange(n + 1), torch.full((n,), feature, dtype=torch.int32))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])), name


# -- nothing changes --------------------------------------------------------------------------------------------------


def watched_over_promised(draw, features, run_length, streams, watched):
    """Units watched over run length times alarms, and these; ``draw(rng)`` gives what draws n units of one stream."""
    alarms = 0
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        units_of = draw(rng)
        watching = detector(units_of(REFERENCE), features, run_length, seed)
        for _ in range(watched // 10_000):
            alarms += len(watching.update(units_of(10_000)))
    return streams * watched / max(alarms, 1) / run_length, alarms


def independent(features):
    def draw(rng):
        rate = rates(features, rng)
        return lambda n: units(rate, n, rng)

    return draw


def by_topic(features):
    return lambda rng: topical(rates(features, rng), REFERENCE, rng)


@pytest.mark.parametrize("draw", [independent, by_topic])
def test_alarms_on_nothing_are_as_rare_as_promised(draw):
    ratio, alarms = watched_over_promised(draw(1024), 1024, 1000, streams=3, watched=20_000)
    assert ratio >= 1
    assert alarms > 3, "a detector that never raises an alarm shows nothing here"


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("draw", [independent, by_topic])
@pytest.mark.parametrize("run_length", [2000, 20_000])
def test_the_run_length_is_the_promised_one_or_up_to_five_times_as_long(draw, run_length):
    ratio, _ = watched_over_promised(draw(F), F, run_length, streams=10, watched=20 * run_length)
    assert 1 <= ratio <= 5


def test_features_that_go_on_never_or_always_firing_raise_nothing():
    features, n = 600, 1000
    constant = Fired(
        torch.arange(n + 1) * 300, torch.arange(300, dtype=torch.int32).repeat(n)
    )  # half of them always, the others never
    for reference, live in ((constant, constant), (silent(n), silent(n))):
        watching = detector(reference, features, run_length=500)
        for _ in range(20):
            assert watching.update(live) == []
            assert watching.statistic <= 250


def test_a_reference_of_a_few_units_makes_no_alarms():
    rng = np.random.default_rng(3)
    rate = rates(500, rng)
    watching = detector(units(rate, LEAST_UNITS, rng), 500, run_length=1000)
    assert len(watching.update(units(rate, 20_000, rng))) <= 20


# -- something changes ------------------------------------------------------------------------------------------------


def delays(change, streams, *, watched=2500, run_length=2000.0):
    """Units until an alarm, after 480 as before; ``change(rate, rng)`` makes rates. And those of unchanged twins."""
    changed, unchanged = [], []
    for seed in range(streams):
        rng = np.random.default_rng(100 + seed)
        before, after = change(rates(F, rng), rng)
        reference, early = units(before, REFERENCE, rng), units(before, 480, rng)
        for x, out in zip(twins(before, after, watched, rng), (unchanged, changed), strict=True):
            watching = detector(reference, run_length=run_length, seed=seed)
            watching.update(early)
            found = watching.update(x)
            out.append(found[0].unit - 479 if found else math.inf)
    return np.array(changed), np.array(unchanged)


def doubled(p):
    def change(rate, rng):
        at = rng.integers(len(rate))
        before, after = rate.copy(), rate.copy()
        before[at], after[at] = p, 2 * p
        return before, after

    return change


def raised(share, factor):
    """A share of the features fires more often, the others less, so that the sum stays."""

    def change(rate, rng):
        after = rate.copy()
        more = rng.random(len(rate)) < share
        after[more] *= factor
        after[~more] *= (rate.sum() - after[more].sum()) / after[~more].sum()
        return rate, after

    return change


CHANGES = {
    "one of p = 0.08 twice": (doubled(0.08), 600),
    "one of p = 0.02 twice": (doubled(0.02), 1600),
    "1% by 1.5": (raised(0.01, 1.5), 900),
    "10% by 1.2": (raised(0.1, 1.2), 1200),
}


@pytest.mark.parametrize(("change", "within"), CHANGES.values(), ids=CHANGES)
def test_one_feature_that_changes_much_and_many_that_change_little_are_found(change, within):
    changed, unchanged = delays(change, 5)
    assert np.median(changed) <= within
    assert (changed < unchanged).mean() >= 0.8, "a delay is one that the same stream without the change does not show"


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("change", "within"), CHANGES.values(), ids=CHANGES)
def test_changes_are_found_in_forty_streams(change, within):
    """In a wait of 1,400 units, for p = 0.02, one stream in five has a chance alarm, even where rates are known."""
    changed, unchanged = delays(change, 40)
    assert np.median(changed) <= within
    assert (changed < unchanged).mean() >= (0.8 if within < 1600 else 0.65)


def test_a_feature_that_has_never_fired_is_found_when_it_begins_to_and_named():
    rng = np.random.default_rng(5)
    rate = rates(F, rng)
    rate[77] = 1e-12
    watching = detector(units(rate, REFERENCE, rng))
    assert not watching.evidence.any()
    rate[77] = 0.02
    found = watching.update(units(rate, 1000, rng))
    assert found
    assert int(watching.evidence.argmax()) == 77
    assert float(watching.evidence[77]) > 0.8 * found[-1].statistic
    assert {one.features for one in found} == {(77,)}


def test_the_features_that_raised_it_are_named_unless_many_changed_a_little():
    rng = np.random.default_rng(3)
    rate = rates(F, rng)
    rate[:3] = 0.08
    reference = units(rate, REFERENCE, rng)
    few = rate.copy()
    few[:3] *= 2.5
    (first, *_) = detector(reference).update(units(few, 1000, rng))
    assert set(first.features) <= {0, 1, 2}
    assert first.features
    _, many = raised(0.1, 1.2)(rate, rng)
    found = detector(reference).update(units(many, 3000, rng))
    assert found
    assert () in {one.features for one in found}


def test_a_feature_that_has_always_fired_is_found_when_it_stops():
    rng = np.random.default_rng(6)
    rate = rates(F, rng)
    with_it = np.append(rate, 1 - 1e-12)
    watching = detector(units(with_it, REFERENCE, rng), F + 1)
    assert watching.update(units(with_it, 200, rng)) == []
    with_it[-1] = 0.9
    found = watching.update(units(with_it, 400, rng))
    assert found
    assert int(watching.evidence.argmax()) == F


def test_units_in_which_nothing_fires_are_units():
    rng = np.random.default_rng(7)
    rate = rates(F, rng)
    watching = detector(units(rate, REFERENCE, rng))
    found = watching.update(silent(400))
    assert watching.units == 400
    assert found, "that no feature fires any more is a change"
    assert rate[int(watching.evidence.argmax())] > 0.05


# -- contract ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changing():
    rng = np.random.default_rng(8)
    rate = np.append(rates(511, rng), 0.97)
    after = rate.copy()
    after[:5] = 0.3
    return units(rate, 2000, rng), joined(units(rate, 1000, rng), units(after, 700, rng))


def test_the_result_does_not_depend_on_how_units_are_split(changing):
    reference, x = changing
    whole = detector(reference, 512)
    found = whole.update(x)
    assert len(found) > 3
    assert all(one.statistic >= one.threshold == 2000 for one in found)
    for sizes in ([1], [7, 100, 0, 33], [16], [300]):
        parts = detector(reference, 512)
        assert [one for part in split(x, sizes) for one in parts.update(part)] == found
        same(parts.state_dict(), whole.state_dict())


def test_a_state_goes_on_exactly(changing):
    reference, x = changing
    first, second = split(x, [1037, 663])
    whole, before, after = (detector(reference, 512) for _ in range(3))
    expected = whole.update(x)
    found = before.update(first)
    state = before.state_dict()
    assert all(isinstance(value, torch.Tensor | int | float) for value in state.values())
    after.load_state({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()})
    before.update(first)  # what it does afterwards is nothing to the one that went on
    assert found + after.update(second) == expected
    same(after.state_dict(), whole.state_dict())
    assert torch.equal(after.evidence, whole.evidence)


def test_it_says_what_it_is(changing):
    reference, _ = changing
    watching = detector(reference, 512, run_length=5000)
    assert (watching.name, watching.guarantee) == ("firing", Guarantee.RUN_LENGTH)
    assert watching.false_alarm_budget == watching.threshold == 5000
    assert watching.statistic == watching.units == watching.left_out == 0


def test_memory_does_not_grow(changing):
    reference, x = changing
    watching = detector(reference, 512)

    def held():
        return sum(v.untyped_storage().nbytes() for v in watching.state_dict().values() if isinstance(v, torch.Tensor))

    watching.update(x)
    before = held()
    for _ in range(5):
        watching.update(joined(x, x, x, x))
    assert held() <= 1.2 * before


def test_what_does_not_fit_is_refused(changing):
    reference, _ = changing
    with pytest.raises(InsufficientReference, match=f"150 units.*{LEAST_UNITS}"):
        detector(next(split(reference, [150])), 512)
    with pytest.raises(ReferenceMismatch, match=r"feature 511 fired.* dictionary of 400"):
        detector(reference, 400)
    with pytest.raises(ReferenceMismatch, match="feature 600 fired"):
        detector(reference, 512).update(always(600, 3))
    with pytest.raises(ReferenceMismatch, match="512 features, this detector watches 600"):
        detector(reference, 600).load_state(detector(reference, 512).state_dict())
    with pytest.raises(ValueError, match="run_length is 0"):
        detector(reference, 512, run_length=0)
    with pytest.raises(ValueError, match="0 features"):
        detector(silent(300), 0)


# -- bets -------------------------------------------------------------------------------------------------------------


def test_bets_are_fair_up_to_the_rates_they_are_made_for():
    n, block = 8000, 16
    fired = torch.tensor([0, 3, 40, 160, 640, 4100, 7900, 8000])
    bets = feature_bets(fired, n, 2000, block)
    assert float(bets.weight.sum()) == pytest.approx(1)
    assert bets.turned.tolist() == [False] * 5 + [True] * 3
    rate = torch.where(bets.turned, n - fired, fired).double()[:, None] / n
    log_ratio, log_rest = bets.log_ratio.double(), bets.rest.double().log()
    k = torch.arange(block + 1.0).double()
    choose = torch.tensor([math.comb(block, i) for i in range(block + 1)]).double()

    def mean_paid(p):  # [8, 1] -> [8, 3], over a block
        pay = torch.exp(k[:, None, None] * log_ratio + log_rest)
        chance = choose[:, None, None] * p ** k[:, None, None] * (1 - p) ** (block - k[:, None, None])
        return (chance * pay).sum(0)

    bet_on = bets.weight > 0
    assert (mean_paid(rate)[bet_on] <= 1).all()
    assert bet_on[:, :2].all()
    assert bet_on[:, 2].tolist() == [False, False, False, True, True, True, True, False]
    ratio = bets.log_ratio.exp().round(decimals=3)
    assert ratio[:4, :2].tolist() == [[4, 16], [4, 16], [2, 4], [1.5, 2]]
    assert (ratio[:, 2] == 0.5).all()
    at_ratio = mean_paid((rate * bets.log_ratio.exp()[:, 1:2]).clamp(max=0.9))[:, 1]
    assert (at_ratio[2:6] > 1.05).all(), "a bet gains where the rate is what it is on"
    assert bets.log_ratio.shape == bets.rest.shape == (8, BETS)
