import math

import numpy as np
import pytest
import torch
from firings_made import fired as from_keys
from firings_made import rates, topical, twins, units
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.exact_tails import draws_tail, exceedances_tail
from hydrophoned.detect.feature_drift import FeatureSummary, feature_drift, look_share, summarise
from hydrophoned.detect.fired import Fired


def values(x, features, rng, scale=None):
    """Skewed values, of each feature on its own scale."""
    own = 0.5 + np.arange(features) % 7 if scale is None else scale
    draw = own[x.feature.numpy()] * (0.1 + rng.exponential(size=len(x.feature)))
    return torch.from_numpy(draw.astype(np.float32))


def counted(n, fired):
    """A summary without values."""
    nothing, none = np.full(len(fired), np.nan), np.zeros(len(fired), dtype=np.int64)
    return FeatureSummary(n, fired.astype(np.int64), nothing, nothing, nothing.astype(np.float32), none, none)


# -- nothing changes --------------------------------------------------------------------------------------------------


def null_replications(count, draw, features, n, rng):
    """Random splits of units that are alike, with values: of each, how many changes are found."""
    found = []
    for _ in range(count):
        reference, now = draw(n[0]), draw(n[1])
        before = summarise(reference, values(reference, features, rng), features)
        after = summarise(now, values(now, features, rng), features, reference=before)
        found.append(len(feature_drift(before, after).found()))
    return np.array(found)


def test_changes_found_in_nothing_are_rarer_than_the_level_whatever_features_have_in_common():
    rng = np.random.default_rng(0)
    draw = topical(rates(800, rng), 2500, rng, spread=1.5)
    assert (null_replications(100, draw, 800, (1500, 500), rng) > 0).mean() <= 0.05


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_changes_found_in_nothing_are_rarer_than_the_level_in_a_thousand_replications():
    rng = np.random.default_rng(1)
    draw = topical(rates(4608, rng), 5000, rng, spread=1.5)
    assert (null_replications(1000, draw, 4608, (4000, 1024), rng) > 0).mean() <= 0.05


def test_rates_alone_over_a_thousand_replications_of_correlated_features():
    """Splits of one pool: as many as the counts of a product of matrices make cheap."""
    rng = np.random.default_rng(2)
    features, n0, n1 = 600, 1500, 500
    pool = topical(rates(features, rng, low=-3), n0 + n1, rng, spread=1.5)(n0 + n1)
    x = torch.zeros(n0 + n1, features)
    x[torch.arange(n0 + n1).repeat_interleave(pool.offsets.diff()), pool.feature.long()] = 1
    now = torch.zeros(1000, n0 + n1)
    for row in now:
        row[torch.from_numpy(rng.choice(n0 + n1, n1, replace=False))] = 1
    after, total = (now @ x).numpy(), x.sum(0).numpy()
    drifts = [feature_drift(counted(n0, total - fired), counted(n1, fired)) for fired in after]
    assert np.mean([len(drift.found()) > 0 for drift in drifts]) <= 0.05
    p = np.stack([drift.rate_p for drift in drifts])
    p = p[:, ~np.isnan(p).any(0)]
    assert p.shape[1] > 100
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level
    assert (p <= 0.05).mean() >= 0.015, "p-values that are never small show nothing here"


def test_values_are_tested_exactly_however_they_are_distributed():
    """Student's t finds what is not there: few skewed values against many."""
    rng = np.random.default_rng(3)
    features, replications, many, few = 100, 60, 400, 20
    p = []
    for _ in range(replications):
        reference, now = (from_keys(np.arange(n * features), n, features) for n in (many, few))
        heavy = [torch.from_numpy(rng.lognormal(sigma=1.5, size=n * features).astype(np.float32)) for n in (many, few)]
        before = summarise(reference, heavy[0], features)
        drift = feature_drift(before, summarise(now, heavy[1], features, reference=before))
        assert np.isnan(drift.rate_p).all(), "features that always fire have no rate to test"
        p.append(drift.mean_p)
    p = np.concatenate(p)
    for level in (0.001, 0.01, 0.05):
        assert (p <= level).mean() <= level * 1.2 + 2 / len(p)
    assert (p <= 0.05).mean() > 0.01


# -- something changes ------------------------------------------------------------------------------------------------


def test_planted_changes_of_rates_and_of_values_come_first():
    rng = np.random.default_rng(4)
    features = 4608
    before = rates(features, rng)
    planted = rng.choice(np.flatnonzero(before > 0.04), 8, replace=False)
    after = before.copy()
    after[planted[:2]] *= 2.2
    after[planted[2:4]] /= 3
    scale = np.ones(features)
    scale[planted[4:6]], scale[planted[6:]] = 4.0, 0.25
    reference = units(before, 8000, rng)
    _, now = twins(before, after, 2048, rng)
    old = summarise(reference, values(reference, features, rng, np.ones(features)), features)
    drift = feature_drift(old, summarise(now, values(now, features, rng, scale), features, reference=old))
    found = drift.found()
    assert set(found[:8]) == set(planted)
    assert len(found) <= 9
    assert (drift.rate_effect[planted[:2]] > 0.4).all()
    assert (drift.rate_effect[planted[2:4]] < -0.6).all()
    assert (drift.rate_effect_low[planted[:2]] > 0).all()
    assert (drift.rate_effect_high[planted[2:4]] < 0).all()
    assert (drift.mean_effect_low[planted[4:6]] > 0).all()
    assert (drift.mean_effect_high[planted[6:]] < 0).all()
    assert (drift.mean_q[planted[4:]] <= 0.05).all()
    assert (drift.rate_q[planted[:4]] <= 0.05).all()


def test_the_power_that_the_docs_state():
    """Rates that double are found in 1,024 units after 8,000: 3 in 10 at 0.02, 8 in 10 at 0.04, nearly all at 0.08."""
    rng = np.random.default_rng(5)
    at = {0.02: slice(0, 20), 0.04: slice(20, 40), 0.08: slice(40, 60)}
    hits, wrong = dict.fromkeys(at, 0.0), []
    for _ in range(10):
        rate = rates(4608, rng)
        for p, where in at.items():
            rate[where] = p
        after = rate.copy()
        after[:60] *= 2
        found = feature_drift(counted(8000, rng.binomial(8000, rate)), counted(1024, rng.binomial(1024, after))).found()
        for p, where in at.items():
            hits[p] += np.isin(np.arange(4608)[where], found).mean() / 10
        wrong.append((found >= 60).mean())
    assert hits[0.02] > 0.25
    assert hits[0.04] > 0.75
    assert hits[0.08] > 0.97
    assert np.mean(wrong) <= 0.02


# -- what is told -----------------------------------------------------------------------------------------------------


def test_features_of_which_nothing_can_be_said_are_not_tested():
    #  never, always, hardly ever, too rare to tell fewer, new, gone
    reference = counted(1000, np.array([0, 1000, 1, 12, 0, 400]))
    drift = feature_drift(reference, counted(1000, np.array([0, 1000, 0, 0, 30, 0])))
    assert np.isnan(drift.rate_p).tolist() == [True, True, True, True, False, False]
    assert np.isnan(drift.rate_q).tolist() == [True, True, True, True, False, False]
    assert drift.tested == 2
    assert drift.found().tolist() == [5, 4]
    assert drift.before.rate_high[0] == pytest.approx(3 / 1000, rel=0.01)
    assert drift.before.rate_low[1] == pytest.approx(1 - 3 / 1000, rel=0.01)
    assert np.isnan(drift.rate_effect[0])
    assert drift.rate_effect[4] == math.inf == drift.rate_effect_high[4]
    assert 0 < drift.rate_effect_low[4] < math.log(30)
    assert drift.rate_effect[5] == -math.inf == drift.rate_effect_low[5]
    assert drift.rate_effect_high[5] < 0
    assert np.isnan(drift.mean_p).all()


def test_a_feature_of_thin_reference_is_tested_for_more_but_not_for_fewer():
    drift = feature_drift(counted(1000, np.array([12, 12])), counted(100, np.array([0, 12])))
    assert drift.rate_p[0] == 1
    assert drift.rate_p[1] < 1e-5
    draws = draws_tail(np.array([12]), np.array([24]), 100, 1100)
    assert drift.rate_p[1] == pytest.approx(draws[0]), "one side alone is looked at, so it is not doubled"


def test_figures_are_those_of_a_recomputation():
    rng = np.random.default_rng(6)
    features, n = 60, 300
    x = units(rates(features, rng, low=-2, high=-0.3), n, rng)
    v = values(x, features, rng)
    dense = np.full((n, features), np.nan)
    dense[np.repeat(np.arange(n), x.offsets.diff().numpy()), x.feature.numpy()] = v.numpy()
    reference = summarise(x, v, features)
    here = [dense[~np.isnan(dense[:, f]), f] for f in range(features)]
    assert reference.fired.tolist() == [len(column) for column in here]
    np.testing.assert_allclose(reference.sum, [column.sum() for column in here], rtol=1e-6)
    np.testing.assert_array_equal(reference.level, [np.sort(c)[(len(c) - 1) // 2] if len(c) else np.nan for c in here])
    np.testing.assert_array_equal(reference.above, [(c > m).sum() for c, m in zip(here, reference.level, strict=True)])
    np.testing.assert_array_equal(reference.below, [(c < m).sum() for c, m in zip(here, reference.level, strict=True)])
    side = feature_drift(reference, reference).before
    known = reference.fired >= 5
    np.testing.assert_allclose(side.mean[known], [c.mean() for c in here if len(c) >= 5], rtol=1e-5)
    errors = [c.std(ddof=1) / math.sqrt(len(c)) for c in here if len(c) >= 5]
    np.testing.assert_allclose(side.mean_error[known], errors, rtol=1e-4)
    assert np.isnan(side.mean[~known]).all()
    assert ((side.rate_low <= side.rate) & (side.rate <= side.rate_high)).all()


def test_windows_add_up():
    rng = np.random.default_rng(7)
    rate = rates(100, rng)
    a, b, c = (units(rate, n, rng) for n in (500, 120, 80))
    va, vb, vc = (values(x, 100, rng) for x in (a, b, c))
    reference = summarise(a, va, 100)
    both = Fired(torch.cat([b.offsets, c.offsets[1:] + b.offsets[-1]]), torch.cat([b.feature, c.feature]))
    whole = summarise(both, torch.cat([vb, vc]), 100, reference=reference)
    merged = summarise(b, vb, 100, reference=reference).merge(summarise(c, vc, 100, reference=reference))
    assert merged.units == whole.units == 200
    for name in ("fired", "sum", "squares", "level", "above", "below"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name))


def test_the_effects_have_intervals_that_cover_them():
    rng = np.random.default_rng(8)
    rate = np.full(2000, 0.03)
    drift = feature_drift(counted(4000, rng.binomial(4000, rate)), counted(1000, rng.binomial(1000, rate * 1.5)))
    covered = (drift.rate_effect_low <= math.log(1.5)) & (math.log(1.5) <= drift.rate_effect_high)
    assert 0.93 <= covered.mean() <= 0.97


def test_looks_share_the_level():
    assert sum(look_share(j) for j in range(1, 100_000)) == pytest.approx(1, abs=1e-4)
    assert [look_share(j, looks=4) for j in (1, 4)] == [0.25, 0.25]
    with pytest.raises(ValueError, match="look 0"):
        look_share(0)
    with pytest.raises(ValueError, match="look 5 of 4"):
        look_share(5, looks=4)
    fired = np.full(50, 200)
    more = np.append(np.full(49, 200), 260)
    once = feature_drift(counted(1000, fired), counted(1000, more))
    tenth = feature_drift(counted(1000, fired), counted(1000, more), share=look_share(10))
    assert tenth.rate_q[-1] == pytest.approx(min(1, once.rate_q[-1] * 110))


def test_what_cannot_be_compared_is_refused():
    rng = np.random.default_rng(9)
    x = units(rates(50, rng), 200, rng)
    reference = summarise(x, values(x, 50, rng), 50)
    with pytest.raises(InsufficientReference, match="99 units of reference"):
        feature_drift(counted(99, np.zeros(5)), counted(10, np.zeros(5)))
    with pytest.raises(InsufficientReference, match="0 of now"):
        feature_drift(counted(200, np.zeros(5)), counted(0, np.zeros(5)))
    with pytest.raises(ReferenceMismatch, match="5 and 6 features"):
        feature_drift(counted(200, np.zeros(5)), counted(10, np.zeros(6)))
    with pytest.raises(ReferenceMismatch, match="two references"):
        feature_drift(reference, summarise(x, values(x, 50, rng), 50))
    with pytest.raises(ReferenceMismatch, match=r"feature \d+ fired"):
        summarise(x, None, 20)
    with pytest.raises(ReferenceMismatch, match="50 features, not 60"):
        summarise(x, values(x, 50, rng), 60, reference=reference)
    with pytest.raises(ValueError, match="3 values"):
        summarise(x, torch.zeros(3), 50)
    with pytest.raises(ValueError, match="share is 0"):
        feature_drift(reference, reference, share=0)


# -- tails ------------------------------------------------------------------------------------------------------------


def test_tails_are_not_less_than_the_exact_ones_and_far_out_hardly_more():
    rng = np.random.default_rng(10)
    for _ in range(300):
        total = int(rng.integers(2, 300))
        marked, drawn = int(rng.integers(0, total + 1)), int(rng.integers(1, total))
        k = int(rng.integers(max(0, drawn - total + marked), min(marked, drawn) + 1))
        ways = [math.comb(marked, i) * math.comb(total - marked, drawn - i) for i in range(k, min(marked, drawn) + 1)]
        exact = sum(ways) / math.comb(total, drawn)
        _bounds(float(draws_tail(np.array([k]), np.array([marked]), drawn, total)[0]), exact)
        c, n = (int(v) for v in rng.integers(1, 200, 2))
        over, k = int(rng.integers(0, c)), int(rng.integers(0, n + 1))
        ways = [math.comb(over + i, i) * math.comb(c - 1 - over + n - i, n - i) for i in range(k, n + 1)]
        tail = exceedances_tail(np.array([k]), np.array([n]), np.array([over]), np.array([c]))
        _bounds(float(tail[0]), sum(ways) / math.comb(c + n, n))


def _bounds(bound, exact):
    assert exact * (1 - 1e-9) <= bound <= 1
    if exact < 1e-3:
        assert bound <= 1.05 * exact
