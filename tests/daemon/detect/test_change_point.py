from functools import partial

import firings_made
import numpy as np
import pytest
import torch
from hydrophoned.detect.attribution import Side, attribute
from hydrophoned.detect.change_point import LEAST_UNITS, Directions, change_point, feature_change_point

D = 48
SPREAD = torch.arange(1, D + 1).float() ** -0.5  # coordinates of very unequal variance, mixed
MIX = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(5))).Q


def drawn(n, generator):
    return (torch.randn(n, D, generator=generator) * SPREAD) @ MIX + 3


def shifted(x, generator, size=1.0):
    coordinates = torch.randperm(D, generator=generator)[:5]
    x = x.clone()
    x[:, coordinates] += size * (MIX * SPREAD[:, None]).square().sum(0).sqrt()[coordinates]
    return x


def wider(x, generator):
    coordinates = torch.randperm(D, generator=generator)[:3]
    x = x.clone()
    x[:, coordinates] = 3 + (x[:, coordinates] - 3) * 3
    return x


def larger(x, generator):
    return 3 + (x - 3) * 1.3


def stream(change, seed, *, reference=400, before=400, after=100):
    generator = torch.Generator().manual_seed(seed)
    first, pre, post = (drawn(n, generator) for n in (reference, before, after))
    return first, torch.cat([pre, change(post, generator) if change else post])


def told(reference, recent, seed=0, **options):
    return change_point(reference, recent, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize(
    ("change", "of", "most"),
    [(shifted, {"mean"}, 2), (wider, {"spread", "size"}, 5), (larger, {"size"}, 16)],
    ids=["shifted", "wider", "larger"],
)
def test_a_change_is_dated(change, of, most):
    found = [told(*stream(change, seed)) for seed in range(12)]
    assert all(one is not None for one in found)
    assert sum(one.of in of for one in found) >= 9
    assert np.median([abs(one.unit - 400) for one in found]) <= most
    assert sum(one.low <= 400 <= one.high for one in found) >= 10
    assert all(one.low <= one.unit <= one.high and one.p == 0.01 for one in found)
    assert {(one.units, one.reference_units) for one in found} == {(500, 400)}


def test_the_interval_tells_how_well_it_is_dated():
    weak, strong = ([told(*stream(partial(shifted, size=size), s)) for s in range(6)] for size in (0.5, 2))
    assert all(one is not None for one in weak + strong)
    assert np.median([one.high - one.low for one in weak]) > 4 * np.median([one.high - one.low for one in strong])
    assert np.median([one.strength for one in weak]) < np.median([one.strength for one in strong])


def test_where_nothing_changed_nothing_is_dated():
    found = [told(*stream(None, seed), seed) for seed in range(40)]
    assert sum(one is not None for one in found) <= 6  # 2 expected


def test_the_error_of_a_small_reference_is_no_change():
    """Its mean is off by much in 48 coordinates, and all units watched are off from it alike."""
    found = [told(*stream(shifted, seed, reference=60, before=900, after=60)) for seed in range(8)]
    assert all(one is not None for one in found)
    assert np.median([abs(one.unit - 900) for one in found]) <= 4


def test_a_change_before_all_units_has_no_lower_bound():
    generator = torch.Generator().manual_seed(1)
    one = told(drawn(400, generator), shifted(drawn(200, generator), generator))
    assert (one.unit, one.low) == (0, 0)


def test_a_small_change_along_a_known_direction_is_dated():
    direction = torch.linalg.solve((MIX.T * SPREAD.square()) @ MIX, MIX[10])

    def along(x, generator):
        return x + 0.8 * SPREAD[10] * MIX[10]

    pairs = [(told(*stream(along, s), direction=direction), told(*stream(along, s))) for s in range(10)]
    assert all(with_it is not None and with_it.of == "direction" for with_it, _ in pairs)
    errors = [[500 if one is None else abs(one.unit - 400) for one in column] for column in zip(*pairs, strict=True)]
    assert np.median(errors[0]) <= 8
    assert np.mean(errors[0]) < np.mean(errors[1])


def test_features_that_fire_more_are_dated():
    rng = np.random.default_rng(0)
    rate = np.full(200, 0.05)
    more = rate.copy()
    more[:4] *= 4
    errors, covered = [], 0
    for seed in range(10):
        reference = firings_made.units(rate, 500, rng)
        recent = firings_made.joined(firings_made.units(rate, 300, rng), firings_made.units(more, 80, rng))
        generator = torch.Generator().manual_seed(seed)
        one = feature_change_point(reference, recent, torch.arange(4), generator=generator)
        assert one.of == "features"
        errors.append(abs(one.unit - 300))
        covered += one.low <= 300 <= one.high
        others = torch.arange(100, 104)
        assert seed or feature_change_point(reference, recent, others, generator=generator) is None
    assert np.median(errors) <= 10
    assert covered >= 9
    assert feature_change_point(reference, recent, torch.arange(0), generator=generator) is None


@pytest.mark.parametrize(("rate", "after", "most"), [(0.4, 60, 3), (0.1, 120, 15)])
def test_the_interval_holds_of_what_is_rare_too(rate, after, most):
    """One feature that fired in one of a hundred units, such as that a unit is novel."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        reference, before = (firings_made.units(np.array([0.01]), n, rng) for n in (600, 240))
        recent = firings_made.joined(before, firings_made.units(np.array([rate]), after, rng))
        generator = torch.Generator().manual_seed(seed)
        found.append(feature_change_point(reference, recent, torch.arange(1), generator=generator))
    found = [one for one in found if one is not None]
    assert len(found) >= 16
    assert np.median([abs(one.unit - 240) for one in found]) <= most
    assert np.mean([one.low <= 240 <= one.high for one in found]) >= 0.9
    assert all(one.low <= one.unit <= one.high and one.strength > 0 for one in found)


def test_the_interval_holds_where_features_fire_together():
    found = []
    for seed in range(12):
        rate = np.full(40, 0.05)
        more = np.where(np.arange(40) < 10, 2.0, 1.0) * rate
        draw, draw_after = (
            firings_made.topical(one, 0, np.random.default_rng(seed), topics=6, spread=1.2) for one in (rate, more)
        )
        recent = firings_made.joined(draw(300), draw_after(100))
        generator = torch.Generator().manual_seed(seed)
        found.append(feature_change_point(draw(600), recent, torch.arange(10), generator=generator))
    found = [one for one in found if one is not None]
    assert len(found) >= 9
    assert np.mean([one.low <= 300 <= one.high for one in found]) >= 0.9


def test_features_that_fire_as_before_are_not_dated():
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        reference, recent = (firings_made.units(np.full(8, 0.05), n, rng) for n in (500, 300))
        generator = torch.Generator().manual_seed(seed)
        found.append(feature_change_point(reference, recent, torch.arange(8), generator=generator))
    assert sum(one is not None for one in found) <= 6  # 2 expected


def test_what_is_not_finite_is_passed_over():
    reference, recent = stream(shifted, 3)
    gaps = recent.clone()
    gaps[::7, 2] = torch.nan
    gaps[5::11] = torch.inf
    one = told(torch.cat([reference, torch.full((3, D), torch.nan)]), gaps)
    assert abs(one.unit - 400) <= 2
    assert bool(gaps[one.unit].isfinite().all())
    assert (one.units, one.reference_units) == (500, 400)


def test_what_does_not_vary_raises_nothing():
    reference, recent = stream(None, 2)
    for x in (reference, recent):
        x[:, :40] = 7.1
    assert told(reference, recent) is None
    for value in (0.0, 1.1, 1e6 / 3):
        assert told(torch.full((100, D), value), torch.full((50, D), value)) is None
        assert told(reference.clamp(7, 7), recent.clamp(7, 7), direction=torch.full((D,), value)) is None
    recent[400:, 0] = 8.0  # a constant that becomes another
    assert told(reference, recent).unit == 400


def test_more_coordinates_than_units():
    generator = torch.Generator().manual_seed(0)
    reference, recent = torch.randn(60, 300, generator=generator), torch.randn(90, 300, generator=generator)
    assert told(reference, recent) is None
    recent[70:, :40] += 1.0
    assert abs(told(reference, recent).unit - 70) <= 2


def test_too_few_units_tell_nothing():
    reference, recent = stream(lambda x, _: x + 9, 0, before=2)
    assert told(reference, recent[: LEAST_UNITS - 1]) is None
    assert told(reference[:20], recent) is None
    assert told(reference, recent[:LEAST_UNITS]).unit == 2


def test_many_blocks_and_few_tell_the_same(monkeypatch):
    """Products of blocks are worked out beforehand only where they are few."""
    for size in (0.3, 0.5):
        few = told(*stream(partial(shifted, size=size), 8), 4)
        monkeypatch.setattr("hydrophoned.detect.change_point._PRODUCTS", 0)
        assert told(*stream(partial(shifted, size=size), 8), 4) == few
        monkeypatch.undo()


def test_directions_that_are_known_tell_the_same():
    reference, recent = stream(partial(shifted, size=0.5), 8)
    recent[3, 2] = torch.nan
    known = Directions.of(reference, recent)
    one = told(reference, recent, directions=known)
    assert one is not None
    assert one == told(reference, recent)
    before, after = Side(reference), Side(recent[one.unit :])
    pair = known.reference, known.recent[one.unit :]
    found = attribute(before, after, directions=pair)
    # the whitening is of three quarters of the reference, and of all of it
    own = attribute(before, after)
    assert found.direction.length == pytest.approx(own.direction.length, rel=0.1)
    assert np.corrcoef(found.after, own.after)[0, 1] > 0.9


def test_the_same_generator_tells_the_same():
    reference, recent = stream(partial(shifted, size=0.4), 8)
    assert told(reference, recent, 4) == told(reference, recent, 4)
