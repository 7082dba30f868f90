"""Whitening as the normaliser's first step: what it finds, that it goes on exactly, and what cannot break it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.control import whiten_by
from hydrophoned.learn.errors import CheckpointError, InvalidConfig, LearnError, WidthMismatch
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.normaliser import Normaliser
from hydrophoned.learn.offline import OfflineTrainer
from hydrophoned.learn.whitening import MOST_CONDITION, Covariance, Whitening
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learner import CONFIG, T0, assert_same_state, make_rows

CPU = torch.device("cpu")
WHITEN = replace(CONFIG, normalise="whiten")


def some_rows(n, d, seed=0):
    """Rows of unequal spread along directions of their own, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(d)))[0]
    return torch.randn(n, d, generator=generator) * torch.logspace(0, 1.5, d) @ basis + 7


def whitening_of(x):
    covariance = Covariance(x.shape[1], CPU)
    covariance.update(x)
    return covariance.whitening()[0]


# -- what it is for ---------------------------------------------------------------------------------------------------


class Planted:
    """30 sparse atoms of norm 1 under 6 nuisance directions whose part of a row has a norm of about 32."""

    atoms, width = 30, 64

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.directions = torch.nn.functional.normalize(self.normal(self.atoms, self.width), dim=1)
        self.nuisance = torch.linalg.qr(self.normal(self.width, 6))[0].T

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def rows(self, n, *, atoms=True):
        """(rows [n, d], weights of the atoms [n, 30])."""
        on = torch.rand(n, self.atoms, generator=self.generator) < 2 / self.atoms
        weights = on * (0.5 + torch.rand(n, self.atoms, generator=self.generator))
        x = self.normal(n, 6) * 32 / 6**0.5 @ self.nuisance + 0.02 * self.normal(n, self.width)
        return (x + weights @ self.directions if atoms else x), weights

    def recovered(self, x, fresh, weights, normalise, control=None):
        """Share of atoms whose best feature follows them on fresh rows, and the same of atoms of other rows."""
        config = LearnerConfig(features=64, k=4, batch_rows=256, normalise=normalise)
        one = OfflineTrainer(self.width, config, control=control)
        list(one.train([(0.0, part.numpy()) for part in x.split(1024)]))
        codes = one.dictionary.encode(one.normaliser.apply(fresh), exact=True)
        dense = torch.zeros(len(fresh), 64).scatter_add_(1, codes.index.long(), codes.value)
        permuted = weights[torch.randperm(len(weights), generator=self.generator)]
        return [float((best(dense, of) > 0.8).float().mean()) for of in (weights, permuted)]


def best(codes, weights):
    """For each atom the largest absolute correlation with a feature."""
    codes, weights = codes - codes.mean(0), weights - weights.mean(0)
    return ((codes / codes.norm(dim=0).clamp_min(1e-9)).T @ (weights / weights.norm(dim=0))).abs().amax(0)


@pytest.mark.parametrize("seed", [0, 1])
def test_atoms_under_wide_directions_are_found_once_rows_are_whitened(seed):
    planted = Planted(seed)
    (x, _), (fresh, weights) = planted.rows(30_000), planted.rows(4000)
    healthy, _ = planted.rows(1000, atoms=False)
    control = whiten_by([healthy.numpy()], 64, sink_norm_factor=5.0).whitening
    plain = planted.recovered(x, fresh, weights, "scale")
    own = planted.recovered(x, fresh, weights, "whiten")
    by_control = planted.recovered(x, fresh, weights, "control", control)
    assert plain[0] <= 0.1
    assert own[0] >= 0.9
    assert by_control[0] >= 0.9
    assert plain[1] == own[1] == by_control[1] == 0, "nothing is found of atoms that are not in the rows"


# -- the matrix -------------------------------------------------------------------------------------------------------


def test_whitened_rows_vary_equally_in_every_direction_but_for_the_lift():
    x = some_rows(20_000, 12)
    whitening = whitening_of(x)
    values, vectors = torch.linalg.eigh(torch.cov(x.double().T, correction=0))
    lift = 0.02 * values.median()
    found = vectors.T @ torch.cov(whitening.apply(x).double().T, correction=0) @ vectors
    torch.testing.assert_close(found, torch.diag(values / (values + lift)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whitening.matrix, whitening.matrix.T, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whitening.invert(whitening.apply(x)), x, atol=1e-3, rtol=1e-4)
    difference = x[:5] - x[5:10]
    torch.testing.assert_close(
        whitening.unmix(whitening.apply(x[:5]) - whitening.apply(x[5:10])), difference, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("spread", [(1e6, 1, 1e-6), (1, 1, 0), (5, 0, 0), (1e-9, 1e-9, 1e-9), (1e12, 1, 1)])
def test_the_condition_number_is_bounded(spread):
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(spread)
    matrix = whitening_of(x).matrix.double()
    # of the covariance that it undoes: A^-2
    assert float(torch.linalg.cond(matrix)) ** 2 <= MOST_CONDITION * 1.001
    assert bool(matrix.isfinite().all())


@given(st.lists(st.integers(0, 40), min_size=1, max_size=10), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_a_covariance_does_not_depend_on_how_rows_are_split(sizes, seed):
    x = some_rows(sum(sizes) + 20, 4, seed) + 1000
    parts = Covariance(4, CPU)
    for part in x.split([*sizes, 20]):
        parts.update(part)
    wide = x.double()
    assert parts.count == len(x)
    torch.testing.assert_close(parts.mean, wide.mean(0), rtol=1e-12, atol=1e-9)
    expected = (wide - wide.mean(0)).T @ (wide - wide.mean(0))
    torch.testing.assert_close(parts.state_dict()["spread"], expected, rtol=1e-9, atol=1e-6)


# -- within the normaliser --------------------------------------------------------------------------------------------


def normaliser(x, kind="whiten"):
    control = whitening_of(some_rows(500, x.shape[1], 5) * 0.5) if kind == "control" else None
    one = Normaliser(x.shape[1], 1000, CPU, kind=kind, whitening=control)
    one.update(x)
    one.freeze()
    return one


@pytest.mark.parametrize("kind", ["whiten", "control"])
def test_normalised_rows_have_the_dimensions_norm_and_come_back(kind):
    x = some_rows(5000, 8)
    one = normaliser(x, kind)
    y = one.apply(x)
    assert float(y.square().sum(1).mean()) == pytest.approx(8, rel=1e-3)
    assert float(y.mean(0).norm()) < 1e-2
    torch.testing.assert_close(one.invert(y), x, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(one.invert_difference(y[:9] - y[9:18]), x[:9] - x[9:18], atol=1e-2, rtol=1e-3)
    mean, scale, matrix = one.affine()
    assert scale == 1
    torch.testing.assert_close((x - mean) @ matrix.T, y, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["whiten", "control"])
def test_after_a_change_whitened_rows_are_shifted_and_scaled_and_the_matrix_stays(kind):
    x = some_rows(2000, 6)
    one = normaliser(x, kind)
    matrix, probe = one.whitening.matrix.clone(), some_rows(50, 6, 1) * 3 + 20
    before, mean, scale = one.apply(probe), one.mean.clone(), one.scale
    one.update(some_rows(1500, 6, 2) * 3 + 20)
    shift, factor = one.renew()
    assert torch.equal(one.whitening.matrix, matrix)
    torch.testing.assert_close((before - shift) * factor, one.apply(probe), atol=1e-3, rtol=1e-3)
    assert [(seen, was) for seen, _, was in one.transforms] == [(3500, scale)]
    assert torch.equal(one.transforms[0][1], mean)
    torch.testing.assert_close(one.invert(one.apply(probe)), probe, atol=1e-2, rtol=1e-3)
    affine = one.affine()
    torch.testing.assert_close((probe - affine.mean) @ affine.matrix.T, one.apply(probe), atol=1e-3, rtol=1e-3)


def test_rows_like_those_before_change_nothing():
    one = normaliser(some_rows(2000, 6))
    one.update(some_rows(3000, 6, 2))
    assert one.renew() is None


@pytest.mark.parametrize(
    "x",
    [
        torch.full((500, 4), 3.0),
        torch.zeros(500, 4),
        torch.cat([some_rows(500, 3), torch.ones(500, 2)], 1),
        some_rows(500, 2) @ torch.randn(2, 6, generator=torch.Generator().manual_seed(0)),
        some_rows(500, 1),
        some_rows(3, 6),
    ],
    ids=["constant", "zero", "constant columns", "rank 2 of 6", "width 1", "fewer rows than columns"],
)
def test_rows_that_do_not_fill_their_space_are_whitened_all_the_same(x):
    one = normaliser(x)
    y = one.apply(x)
    assert bool(y.isfinite().all())
    varies = bool((x != x[0]).any())
    assert float(y.double().square().sum(1).mean()) == pytest.approx(x.shape[1] if varies else 0, rel=1e-2, abs=1e-6)
    torch.testing.assert_close(one.invert(y), x, atol=2e-2, rtol=1e-3)
    # what never varied before is not blown up beyond measure when it does
    moved = one.apply(x + 0.1 * float(x.std() or 1))
    assert float(moved.abs().max()) < 1e3


# -- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scale", "whiten", "control"])
@pytest.mark.parametrize("seen", [200, 3000])
def test_a_normaliser_goes_on_exactly(kind, seen):
    x = some_rows(6000, 5)
    control = whitening_of(some_rows(500, 5, 5)) if kind == "control" else None
    one = Normaliser(5, 1000, CPU, kind=kind, whitening=control)
    one.update(x[:seen])
    if seen > 2000:
        one.freeze()
    other = Normaliser(5, 1000, CPU, kind=kind)
    other.load_state({name: torch.as_tensor(value).clone() for name, value in one.state_dict().items()})
    for normaliser_ in (one, other):
        normaliser_.update(x[seen:])
        normaliser_.freeze()
    assert torch.equal(one.apply(x), other.apply(x))
    assert one.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(one.invert(x), other.invert(x))


def test_a_stream_that_only_scales_has_the_state_it_always_had():
    one = Normaliser(5, 1000, CPU)
    one.update(some_rows(100, 5))
    assert set(one.state_dict()) == {"running_mean", "spread", "count", "seen", "frozen", "mean", "scale"}


def test_the_state_of_another_kind_is_refused():
    whitened, scaled = StreamLearner(1, 16, WHITEN).state_dict(), StreamLearner(1, 16, CONFIG).state_dict()
    with pytest.raises(CheckpointError, match="of rows that are whitened, not of normalise = 'scale'"):
        StreamLearner(1, 16, CONFIG).load_state(whitened)
    with pytest.raises(CheckpointError, match="of rows that are scaled, not of normalise = 'whiten'"):
        StreamLearner(1, 16, WHITEN).load_state(scaled)
    one = normaliser(some_rows(100, 5))
    with pytest.raises(ValueError, match=r"matrix is \[5, 5\], not \[4, 4\]"):
        Normaliser(4, 1000, CPU, kind="whiten").load_state(one.state_dict())


def learner(kind):
    control = whitening_of(torch.from_numpy(make_rows(400, seed=3).activation)) if kind == "control" else None
    return StreamLearner(7, 16, replace(CONFIG, normalise=kind), control=control)


@pytest.mark.parametrize("kind", ["whiten", "control"])
@pytest.mark.parametrize("cut", [100, 2000])
def test_a_learner_goes_on_exactly(kind, cut):
    rows = make_rows(4000)
    whole, first = learner(kind), learner(kind)
    whole.observe(rows.slice(0, cut))
    whole.state_dict()  # handles staged rows, as saving does
    whole.observe(rows.slice(cut, 4000))
    first.observe(rows.slice(0, cut))
    second = StreamLearner(7, 16, first.config)  # the control rows are in the state
    second.load_state(
        {
            part: {name: one.clone() if isinstance(one, torch.Tensor) else one for name, one in values.items()}
            for part, values in first.state_dict().items()
        }
    )
    second.observe(rows.slice(cut, 4000))
    assert_same_state(whole, second)
    probe = rows.activation[:50]
    assert all(np.array_equal(*pair) for pair in zip(whole.encode(probe), second.encode(probe), strict=True))


@pytest.mark.parametrize("kind", ["whiten", "control"])
@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=12))
@settings(max_examples=10, deadline=None)
def test_how_rows_are_split_into_batches_does_not_matter(kind, sizes):
    rows = make_rows(sum(sizes))
    whole, parts = learner(kind), learner(kind)
    whole.observe(rows)
    for start, stop in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
        parts.observe(rows.slice(start, stop))
    assert_same_state(whole, parts)


# -- within a learner -------------------------------------------------------------------------------------------------


def test_the_first_dictionary_waits_for_ten_rows_per_element_in_a_buffer_that_holds_them():
    config = replace(WHITEN, warmup_rows=64, buffer_rows=64)
    one = StreamLearner(1, 16, config)
    one.observe(make_rows(128))
    assert one.dictionary_version == 0
    assert one.buffer.count == 128
    one.observe(make_rows(64, seed=1))
    assert one.dictionary_version == 1
    assert one.normaliser.whitening.rows == one.rows_seen - one.rows_sink
    one.observe(make_rows(1000, seed=2))
    one.flush()
    assert one.rows_learned == one.rows_seen - one.rows_sink, "every row is learned once"
    assert one.status()["normalise"] == "whiten"


@pytest.mark.parametrize(("rows", "version"), [(65, 0), (70, 1)])
def test_a_slow_stream_is_whitened_by_two_rows_per_element_at_least(rows, version):
    config = replace(WHITEN, batch_rows=10)
    one = StreamLearner(1, 33, config)
    one.observe(make_rows(rows, d=33, step=1_000_000))
    one.advance(T0 + 500_000_000)
    one.flush()
    assert one.dictionary_version == version


@pytest.mark.parametrize("kind", ["whiten", "control"])
def test_rows_from_outside_are_whitened_and_come_back_in_the_models_own_scale(kind):
    one = learner(kind)
    one.observe(make_rows(30_000))
    x = make_rows(500, seed=8).activation
    rebuilt = one.reconstruct(x).row
    assert np.square(rebuilt - x).sum() < 0.5 * np.square(x - x.mean(0)).sum()
    codes = one.encode(x)
    y = one.normaliser.apply(torch.from_numpy(x))
    expected = one.dictionary.encode(y, exact=True)
    torch.testing.assert_close(
        torch.from_numpy(codes.value), expected.value.sort(dim=1, descending=True).values, atol=1e-4, rtol=1e-4
    )


def test_control_rows_have_to_be_given():
    one = StreamLearner(1, 16, replace(CONFIG, normalise="control"))
    with pytest.raises(InvalidConfig, match="needs the whitening of control rows; none was given"):
        one.observe(make_rows(64))
    with pytest.raises(InvalidConfig, match="normalise = 'zca' is not one of scale, whiten, control"):
        LearnerConfig(normalise="zca")


# -- control rows -----------------------------------------------------------------------------------------------------


def test_control_rows_in_any_split_give_the_same_and_sinks_and_rows_not_finite_are_set_apart():
    x = some_rows(3000, 6).numpy()
    x[100], x[200, 3], x[300] = 1e4, np.nan, 3e38
    one = whiten_by([x], 6, sink_norm_factor=5.0)
    assert (one.whitening.rows, one.rows_sink, one.rows_quarantined) == (2997, 1, 2)
    parts = whiten_by(np.array_split(x, 7), 6, sink_norm_factor=5.0)
    assert parts[1:] == one[1:]
    torch.testing.assert_close(parts.whitening.matrix, one.whitening.matrix, atol=1e-6, rtol=1e-5)
    clean = whitening_of(torch.from_numpy(np.delete(x, [100, 200, 300], axis=0)))
    torch.testing.assert_close(one.whitening.matrix, clean.matrix, atol=1e-6, rtol=1e-5)


def test_too_few_control_rows_are_refused_and_few_are_told():
    with pytest.raises(LearnError, match="6 control rows are too few to whiten rows of width 6: at least 7"):
        whiten_by([some_rows(6, 6).numpy()], 6, sink_norm_factor=5.0)
    with pytest.raises(LearnError, match="0 control rows are too few"):
        whiten_by([], 6, sink_norm_factor=5.0)
    remark = whiten_by([some_rows(7, 6).numpy()], 6, sink_norm_factor=50.0).whitening.remark
    assert remark.startswith("whitened by 7 rows of width 6: fewer than 60 (10 per element)")
    assert whiten_by([some_rows(60, 6).numpy()], 6, sink_norm_factor=50.0).whitening.remark is None
    with pytest.raises(WidthMismatch, match="width 5"):
        whiten_by([some_rows(60, 6).numpy()], 5, sink_norm_factor=5.0)


# -- training on files ------------------------------------------------------------------------------------------------


def test_the_fvu_of_rows_as_they_were_is_told_beside_that_of_whitened_ones():
    planted = Planted(0)
    (x, _), (held, _) = planted.rows(20_000), planted.rows(2000)
    scores = {}
    for kind in ("scale", "whiten"):
        one = OfflineTrainer(64, LearnerConfig(features=64, k=4, batch_rows=256, normalise=kind))
        list(one.train([(0.0, part.numpy()) for part in x.split(500)]))
        scores[kind] = one.score([held.numpy()])
        y = one.normaliser.apply(held)
        rebuilt = one.normaliser.invert(one.dictionary.decode(one.dictionary.encode(y)))
        fvu = float((rebuilt - held).square().sum() / (held - held.mean(0)).square().sum())
        assert scores[kind].fvu_raw == pytest.approx(fvu, rel=0.02)
    assert scores["scale"].fvu_raw == scores["scale"].fvu
    assert scores["whiten"].fvu < scores["whiten"].fvu_raw, "the wide directions are left out"


def test_files_with_few_rows_are_whitened_by_two_per_element_at_least():
    x = some_rows(200, 64).numpy()
    one = OfflineTrainer(64, LearnerConfig(features=64, k=4, normalise="whiten", sink_norm_factor=50.0))
    list(one.train([(0.0, x)]))
    assert one.normaliser.whitening.rows == 200
    other = OfflineTrainer(64, LearnerConfig(features=64, k=4, normalise="whiten", sink_norm_factor=50.0))
    with pytest.raises(LearnError, match="127 rows are too few to learn from: at least 128 are needed"):
        list(other.train([(0.0, x[:127])]))


def test_a_whitening_is_of_the_device_it_is_put_on():
    one = whitening_of(some_rows(100, 3)).to(CPU)
    assert isinstance(one, Whitening)
    assert one.matrix.device == CPU
