import itertools

import numpy as np
import pytest
import torch
from hydrophone_schemas.buckets import BUCKETS, RELATIVE_ERROR, bucket_ends, bucket_value
from hydrophoned.learn.sketch import QuantileSketch, bucket_of, quantile
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")
LOW, HIGH = bucket_ends(1)[0], bucket_ends(BUCKETS - 2)[1]


def rank(values, q):
    return np.sort(values)[int(np.floor(q * (len(values) - 1)))]


def sketch_of(feature, value, features=3):
    sketch = QuantileSketch(features, CPU)
    sketch.update(torch.as_tensor(feature), torch.as_tensor(value))
    return sketch


def random_values(rng, n):
    """Values over and beyond all octaves, edges of buckets among them."""
    value = np.exp2(rng.uniform(-9, 13, n)).astype(np.float32)
    edges = np.array([bucket_ends(b)[0] for b in range(BUCKETS)], np.float32)
    chosen = rng.random(n) < 0.2
    value[chosen] = rng.choice(edges, chosen.sum())
    return value


def test_buckets_are_where_they_are_said_to_be():
    ends = [bucket_ends(bucket) for bucket in range(BUCKETS)]
    assert ends[0][0] == 2**-6
    assert ends[-1][1] == 2**10
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))
    low = torch.tensor([low for low, _ in ends])
    assert bucket_of(low).tolist() == list(range(BUCKETS))
    below = torch.nextafter(torch.tensor([high for _, high in ends]), torch.tensor(0.0))
    assert bucket_of(below).tolist() == list(range(BUCKETS))
    odd = torch.tensor([0.0, -1.0, 1e-30, 1e30, float("inf")])
    assert bucket_of(odd).tolist() == [0, 0, 0, BUCKETS - 1, BUCKETS - 1]
    with pytest.raises(ValueError, match="bucket = 128"):
        bucket_ends(BUCKETS)


def test_what_stands_for_a_bucket_is_within_the_stated_error_of_both_ends():
    worst = 0.0
    for bucket in range(1, BUCKETS - 1):
        for end in bucket_ends(bucket):
            worst = max(worst, abs(bucket_value(bucket) - end) / end)
    assert worst == pytest.approx(RELATIVE_ERROR)  # no less, either: the bound is tight
    assert bucket_value(0) is None
    assert bucket_value(BUCKETS - 1) is None


@given(st.integers(0, 2**32), st.integers(1, 300), st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0]))
@settings(max_examples=150, deadline=None)
def test_quantiles_are_within_the_stated_error_or_unknown(seed, n, q):
    rng = np.random.default_rng(seed)
    feature, value = rng.integers(0, 3, n), random_values(rng, n)
    told = sketch_of(feature, value).quantile(q).numpy()
    for one in range(3):
        values = value[feature == one]
        if not len(values) or not LOW <= rank(values, q) < HIGH:
            assert np.isnan(told[one])
        else:
            assert abs(told[one] - rank(values, q)) <= (RELATIVE_ERROR + 1e-6) * rank(values, q)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 100), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_sketches_of_parts_added_are_the_sketch_of_all(seed, sizes):
    rng = np.random.default_rng(seed)
    parts = [(rng.integers(0, 4, n), random_values(rng, n)) for n in sizes]  # feature 3 takes what is not active
    whole = sketch_of(np.concatenate([f for f, _ in parts]), np.concatenate([v for _, v in parts]))
    added = QuantileSketch(3, CPU)
    for part in parts:
        added.merge(sketch_of(*part))
    assert torch.equal(added.counts, whole.counts)
    assert int(whole.counts.sum()) == sum(int((f < 3).sum()) for f, _ in parts)


@given(st.integers(0, 2**32), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_buckets_and_state_hold_all_that_was_counted(seed, n):
    rng = np.random.default_rng(seed)
    sketch = sketch_of(rng.integers(0, 4, n), random_values(rng, n))
    again = QuantileSketch(3, CPU)
    again.load_state(sketch.state_dict())
    assert torch.equal(again.counts, sketch.counts)
    for features in ([0, 1, 2], [1], [0, 2], []):
        held = sketch.buckets(torch.tensor(features, dtype=torch.int64))
        dense = np.zeros((len(features), BUCKETS), np.int64)
        for i in range(len(features)):
            part = slice(int(held.offsets[i]), int(held.offsets[i + 1]))
            assert (np.diff(held.bucket[part].numpy()) > 0).all()
            dense[i, held.bucket[part].long().numpy()] = held.count[part].numpy()
        assert np.array_equal(dense, sketch.counts[features].numpy())
    sketch.clear()
    assert not sketch.counts.any()


def test_a_quantile_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"q = 1\.5"):
        quantile(torch.zeros(BUCKETS, dtype=torch.int32), 1.5)
