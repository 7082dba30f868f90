import pytest
import torch
from hydrophoned.detect import clusters as module
from hydrophoned.detect.clusters import LEAST_SIZE, MOST_UNITS, clusters
from hydrophoned.detect.novelty import NoveltyScorer

NAN = float("nan")


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def noise(n, d, seed):
    return torch.randn(n, d, generator=drawn(seed))


def kinds(sizes, d, seed, strength=1.5):
    """Units of some kinds, ``strength`` times as far out as each by itself, and the kind of each."""
    middles = strength * noise(len(sizes), d, 1000 + seed)
    kind = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    kind = kind[torch.randperm(len(kind), generator=drawn(seed))]
    return middles[kind] + noise(len(kind), d, seed), kind


def found(w, seed=0, **options):
    return clusters(w, w, generator=drawn(seed), **options)


# -- nothing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(512, 64), (200, 576), (300, 8), (300, 2), (200, 1), (60, 4)])
def test_noise_has_no_clusters(n, d):
    assert sum(len(found(noise(n, d, seed), seed)) for seed in range(6)) == 0


def test_units_far_out_in_their_own_way_have_no_clusters():
    for seed in range(6):
        far = noise(200, 64, seed) / torch.rand(200, 1, generator=drawn(seed)).clamp_min(0.01)
        assert found(far, seed) == []
        spiked = noise(200, 64, seed) ** 5
        assert found(spiked, seed) == []


def test_units_in_a_few_wide_coordinates_have_no_clusters():
    for seed in range(6):
        assert found(noise(200, 64, seed) * torch.arange(1, 65) ** -1.0, seed) == []


def test_what_is_novel_in_traffic_that_does_not_change_has_no_clusters():
    wide = torch.arange(1, 33) ** -0.5
    for seed in range(3):
        x = noise(6000, 32, seed) * wide
        scorer = NoveltyScorer(x[:500], generator=drawn(seed))
        novel = x[500:][scorer.update(x[500:]).p <= 0.05]
        assert len(novel) > 100
        assert clusters(novel, scorer.whiten(novel), generator=drawn(seed)) == []


# -- something --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [16, 64, 576])
def test_kinds_are_told_apart(d):
    w, kind = kinds([60, 40, 20], d, 0)
    result = found(w)
    assert [cluster.size for cluster in result] == sorted((cluster.size for cluster in result), reverse=True)
    assert len(result) == 3
    for cluster in result:
        own, count = kind[cluster.members].mode().values, kind[cluster.members].bincount().max()
        assert int(count) / cluster.size > 0.85
        assert int(count) / int((kind == own).sum()) > 0.85
        assert cluster.cohesion > 0.4


def test_one_kind_among_noise_is_found():
    w, _ = kinds([40], 64, 0, strength=1.0)
    mixed = torch.cat((noise(160, 64, 5), w))
    (cluster,) = found(mixed)
    assert (cluster.members >= 160).double().mean() > 0.9
    assert cluster.size > 30


def test_all_of_one_kind_is_one_cluster():
    w, _ = kinds([100], 64, 0, strength=0.5)
    (cluster,) = found(w)
    assert cluster.size > 90


def test_the_same_unit_again_and_again_is_a_cluster():
    (cluster,) = found(torch.cat((noise(30, 64, 0), noise(1, 64, 1).expand(12, 64))))
    assert sorted(cluster.members.tolist()) == list(range(30, 42))
    assert cluster.cohesion == pytest.approx(1)


def test_members_nearest_to_the_middle_come_first():
    w, _ = kinds([80], 64, 3)
    (cluster,) = found(w)
    unit = torch.nn.functional.normalize(w[cluster.members])
    to_middle = unit @ unit.sum(0)
    assert bool((to_middle.diff() <= 1e-4).all())
    assert torch.allclose(cluster.centroid, w[cluster.members].mean(0))
    cosine = unit @ unit.T
    pairs = cosine[~torch.eye(len(unit), dtype=torch.bool)]
    assert cluster.cohesion == pytest.approx(float(pairs.mean()), abs=1e-4)


def test_the_centroid_is_of_units_as_captured():
    w, _ = kinds([60], 64, 0)
    x = noise(60, 3, 1) + 100
    (cluster,) = clusters(x, w, generator=drawn(0))
    assert torch.allclose(cluster.centroid, x[cluster.members].mean(0))


# -- arithmetic -------------------------------------------------------------------------------------------------------


def test_the_tree_is_that_of_greedy_average_linkage():
    y = torch.nn.functional.normalize(noise(24, 5, 0).double()).numpy()
    cosine = y @ y.T
    groups = [[place] for place in range(24)]
    greedy = set()
    while len(groups) > 1:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a)]
        a, b = max(pairs, key=lambda pair: cosine[groups[pair[0]]][:, groups[pair[1]]].mean())
        joined = sorted(groups[a] + groups[b])
        greedy.add(tuple(joined))
        groups = [group for place, group in enumerate(groups) if place not in {a, b}] + [joined]
    tree = module._tree(cosine)
    assert {tuple(module._leaves(24 + place, tree, 24).tolist()) for place in range(23)} == greedy
    top = tree[-1]
    assert top.size == 24
    assert top.inside == pytest.approx((cosine.sum() - 24) / 2)


def test_units_that_are_not_finite_are_in_no_cluster():
    w, _ = kinds([60], 64, 0)
    odd = w.clone()
    odd[[3, 20]] = NAN
    (cluster,) = found(odd)
    assert not {3, 20} & set(cluster.members.tolist())
    assert found(torch.full((30, 4), NAN)) == []
    assert found(torch.zeros(30, 4)) == []


def test_only_the_last_units_are_grouped():
    w, _ = kinds([60], 16, 0)
    (cluster,) = found(torch.cat((w, noise(MOST_UNITS - 60, 16, 1), w)))
    assert int(cluster.members.min()) >= 60


def test_few_units_are_no_cluster():
    same = torch.ones(LEAST_SIZE - 1, 4)
    assert found(same) == []
    assert found(torch.zeros(0, 4)) == []


def test_the_same_seed_gives_the_same_clusters():
    w, _ = kinds([30, 20], 16, 0)
    one, other = found(w, 3), found(w, 3)
    assert [cluster.members.tolist() for cluster in one] == [cluster.members.tolist() for cluster in other]
