import numpy as np
import torch
from hydrophone_schemas import tables
from hydrophoned.learn.request_features import RequestFeatures, hashed
from hypothesis import given, settings
from hypothesis import strategies as st
from test_request_counts import CPU, F, random_features, requests_of


def chunk(rng, keys):
    feature = random_features(rng, len(keys))
    value = np.where(feature < F, rng.exponential(size=feature.shape), 0).astype(np.float32)
    return np.asarray(keys), feature, value


def feed(kept, parts):
    for keys, feature, value in parts:
        kept.update(torch.tensor(feature), torch.tensor(value), requests_of(keys))


def recomputed(parts, sample):
    """By request below ``sample``: rows, and by feature (fired, sum, max)."""
    found = {}
    for keys, feature, value in parts:
        for key, features, values in zip(keys.tolist(), feature, value, strict=True):
            if key < 0 or hashed(np.array([key]))[0] >= sample:
                continue
            rows, sums = found.setdefault(key, [0, {}])
            found[key][0] = rows + 1
            for one, x in zip(features.tolist(), values.tolist(), strict=True):
                if one < F:
                    fired, total, largest = sums.get(one, (0, 0.0, 0.0))
                    sums[one] = (fired + 1, total + x, max(largest, x))
    return found


def assert_table_is(table, expected):
    assert table.schema.equals(tables.REQUEST_FEATURE)
    table.validate(full=True)
    rows = table.to_pylist()
    assert [row["request_key"] for row in rows] == sorted(expected)
    for row in rows:
        count, sums = expected[row["request_key"]]
        assert row["rows_scored"] == count
        assert row["features"] == sorted(sums)
        assert row["fired"] == [sums[one][0] for one in row["features"]]
        np.testing.assert_allclose(row["sum"], [sums[one][1] for one in row["features"]], rtol=1e-6)
        assert row["max"] == [sums[one][2] for one in row["features"]]


@given(st.integers(0, 2**32), st.lists(st.integers(0, 25), min_size=1, max_size=6), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_all_rows_of_each_chosen_request_are_in_it(seed, sizes, distinct):
    rng = np.random.default_rng(seed)
    kept = RequestFeatures(F, 3, CPU)
    for window in range(3):
        parts = [chunk(rng, rng.integers(-1, distinct, size)) for size in sizes]
        feed(kept, parts)
        table = kept.close(5, 1000 * window, 2)
        assert_table_is(table, recomputed(parts, kept.sample))
        assert table.num_rows <= 6
        assert set(table["sample"].to_pylist()) <= {kept.sample}
        kept.clear(len({key for keys, *_ in parts for key in keys.tolist() if key >= 0}))


def test_about_as_many_requests_as_asked_are_kept_whatever_the_load():
    rng = np.random.default_rng(0)
    kept, counts, first = RequestFeatures(F, 8, CPU), [], 0
    for window in range(300):
        load = 20 if window < 100 else 2000 if window < 200 else 200
        feed(kept, [chunk(rng, range(first, first + load))])
        first += load
        counts.append(kept.close(1, window, 1).num_rows)
        kept.clear(load)
    assert max(counts) <= 16
    for part in (counts[1:100], counts[101:200], counts[201:]):
        assert 7 < np.mean(part) < 9


def test_requests_are_chosen_alike_whatever_their_length_and_in_every_window():
    """A sum over the kept requests, each divided by its ``sample``, is right on average, for long and short ones."""
    rng = np.random.default_rng(1)
    kept, first = RequestFeatures(F, 8, CPU), 0
    told, true = np.zeros(2), np.zeros(2)
    for window in range(400):
        lengths = rng.choice([1, 6], 60)
        keys = np.repeat(np.arange(first, first + 60), lengths)
        first += 60
        feed(kept, [chunk(rng, keys)])
        for row in kept.close(1, window, 1).to_pylist():
            told[int(row["rows_scored"] > 1)] += 1 / row["sample"]
        true += [(lengths == 1).sum(), (lengths == 6).sum()]
        kept.clear(60)
    # about 1600 requests of each kind were kept: 4 standard errors
    assert (abs(told / true - 1) < 4 / np.sqrt(1600)).all()


def test_the_hash_is_uniform():
    drawn = np.sort(hashed(np.arange(100_000)))
    gap = abs(drawn - (np.arange(100_000) + 0.5) / 100_000).max()
    assert gap < 1.95 / np.sqrt(100_000)  # Kolmogorov and Smirnov, at 1 in 1000
    assert drawn[0] >= 0
    assert drawn[-1] < 1


def test_none_are_kept_where_none_are_wanted():
    kept = RequestFeatures(F, 0, CPU)
    feed(kept, [chunk(np.random.default_rng(0), [1, 2, 3])])
    assert kept.close(1, 0, 1).num_rows == 0


@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_state_round_trip_goes_on_exactly(seed, before, after):
    rng = np.random.default_rng(seed)
    whole, second = RequestFeatures(F, 2, CPU), RequestFeatures(F, 2, CPU)
    feed(whole, [chunk(rng, rng.integers(-1, 12, 9)) for _ in range(before)])
    state = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in whole.state_dict().items()}
    second.load_state(state)
    rest = [chunk(rng, rng.integers(-1, 12, 9)) for _ in range(after)]
    feed(whole, rest)
    feed(second, rest)
    assert whole.close(1, 0, 1).equals(second.close(1, 0, 1))


def test_memory_stays_as_it_is_over_many_requests():
    rng = np.random.default_rng(0)
    kept = RequestFeatures(F, 4, CPU)
    for _ in range(50):
        feed(kept, [chunk(rng, rng.integers(0, 10_000, 200))])
        kept.clear(200)
        assert len(kept.state_dict()["fired"]) <= 8
        assert kept.state_dict()["fired"].shape[1] == F + 1
