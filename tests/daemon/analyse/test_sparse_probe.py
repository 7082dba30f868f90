import itertools

import numpy as np
import pytest
from hydrophoned.analyse.columns import DenseColumns
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.sparse_probe import sparse_probes
from traffic_made import columns_of

N, FEATURES = 400, 500


def values(seed=0, n=N):
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(-2, 0.8, FEATURES)).clip(0.02, 0.6)
    return np.where(rng.random((n, FEATURES)) < rate, rng.exponential(1, (n, FEATURES)), 0)


def planted(x, features, weights, seed=0, noise=1.0):
    """Labels drawn from a logistic model of these features, about half of them true."""
    logit = x[:, features] @ np.asarray(weights)
    rng = np.random.default_rng(seed)
    return rng.logistic(size=len(x)) * noise < logit - np.median(logit)


def test_planted_sets_are_recovered():
    x = values()
    often = np.argsort(-(x > 0).mean(0))
    for k, weights in ((1, [4]), (4, [4, 4, 4, -4]), (8, [5, 5, 5, 5, -5, -5, -5, -5])):
        features = often[5 : 5 + k]
        label = planted(x, features, weights, noise=0.5)
        (probe,) = sparse_probes(columns_of(x), label, np.arange(N), sizes=(k,))
        assert set(probe.features) == set(features)
        assert (probe.chosen_again >= 0.6).all()
        signs = dict(zip(probe.features, np.sign(probe.weights), strict=True))
        assert [signs[f] for f in features] == np.sign(weights).tolist()
        assert probe.held.auroc_low > 0.7


def test_more_features_tell_more_until_all_planted_ones_are_in():
    x = values(1)
    features = np.argsort(-(x > 0).mean(0))[:4]
    probes = sparse_probes(columns_of(x), planted(x, features, [5, 5, 5, 5], noise=0.5), np.arange(N))
    assert [probe.k for probe in probes] == [1, 2, 4, 8, 16]
    auroc = [probe.held.auroc for probe in probes]
    assert auroc[0] < auroc[1] < auroc[2]
    assert auroc[4] < auroc[2] + 0.02
    assert all(set(a.features) <= set(b.features) for a, b in itertools.pairwise(probes))


def test_permuted_labels_are_told_as_well_as_by_chance():
    """1 or 8 of 500 features are chosen inside the folds: outside, the best of nothing would look like something."""
    x = columns_of(values(2, 150))
    rng = np.random.default_rng(0)
    label = np.arange(150) < 50
    auroc, f1, covered = [], [], []
    for seed in range(100):
        found = sparse_probes(x, rng.permutation(label), np.arange(150), sizes=(1, 8), seed=seed)
        auroc.append([probe.held.auroc for probe in found])
        f1.append([probe.held.f1 - probe.held.f1_chance for probe in found])
        covered.append([probe.held.auroc_low <= 0.5 <= probe.held.auroc_high for probe in found])
    for gap in (np.array(auroc) - 0.5, np.array(f1)):
        error = gap.std(0) / 10
        assert (error < 0.01).all()
        assert (np.abs(gap.mean(0)) < 3 * error).all(), (gap.mean(0), error)
    assert (np.mean(covered, 0) >= 0.9).all()


def test_a_choice_outside_the_folds_would_find_something_in_nothing():
    x = values(2, 150)
    rng = np.random.default_rng(0)
    seen = []
    for seed in range(20):
        label = rng.permutation(np.arange(150) < 50)
        best = np.abs((x - x.mean(0)).T @ label / (x.std(0) + 1e-9)).argsort()[-8:]
        (probe,) = sparse_probes(columns_of(x[:, best]), label, np.arange(150), sizes=(4,), seed=seed)
        seen.append(probe.held.auroc)
    assert np.mean(seen) > 0.6


def test_rows_of_a_request_are_never_on_both_sides():
    """Each request has a feature of its own and a label: across requests nothing is to be learned."""
    rng = np.random.default_rng(0)
    request = np.repeat(np.arange(60), 20)
    label = (rng.random(60) < 0.5)[request]
    x = np.zeros((1200, 60))
    x[np.arange(1200), request] = 1.0
    (probe,) = sparse_probes(columns_of(x), label, request, sizes=(16,))
    assert probe.requests == 60
    assert probe.held.auroc < 0.6
    (rows_apart,) = sparse_probes(columns_of(x), label, np.arange(1200), sizes=(16,))
    assert rows_apart.held.auroc > 0.6


def test_scores_are_those_of_a_recomputation():
    x = values(3)
    features = np.argsort(-(x > 0).mean(0))[:2]
    label = planted(x, features, [3, 3])
    (probe,) = sparse_probes(columns_of(x), label, np.arange(N), sizes=(2,))
    held = probe.held
    assert (probe.units, probe.requests, probe.positives) == (N, N, label.sum())
    share = label.mean()
    assert held.f1_always == pytest.approx(2 * share / (1 + share))
    assert held.f1 == pytest.approx(2 * held.precision * held.recall / (held.precision + held.recall))
    assert held.auroc_low < held.auroc < held.auroc_high
    # the stored probe, applied: nearly as good on the units it was fitted to as on those held out
    logit = x[:, probe.features] @ probe.weights + probe.bias
    inside = (logit[label][:, None] > logit[~label]).mean()
    assert inside == pytest.approx(held.auroc, abs=0.03)
    called = logit >= probe.threshold
    assert 2 * (called & label).sum() / (called.sum() + label.sum()) == pytest.approx(held.f1, abs=0.06)


def test_a_label_told_without_error_has_bounds_that_say_how_many_requests():
    x = np.zeros((40, 3))
    label = np.arange(40) < 20
    x[label, 1] = 1.0
    x[:, 2] = np.random.default_rng(0).random(40)
    (probe,) = sparse_probes(columns_of(x), label, np.arange(40), sizes=(1,))
    assert probe.features.tolist() == [1]
    assert probe.held.auroc == probe.held.auroc_high == probe.held.f1 == 1.0
    assert probe.held.auroc_low == pytest.approx(0.025 ** (1 / 20))


def test_raw_neurons_are_probed_alike():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20)).astype(np.float32)
    label = x[:, 7] + 0.3 * rng.normal(size=300) < 0
    (probe,) = sparse_probes(DenseColumns(x), label, np.arange(300), sizes=(1,))
    assert probe.features.tolist() == [7]
    assert probe.weights[0] < 0
    assert probe.held.auroc > 0.9


@pytest.mark.parametrize("positives", [0, 4, 97, 100])
def test_too_few_requests_of_a_kind_are_refused(positives):
    with pytest.raises(TooLittle, match=f"{positives} requests have the label"):
        sparse_probes(columns_of(values(0, 100)), np.arange(100) < positives, np.arange(100))


def test_features_that_never_fire_cannot_be_chosen():
    with pytest.raises(TooLittle, match="nothing to choose from"):
        sparse_probes(columns_of(np.zeros((40, 5))), np.arange(40) < 20, np.arange(40))
