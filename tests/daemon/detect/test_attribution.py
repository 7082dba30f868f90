import itertools
import math

import firings_made
import numpy as np
import pytest
import torch
from hydrophoned.detect.along import along
from hydrophoned.detect.attribution import Side, attribute, firing_units
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.exchange import LEAST_P, Exchange, discovery_q, mean_test, share_test, student_p
from hydrophoned.detect.fired import Fired

F = 1200
Q = 0.1


def nothing(n, rng, width=4):
    return torch.from_numpy(rng.standard_normal((n, width)).astype(np.float32))


def features_of(before, after, rng, blocks=(None, None), features=F):
    sides = [
        Side(nothing(one.units, rng), one, block=block) for one, block in zip((before, after), blocks, strict=True)
    ]
    return attribute(*sides, features=features).features


def false_share(found, planted):
    told = found.feature[found.q <= Q]
    return (~np.isin(told, planted)).sum() / max(1, len(told))


def doubled(rate, rng, count, low=0.06):
    planted = rng.choice(np.flatnonzero(rate >= low), count, replace=False)
    more = rate.copy()
    more[planted] *= 2
    return more, planted


# -- features ---------------------------------------------------------------------------------------------------------


def test_features_that_doubled_their_rate_come_first():
    first, false = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rate = firings_made.rates(4608, rng)
        more, planted = doubled(rate, rng, 5)
        before, after = firings_made.units(rate, 2000, rng), firings_made.units(more, 1024, rng)
        found = features_of(before, after, rng, features=4608)
        first.append(np.isin(found.feature[:5], planted).mean())
        false.append(false_share(found, planted))
    assert np.mean(first) >= 0.95
    assert np.mean(false) <= 0.12


def blocks_of(setting, n, m, rng):
    """Block of each of n and then m units: sessions of one side, or tenants whose shares in the traffic change."""
    if setting == "sessions":
        size = rng.integers(4, 40, n + m)
        block = np.repeat(np.arange(len(size)), size)[: n + m]
        return block[:n], block[n:]
    shares = rng.dirichlet(np.ones(24), 2)
    return rng.choice(24, n, p=shares[0]), rng.choice(24, m, p=shares[1])


def of_blocks(rate, factor, block, rng):
    parts = []
    for one in np.unique(block):
        (at,) = (block == one).nonzero()
        key = firings_made.distinct(np.minimum(rate * factor[one], 0.9), len(at), rng)
        parts.append(at[key // len(rate)] * len(rate) + key % len(rate))
    return firings_made.fired(np.sort(np.concatenate(parts)), len(block), len(rate))


@pytest.mark.parametrize("setting", ["sessions", "tenants"])
def test_blocks_that_resemble_themselves_are_not_taken_for_a_change(setting):
    given, ignored, found = [], [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rate = 10 ** rng.uniform(-3, -0.8, F)
        more, planted = doubled(rate, rng, 20)
        block = blocks_of(setting, 2000, 1000, rng)
        factor = np.exp(0.6 * rng.standard_normal((1 + max(b.max() for b in block), F)) - 0.18)
        fired = of_blocks(rate, factor, block[0], rng), of_blocks(more, factor, block[1], rng)
        with_blocks = features_of(*fired, rng, block)
        assert with_blocks.of == ("blocks" if setting == "sessions" else "units of a block")
        given.append(false_share(with_blocks, planted))
        found.append(np.isin(planted, with_blocks.feature[with_blocks.q <= Q]).mean())
        ignored.append(false_share(features_of(*fired, rng), planted))
    assert np.mean(given) <= 0.12
    assert np.mean(ignored) > 0.2
    assert np.mean(found) > 0.5


def test_a_random_split_names_nothing():
    told = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        draw = firings_made.topical(firings_made.rates(F, rng), rng=rng, n=0)
        x = torch.randn(900, 30, generator=torch.Generator().manual_seed(seed)) ** 3  # heavy tails
        found = attribute(Side(x[:600], draw(600)), Side(x[600:], draw(300)), features=F)
        told.append([(q <= Q).any() for q in (found.features.q, found.coordinates.q, found.coordinates.spread_q)])
        told[-1].append(found.after is not None)
    assert (np.sum(told, 0) <= [5, 5, 5, 3]).all(), np.sum(told, 0)  # 2 of 20 each, expected at most


def test_rates_and_effects_are_those_of_the_units():
    fires = np.zeros((40, 3), dtype=bool)
    fires[:5, 0] = fires[20:35, 0] = True
    fires[::2, 1] = True
    fires[39, 2] = True  # too seldom to be tested
    sides = [firings_made.fired(np.flatnonzero(part), 20, 3) for part in (fires[:20], fires[20:])]
    found = features_of(*sides, np.random.default_rng(0), features=3)
    assert found.feature.tolist() == [0, 1]
    assert found.fired_before.tolist() == [5, 10]
    assert found.fired_after.tolist() == [15, 10]
    assert found.rate_after.tolist() == [0.75, 0.5]
    np.testing.assert_allclose(found.effect, [2 * (np.arcsin(0.75**0.5) - np.arcsin(0.25**0.5)), 0], atol=1e-12)
    assert found.q[0] < 0.02 < found.q[1]
    assert (found.units_before, found.units_after, found.groups_before, found.groups_after) == (20, 20, 20, 20)
    back = features_of(sides[1], sides[0], np.random.default_rng(0), features=3)
    np.testing.assert_allclose(back.z, -found.z)
    np.testing.assert_allclose(back.p, found.p)


def test_the_latest_units_in_which_features_fired():
    fired = Fired(torch.tensor([0, 2, 2, 3, 5]), torch.tensor([1, 4, 1, 1, 2], dtype=torch.int32))
    assert [units.tolist() for units in firing_units(fired, np.array([1, 4, 7]), 2)] == [[3, 2], [0], []]


# -- coordinates ------------------------------------------------------------------------------------------------------


def test_shifted_and_wider_coordinates_are_told_apart():
    rng = np.random.default_rng(0)
    x = nothing(3000, rng, 200) * torch.linspace(0.1, 5, 200)
    scale = x.std(0)
    x[2000:, :10] += 0.3 * scale[:10]
    x[2000:, 10:20] *= 1.5
    x[:, 20] = 1.1  # what its mean differs from by rounding
    found = attribute(Side(x[:2000]), Side(x[2000:]))
    assert found.features is None
    assert (found.coordinates.q[:10] <= 0.01).all()
    assert (found.coordinates.q <= Q).sum() <= 13
    assert (found.coordinates.spread_q[10:20] <= 0.01).all()
    assert (found.coordinates.spread_q <= Q).sum() <= 13
    np.testing.assert_allclose(found.coordinates.shift[:10], 0.3, atol=0.12)
    np.testing.assert_allclose(found.coordinates.spread[10:20], 1.5, atol=0.1)
    assert found.coordinates.z[20] == found.coordinates.shift[20] == 0
    assert np.isnan(found.coordinates.spread[20])
    assert found.direction.z > 10
    assert found.direction.length == pytest.approx(0.3 * 10**0.5, rel=0.2)
    assert float(found.direction.direction[:10].norm()) > 0.1


def test_fewer_units_than_coordinates():
    rng = np.random.default_rng(0)
    x = nothing(100, rng, 400)
    assert attribute(Side(x[:70]), Side(x[70:])).after is None
    x[70:, :60] += 1.5
    found = attribute(Side(x[:70]), Side(x[70:]))
    assert (found.coordinates.q[:60] <= Q).mean() > 0.9
    assert found.after.mean() > 3 * abs(found.before.mean()) + 1


# -- units ------------------------------------------------------------------------------------------------------------


def test_units_are_placed_along_what_the_others_changed_by():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(50, 7, generator=generator), torch.randn(20, 7, generator=generator) + 0.5
    found = along(before, after)
    y = [
        float(
            x @ (after.mean(0) - before[torch.arange(50) != i].mean(0))
            - before[torch.arange(50) != i].mean(0) @ (after.mean(0) - before[torch.arange(50) != i].mean(0))
        )
        for i, x in enumerate(before)
    ]
    y = np.array(y)
    np.testing.assert_allclose(found.before, (y - y.mean()) / y.std(ddof=1), atol=1e-4)
    one = (after[3] - before.mean(0)) @ (after[torch.arange(20) != 3].mean(0) - before.mean(0))
    np.testing.assert_allclose(found.after[3], (float(one) - y.mean()) / y.std(ddof=1), atol=1e-4)


@pytest.mark.parametrize("of", ["mean", "spread", "features"])
def test_the_requests_that_carry_a_change_come_first(of):
    rng = np.random.default_rng(0)
    x = nothing(1300, rng, 100)
    rate = np.full(300, 0.05)
    more = rate.copy()
    (changed,) = (rng.random(300) < 0.2).nonzero()
    fired = [firings_made.units(rate, 1000, rng)]
    if of == "features":
        more[:30] = 0.4
    elif of == "mean":
        x[1000 + changed, :20] += 2
    else:
        x[1000 + changed] *= 2
    parts = [firings_made.units(more if unit in changed else rate, 1, rng) for unit in range(300)]
    fired.append(firings_made.joined(*parts))
    found = attribute(Side(x[:1000], fired[0]), Side(x[1000:], fired[1]), features=300)
    assert np.isin(found.carriers(20), changed).mean() >= 0.95
    assert found.after[changed].mean() > 2
    assert abs(np.delete(found.after, changed).mean()) < 0.3
    assert (found.before.mean(), found.before.std()) == (pytest.approx(0), pytest.approx(1))


# -- attributes -------------------------------------------------------------------------------------------------------


def attributed(rng, tenants_after=None, shift=lambda _tenant, _route: 0.0):
    tenant = rng.integers(0, 5, 1500)
    if tenants_after is not None:
        tenant[1000:] = tenants_after
    route = rng.integers(0, 3, 1500)
    x = nothing(1500, rng, 30) + 0.5 * torch.from_numpy(rng.standard_normal((9, 30)).astype(np.float32))[tenant]
    for unit in range(1000, 1500):
        x[unit, :8] += shift(tenant[unit], route[unit])
    named = [
        {"tenant": f"t{one}", "version": "1"} | ({"route": f"r{two}"} if number % 10 else {})
        for number, (one, two) in enumerate(zip(tenant, route, strict=True))
    ]
    return attribute(Side(x[:1000], None, named[:1000]), Side(x[1000:], None, named[1000:]))


def test_a_change_of_one_tenant_is_said_to_be_its_own():
    found = attributed(np.random.default_rng(0), shift=lambda tenant, _route: 2.0 if tenant == 3 else 0.0).concentrated
    first = found[0]
    assert (first.name, first.value) == ("tenant", "t3")
    assert first.shift_q < 1e-6
    assert first.shift > 3 * abs(first.elsewhere)
    assert first.before + first.after == pytest.approx(300, abs=60)
    assert min(one.share_q for one in found) > Q
    assert {one.name for one in found} == {"tenant", "route"}  # all units are of one version


def test_a_change_of_all_is_said_to_be_nobodys():
    told = 0
    for seed in range(10):
        found = attributed(np.random.default_rng(seed), shift=lambda _tenant, _route: 1.0)
        assert found.after.mean() > 1
        told += sum(one.q <= Q for one in found.concentrated)
    assert told <= 4


def test_a_new_tenant_is_told_by_its_share():
    rng = np.random.default_rng(1)
    after = np.where(rng.random(500) < 0.3, 7, rng.integers(0, 5, 500))
    found = attributed(rng, after, shift=lambda tenant, _route: 1.0 if tenant == 7 else 0.0).concentrated
    first = found[0]
    assert (first.name, first.value, first.before, first.share_before) == ("tenant", "t7", 0, 0.0)
    assert first.share_after == pytest.approx(0.3, abs=0.06)
    assert first.share_q < 1e-6
    assert first.shift > 1
    assert all(one.share_q > 0.01 for one in found if one.name == "route")


def test_no_attribute_is_told_of_where_nothing_changed():
    assert attributed(np.random.default_rng(0)).concentrated == []


# -- exchange ---------------------------------------------------------------------------------------------------------


def test_p_values_of_means_are_those_of_many_exchanges():
    rng = np.random.default_rng(0)
    x = np.round(rng.exponential(1, (14, 3)), 2)
    exchange = Exchange.between(8, 6)
    found = mean_test(torch.from_numpy(x).float(), exchange)
    sums = np.array([x[list(some)].sum(0) for some in itertools.combinations(range(14), 6)])
    observed = np.abs(x[8:].sum(0) - x.sum(0) * 6 / 14)
    exact = (np.abs(sums - x.sum(0) * 6 / 14) >= observed - 1e-9).mean(0)
    np.testing.assert_allclose(found.p, exact, rtol=0.2)
    np.testing.assert_allclose(found.z, (x[8:].sum(0) - x.sum(0) * 6 / 14) / sums.std(0), rtol=1e-4)


def test_units_are_exchanged_within_blocks_of_both_sides():
    """Two blocks of other rates, and more of one after: the rates within did not change."""
    block = np.repeat([0, 1, 0, 1], [300, 100, 100, 300])
    fires = np.concatenate([np.arange(400) % 300 < 30, np.arange(400) % 100 < 10])  # 10% of one block
    fires[block == 1] = np.arange((block == 1).sum()) % 2 == 0  # and half of the other
    (unit,) = fires.nonzero()
    feature = np.zeros(len(unit), dtype=np.int64)
    found = {}
    for name, blocks in (("units", None), ("units of a block", block)):
        exchange = Exchange.between(400, 400, blocks)
        assert exchange.of == name
        found[name] = share_test(exchange.shares(unit, feature, 1), exchange).p[0]
    assert found["units"] < 1e-6
    assert found["units of a block"] > 0.5


def test_a_block_at_the_change_counts_on_the_side_of_most_of_its_units():
    exchange = Exchange.between(7, 5, np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]))
    assert exchange.of == "blocks"
    assert exchange.after.tolist() == [False, False, False, True, True]
    assert exchange.size.tolist() == [3, 2, 2, 2, 2]
    assert exchange.unit.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    x = torch.arange(12.0)[:, None]
    assert exchange.means(x)[:, 0].tolist() == [1.0, 3.5, 5.5, 8.5, 10.5]
    shares = exchange.shares(np.array([0, 1, 5, 7, 8]), np.array([2, 2, 2, 2, 0]), 3)
    assert shares.dense(np.array([2]))[:, 0].tolist() == pytest.approx([2 / 3, 0, 0.5, 0, 0])


def test_student_p_is_within_a_tenth_of_the_tables():
    for freedom, t, p in ((5, 2.5706, 0.05), (5, 6.8688, 0.001), (10, 2.2281, 0.05), (30, 3.6460, 0.001)):
        assert student_p(np.array([t]), freedom)[0] == pytest.approx(p, rel=0.1)


def test_small_p_values_are_told_apart_down_to_the_smallest_number():
    """With many degrees of freedom Student's t is the normal distribution, whose tails the error function tells."""
    t = np.array([8.2, 9.0, 20.0, 37.0])
    expected = [math.erfc(one / 2**0.5) for one in t]
    np.testing.assert_allclose(student_p(t, 1e12), expected, rtol=1e-6)
    np.testing.assert_allclose(student_p(-t, 1e12), expected, rtol=1e-6)
    assert student_p(np.array([50.0]), 1e12)[0] == LEAST_P
    noise = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.zeros(500, 1), torch.ones(500, 1)])
    p = [mean_test(x + size * noise, Exchange.between(500, 500)).p[0] for size in (0.5, 0.7, 0.9)]
    assert LEAST_P < p[0] < 1e-20 * p[1] < 1e-40 * p[2]


def test_q_values_are_those_of_benjamini_and_hochberg():
    p = np.array([0.5, 0.001, 0.03, 0.02])
    np.testing.assert_allclose(discovery_q(p), [0.5, 0.004, 0.04, 0.04])
    np.testing.assert_allclose(discovery_q(p, np.array([True, True, False, False])), [0.5, 0.002, 1, 1])


# -- input ------------------------------------------------------------------------------------------------------------


def test_units_that_are_not_finite_are_left_out():
    rng = np.random.default_rng(0)
    x = nothing(300, rng, 10)
    x[200:, 0] += 3
    fired = firings_made.units(np.full(20, 0.2), 200, rng), firings_made.units(np.full(20, 0.6), 100, rng)
    clean = attribute(Side(x[:200], fired[0]), Side(x[200:], fired[1]), features=20)
    gaps, keep = torch.cat([torch.full((2, 10), torch.nan), x]), torch.arange(302) >= 2
    empty = Fired(torch.cat([torch.zeros(2, dtype=torch.int64), fired[0].offsets]), fired[0].feature)
    found = attribute(Side(gaps[:202], empty), Side(gaps[202:], fired[1]), features=20)
    assert (found.units_before, found.units_after) == (200, 100)
    assert np.isnan(found.before[:2]).all()
    np.testing.assert_allclose(found.before[keep[:202].numpy()], clean.before)
    np.testing.assert_array_equal(found.features.p, clean.features.p)
    gaps[250] = torch.inf
    assert 48 not in attribute(Side(gaps[:202]), Side(gaps[202:])).carriers(100)


def test_what_cannot_be_compared_is_refused():
    rng = np.random.default_rng(0)
    x = nothing(50, rng)
    with pytest.raises(InsufficientReference, match="5 after"):
        attribute(Side(x[:45]), Side(x[45:]))
    with pytest.raises(ReferenceMismatch, match="width"):
        attribute(Side(x), Side(x[:, :2]))
    fired = firings_made.units(np.full(20, 0.2), 50, rng)
    with pytest.raises(ReferenceMismatch, match="of a dictionary of 5"):
        attribute(Side(x, fired), Side(x, fired), features=5)
    with pytest.raises(ReferenceMismatch, match="50 units were given with 20"):
        attribute(Side(x, fired), Side(x[:20], fired), features=20)
    with pytest.raises(ReferenceMismatch, match="attributes of 1 units"):
        attribute(Side(x, None, [{}]), Side(x))


@pytest.mark.parametrize("value", [0.0, 1.1, 1e6 / 3])
def test_units_that_are_all_the_same_have_not_changed(value):
    x = torch.full((40, 3), value)
    found = attribute(Side(x[:20]), Side(x[20:]))
    assert found.after is None
    assert (found.coordinates.q == 1).all()
    assert (found.coordinates.spread_q == 1).all()
    assert found.direction.z is None
