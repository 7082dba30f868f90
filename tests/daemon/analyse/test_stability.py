"""Features that come back in a twin: planted atoms do, what was learned of noise does not."""

import numpy as np
import pytest
import torch
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.halves import halves
from hydrophoned.analyse.matching import LEAST_FIRED
from hydrophoned.analyse.stability import KINDS, STABLE, UNKNOWN, UNSTABLE, Seen, see, stability, train_twin
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from planted import directions

ATOMS, WIDTH, ROWS, PER_REQUEST = 96, 48, 8192, 32
REQUEST = torch.arange(ROWS) // PER_REQUEST


def atoms(n, seed):
    """Rows of two of ATOMS directions each, strong ones, with a little noise."""
    g = torch.Generator().manual_seed(seed)
    z = (torch.rand(n, ATOMS, generator=g) < 2 / ATOMS) * (1 + torch.rand(n, ATOMS, generator=g))
    return 4 * (z @ directions(ATOMS, WIDTH)) + 0.02 * torch.randn(n, WIDTH, generator=g)


def noise(n, seed):
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def learned(x, *, features=ATOMS, k=2, passes=1):
    """A dictionary of rows x, with seed 0."""
    config = DictionaryConfig(width=WIDTH, features=features, k=k)
    return train_twin(x, config, passes=passes, batch_rows=512, seed=0)[0]


def judged(dictionary, y, request=REQUEST, **options):
    options = {"passes": 60} | options
    return stability(see(dictionary, y, 512), y, request, dictionary.config, **options)


@pytest.fixture(scope="module")
def planted():
    dictionary = learned(atoms(100_000, 1))
    return dictionary, judged(dictionary, atoms(ROWS, 2))


def of_atoms(dictionary):
    """Bool [F]: features that point along an atom."""
    return ((dictionary.W_dec @ directions(ATOMS, WIDTH).T).amax(1) > 0.9).numpy()


def test_features_of_planted_atoms_are_stable(planted):
    dictionary, found = planted
    true = of_atoms(dictionary)
    assert true.sum() > 0.8 * ATOMS
    assert (found.kind[true] == STABLE).mean() > 0.85
    assert (found.kind[~true] == STABLE).sum() <= 2
    assert found.scores.strong > 0.8
    assert found.shuffled.weak == 0
    assert found.random_pairs.strong <= 3 / ATOMS, "a random pair may be right by chance"


def test_it_says_from_how_much(planted):
    _, found = planted
    assert (found.rows_trained, found.rows_scored, found.requests) == (ROWS // 2, ROWS // 2, ROWS // PER_REQUEST)
    assert found.passes == 60
    assert found.compared == (found.kind != UNKNOWN).sum() > 80
    assert 0 < found.fvu < 0.5
    assert 0 < found.fvu_twin < 0.5
    assert found.scores.strong == (found.kind == STABLE).sum() / found.compared


@pytest.mark.parametrize("rows", [2048, 30_000])  # a dictionary that has learned little, and one that has learned more
def test_of_noise_nearly_nothing_is_stable(rows):
    """Although both begin at rows, and both may begin at the same ones."""
    y = noise(30_000, 1)
    found = judged(learned(y[:rows], features=192, k=6), y[:ROWS])
    assert found.compared > 80
    assert (found.kind == STABLE).sum() == 0
    assert found.scores.weak < 0.01
    assert np.isnan(found.correlation[found.kind == UNKNOWN]).all()


def test_one_shared_part_is_told_from_noise():
    """Half the width holds atoms, the other noise: what is found again lies in the half with the atoms."""
    g = torch.Generator().manual_seed(4)

    def rows(n):
        z = (torch.rand(n, 24, generator=g) < 1 / 24) * (1 + torch.rand(n, 24, generator=g))
        return torch.cat([4 * z @ directions(24, 24), 0.7 * torch.randn(n, 24, generator=g)], 1)

    dictionary = learned(rows(60_000), features=96, k=4)
    found = judged(dictionary, rows(ROWS))
    inside = dictionary.W_dec[:, :24].square().sum(1).numpy()
    stable = found.kind == STABLE
    assert stable.sum() >= 12
    assert inside[stable].mean() > 0.8
    assert stable[inside < 0.3].mean() < 0.05


def test_a_dictionary_given_as_its_own_twin_is_stable_throughout():
    """The twin is made anew from the same seed and rows, so that both are the same."""
    y = atoms(ROWS, 2)
    seed = 5
    first = halves(REQUEST, torch.Generator().manual_seed(seed))
    config = DictionaryConfig(width=WIDTH, features=ATOMS, k=2)
    dictionary, _ = train_twin(y[first], config, passes=20, batch_rows=512, seed=seed)
    found = judged(dictionary, y, passes=20, seed=seed)
    assert found.scores.strong == 1
    assert found.correlation[found.kind != UNKNOWN] == pytest.approx(1, abs=1e-4)
    assert found.fvu == pytest.approx(found.fvu_twin)


def test_seldom_firing_features_are_unknown_and_come_last():
    dictionary = learned(atoms(20_000, 1))
    y = atoms(256, 2)
    found = judged(dictionary, y, torch.arange(256) // 8, passes=3)
    codes = see(dictionary, y, 512).codes
    fired = torch.bincount(codes.index[codes.value > 0], minlength=ATOMS).numpy()
    assert (found.kind[fired < 2 * LEAST_FIRED] == UNKNOWN).all()
    assert (found.kind == UNKNOWN).mean() > 0.9
    assert found.compared == (found.kind != UNKNOWN).sum()


def test_ranks_put_stable_ones_first_and_unknown_ones_last(planted):
    _, found = planted
    order = np.argsort(-found.rank, kind="stable")  # NaN comes last
    kinds = found.kind[order]
    assert (np.diff(kinds) >= 0).all(), [KINDS[kind] for kind in kinds]
    lacking = (found.kind == UNSTABLE) & np.isnan(found.correlation)
    assert (found.rank[lacking] == -1).all()


def test_training_ends_when_it_is_told_to_and_says_how_far_it_came():
    y, asked = atoms(2048, 2), []
    config = DictionaryConfig(width=WIDTH, features=ATOMS, k=2)

    def stop():
        asked.append(1)
        return len(asked) > 10  # 4 steps a pass

    twin, passes = train_twin(y, config, passes=100, batch_rows=512, seed=1, stop=stop)
    assert passes == 2
    assert twin.batches == 10


def test_the_same_seed_gives_the_same_answer():
    dictionary = learned(atoms(20_000, 1))
    y = atoms(2048, 2)
    one, same, other = (judged(dictionary, y, REQUEST[:2048], passes=5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.correlation, same.correlation, equal_nan=True)
    assert not np.array_equal(one.correlation, other.correlation, equal_nan=True)


def test_rows_of_one_request_are_too_little():
    dictionary = learned(atoms(2048, 1))
    with pytest.raises(TooLittle, match="1 requests"):
        judged(dictionary, atoms(512, 2), torch.zeros(512, dtype=torch.int64))
    with pytest.raises(TooLittle, match="too few"):
        judged(dictionary, atoms(8, 2), torch.arange(8), passes=1)


def test_codes_do_not_depend_on_how_rows_are_cut():
    dictionary = SparseAutoencoder(
        DictionaryConfig(width=WIDTH, features=ATOMS, k=2), generator=torch.Generator().manual_seed(0)
    )
    y = atoms(300, 1)
    whole, cut = see(dictionary, y, 300), see(dictionary, y, 77)
    assert isinstance(whole, Seen)
    assert torch.equal(whole.codes.index, cut.codes.index)
    assert whole.error == pytest.approx(cut.error, rel=1e-4)
