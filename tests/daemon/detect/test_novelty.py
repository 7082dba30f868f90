import math

import pytest
import torch
from hydrophoned.detect import novelty_neighbours
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.novelty import LEAST_UNITS, NoveltyScorer
from hydrophoned.detect.novelty_head import Head, HeadScores
from hydrophoned.detect.novelty_neighbours import Neighbours
from hydrophoned.detect.novelty_parts import NoveltyParts, Reference, _reconstruction
from hydrophoned.detect.principal import principal
from hydrophoned.detect.surprise import Surprise

D = 24
NAN = float("nan")


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def rows(n, seed, d=D):
    """Anisotropic, off centre."""
    return torch.randn(n, d, generator=drawn(seed)) * torch.arange(1, d + 1) ** -0.5 + 3


def clustered(n, seed, classes=4):
    """Units of some classes, their labels, and a unit of a class that is not among them."""
    g = drawn(seed)
    middles = 4 * torch.randn(classes + 1, D, generator=drawn(99))
    label = torch.randint(0, classes, (n,), generator=g)
    return middles[label] + torch.randn(n, D, generator=g), label, middles[-1] + torch.randn(n, D, generator=g)


def scorer(reference, seed=0, **options):
    return NoveltyScorer(reference, generator=drawn(seed), **options)


def auroc(known, new):
    ordered, new = known.sort().values, new.contiguous()
    below = torch.searchsorted(ordered, new) + torch.searchsorted(ordered, new, right=True)
    return float(below.double().mean()) / 2 / len(known)


def ks_p(p):
    """Of Kolmogorov and Smirnov's test that p is uniform, by the limiting distribution."""
    ordered, n = p.sort().values, len(p)
    step = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum(step - ordered, ordered - step + 1 / n).max())
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101)))


# -- p-values ---------------------------------------------------------------------------------------------------------


def test_p_values_of_units_not_used_are_uniform():
    splits, rejected, small = 50, 0, []
    for seed in range(splits):
        x = rows(900, seed)
        p = scorer(x[:800], seed).update(x[800:]).p
        rejected += ks_p(p) < 0.01
        small.append(float((p <= 0.05).double().mean()))
    assert rejected / splits <= 0.04
    assert abs(sum(small) / splits - 0.05) < 0.012


def test_p_values_are_uniform_with_all_that_may_be_known():
    head = Head(torch.randn(5, D, generator=drawn(7)), torch.zeros(5))
    p = []
    for seed in range(12):
        x, label, _ = clustered(500, seed)
        fvu = torch.rand(500, generator=drawn(seed)) + 0.1 * x[:, 0].abs()
        known = scorer(x[:400], seed, labels=label[:400], fvu=fvu[:400], head=head)
        p.append(known.update(x[400:], fvu[400:]).p)
    p = torch.cat(p)
    assert abs(float((p <= 0.05).double().mean()) - 0.05) < 0.03
    assert abs(float(p.mean()) - 0.5) < 0.05


def test_p_values_are_uniform_where_units_are_fewer_than_coordinates():
    p = torch.cat([scorer(rows(160, seed, 200), seed).update(rows(100, seed + 500, 200)).p for seed in range(12)])
    assert abs(float((p <= 0.1).double().mean()) - 0.1) < 0.04
    assert abs(float(p.mean()) - 0.5) < 0.05


def test_p_values_of_the_reference_are_its_ranks():
    x = rows(300, 0)
    x[7] = NAN
    known = scorer(x)
    assert torch.allclose(known.reference_p.sort().values, torch.arange(1, 300).double() / 300)
    x[20] += 20
    at_20 = 19  # the unit that is not finite has none
    assert int(scorer(x).reference_p.argmin()) == at_20


def test_permuted_labels_find_nothing():
    x, label, _ = clustered(600, 0)
    mixed = label[torch.randperm(600, generator=drawn(1))]
    known = scorer(x[:300], labels=mixed[:300]).update(x[300:])
    other, _, _ = clustered(300, 5)
    assert abs(auroc(known.score, scorer(x[:300], labels=mixed[:300]).update(other).score) - 0.5) < 0.07


# -- what is new ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 3 * torch.nn.functional.normalize(torch.randn(D, generator=drawn(3)), dim=0),
        lambda x: (x - 3) * 1.8 + 3,
        lambda x: x.flip(1),
        lambda x: -x,
    ],
    ids=["shifted", "wider", "other coordinates", "inverted"],
)
def test_new_units_score_higher(change):
    known = scorer(rows(500, 0))
    assert auroc(known.update(rows(500, 1)).score, known.update(change(rows(500, 2))).score) > 0.85


def test_a_new_class_between_the_known_ones_is_new():
    x, _, _ = clustered(600, 0)
    between = x.mean(0) + torch.randn(300, D, generator=drawn(3))
    known = scorer(x[:400])
    scores = known.update(x[400:]), known.update(between)
    mahalanobis = known.names.index("mahalanobis")
    assert auroc(scores[0].surprise[:, mahalanobis], scores[1].surprise[:, mahalanobis]) < 0.5
    assert auroc(scores[0].score, scores[1].score) > 0.95


def test_fvu_is_compared_with_what_the_unit_lets_expect():
    x = rows(900, 0)
    fvu = (0.3 * (x[:, 0] - 3)).exp() * (0.05 * torch.randn(900, generator=drawn(1))).exp()
    known = scorer(x[:600], fvu=fvu[:600])
    usual = known.update(x[600:], fvu[600:])
    raised = known.update(x[600:], 1.15 * fvu[600:])
    place = known.names.index("reconstruction")
    plain = auroc(fvu[600:], 1.15 * fvu[600:])
    assert auroc(usual.surprise[:, place], raised.surprise[:, place]) > plain + 0.08


def test_the_regression_of_fvu_is_left_out_where_it_foretells_nothing():
    w, y = torch.randn(200, 100, generator=drawn(0)), torch.rand(200, generator=drawn(1)) + 0.1
    assert not _reconstruction(w, y).slope.any()
    assert _reconstruction(w, (0.5 * w[:, 0]).exp()).slope[0] > 0.2
    wide = torch.randn(100, 300, generator=drawn(0))
    assert not _reconstruction(wide, y[:100]).slope.any()


def test_energy_is_new_at_both_ends():
    head = Head(torch.eye(6, D), torch.zeros(6))
    known = scorer(rows(400, 0), head=head)
    place = known.names.index("energy")
    sure, unsure, usual = rows(200, 1), rows(200, 1), rows(200, 2)
    sure[:, :6] += 4
    unsure[:, :6] -= 4
    base = known.update(usual).surprise[:, place]
    assert auroc(base, known.update(sure).surprise[:, place]) > 0.95
    assert auroc(base, known.update(unsure).surprise[:, place]) > 0.95


def test_labels_tell_a_unit_between_classes_from_one_of_them():
    x, label, new = clustered(800, 0)
    known = scorer(x[:500], labels=label[:500])
    assert "relative_mahalanobis" in known.names
    place = known.names.index("relative_mahalanobis")
    assert auroc(known.update(x[500:]).surprise[:, place], known.update(new).surprise[:, place]) > 0.95
    few = torch.full((500,), -1)
    assert "relative_mahalanobis" not in scorer(x[:500], labels=few).names


# -- its parts --------------------------------------------------------------------------------------------------------


def test_nearest_units_are_those_of_a_search():
    a, b = torch.randn(50, 7, generator=drawn(0)), torch.randn(20, 7, generator=drawn(1))
    distance, angle = Neighbours.of(a).scores(b)
    near = torch.cdist(b.double(), a.double()).sort(dim=1).values[:, :3].log().mean(1)
    cosine = torch.nn.functional.normalize(b.double()) @ torch.nn.functional.normalize(a.double()).T
    assert torch.allclose(distance.double(), near, atol=1e-5)
    assert torch.allclose(angle.double(), 1 - cosine.sort(dim=1, descending=True).values[:, :3].mean(1), atol=1e-5)


def test_the_reservoir_is_bounded(monkeypatch):
    monkeypatch.setattr(novelty_neighbours, "MOST_BYTES", 4 * D * 60)
    parts = NoveltyParts.of(Reference(rows(500, 0), None, None), None)
    assert len(parts.neighbours.rows) == len(parts.whitened_neighbours.rows) == 60
    assert parts.neighbours.rows.untyped_storage().nbytes() == 4 * D * 60
    monkeypatch.undo()
    assert len(Neighbours.of(torch.zeros(novelty_neighbours.MOST_ROWS + 5, 2)).rows) == novelty_neighbours.MOST_ROWS
    assert len(Neighbours.of(torch.zeros(2100, 4096)).rows) * 4096 * 4 <= novelty_neighbours.MOST_BYTES


@pytest.mark.parametrize("n", [200, 8])
def test_the_residual_is_what_the_first_directions_leave(n):
    x = torch.randn(n, 12, generator=drawn(0)) * torch.tensor([9.0, 5.0] + [0.5] * 10)
    x = x - x.mean(0)
    found = principal(x)
    _, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    r = int((s.square().cumsum(0) < 0.9 * s.square().sum()).sum()) + 1
    left = x.double() - x.double() @ v[:r].T @ v[:r]
    assert found.directions.shape == (12, r)
    assert torch.allclose(found.residual(x).double(), left.square().sum(1), atol=1e-3)


def test_shaped_activations_are_those_of_the_closed_form():
    x, head = rows(400, 0), Head(torch.randn(5, D, generator=drawn(1)), torch.randn(5, generator=drawn(2)))
    fitted = HeadScores.of(x, head)
    w = head.W[(x @ head.W.T + head.b).argmax(1)]
    place = ((x - fitted.low) / fitted.width).floor().long().clamp(0, 99)
    inside = (x >= fitted.low) & (x <= fitted.low + 100 * fitted.width)
    mean = torch.stack([(x * w * (inside & (place == k))).sum(1).mean() for k in range(100)])
    theta = fitted.theta[:100]
    assert float(theta.norm()) == pytest.approx(1000, rel=1e-4)
    ours = float(theta @ mean) / 1000
    others = torch.nn.functional.normalize(torch.randn(500, 100, generator=drawn(3)), dim=1) @ mean
    assert ours >= float(others.max())
    assert ours == pytest.approx(float(mean.norm()), rel=1e-3)


def test_surprise_is_the_logarithm_of_a_rank_and_goes_on_beyond_the_sample():
    of = Surprise.of(torch.arange(1000.0))
    assert float(of(torch.tensor([500.0]))) == pytest.approx(math.log(2), abs=0.01)
    beyond = of(torch.tensor([900.0, 1000.0, 2000.0, 1e9]))
    assert bool((beyond.diff() > 0).all())
    both = Surprise.of(torch.arange(1000.0), two_sided=True)(torch.tensor([-50.0, 500.0, 1049.0]))
    assert float(both[0]) == pytest.approx(float(both[2]), abs=0.1)
    assert float(both[1]) < 0.01
    assert Surprise.of(torch.zeros(10))(torch.tensor([0.0, 1.0])).isfinite().all()


# -- bad input --------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_batches():
    x, y = rows(300, 0), rows(1100, 1)
    whole = scorer(x).update(y)
    known = scorer(x)
    for size in (1, 7, 1100):
        parts = [known.update(part) for part in y.split(size)]
        assert torch.allclose(torch.cat([part.score for part in parts]), whole.score, rtol=1e-3, atol=1e-3)
        assert torch.allclose(torch.cat([part.p for part in parts]), whole.p, atol=0.011)
    assert known.units == 3300


def test_the_same_seed_gives_the_same_scores():
    x, y = rows(300, 0), rows(50, 1)
    assert torch.equal(scorer(x, 3).update(y).score, scorer(x, 3).update(y).score)


def test_units_that_are_not_finite_have_no_p_value_and_are_counted():
    known = scorer(rows(200, 0))
    y = rows(9, 1)
    clean = known.update(y)
    y[1, 3], y[4, 0], y[6, 5] = NAN, float("inf"), 3e38
    found = known.update(y)
    odd = torch.tensor([1, 4, 6])
    assert found.p[odd].isnan().all()
    assert found.score[odd].isnan().all()
    kept = torch.ones(9, dtype=torch.bool)
    kept[odd] = False
    assert torch.allclose(found.score[kept], clean.score[kept], rtol=1e-4)
    assert (known.units, known.left_out) == (9 + 6, 3)


def test_unknown_fvu_is_counted_as_left_out():
    known = scorer(rows(200, 0), fvu=torch.rand(200, generator=drawn(0)))
    found = known.update(rows(3, 1), torch.tensor([0.5, NAN, 0.0]))
    assert found.p.isnan().tolist() == [False, True, False]
    assert known.left_out == 1


def test_a_reference_with_nan_is_that_without():
    x = rows(220, 0)
    odd = x.clone()
    odd[[3, 77]] = NAN
    kept = torch.ones(220, dtype=torch.bool)
    kept[[3, 77]] = False
    y = rows(20, 1)
    assert torch.equal(scorer(odd).update(y).score, scorer(x[kept]).update(y).score)


def test_constant_coordinates_do_not_hide_or_make_novelty():
    x, y = rows(400, 0), rows(300, 1)
    x[:, 5], y[:, 5] = 2.0, 2.0
    known = scorer(x)
    usual = known.update(y)
    assert usual.score.isfinite().all()
    assert abs(float((usual.p <= 0.1).double().mean()) - 0.1) < 0.06
    y[:, 5] = 4.0
    assert auroc(usual.score, known.update(y).score) > 0.9


def test_huge_and_tiny_units_are_scored_without_overflow():
    for size in (1e12, 1e-12):
        known = scorer(rows(200, 0) * size)
        found = known.update(torch.cat((rows(50, 1) * size, torch.full((2, D), 1e18), torch.zeros(1, D))))
        assert found.score.isfinite().all()
        assert found.p[:50].mean() > 0.3
        assert found.p[50:52].max() < 0.02


def test_repeated_units_are_not_new():
    x = rows(60, 0).repeat(5, 1)
    found = scorer(x).update(x[:60])
    assert found.score.isfinite().all()
    assert found.p.mean() > 0.3


@pytest.mark.parametrize("d", [1, 2])
def test_few_coordinates_do(d):
    known = scorer(rows(200, 0, d))
    assert auroc(known.update(rows(200, 1, d)).score, known.update(rows(200, 2, d) + 6).score) > 0.95


def test_wide_units_do():
    known = scorer(rows(120, 0, 4096))
    assert auroc(known.update(rows(40, 1, 4096)).score, known.update(rows(40, 2, 4096).flip(1)).score) > 0.95


def test_too_small_a_reference_says_what_is_needed():
    x = rows(LEAST_UNITS + 4, 0)
    x[:5] = NAN
    with pytest.raises(InsufficientReference, match=f"99 finite units of 104.*{LEAST_UNITS}"):
        scorer(x)
    with pytest.raises(InsufficientReference, match="the same"):
        scorer(torch.ones(200, 3))
    one = torch.zeros(200, dtype=torch.int64)
    one[0] = 1
    with pytest.raises(InsufficientReference, match="label more"):
        scorer(rows(200, 0), labels=one)


def test_what_does_not_fit_is_named():
    x, fvu = rows(200, 0), torch.rand(200, generator=drawn(0))
    with pytest.raises(ReferenceMismatch, match="7"):
        scorer(x).update(torch.zeros(2, 7))
    with pytest.raises(ReferenceMismatch, match="FVU"):
        scorer(x, fvu=fvu).update(x)
    with pytest.raises(ReferenceMismatch, match="labels"):
        scorer(x, labels=torch.zeros(3))
    with pytest.raises(ReferenceMismatch, match="head"):
        scorer(x, head=Head(torch.zeros(4, D + 1), torch.zeros(4)))
    with pytest.raises(ReferenceMismatch, match="150"):
        scorer(x).load_state(scorer(x[:150]).state_dict())


def test_counts_go_on_after_a_restart():
    x = rows(200, 0)
    first, second = scorer(x), scorer(x)
    first.update(rows(30, 1))
    second.load_state(first.state_dict())
    assert torch.equal(first.update(rows(5, 2)).score, second.update(rows(5, 2)).score)
    assert first.state_dict() == second.state_dict()


def test_whitened_units_vary_equally():
    w = scorer(rows(2000, 0)).whiten(rows(2000, 1))
    assert w.shape == (2000, D)
    assert torch.allclose(w.var(0), torch.ones(D), atol=0.25)


def test_what_scores_units_knows_as_many_as_what_scored_the_reference():
    assert len(scorer(rows(801, 0))._parts.neighbours.rows) == 700
