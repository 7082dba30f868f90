"""Partners, neighbours, the features of some rows, and orders by an outcome."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydrophoned.analyse.cooccurrence import partners, top_partners
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.neighbours import chance_cosine, correlations, cosines, nearest_by_decoder
from hydrophoned.analyse.rerank import association, falling, probe_scores
from hydrophoned.analyse.row_features import features_of_rows
from hydrophoned.analyse.traffic import Measure, Traffic
from traffic_made import made

F, K = 60, 8


def coded(n=3000, *, seed=0, requests=150, features=F):
    """Codes of rows as sets of features: 0 and 1 together half of the time, 2 only with 3, the others alone."""
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(-3, 0.8, features)).clip(0, 0.3)
    fires = rng.random((n, features)) < rate
    fires[:, 1] |= fires[:, 0] & (rng.random(n) < 0.5)
    fires[:, 2] = fires[:, 3] & (rng.random(n) < 0.8)
    dense = np.where(fires, rng.exponential(1, (n, features)) + 0.1, 0)
    value = -np.sort(-dense, axis=1)[:, :K]
    index = np.argsort(-dense, axis=1, kind="stable")[:, :K]
    request = np.sort(rng.integers(0, requests, n))
    return SimpleNamespace(index=index.astype(np.int32), value=value.astype(np.float32), request=request)


def dense_of(codes, features=F):
    x = np.zeros((len(codes.request), features))
    row, place = (codes.value > 0).nonzero()
    x[row, codes.index[row, place]] = codes.value[row, place]
    return x


def test_partners_are_those_of_a_recomputation():
    codes = coded()
    x = dense_of(codes)
    fires = x > 0
    together = (fires.T.astype(int) @ fires).astype(float)
    for feature in range(F):
        found = partners(codes, feature, F, limit=F)
        others = np.delete(np.arange(F), feature)
        expected = sorted((j for j in others if together[feature, j]), key=lambda j: (-together[feature, j], j))
        assert found.feature.tolist() == expected
        assert (found.rows, found.fired) == (3000, fires[:, feature].sum())
        np.testing.assert_array_equal(found.together, together[feature, expected])
        np.testing.assert_array_equal(found.partner_fired, fires[:, expected].sum(0))
        for j, requests, npmi in zip(found.feature, found.requests, found.npmi, strict=True):
            both = fires[:, feature] & fires[:, j]
            assert requests == len(set(codes.request[both]))
            p, q, r = both.mean(), fires[:, feature].mean(), fires[:, j].mean()
            if both.sum() >= 5 and requests >= 2:
                assert npmi == pytest.approx(np.log(p / (q * r)) / -np.log(p))
            else:
                assert np.isnan(npmi)
        assert ((found.share_low <= found.share) & (found.share <= found.share_high)).all()


def test_all_partners_at_once_are_those_one_by_one():
    codes = coded()
    feature, count = top_partners(codes, F, limit=5)
    for i in range(F):
        one = partners(codes, i, F, limit=5)
        assert feature[i][feature[i] >= 0].tolist() == one.feature.tolist()
        assert count[i][: len(one.together)].tolist() == one.together.tolist()


def test_partners_by_npmi_are_the_planted_ones_and_chance_pairs_come_out_low():
    codes = coded()
    assert partners(codes, 2, F, limit=3, by_npmi=True).feature[0] == 3
    assert partners(codes, 0, F, limit=3, by_npmi=True).feature[0] == 1
    alone = [partners(codes, i, F, limit=1, by_npmi=True).npmi_low for i in range(4, F)]
    assert max(max(low, default=0) for low in alone) < 0.15


def test_a_share_of_the_sample_covers_that_of_all_rows():
    """The stated error of partners: Wilson's bounds from 2000 of 40,000 rows hold the share of all of them."""
    codes = coded(40_000, requests=40_000)
    fires = dense_of(codes) > 0
    rng = np.random.default_rng(0)
    held = []
    for _ in range(20):
        some = rng.permutation(40_000)[:2000]
        sample = SimpleNamespace(index=codes.index[some], value=codes.value[some], request=codes.request[some])
        for feature in (0, 3, 10, 20):
            found = partners(sample, feature, F, limit=10)
            truth = (fires[:, feature][:, None] & fires[:, found.feature]).sum(0) / fires[:, feature].sum()
            often = found.together >= 1
            held += ((found.share_low <= truth) & (truth <= found.share_high))[often].tolist()
    assert np.mean(held) > 0.9


def test_correlations_are_those_of_a_recomputation():
    codes = coded()
    x = dense_of(codes)
    expected = np.corrcoef(x.T)
    for feature in (0, 2, 30):
        found = correlations(codes, feature, F)
        known = found.together >= 5
        np.testing.assert_allclose(found.correlation[known], expected[feature][known], atol=1e-9)
        assert np.isnan(found.correlation[~known]).all()
        assert found.correlation[feature] == pytest.approx(1.0)


def test_nearest_by_decoder_are_those_of_all_cosines():
    W = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    W[7] = 3 * W[9] + 0.05 * W[7]
    rows = torch.nn.functional.normalize(W, dim=1)
    full = rows @ rows.T
    torch.testing.assert_close(cosines(W, 7), full[7])
    full.fill_diagonal_(-2)
    near = torch.cat([near for _, near, _ in nearest_by_decoder(W, 3)])
    assert (near == full.topk(3, dim=1).indices).float().mean() > 0.99
    assert int(near[7][0]) == 9


@pytest.mark.parametrize(("features", "width"), [(300, 32), (2000, 64)])
def test_random_directions_are_no_nearer_than_the_chance_cosine_says(features, width):
    W = torch.randn(features, width, generator=torch.Generator().manual_seed(1))
    nearest = torch.cat([cosine[:, 0] for _, _, cosine in nearest_by_decoder(W, 1)])
    assert 0.6 * chance_cosine(features, width) < float(nearest.mean()) <= chance_cosine(features, width)


def test_features_of_rows_finds_what_fires_there_and_only_there():
    codes = coded()
    rng = np.random.default_rng(0)
    x = dense_of(codes)
    marked = (x[:, 20] > 0) & (rng.random(len(x)) < 0.9)
    found = features_of_rows(codes, marked, F, limit=10)
    assert found.feature[0] == 20
    assert (found.rows, found.marked) == (3000, marked.sum())
    fires = x > 0
    for place, feature in enumerate(found.feature):
        n = (fires[:, feature] & marked).sum()
        assert found.fired[place] == n
        assert found.everywhere[place] == fires[:, feature].sum()
        assert found.rate[place] == pytest.approx(n / marked.sum())
        if n >= 5:
            assert found.f1[place] == pytest.approx(2 * n / (marked.sum() + fires[:, feature].sum()))
            assert found.mean[place] == pytest.approx(x[marked & fires[:, feature], feature].mean(), rel=1e-6)
    nothing = features_of_rows(codes, np.zeros(3000, dtype=bool), F, limit=10)
    assert len(nothing.feature) == 0


def test_rows_marked_at_random_have_no_feature_of_their_own():
    codes = coded()
    marked = np.random.default_rng(3).random(3000) < 0.05
    found = features_of_rows(codes, marked, F, limit=5)
    assert np.nanmax(found.f1) < 0.15


def test_requests_come_in_order_of_a_probes_score():
    traffic = made(80, 30, seed=1)
    often = int(traffic.per_feature().argmax())
    traffic = traffic._replace(rows=np.where(np.arange(80) == 5, 0, traffic.rows))
    score = probe_scores(traffic, np.array([often]), np.array([4.0]), -1.0, Measure.RATE)
    rate = np.zeros(80)
    own = traffic.feature == often
    rate[traffic.request[own]] = traffic.fired[own] / np.maximum(traffic.rows[traffic.request[own]], 1)
    assert np.isnan(score[5])
    known = np.arange(80) != 5
    np.testing.assert_allclose(score[known], 1 / (1 + np.exp(1 - 4 * rate[known])))
    order = falling(score)
    assert order[-1] == 5
    assert (np.diff(score[order[:-1]]) <= 0).all()


def test_features_come_with_how_they_go_with_an_outcome_and_with_none():
    rng = np.random.default_rng(0)
    plain = made(200, 50, seed=2)
    often = int(plain.per_feature().argmax())
    label = np.arange(200) % 2 == 0
    lift = np.ones((200, 50))
    lift[label, often] = 5.0
    found = association(made(200, 50, seed=2, lift=lift), label, Measure.RATE)
    assert np.nanargmax(found.effect) == often
    assert found.p[often] < 1e-6
    nothing = association(plain, rng.permutation(label), Measure.RATE)
    assert np.nanmin(nothing.p) > 1e-4
    with pytest.raises(TooLittle, match="200 of 200"):
        association(plain, np.ones(200, dtype=bool), Measure.RATE)


def test_traffic_of_codes_sums_over_requests():
    codes = coded(500, requests=20)
    traffic, keys = Traffic.of_codes(codes, F)
    x = dense_of(codes)
    for place, key in enumerate(keys):
        here = codes.request == key
        assert traffic.rows[place] == here.sum()
        own = traffic.request == place
        np.testing.assert_array_equal(traffic.feature[own], np.flatnonzero((x[here] > 0).any(0)))
        np.testing.assert_allclose(traffic.fired[own], (x[here] > 0).sum(0)[traffic.feature[own]])
        np.testing.assert_allclose(traffic.sum[own], x[here].sum(0)[traffic.feature[own]], rtol=1e-6)
