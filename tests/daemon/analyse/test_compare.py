import numpy as np
import pytest
import torch
from hydrophoned.analyse import compare as module
from hydrophoned.analyse.compare import _auroc_bounds, _between_pairs, _exchange, _exchanged, compare, compare_arrays
from hydrophoned.analyse.errors import TooLittle

WIDTH = 16


def drawn(count, generator, *, group=0, alike=1.0):
    """Units [count, WIDTH]; those of a run of ``group`` resemble each other."""
    x = torch.randn(count, WIDTH, generator=generator)
    if group:
        x += alike * torch.randn(-(-count // group), WIDTH, generator=generator).repeat_interleave(group, 0)[:count]
    return x * torch.arange(1, WIDTH + 1) + 100


def compared(reference, current, seed=0, **options):
    return compare(reference, current, generator=torch.Generator().manual_seed(seed), **options)


def planted(change, count=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reference, current = drawn(count, generator), drawn(count, generator)
    current[:, 3] = change(current[:, 3])
    return compared(reference, current)


def test_a_shift_is_found_and_told_how_large():
    found = planted(lambda x: x + 4.0)  # of a standard deviation of 4
    assert found.p <= 0.005
    assert found.mahalanobis.p == found.mmd.p == found.energy.p == 0.001
    assert found.mahalanobis.effect == pytest.approx(1.0, abs=0.15)
    assert found.spread.p > 0.05
    assert found.coordinates.shift[3] == pytest.approx(1.0, abs=0.15)
    assert found.coordinates.spread[3] == pytest.approx(1.0, abs=0.15)
    assert np.flatnonzero(found.coordinates.shift_q <= 0.05).tolist() == [3]
    assert np.flatnonzero(found.coordinates.spread_q <= 0.05).tolist() == []
    assert found.classifier.auroc == pytest.approx(0.76, abs=0.06)  # Phi(1 / sqrt 2)
    assert found.classifier.low < 0.76 < found.classifier.high


def test_a_change_of_spread_is_found_and_is_no_shift():
    found = planted(lambda x: 100 + 3 * (x - 100))
    assert found.spread.p == 0.001
    assert found.mahalanobis.p > 0.05
    assert found.p <= 0.005
    assert found.coordinates.spread[3] == pytest.approx(3.0, abs=0.4)
    assert np.flatnonzero(found.coordinates.spread_q <= 0.05).tolist() == [3]
    assert np.flatnonzero(found.coordinates.shift_q <= 0.05).tolist() == []
    assert found.classifier.low > 0.55


def test_a_change_of_shape_with_mean_and_variance_as_they_were_is_found_by_the_kernel():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(600, 2, generator=generator)
    corner = torch.randint(0, 2, (600, 2), generator=generator) * 2.0 - 1
    current = 0.95 * corner + 0.3 * torch.randn(600, 2, generator=generator)
    found = compared(reference, current)
    assert found.mmd.p == 0.001
    assert found.mahalanobis.p > 0.05
    assert found.p <= 0.01


@pytest.mark.parametrize(("group", "count"), [(0, 60), (0, 25), (10, 300)])
def test_p_values_on_nothing_are_uniform(group, count):
    rejected, halves, separated, discovered = [], [], [], []
    for seed in range(80):
        generator = torch.Generator().manual_seed(seed)
        samples = [drawn(many, generator, group=group) for many in (count, 2 * count)]
        ids = tuple(np.arange(len(one)) // group for one in samples) if group else None
        found = compare(*samples, groups=ids, permutations=99, generator=generator)
        tests = (found.mahalanobis, found.spread, found.mmd, found.energy)
        rejected.append([found.p <= 0.1, *(one.p <= 0.1 for one in tests)])
        halves.append(found.p <= 0.5)
        separated.append(found.classifier.low > 0.5 or found.classifier.high < 0.5)
        coordinates = found.coordinates
        discovered.append(min(coordinates.shift_q.min(), coordinates.spread_q.min()) <= 0.1)
    assert np.mean(rejected, axis=0).max() <= 0.1 + 3 * 0.034  # of 80 at 0.1
    assert np.mean(halves) == pytest.approx(0.5, abs=3 * 0.056)
    assert np.mean(separated) <= 0.05 + 3 * 0.024
    assert np.mean(discovered) <= 0.2 + 3 * 0.034


def test_units_that_resemble_each_other_look_changed_unless_their_groups_are_given():
    generator = torch.Generator().manual_seed(3)
    samples = [drawn(400, generator, group=20, alike=2.0) for _ in range(2)]
    ids = np.arange(400) // 20
    assert compared(*samples).p <= 0.005, "as if independent"
    found = compared(*samples, groups=(ids, ids))
    assert found.p > 0.05
    assert (found.groups_reference, found.groups_current, found.units_reference) == (20, 20, 400)


def test_with_groups_a_change_is_found_too():
    generator = torch.Generator().manual_seed(3)
    samples = [drawn(800, generator, group=10) for _ in range(2)]
    ids = np.arange(800) // 10
    found = compared(samples[0], samples[1] + 2 * torch.arange(1, WIDTH + 1), groups=(ids, ids))
    assert found.p <= 0.005
    assert found.coordinates.shift_q.max() <= 0.05


def test_names_of_groups_make_no_difference():
    generator = torch.Generator().manual_seed(3)
    samples = [drawn(100, generator, group=4) for _ in range(2)]
    ids = np.arange(100) // 4
    named = np.array([f"request {1000 - number}" for number in ids])
    assert str(compared(*samples, groups=(ids, ids))) == str(compared(*samples, groups=(named, ids + 7)))


def test_groups_are_exchanged_as_wholes_with_those_of_their_size_where_there_are_such():
    size = np.repeat([1, 5], 40)
    block = np.repeat(np.arange(80), size)
    after = np.tile([False, True], 40)
    order = np.argsort(after[block], kind="stable")
    n = int((~after[block]).sum())
    exchange = _exchange(n, len(block) - n, block[order])
    ways = _exchanged(exchange, 50, torch.Generator().manual_seed(0)).numpy()
    assert len(np.unique(exchange.stratum)) == 2
    assert (ways[:, exchange.size == 5].sum(1) == 20).all()
    assert len(np.unique(ways, axis=0)) == 51
    lone = _exchange(200, 90, np.concatenate([np.repeat(np.arange(50), 4), 50 + np.repeat(np.arange(30), 3)]))
    ways = _exchanged(lone, 50, torch.Generator().manual_seed(0)).numpy()
    assert len(np.unique(ways, axis=0)) == 51, "no group has one of its size, and all are exchanged"


def test_distances_of_pairs_are_those_of_their_definition():
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([2.0, 1.0, 3.0, 1.0])
    group = torch.arange(4).repeat_interleave(size.long())
    x = torch.randn(7, 3, generator=generator).double()
    distance = torch.cdist(x, x)
    kernel = torch.exp(-distance.square())
    after = torch.tensor([[0.0, 1.0, 0.0, 1.0]]).double()
    sums = [torch.stack([torch.stack([pairs[group == a][:, group == b].sum() for b in range(4)]) for a in range(4)])
            for pairs in (kernel, distance)]  # fmt: skip
    for pairs in sums:
        pairs.fill_diagonal_(0.0)
    found = [float(one) for one in _between_pairs(sums[0], sums[1], size, after)]
    side = after[0][group].bool()
    apart = group[:, None] != group

    def mean(pairs, a, b):
        return pairs[(a[:, None] & b) & apart].mean()

    within = mean(kernel, side, side) + mean(kernel, ~side, ~side)
    assert found[0] == pytest.approx(float((within - 2 * mean(kernel, side, ~side)) / within))
    across = 2 * mean(distance, side, ~side)
    assert found[1] == pytest.approx(
        float((across - mean(distance, side, side) - mean(distance, ~side, ~side)) / across)
    )


@pytest.mark.parametrize("units", ["MOST_PAIRED", "MOST_CLASSIFIED"])
def test_of_many_units_some_are_looked_at(units, monkeypatch):
    monkeypatch.setattr(module, units, 200)
    generator = torch.Generator().manual_seed(0)
    reference, current = drawn(600, generator), drawn(300, generator) + 12
    found = compared(reference, current)
    assert (found.units_reference, found.units_current) == (600, 300)
    assert found.p <= 0.005
    if units == "MOST_PAIRED":
        assert 150 < found.paired_units <= 200
    else:
        assert found.classifier.units == 200


def test_bounds_of_auroc_hold_while_classifiers_differ():
    """Against the AUROC of the best classifier there is, which ours comes short of."""
    covered = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        reference, current = torch.randn(400, 2, generator=generator), torch.randn(400, 2, generator=generator)
        current[:, 0] += 1.0
        found = compare(reference, current, permutations=1, generator=generator).classifier
        covered.append(found.low <= 0.7602 <= found.high)
    assert np.mean(covered) >= 0.9


def test_bounds_of_auroc_are_not_of_no_width_where_all_is_told_apart():
    assert _auroc_bounds(1.0, 20, 20)[1] == 1.0
    assert 0.7 < _auroc_bounds(1.0, 20, 20)[0] < _auroc_bounds(1.0, 2_000, 2_000)[0] < 1.0
    low, high = _auroc_bounds(0.3, 50, 80)
    assert 1 - high == pytest.approx(_auroc_bounds(0.7, 50, 80)[0])
    assert low == pytest.approx(1 - _auroc_bounds(0.7, 50, 80)[1])


def test_odd_coordinates():
    generator = torch.Generator().manual_seed(0)
    reference, current = drawn(100, generator), drawn(100, generator)
    reference[:, 0], current[:, 0] = 7.0, 7.0
    reference[:, 1], current[:, 1] = 7.0, 8.0
    reference[:, 2] = 7.0
    reference[:, 3] *= 1e15
    current[:, 3] *= 1e15
    found = compared(reference, current)
    shift, spread = found.coordinates.shift, found.coordinates.spread
    assert shift[0] == 0.0
    assert np.isnan(shift[1:3]).all(), "in standard deviations of what has none"
    assert np.isnan(spread[:3]).all()
    assert found.coordinates.shift_p[0] == 1.0
    assert found.coordinates.shift_q[1] <= 0.05
    assert found.coordinates.spread_q[2] <= 0.05
    assert np.isfinite([found.p, found.mahalanobis.effect, found.mmd.effect, *found.coordinates.shift_p]).all()


def test_samples_that_are_the_same_are_alike():
    x = drawn(50, torch.Generator().manual_seed(0))
    found = compared(x, x)
    assert found.p > 0.9
    assert found.mahalanobis.effect == 0.0
    assert compared(torch.ones(30, 3), torch.ones(30, 3)).p == 1.0


def test_more_coordinates_than_units():
    generator = torch.Generator().manual_seed(0)
    reference, current = torch.randn(40, 500, generator=generator), torch.randn(40, 500, generator=generator)
    assert compared(reference, current).p > 0.05
    found = compared(reference, current + 0.5)
    assert found.p <= 0.005
    assert found.mahalanobis.effect > 1.0


def test_units_that_are_not_finite_are_left_out_and_counted():
    generator = torch.Generator().manual_seed(0)
    reference, current = drawn(60, generator), drawn(70, generator)
    ids = np.arange(60) // 2, np.arange(70) // 2
    clean = compared(reference, current, groups=ids)
    odd = torch.cat([reference[:1] * torch.nan, reference, reference[:2] + torch.inf])
    numbers = np.concatenate([[99], ids[0], [99, 99]])
    found = compared(odd, current, groups=(numbers, ids[1]))
    assert (found.left_out_reference, found.left_out_current) == (3, 0)
    assert str(found._replace(left_out_reference=0)) == str(clean)


def test_the_same_seed_gives_the_same_answer():
    x = drawn(100, torch.Generator().manual_seed(0)).numpy()
    found = [str(compare_arrays(x[:50], x[50:], permutations=99, seed=seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("shapes", "options", "error", "said"),
    [
        (((19, 3), (50, 3)), {}, TooLittle, "19 units of the reference and 50 .* 20 of each"),
        (((50, 3), (0, 3)), {}, TooLittle, "0 of the current"),
        (((50, 3), (50, 4)), {}, ValueError, r"\[50, 3\] and \[50, 4\]"),
        (((50, 0), (50, 0)), {}, ValueError, r"\[50, 0\]"),
        (((50,), (50,)), {}, ValueError, r"\[50\]"),
        (((50, 3), (50, 3)), {"permutations": 0}, ValueError, "permutations is 0"),
        (((50, 3), (50, 3)), {"groups": (np.arange(50), np.arange(9))}, ValueError, "groups of 50 and 9 units"),
        (
            ((90, 3), (90, 3)),
            {"groups": (np.arange(90), np.arange(90) // 10)},
            TooLittle,
            "90 groups .* 9 of the current",
        ),
    ],
)
def test_samples_that_cannot_be_compared(shapes, options, error, said):
    with pytest.raises(error, match=said):
        compared(torch.zeros(shapes[0]), torch.zeros(shapes[1]), **options)
