import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hydrophoned.learn.assignment import assign
from hydrophoned.learn.cofiring import CoFiring
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.identity import BORN, KINDS, LOST, MERGED, MOVED, SPLIT, STABLE, FeatureIds, Snapshot, match
from hypothesis import given, settings
from hypothesis import strategies as st

F, D, ROWS = 120, 48, 1500


class Planted:
    """A dictionary that is written down: directions [F, D], and values [ROWS, F] of its codes."""

    def __init__(self, seed=0, features=F):
        rng = np.random.default_rng(seed)
        self.W = rng.normal(size=(features, D))
        rate = rng.uniform(0.01, 0.08, features)
        self.z = (rng.random((ROWS, features)) < rate) * rng.uniform(0.5, 1.5, (ROWS, features))

    def copy(self, noise=0.0, seed=1):
        other = Planted.__new__(Planted)
        rng = np.random.default_rng(seed)
        other.W = self.W + noise * rng.normal(size=self.W.shape)
        other.z = self.z * (1 + noise * rng.normal(size=self.z.shape)).clip(0.1)
        return other

    def permuted(self, order):
        other = Planted.__new__(Planted)
        other.W, other.z = self.W[order], self.z[:, order]
        return other

    def snapshot(self, alive=None):
        W = torch.from_numpy(self.W / np.linalg.norm(self.W, axis=1, keepdims=True)).float()
        k = max(1, int((self.z > 0).sum(1).max()))
        index = np.argsort(-self.z, axis=1, kind="stable")[:, :k]
        value = np.take_along_axis(self.z, index, 1)
        codes = Codes(torch.from_numpy(index).int(), torch.from_numpy(value).float())
        fired = torch.from_numpy((self.z > 0).any(0)) if alive is None else alive
        return Snapshot(W, codes, fired)


def kinds(found):
    return {kind: int((found.kind == number).sum()) for number, kind in enumerate(KINDS)}


def told(found, kind):
    chosen = found.kind == kind
    return set(zip(found.before[chosen].tolist(), found.after[chosen].tolist(), strict=True))


def direction(seed):
    return np.random.default_rng(seed).normal(size=D)


def halves(fires, seed=5):
    """Two parts of the rows on which a feature fires, of values [ROWS]."""
    first = np.random.default_rng(seed).random(ROWS) < 0.5
    return fires * first, fires * ~first


# -- the assignment ------------------------------------------------------------------------------------------------


def best_sum(gain):
    """The largest sum of one-to-one pairs, by trying all of them."""
    rows, columns = gain.shape
    places = [*range(columns), *[-1] * rows]
    return max(
        sum(max(0.0, gain[row, column]) for row, column in enumerate(order) if column >= 0)
        for order in itertools.permutations(places, rows)
    )


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.integers(1, 4).flatmap(
            lambda m: st.lists(
                st.lists(st.sampled_from([-0.5, 0.0, 0.1, 0.25, 0.3, 0.5, 1.0]), min_size=m, max_size=m),
                min_size=n,
                max_size=n,
            )
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_an_assignment_is_one_to_one_and_the_best_there_is(gain):
    gain = np.array(gain)
    row, column = np.nonzero(np.ones_like(gain))
    chosen = assign(row, column, gain[row, column])
    assert len(set(row[chosen])) == len(set(column[chosen])) == chosen.sum()
    assert (gain[row, column][chosen] > 0).all()
    assert abs(gain[row, column][chosen].sum() - best_sum(gain)) <= 1e-3 * len(gain) + 1e-9


def test_many_rows_that_want_the_same_few_columns_are_settled():
    row, column = np.nonzero(np.ones((300, 200)))
    chosen = assign(row, column, np.full(len(row), 0.4))
    assert chosen.sum() == 200


def test_nothing_is_assigned_of_nothing():
    none = np.zeros(0, np.int64)
    assert assign(none, none, np.zeros(0)).shape == (0,)


# -- firing together -----------------------------------------------------------------------------------------------


def test_sums_and_correlations_are_those_of_the_dense_codes():
    before, after = Planted(0, 20), Planted(1, 30)
    together = CoFiring.of(before.snapshot().codes, after.snapshot().codes, (20, 30))
    x, y = before.z.astype(np.float32).astype(float), after.z.astype(np.float32).astype(float)
    pairs = dict(zip(zip(together.first.tolist(), together.second.tolist(), strict=True),
                     zip(together.together.tolist(), together.product.tolist(), strict=True), strict=True))  # fmt: skip
    dense, counts = x.T @ y, (x > 0).astype(int).T @ (y > 0)
    assert pairs.keys() == {(i, j) for i, j in np.argwhere(counts)}
    for (i, j), (count, product) in pairs.items():
        assert count == counts[i, j]
        assert product == pytest.approx(dense[i, j])
    first, second = (part.ravel() for part in np.meshgrid(np.arange(20), np.arange(30), indexing="ij"))
    found = together.correlation(first, second, together.of_pairs(first, second), least=1)
    assert found.reshape(20, 30) == pytest.approx(np.corrcoef(x.T, y.T)[:20, 20:])


def test_a_correlation_of_few_firings_or_of_a_constant_is_unknown():
    z = np.zeros((ROWS, 4))
    z[:3, 0] = z[:3, 1] = 1  # fires three times
    z[:, 2] = 1  # always
    planted = Planted(0, 4)
    planted.z = z
    codes = planted.snapshot().codes
    together = CoFiring.of(codes, codes, (4, 4))
    first, second = np.array([0, 2, 3, 0]), np.array([1, 2, 3, 0])
    found = together.correlation(first, second, together.of_pairs(first, second), least=5)
    assert np.isnan(found).all()
    assert together.correlation(first[:1], second[:1], np.array([3.0]), least=3) == pytest.approx(1)


# -- who continues whom --------------------------------------------------------------------------------------------


def test_a_dictionary_that_has_not_changed_is_stable():
    planted = Planted()
    found = match(planted.snapshot(), planted.snapshot())
    assert kinds(found) == {"stable": F, "moved": 0, "split": 0, "merged": 0, "born": 0, "lost": 0}
    assert (found.continues == np.arange(F)).all()
    assert found.cosine == pytest.approx(1, abs=1e-6)


@given(st.integers(0, 2**31), st.sampled_from([0.05, 0.3, 0.6]))
@settings(max_examples=20, deadline=None)
def test_a_random_relabelling_changes_neither_ids_nor_kinds(seed, noise):
    before, after = Planted(3), Planted(3).copy(noise)
    after.W[:10], after.z[:, :10] = Planted(9).W[:10], Planted(9).z[:, :10]  # ten others
    a, b = halves(before.z[:, 20])
    after.W[20], after.z[:, 20] = before.W[20] + before.W[21], a
    after.W[11], after.z[:, 11] = before.W[20] - 0.4 * before.W[21], b
    anew = torch.zeros(F, dtype=torch.bool)
    anew[11] = True
    order = np.random.default_rng(seed).permutation(F)
    plain = match(before.snapshot(), after.snapshot(), anew=anew)
    relabelled = match(before.snapshot(), after.permuted(order).snapshot(), anew=anew[torch.from_numpy(order)])
    assert (plain.continues[order] == relabelled.continues).all()
    place = np.append(order, -1)
    for kind in range(len(KINDS)):
        assert told(plain, kind) == {(i, int(place[j])) for i, j in told(relabelled, kind)}, KINDS[kind]
    ids, others = FeatureIds(), FeatureIds()
    for one, found in ((ids, plain), (others, relabelled)):
        one.begin(F, 1)
        one.follow(found, 2)
    assert torch.equal(ids.ids[torch.from_numpy(order)], others.ids)
    assert torch.equal(ids.born[torch.from_numpy(order)], others.born)


def test_unrelated_dictionaries_share_no_feature():
    found = match(Planted(0).snapshot(), Planted(1).snapshot())
    assert kinds(found) == {"stable": 0, "moved": 0, "split": 0, "merged": 0, "born": F, "lost": F}


def test_the_same_directions_that_fire_on_other_rows_are_other_features():
    before, after = Planted(), Planted()
    after.z = Planted(1).z
    found = match(before.snapshot(), after.snapshot())
    fired = (before.z > 0).sum(0)
    known = np.flatnonzero((fired >= 10) | ((after.z > 0).sum(0) >= 10))
    assert (found.continues[known] == -1).all()


def test_features_that_point_a_little_elsewhere_have_moved():
    before = Planted()
    found = match(before.snapshot(), before.copy(0.6).snapshot())
    assert (found.continues == np.arange(F)).all()
    assert kinds(found)["moved"] > F / 2
    assert kinds(found)["stable"] + kinds(found)["moved"] == F


def test_of_two_alike_features_each_keeps_its_own_id():
    before, after = Planted(), Planted()
    before.W[1] = before.W[0] + 0.3 * direction(1)  # cosine above 0.9, other rows
    after.W[1] = before.W[1] + 0.1 * direction(2)
    after.W[0] = before.W[0] + 0.1 * direction(3)
    order = np.arange(F)
    order[[0, 1]] = 1, 0
    found = match(before.snapshot(), after.permuted(order).snapshot())
    assert found.continues[:2].tolist() == [1, 0]


def test_one_that_was_begun_anew_continues_nothing_even_where_it_looks_the_same():
    planted = Planted()
    anew = torch.zeros(F, dtype=torch.bool)
    anew[[4, 5]] = True
    found = match(planted.snapshot(), planted.snapshot(), anew=anew)
    assert (found.continues[[4, 5]] == -1).all()
    assert set(found.order.tolist()) == {4, 5}


def test_an_id_follows_a_feature_that_turns_in_small_steps():
    ids = FeatureIds()
    ids.begin(F, 1)
    planted = Planted()
    start, goal = planted.W[0] / np.linalg.norm(planted.W[0]), direction(11)
    goal = goal - goal @ start * start
    goal /= np.linalg.norm(goal)
    for version in range(2, 12):
        before = planted.snapshot()
        angle = np.deg2rad(9 * (version - 1))
        planted.W[0] = np.cos(angle) * start + np.sin(angle) * goal
        ids.follow(match(before, planted.snapshot()), version)
    assert planted.W[0] @ start == pytest.approx(0, abs=1e-12)
    assert torch.equal(ids.ids, torch.arange(1, F + 1))
    assert (ids.born == 1).all()


def test_a_silent_copy_does_not_take_the_id_of_a_living_feature():
    before, after = Planted(), Planted()
    before.z[:, 7] = after.z[:, 7] = 0
    after.W[7] = before.W[0]  # silent, and closer to the old 0 than 0 itself is now
    after.W[0] = before.W[0] + 0.5 * direction(4)
    after.z[:40, 0] = 0.3  # and it fires a little differently
    found = match(before.snapshot(), after.snapshot())
    assert found.continues[0] == 0


# -- what an assignment does not say -------------------------------------------------------------------------------


def test_born_and_lost_features_are_told():
    before, after = Planted(), Planted().copy(0.05)
    other = Planted(50)
    after.W[[3, 4]], after.z[:, [3, 4]] = other.W[[3, 4]], other.z[:, [3, 4]]
    found = match(before.snapshot(), after.snapshot())
    assert told(found, BORN) == {(-1, 3), (-1, 4)}
    assert told(found, LOST) == {(3, -1), (4, -1)}
    assert kinds(found)["stable"] == F - 2


def test_a_feature_whose_rows_two_new_ones_share_has_split():
    before, after = Planted(), Planted().copy(0.05)
    before.z[:, [30, 31]] = 0  # two latents that lay idle
    one, other = before.W[0] + 0.9 * direction(6), before.W[0] + 0.9 * direction(7)
    first, second = halves(before.z[:, 0])
    after.W[[30, 31]] = one, other
    after.z[:, 30], after.z[:, 31] = first, second
    new = Planted(77)
    after.W[0], after.z[:, 0] = new.W[0], new.z[:, 0]
    found = match(before.snapshot(), after.snapshot())
    assert told(found, SPLIT) == {(0, 30), (0, 31)}
    assert told(found, BORN) == {(-1, 0)}
    assert (0, -1) not in told(found, LOST)
    scores = found.correlation[found.kind == SPLIT]
    assert ((scores > 0.4) & (scores < 0.9)).all()


def test_a_part_may_keep_the_id_of_what_has_split():
    before, after = Planted(), Planted().copy(0.05)
    before.z[:, 30] = 0
    rows = np.random.default_rng(2).random(ROWS) < 0.65
    after.W[0], after.z[:, 0] = before.W[0] + 0.2 * direction(6), before.z[:, 0] * rows
    after.W[30], after.z[:, 30] = before.W[0] + 0.9 * direction(7), before.z[:, 0] * ~rows
    found = match(before.snapshot(), after.snapshot())
    assert told(found, SPLIT) == {(0, 0), (0, 30)}
    assert found.continues[0] == 0
    assert found.continues[30] == -1


def test_two_features_whose_rows_one_now_covers_have_merged():
    before, after = Planted(), Planted().copy(0.05)
    first, second = halves(before.z[:, 0])
    before.W[1], before.z[:, 1] = before.W[0] + 0.9 * direction(7), second
    after.W[0], after.z[:, 0] = before.W[0] + 0.3 * direction(8), before.z[:, 0]
    before.z[:, 0] = first
    new = Planted(77)
    after.W[1], after.z[:, 1] = new.W[1], new.z[:, 1]
    found = match(before.snapshot(), after.snapshot())
    assert told(found, MERGED) == {(0, 0), (1, 0)}
    assert told(found, BORN) == {(-1, 1)}
    assert kinds(found)["lost"] == 0


def test_a_feature_that_goes_on_beside_new_ones_within_it_has_not_split():
    before, after = Planted(), Planted().copy(0.05)
    before.z[:, [30, 31]] = 0
    first, second = halves(before.z[:, 0])
    after.W[[30, 31]] = before.W[0] + 0.9 * direction(6), before.W[0] + 0.9 * direction(7)
    after.z[:, 30], after.z[:, 31] = first, second
    found = match(before.snapshot(), after.snapshot())
    assert kinds(found)["split"] == 0
    assert (0, 0) in told(found, STABLE) | told(found, MOVED)


def test_parts_that_point_elsewhere_or_fire_elsewhere_are_no_split():
    before, after = Planted(), Planted().copy(0.05)
    before.z[:, [30, 31]] = 0
    first, second = halves(before.z[:, 0])
    new = Planted(77)
    after.W[0], after.z[:, 0] = new.W[0], new.z[:, 0]
    after.z[:, 30], after.z[:, 31] = first, second
    after.W[[30, 31]] = -before.W[0] + direction(6), -before.W[0] + direction(7)
    assert kinds(match(before.snapshot(), after.snapshot()))["split"] == 0
    after.W[[30, 31]] = before.W[0] + 0.9 * direction(6), before.W[0] + 0.9 * direction(7)
    after.z[:, 30] = np.random.default_rng(1).permutation(first)
    after.z[:, 31] = np.random.default_rng(2).permutation(second)
    assert kinds(match(before.snapshot(), after.snapshot()))["split"] == 0


def test_every_feature_of_either_side_is_told():
    found = match(Planted(3).snapshot(), Planted(3, 150).snapshot())
    assert set(found.before.tolist()) - {-1} == set(range(F))
    assert set(found.after.tolist()) - {-1} == set(range(150))
    heirs = np.flatnonzero(found.continues >= 0)
    pairs = set(zip(found.before.tolist(), found.after.tolist(), strict=True))
    assert {(int(found.continues[heir]), int(heir)) for heir in heirs} <= pairs
    assert set(found.order.tolist()) == set(range(150)) - set(heirs.tolist())


# -- ids -----------------------------------------------------------------------------------------------------------


def test_ids_are_never_given_twice():
    ids = FeatureIds()
    ids.begin(F, 1)
    given_out = set(ids.ids.tolist())
    planted = Planted()
    for version in range(2, 8):
        before = planted.snapshot()
        other = Planted(100 + version)
        planted.W[:25], planted.z[:, :25] = other.W[:25], other.z[:, :25]
        held = ids.ids.clone()
        ids.follow(match(before, planted.snapshot()), version)
        new = set(ids.ids.tolist()) - set(held.tolist())
        assert len(new) == 25
        assert not new & given_out
        assert (ids.born[[one in new for one in ids.ids.tolist()]] == version).all()
        given_out |= new
        assert len(set(ids.ids.tolist())) == F
    again = FeatureIds()
    again.load_state(ids.state_dict())
    assert torch.equal(again.ids, ids.ids)
    assert torch.equal(again.born, ids.born)
    assert again.next_id == ids.next_id == max(given_out) + 1
    again.reserve(10_000)
    again.reserve(5)
    assert again.next_id == 10_000


_LARGE = """
import resource, sys, time
import torch
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.identity import Snapshot, match
torch.set_grad_enabled(False)
F, d, k, rows = 32_768, 16, 32, 512
g = torch.Generator().manual_seed(0)
W = torch.nn.functional.normalize(torch.randn(F, d, generator=g), dim=1)
index = torch.stack([torch.randperm(F, generator=g)[:k] for _ in range(rows)]).int()
codes = Codes(index, torch.rand(rows, k, generator=g) + 0.1)
moved = torch.nn.functional.normalize(W + 0.02 * torch.randn(F, d, generator=g), dim=1)
moved[:6000] = torch.nn.functional.normalize(torch.randn(6000, d, generator=g), dim=1)
alive = torch.ones(F, dtype=torch.bool)
match(Snapshot(W[:99], Codes(codes.index % 99, codes.value), alive[:99]),
      Snapshot(W[:99], Codes(codes.index % 99, codes.value), alive[:99]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = match(Snapshot(W.half(), codes, alive), Snapshot(moved, codes, alive))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, (found.continues[6000:] >= 0).mean())
"""


def test_a_large_dictionary_takes_bounded_memory():
    done = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True)
    megabytes, kept = map(float, done.stdout.split())
    assert megabytes < 300  # all cosines at once would be 4,295
    assert kept == 1
