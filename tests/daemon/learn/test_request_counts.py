import numpy as np
import torch
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.request_counts import RequestCounts
from hydrophoned.learn.request_rows import DistinctRequests, RequestRows
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")
F, K = 11, 3


def requests_of(keys, phase=None):
    info = RowMetadata.empty(len(keys), CPU)
    phase = np.zeros(len(keys), np.int32) if phase is None else phase
    return DistinctRequests.of(info._replace(request=torch.tensor(keys), phase=torch.tensor(phase)))


def random_features(rng, n):
    """Features of n rows, int64 [n, K]; F where there is none."""
    feature = np.stack([rng.choice(F, K, replace=False) for _ in range(n)]) if n else np.zeros((0, K))
    return np.where(rng.random((n, K)) < 0.3, F, feature).astype(np.int64)


def fired_in(history):
    """By feature: the requests it fired in, -1 among them where one was not known."""
    seen = [set() for _ in range(F)]
    for keys, feature in history:
        for key, row in zip(keys, feature, strict=True):
            for one in row[row < F]:
                seen[one].add(int(key))
    return seen


@given(st.integers(0, 2**32), st.lists(st.integers(0, 30), min_size=1, max_size=12), st.booleans())
@settings(max_examples=100, deadline=None)
def test_counts_are_exact_while_few_requests_come_mixed(seed, sizes, unknown):
    rng = np.random.default_rng(seed)
    counts, history, first = RequestCounts(F, CPU, side_by_side=8), [], 0
    for size in sizes:
        keys = (
            np.sort(rng.integers(first, first + 4, size))
            if rng.random() < 0.5
            else rng.integers(first, first + 4, size)
        )
        first += int(rng.integers(0, 4))  # at most 7 requests between two rows of one
        if unknown:
            keys[rng.random(size) < 0.02] = -1
        feature = random_features(rng, size)
        counts.update(torch.tensor(feature), requests_of(keys))
        history.append((keys, feature))
    told, known = counts.requests()
    for one, seen in enumerate(fired_in(history)):
        assert bool(known[one]) == (-1 not in seen)
        if known[one]:
            assert int(told[one]) == len(seen)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_what_is_told_is_exact_however_requests_come(seed, sizes, distinct):
    rng = np.random.default_rng(seed)
    counts, history = RequestCounts(F, CPU, side_by_side=8), []
    for size in sizes:
        keys, feature = rng.integers(0, distinct, size), random_features(rng, size)
        counts.update(torch.tensor(feature), requests_of(keys))
        history.append((keys, feature))
    told, known = counts.requests()
    for one, seen in enumerate(fired_in(history)):
        assert not known[one] or int(told[one]) == len(seen)
    if distinct <= 8:
        assert known.all()


def test_a_request_that_comes_back_late_leaves_its_features_unknown_and_no_others():
    counts = RequestCounts(F, CPU, side_by_side=4)

    def see(key, *features):
        row = torch.full((1, K), F)
        row[0, : len(features)] = torch.tensor(features)
        counts.update(row, requests_of([key]))

    for key in range(5):
        see(key, 0, 1)
    see(0, 1, 2)  # its row was taken by request 4
    told, known = counts.requests()
    assert told[0] == 5
    assert known.tolist() == [True, False, False] + [True] * (F - 3)
    counts.clear()
    see(0, 1)
    told, known = counts.requests()
    assert told.tolist() == [0, 1] + [0] * (F - 2)
    assert known.all()


def test_one_request_per_row_is_counted_over_any_number_of_them():
    """Each chunk has more requests than the table has rows."""
    counts = RequestCounts(F, CPU, side_by_side=300)
    for start in range(0, 7000, 700):
        keys = np.arange(start, start + 700)
        feature = np.full((700, K), F)
        feature[:, 0] = 3
        feature[::2, 1] = 5
        counts.update(torch.tensor(feature), requests_of(keys))
    told, known = counts.requests()
    assert known.all()
    assert (told[3], told[5], told.sum()) == (7000, 3500, 10_500)


@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_state_round_trip_goes_on_exactly(seed, before, after):
    rng = np.random.default_rng(seed)
    whole, second = RequestCounts(F, CPU, side_by_side=5), RequestCounts(F, CPU, side_by_side=5)
    for number in range(before + after):
        if number == before:
            second.load_state(whole.state_dict())
        keys, feature = rng.integers(-1, 12, 9), torch.tensor(random_features(rng, 9))
        whole.update(feature, requests_of(keys))
        if number >= before:
            second.update(feature, requests_of(keys))
    if after:
        assert all(torch.equal(a, b) for a, b in zip(whole.requests(), second.requests(), strict=True))


@given(st.integers(0, 2**32), st.integers(0, 150))
@settings(max_examples=20, deadline=None)
def test_rows_of_requests_add_up(seed, chunks):
    rng = np.random.default_rng(seed)
    rows, keys, phases = RequestRows(), [np.zeros(0, int)], [np.zeros(0, int)]
    for _ in range(chunks):
        n = rng.integers(0, 6)
        keys.append(rng.integers(-1, 9, n))
        phases.append(rng.integers(0, 2, n))
        rows.add(requests_of(keys[-1], phases[-1].astype(np.int32)))
    keys, phases = np.concatenate(keys), np.concatenate(phases)
    expected = [(key, (keys == key).sum(), phases[keys == key].sum()) for key in np.unique(keys)]
    assert rows.merged().T.tolist() == [list(map(int, one)) for one in expected]
