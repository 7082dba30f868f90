"""References, their self-test, how long units resemble their neighbours, and the budget."""

import math

import pytest
import torch
from hydrophoned.detect.autocorrelation import autocorrelation_time
from hydrophoned.detect.budget import LONGEST, SHORTEST, Budget, rate_of
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.detect.reference import FEWEST, halves_p, make_reference
from hydrophoned.detect.units import Units

SECOND = 1_000_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def units_of(mean, *, every=SECOND):
    n = len(mean)
    time = torch.arange(n) * every
    ones = torch.ones(n, dtype=torch.int64)
    sample = mean[:, None].bfloat16()
    return Units(mean, ones, torch.arange(n), time, time, sample, ones)


def chain(phi, n, d, seed):
    generator = seeded(seed)
    x = torch.randn(n, d, generator=generator)
    for i in range(1, n):
        x[i] = phi * x[i - 1] + math.sqrt(1 - phi * phi) * x[i]
    return x


def reference(mean, **options):
    about = {"name": "default", "version": 1, "source": "first", "made": 7, "generator": seeded()}
    return make_reference(units_of(mean, **options), **about)


# -- autocorrelation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [64, 500])
def test_independent_units_have_a_time_of_one(n):
    times = [autocorrelation_time(torch.randn(n, 40, generator=seeded(s)), generator=seeded(s)) for s in range(10)]
    assert max(times) < 1.5


@pytest.mark.parametrize("phi", [0.5, 0.9])
def test_the_time_of_a_chain_is_the_known_one(phi):
    expected = (1 + phi) / (1 - phi)
    times = [autocorrelation_time(chain(phi, 3000, 40, s), generator=seeded(s)) for s in range(4)]
    assert sum(times) / len(times) == pytest.approx(expected, rel=0.2)


def test_no_time_is_told_of_a_few_units_or_of_constant_ones():
    assert autocorrelation_time(torch.randn(31, 4), generator=seeded()) is None
    assert autocorrelation_time(torch.ones(100, 4), generator=seeded()) is None
    half = torch.randn(400, 8, generator=seeded())
    half[:, 4:] = 3.0
    assert autocorrelation_time(half, generator=seeded()) < 1.5


# -- halves ---------------------------------------------------------------------------------------------------------


def test_halves_of_units_that_are_alike_give_uniform_p_values():
    p = [halves_p(torch.randn(160, 20, generator=seeded(s)), generator=seeded(s)) for s in range(200)]
    low = sum(value <= 0.05 for value in p)
    assert 2 <= low <= 20
    assert 0.42 < sum(p) / len(p) < 0.58


def test_a_change_within_the_reference_shows():
    mean = torch.randn(300, 30, generator=seeded())
    mean[150:, :3] += 1
    assert halves_p(mean, generator=seeded()) <= 0.01
    wider = torch.randn(300, 30, generator=seeded())
    wider[150:, :8] *= 2
    assert halves_p(wider, generator=seeded()) <= 0.01


# -- reference ------------------------------------------------------------------------------------------------------


def test_a_reference_says_what_it_is_of():
    made = reference(torch.randn(200, 10, generator=seeded()), every=2 * SECOND)
    assert made.units.count == 200
    assert made.thin == 1
    assert made.units_per_second == pytest.approx(200 / 398)
    assert made.halves_p > 0.01


def test_units_that_depend_on_their_neighbours_are_thinned():
    made = reference(chain(0.8, 2000, 20, 1))
    assert 6 <= made.thin <= 12
    assert made.units.count == math.ceil(2000 / made.thin)
    assert made.units.request.tolist()[:2] == [0, made.thin]


@pytest.mark.parametrize(
    ("mean", "said"),
    [
        (torch.randn(FEWEST - 1, 5, generator=seeded()), "there are 63 finite ones"),
        (torch.full((200, 5), torch.nan), "there are 0 finite ones"),
        (torch.ones(200, 5), "all 200 units of the reference are the same"),
        (chain(0.9, 300, 5, 0), "can be taken as independent"),
    ],
)
def test_a_reference_that_does_not_do_is_refused(mean, said):
    with pytest.raises(InsufficientReference, match=said):
        reference(mean)


def test_units_that_are_not_finite_are_no_part_of_it():
    mean = torch.randn(100, 5, generator=seeded())
    mean[3, 2], mean[50] = torch.nan, torch.inf
    assert reference(mean).units.count == 98


# -- budget ---------------------------------------------------------------------------------------------------------


def test_the_budget_in_units_follows_the_rate():
    budget = Budget(1, 30 * 86_400)
    assert budget.run_length(0.1, 0.5) == 2 * budget.run_length(0.1, 1.0) == 518_400
    assert budget.run_length(None, 1.0) == budget.run_length(0.1, 1.0)
    assert Budget(2, 86_400).run_length(0.1, 1.0) == 4320
    assert budget.run_length(1 / 36_000, 1.0) == SHORTEST  # one unit in ten hours
    assert budget.run_length(500.0, 0.5) == LONGEST


def test_a_rate_needs_time():
    assert rate_of(5, 5, 10) is None
    assert rate_of(0, 10 * SECOND, 5) == 0.5
