import numpy as np
import torch
from hydrophoned.learn.buffers import Reservoir, ShuffleBuffer
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.examples import TopExamples
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.normaliser import Normaliser, SinkFilter
from hydrophoned.learn.statistics import FeatureStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")


def metadata(request, sequence=None):
    n = len(request)
    narrow = torch.zeros(n, dtype=torch.int32)
    request = torch.as_tensor(request, dtype=torch.int64)
    return RowMetadata(
        request,
        narrow if sequence is None else torch.as_tensor(sequence, dtype=torch.int32),
        torch.arange(n, dtype=torch.int32),
        narrow,
        narrow,
        torch.arange(n, dtype=torch.int64),
    )


def random_codes(rng, n, k, features):
    index = np.stack([rng.choice(features, size=k, replace=False) for _ in range(n)]) if n else np.zeros((0, k))
    value = np.maximum(rng.normal(size=(n, k)), 0)
    return Codes(torch.tensor(index, dtype=torch.int32), torch.tensor(value, dtype=torch.float32))


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_every_row_leaves_the_shuffle_buffer_exactly_once(sizes, seed):
    buffer = ShuffleBuffer(1, 32, 8, torch.Generator().manual_seed(seed), CPU)
    out, number = [], 0
    for size in sizes:
        rows = torch.arange(number, number + size, dtype=torch.float32)[:, None]
        number += size
        pushed = buffer.push(rows)
        assert all(len(batch) == 8 for batch in pushed)
        out += pushed
    while buffer.count:
        out.append(buffer.draw(5))
    left = sorted(int(v) for batch in out for v in batch.flatten())
    assert left == list(range(number))


def test_shuffle_buffer_breaks_up_neighbours():
    buffer = ShuffleBuffer(1, 4096, 256, torch.Generator().manual_seed(0), CPU)
    batches = buffer.push(torch.arange(20_000, dtype=torch.float32)[:, None])
    gaps = [float(batch.flatten().sort().values.diff().median()) for batch in batches]
    assert min(gaps[1:]) > 4


def test_reservoir_is_uniform_and_does_not_depend_on_the_split():
    counts = np.zeros(1000)
    for seed in range(200):
        whole = Reservoir(1, 50, torch.Generator().manual_seed(seed), CPU)
        parts = Reservoir(1, 50, torch.Generator().manual_seed(seed), CPU)
        x = torch.arange(1000, dtype=torch.float32)[:, None]
        info = metadata(range(1000))
        whole.update(x, info)
        for start in range(0, 1000, 77):
            part = torch.arange(start, min(start + 77, 1000))
            parts.update(x[part], info.take(part))
        assert torch.equal(whole.rows, parts.rows)
        assert torch.equal(whole.metadata.request.float(), whole.rows[:, 0])
        counts[whole.rows.flatten().long().numpy()] += 1
    # each row is kept with probability 0.05: 10 of 200, binomial; tenths of the stream must agree too
    tenths = counts.reshape(10, 100).sum(1)
    assert abs(tenths - 1000).max() < 4 * np.sqrt(1000)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 20), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_statistics_equal_a_recomputation(seed, sizes):
    rng = np.random.default_rng(seed)
    statistics = FeatureStatistics(12, CPU)
    all_codes = []
    silent = np.zeros(12)
    for size in sizes:
        codes = random_codes(rng, size, 4, 12)
        statistics.update(codes, metadata(rng.integers(0, 9, size)))
        all_codes.append(codes)
        dense = np.zeros((size, 12))
        np.put_along_axis(dense, codes.index.numpy().astype(int), codes.value.numpy(), 1)
        fired = (dense > 0).any(0) if size else np.zeros(12, bool)
        silent = np.where(fired, 0, silent + size)
    index = torch.cat([c.index for c in all_codes]).numpy().astype(int)
    value = torch.cat([c.value for c in all_codes]).numpy()
    dense = np.zeros((len(index), 12), np.float32)
    np.put_along_axis(dense, index, value, 1)
    wide = dense.astype(np.float64)
    assert np.array_equal(statistics.fired.numpy(), (dense > 0).sum(0))
    np.testing.assert_allclose(statistics.sum.numpy(), wide.sum(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.sum_squares.numpy(), (wide**2).sum(0), rtol=1e-12)
    assert np.array_equal(statistics.max.numpy(), dense.max(0) if len(dense) else np.zeros(12, np.float32))
    assert np.array_equal(statistics.silent_rows.numpy(), silent)


def brute_examples(history, features, count):
    """All (score, value, request, sequence) ever offered, best per (request, sequence), best ``count``."""
    best = [{} for _ in range(features)]
    for codes, info, seen in history:
        for row in range(len(codes.index)):
            for feature, value in zip(codes.index[row].tolist(), codes.value[row].tolist(), strict=True):
                if value > 0:
                    key = (int(info.request[row]), int(info.sequence[row]))
                    score = np.log2(value) + np.log2(seen + 1)
                    if score > best[feature].get(key, -np.inf):
                        best[feature][key] = score
    return [sorted(scores.values(), reverse=True)[:count] for scores in best]


@given(st.integers(0, 2**32), st.lists(st.integers(0, 25), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_examples_are_the_best_rows_one_per_request(seed, sizes):
    rng = np.random.default_rng(seed)
    examples = TopExamples(10, 3, CPU)
    history, seen = [], 0
    for size in sizes:
        codes = random_codes(rng, size, 3, 10)
        info = metadata(rng.integers(0, 6, size), rng.integers(0, 2, size))
        examples.update(codes, info, seen)
        history.append((codes, info, seen))
        seen += size
    for feature, expected in enumerate(brute_examples(history, 10, 3)):
        kept = examples.score[feature][examples.score[feature] > -np.inf].tolist()
        np.testing.assert_allclose(kept, expected, rtol=1e-6)
        pairs = list(
            zip(examples.metadata.request[feature].tolist(), examples.metadata.sequence[feature].tolist(), strict=True)
        )[: len(kept)]
        assert len(set(pairs)) == len(pairs)


def test_fresh_examples_are_handed_out_once():
    examples = TopExamples(4, 2, CPU)
    codes = Codes(torch.tensor([[0], [1]], dtype=torch.int32), torch.tensor([[1.0], [2.0]]))
    examples.update(codes, metadata([7, 8]), 0)
    feature, slot = examples.take_fresh()
    assert feature.tolist() == [0, 1]
    assert examples.metadata.request[feature, slot].tolist() == [7, 8]
    assert len(examples.take_fresh()[0]) == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_normaliser_equals_two_pass_moments(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 5, generator=generator) * 3 + 1000
    normaliser = Normaliser(5, 10**9, CPU)
    for part in x.split(sizes):
        normaliser.update(part)
    wide = x.double()
    state = normaliser.state_dict()
    torch.testing.assert_close(state["running_mean"], wide.mean(0), rtol=1e-12, atol=1e-9)
    spread = (wide - wide.mean(0)).square().sum()
    torch.testing.assert_close(state["spread"], spread, rtol=1e-9, atol=1e-9)
    if len(x) > 5:
        y = normaliser.apply(x).double()
        assert abs(float(y.square().sum(1).mean()) - 5) < 1e-2
        torch.testing.assert_close(normaliser.invert(y.float()), x, rtol=1e-5, atol=1e-2)


def test_normaliser_stays_once_frozen_until_rows_have_left_it_far_behind():
    generator = torch.Generator().manual_seed(0)
    normaliser = Normaliser(2, 1000, CPU)
    normaliser.update(torch.randn(12, 2, generator=generator))
    normaliser.freeze()
    mean, scale = normaliser.mean.clone(), normaliser.scale
    normaliser.update(torch.randn(1000, 2, generator=generator) * 1.1)
    assert normaliser.renew() is None
    normaliser.update(torch.randn(999, 2, generator=generator) + 50)
    assert normaliser.renew() is None  # not yet rows enough
    assert torch.equal(mean, normaliser.mean)
    row = torch.randn(1, 2, generator=generator) + 50
    before = normaliser.apply(row)
    normaliser.update(row)
    shift, factor = normaliser.renew()
    torch.testing.assert_close((before - shift) * factor, normaliser.apply(row), atol=1e-4, rtol=1e-4)
    assert abs(float(normaliser.mean.mean()) - 50) < 0.2
    assert [(seen, s) for seen, _, s in normaliser.transforms] == [(2012, scale)]
    other = Normaliser(2, 1000, CPU)
    other.load_state(normaliser.state_dict())
    assert torch.equal(other.apply(row), normaliser.apply(row))
    assert len(other.transforms) == 1


def test_a_stream_that_becomes_constant_keeps_its_transform():
    normaliser = Normaliser(2, 100, CPU)
    normaliser.update(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)))
    normaliser.freeze()
    normaliser.update(torch.ones(200, 2))
    assert normaliser.renew() is None


def test_sink_filter_follows_the_median_norm():
    sinks = SinkFilter(5.0, CPU, memory=100)
    norms = torch.ones(50)
    norms[7] = 5.1
    assert sinks.split(norms).nonzero().tolist() == [[7]]
    assert sinks.median == 1.0
    # a stream whose scale has changed for good is not set apart for ever
    for _ in range(3):
        last = sinks.split(torch.full((50,), 20.0))
    assert not last.any()
    assert sinks.median == 20.0
