import pytest
import torch
from hydrophoned.analyse.active import Active
from hydrophoned.analyse.auroc import auroc, aurocs_of_columns, aurocs_of_features
from hydrophoned.analyse.probe import RIDGE, Standard, best_threshold, f1, fit_probe
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import codes_of, sparse


def by_pairs(score, label):
    one, other = score[label][:, None].double(), score[~label][None].double()
    return float(((one > other).double() + (one == other).double() / 2).mean())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_counts_pairs_and_ties_by_half(rows):
    score, label = torch.tensor([float(one) for one, _ in rows]), torch.tensor([one for _, one in rows])
    if label.all() or not label.any():
        return
    expected = by_pairs(score, label)
    assert auroc(score, label) == pytest.approx(expected)
    codes = codes_of(torch.stack([score, score.flip(0)], 1), k=2)
    assert float(aurocs_of_features(Active.of(codes, 2), label)[0]) == pytest.approx(expected)


def test_aurocs_of_active_pairs_are_those_of_the_dense_codes():
    z = sparse(900, 70, 0.1)
    z[:, 4] = (z[:, 4] > 0).float()  # many ties
    z[:, 5] = 0
    label = torch.rand(900, generator=torch.Generator().manual_seed(2)) < 0.3
    z[label, 6] += 1
    found = aurocs_of_features(Active.of(codes_of(z), 70), label)
    assert found.tolist() == pytest.approx(aurocs_of_columns(z, label).tolist(), abs=1e-12)
    assert found[5] == 0.5
    assert found[6] > 0.99
    assert found[:4].sub(0.5).abs().max() < 0.05, "of features that know nothing of the label"


def test_the_probe_is_the_minimum_of_what_it_minimises():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 12, generator=g)
    truth = torch.randn(12, generator=g)
    label = torch.rand(3000, generator=g) < torch.sigmoid(x @ truth - 1)
    probe = fit_probe(x, label)
    missed = torch.sigmoid(probe.logits(x)) - label.float()
    assert (x.T @ missed / 3000 + RIDGE * probe.weight).abs().max() < 1e-4
    assert missed.mean().abs() < 1e-4
    assert torch.nn.functional.cosine_similarity(probe.weight, truth, dim=0) > 0.99


def test_labels_that_a_plane_parts_do_not_send_the_probe_to_infinity():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    probe = fit_probe(x, x[:, 0] > 0)
    assert probe.weight.isfinite().all()
    assert auroc(probe.logits(x), x[:, 0] > 0) == pytest.approx(1, abs=1e-3)


def test_constant_columns_stay_finite_when_standardised():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0, 30.0]) + 5
    y = Standard.of(x).apply(x)
    assert y.isfinite().all()
    assert y[:, 1].abs().max() < 1e-5
    assert y[:, [0, 2]].std(0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_no_threshold_has_a_better_f1(rows):
    logits, label = torch.tensor([float(one) for one, _ in rows]), torch.tensor([one for _, one in rows])
    if not label.any():
        return
    best = f1(logits >= best_threshold(logits, label), label)
    assert best == pytest.approx(max(f1(logits >= one, label) for one in logits))


def test_f1_of_nothing_right_is_nought():
    label = torch.tensor([True, False])
    assert f1(~label, label) == 0
    assert f1(label, label) == 1
    assert f1(torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)) == 0
