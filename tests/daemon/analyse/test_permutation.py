import itertools
import math

import numpy as np
import pytest
from hydrophoned.analyse.permutation import EXACT, LEAST_P, rank_test
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic_made import columns_of


def scores(x, stratum):
    """Mid-ranks within strata over N + 1, by definition."""
    found = np.zeros(len(x))
    for s in np.unique(stratum):
        here = stratum == s
        v = x[here]
        found[here] = [((v < one).sum() + ((v == one).sum() + 1) / 2) / (len(v) + 1) for one in v]
    return found


def enumerated(x, in_a, stratum):
    """The two-sided p-value from every way to choose the units of A within strata."""
    a, parts = scores(x, stratum), []
    for s in np.unique(stratum):
        members = np.flatnonzero(stratum == s)
        chosen = itertools.combinations(members, int(in_a[members].sum()))
        parts.append(np.array([a[list(some)].sum() for some in chosen]))
    sums = parts[0]
    for part in parts[1:]:
        sums = (sums[:, None] + part).reshape(-1)
    observed = a[in_a].sum()
    high, low = (sums >= observed - 1e-9).mean(), (sums <= observed + 1e-9).mean()
    return min(1.0, 2 * min(high, low))


def drawn(x, in_a, stratum, count, rng):
    """The same from ``count`` random ways."""
    a, sums = scores(x, stratum), np.zeros(count)
    for s in np.unique(stratum):
        members = np.flatnonzero(stratum == s)
        n = int(in_a[members].sum())
        for start in range(0, count, 20_000):
            order = np.argsort(rng.random((min(20_000, count - start), len(members))), axis=1)[:, :n]
            sums[start : start + len(order)] += a[members][order].sum(1)
    observed = a[in_a].sum()
    return min(1.0, 2 * min((sums >= observed - 1e-9).mean(), (sums <= observed + 1e-9).mean()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_few_values_have_the_p_value_of_all_permutations(data):
    n = data.draw(st.integers(2, 11))
    x = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0, 3.5]), min_size=n, max_size=n)))
    in_a = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    stratum = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    expected = enumerated(x, in_a, stratum) if x.any() and in_a.any() and not in_a.all() else 1.0
    got = rank_test(columns_of(x[:, None]), in_a, stratum)
    assert got.p[0] == pytest.approx(expected, abs=1e-12)


def test_the_effect_is_how_much_more_often_a_unit_of_a_has_the_larger_value():
    rng = np.random.default_rng(0)
    x = np.where(rng.random((60, 5)) < 0.5, rng.integers(1, 5, (60, 5)), 0).astype(float)
    in_a = rng.random(60) < 0.4
    got = rank_test(columns_of(x), in_a, np.zeros(60, dtype=int))
    a, b = x[in_a][:, None], x[~in_a][None]
    np.testing.assert_allclose(got.effect, ((a > b).mean((0, 1)) - (a < b).mean((0, 1))), atol=1e-12)


@pytest.mark.parametrize(
    ("n", "in_a", "firing", "strata", "levels"),
    [(60, 30, 0.3, 1, 12), (60, 20, 0.5, 2, 3), (40, 20, 1.0, 1, 1000), (80, 15, 0.25, 2, 1000), (60, 10, 0.5, 3, 1)],
)
def test_many_values_have_a_p_value_a_little_above_that_of_all_permutations(n, in_a, firing, strata, levels):
    rng = np.random.default_rng(n + in_a)
    checked = 0
    for _ in range(12):
        chosen = np.zeros(n, dtype=bool)
        chosen[rng.permutation(n)[:in_a]] = True
        stratum = rng.integers(0, strata, n)
        fires = rng.random(n) < firing * np.where(chosen, 1.6, 1)
        x = np.where(fires, 1 + np.floor(levels * rng.random(n)) + np.where(chosen, levels / 3, 0), 0)
        if (x > 0).sum() <= EXACT:
            continue
        (p,) = rank_test(columns_of(x[:, None]), chosen, stratum).p
        expected = drawn(x, chosen, stratum, 60_000, rng)
        if expected > 3e-4:
            checked += 1
            error = 4 * math.sqrt(expected / 60_000)
            assert expected - error <= p <= 4 * expected + error, (p, expected)
    assert checked >= 4


@pytest.mark.parametrize("n", [30, 200, 3000])
def test_the_most_extreme_case_has_the_p_value_of_one_way_among_all(n):
    """Only units of A have a value, and all of them: one way of n over n/2, twice."""
    in_a = np.arange(n) < n // 2
    x = np.where(in_a, np.arange(1.0, n + 1), 0)
    (p,) = rank_test(columns_of(x[:, None]), in_a, np.zeros(n, dtype=int)).p
    log_ways = math.lgamma(n + 1) - 2 * math.lgamma(n / 2 + 1)
    expected = max(math.log(2) - log_ways, math.log(LEAST_P))
    assert expected - 0.01 <= math.log(p) <= expected + max(0.02 * abs(expected), 3)


def test_very_small_p_values_are_told_apart():
    """Half of 2,000 units are of A, in which ever more of the 500 values lie."""
    n, p = 2000, []
    in_a = np.arange(n) < n // 2
    for more in (110, 140, 170, 200):
        x = np.zeros(n)
        x[: 250 + more] = 1.0
        x[n // 2 : n // 2 + 250 - more] = 1.0
        p.append(rank_test(columns_of(x[:, None]), in_a, np.zeros(n, dtype=int)).p[0])
    assert all(one > LEAST_P for one in p)
    assert p[0] < 1e-16
    assert all(two < 1e-6 * one for one, two in itertools.pairwise(p))


def test_under_the_null_p_values_are_not_too_small():
    rng = np.random.default_rng(3)
    n, features = 150, 4000
    rate = np.exp(rng.normal(-1.5, 1.2, features)).clip(0, 1)
    x = np.where(rng.random((n, features)) < rate, rng.integers(1, 6, (n, features)), 0).astype(float)
    got = rank_test(columns_of(x), rng.random(n) < 0.3, rng.integers(0, 3, n))
    tested = (x > 0).sum(0) >= 5
    for level in (0.5, 0.1, 0.05, 0.01, 0.001):
        share = (got.p[tested] <= level).mean()
        assert share <= level + 3 * math.sqrt(level / tested.sum())
        assert share >= level / 3 or level < 0.01


def test_a_stratum_of_one_set_tells_nothing():
    rng = np.random.default_rng(0)
    x, in_a = rng.integers(0, 4, 60).astype(float), np.arange(60) % 2 == 0
    stratum = np.zeros(60, dtype=int)
    alone = rank_test(columns_of(x[:, None]), in_a, stratum)
    more, in_more = np.concatenate((x, [9.0] * 20)), np.concatenate((in_a, [True] * 20))
    beside = rank_test(columns_of(more[:, None]), in_more, np.concatenate((stratum, [1] * 20)))
    np.testing.assert_allclose(beside.p, alone.p)
    np.testing.assert_allclose(beside.effect, alone.effect)
    nothing = rank_test(columns_of(x[:, None]), np.ones(60, dtype=bool), stratum)
    assert nothing.p.tolist() == [1.0]
    assert nothing.effect.tolist() == [0.0]


def test_swapping_the_sets_turns_the_effect_and_keeps_p():
    rng = np.random.default_rng(5)
    x = np.where(rng.random((90, 40)) < 0.4, rng.exponential(1, (90, 40)), 0)
    in_a, stratum = rng.random(90) < 0.5, rng.integers(0, 2, 90)
    one, other = rank_test(columns_of(x), in_a, stratum), rank_test(columns_of(x), ~in_a, stratum)
    np.testing.assert_allclose(one.p, other.p, rtol=1e-6)
    np.testing.assert_allclose(one.effect, -other.effect, atol=1e-12)
