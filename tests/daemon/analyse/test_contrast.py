import math

import numpy as np
import pytest
from hydrophoned.analyse.contrast import contrast, q_values
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.traffic import Measure, Traffic
from traffic_made import half, made


@pytest.mark.parametrize("share", [0.5, 0.15])
def test_random_halves_of_the_same_traffic_rarely_differ(share):
    traffic, rng = made(), np.random.default_rng(1)
    found = [bool((contrast(traffic, half(200, rng, share)).q < 0.05).any()) for _ in range(200)]
    assert np.mean(found) <= 0.05


def test_rows_as_units_would_find_differences_in_nothing():
    """What the test by requests is there against: rows of a request are alike."""
    traffic, rng = made(), np.random.default_rng(1)
    found = 0
    for _ in range(20):
        in_a = half(200, rng)
        c = contrast(traffic, in_a)
        pooled = (c.a.fired + c.b.fired) / (c.a.rows + c.b.rows)
        error = np.sqrt(pooled * (1 - pooled) * (1 / c.a.rows + 1 / c.b.rows))
        p = np.array([math.erfc(abs(z) / math.sqrt(2)) for z in (c.a.rate - c.b.rate) / error])
        found += bool((q_values(p) < 0.05).any())
    assert found == 20


def test_planted_differences_come_first_and_nothing_else_is_found():
    rng = np.random.default_rng(2)
    in_a, planted = half(300, rng), np.array([3, 50, 120, 200, 280])
    plain = made(300, 400, seed=2)
    seen = plain.per_feature() > 60
    planted = rng.choice(np.flatnonzero(seen), 5, replace=False)
    lift = np.ones((300, 400))
    lift[np.ix_(in_a, planted[:3])] = 8.0
    lift[np.ix_(~in_a, planted[3:])] = 8.0
    c = contrast(made(300, 400, seed=2, lift=lift), in_a)
    assert set(c.feature[:5]) == set(planted)
    assert (c.q[:5] < 0.01).all()
    assert (c.q[5:] > 0.05).all()
    effect = dict(zip(c.feature, c.effect, strict=True))
    assert all(effect[f] > 0 for f in planted[:3])
    assert all(effect[f] < 0 for f in planted[3:])


def test_longer_requests_alone_make_no_difference():
    """The same rates, but A's requests are five times as long: a rank test without regard to length sees only that."""
    rng = np.random.default_rng(4)
    in_a = half(400, rng)
    rows = np.maximum(rng.lognormal(np.where(in_a, 5.0, 3.8), 0.7).astype(int), 1)
    traffic = made(400, 200, seed=4, rows=rows)
    assert (contrast(traffic, in_a).q >= 0.05).all()
    assert (contrast(traffic, in_a, by_length=False).q < 0.05).sum() > 20


def test_figures_are_those_of_a_recomputation():
    traffic, in_a = made(60, 30, seed=6), np.arange(60) % 3 == 0
    c = contrast(traffic, in_a)
    fired, total = np.zeros((60, 30)), np.zeros((60, 30))
    fired[traffic.request, traffic.feature], total[traffic.request, traffic.feature] = traffic.fired, traffic.sum
    for side, inside in ((c.a, in_a), (c.b, ~in_a)):
        assert (side.requests, side.rows) == (inside.sum(), traffic.rows[inside].sum())
        np.testing.assert_array_equal(side.fired, fired[inside].sum(0)[c.feature])
        np.testing.assert_array_equal(side.firing, (fired[inside] > 0).sum(0)[c.feature])
        np.testing.assert_allclose(side.rate, side.fired / side.rows)
        assert ((side.rate_low <= side.rate) & (side.rate <= side.rate_high)).all()
        mean = total[inside].sum(0)[c.feature] / np.maximum(side.fired, 1)
        known = (side.fired >= 5) & (side.firing >= 2)
        np.testing.assert_allclose(side.mean[known], mean[known])
        assert np.isnan(side.mean[~known]).all()
        assert known.any()
    assert set(c.feature) == set(np.flatnonzero((fired > 0).sum(0) >= 5))


def test_the_difference_has_an_interval_that_covers_it():
    """Requests drawn anew from one population: the 95% bounds of A minus B hold 0 about 19 times in 20."""
    held = []
    for seed in range(60):
        traffic = made(120, 40, seed=100 + seed, rows=np.full(120, 50))
        c = contrast(traffic, half(120, np.random.default_rng(seed)))
        often = (c.a.firing >= 20) & (c.b.firing >= 20)
        held += ((c.difference_low <= 0) & (c.difference_high >= 0))[often].tolist()
    assert len(held) > 300
    assert 0.9 < np.mean(held) < 0.98


def test_the_mean_activation_can_be_compared_instead():
    traffic, in_a = made(200, 100, seed=7), np.arange(200) % 2 == 0
    stronger = np.where((traffic.feature == 5) & in_a[traffic.request], 50.0, 1.0)
    often = int(traffic.per_feature().argmax())
    stronger = np.where((traffic.feature == often) & in_a[traffic.request], 50.0, 1.0)
    traffic = traffic._replace(sum=traffic.sum * stronger)
    assert contrast(traffic, in_a, measure=Measure.MEAN).feature[0] == often
    assert contrast(traffic, in_a).q.min() > 0.05


def test_a_set_without_requests_or_without_a_match_is_told():
    traffic = made(40, 20)
    with pytest.raises(TooLittle, match="sets of 0 and 40 requests"):
        contrast(traffic, np.zeros(40, dtype=bool))
    rows = np.where(np.arange(40) < 20, 5, 500)
    with pytest.raises(TooLittle, match="of the length"):
        contrast(made(40, 20, rows=rows), np.arange(40) < 20)


def test_q_values_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    p = rng.random(50) ** 3
    harmonic = sum(1 / i for i in range(1, 51))
    ordered = np.sort(p)
    for one, q in zip(p, q_values(p), strict=True):
        ranks = [k for k in range(1, 51) if ordered[k - 1] >= one]
        assert q == pytest.approx(min(1.0, *(ordered[k - 1] * 50 * harmonic / k for k in ranks)))
    assert q_values(np.zeros(0)).tolist() == []


def test_a_request_in_several_windows_is_one_request():
    traffic = Traffic.of(4, np.array([10, 10]), np.array([0, 0, 1]), np.array([2, 2, 2]), [1, 2, 5], [0.5, 1.0, 2.0])
    assert traffic.request.tolist() == [0, 1]
    assert traffic.fired.tolist() == [3.0, 5.0]
    assert traffic.sum.tolist() == [1.5, 2.0]
