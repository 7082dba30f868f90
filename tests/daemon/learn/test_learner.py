import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from hydrophone_schemas import tables
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.errors import CheckpointError, InvalidConfig, WidthMismatch
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.rows import Rows
from hypothesis import given, settings
from hypothesis import strategies as st

T0 = 1_700_000_000_000_000
CONFIG = LearnerConfig(
    features=64,
    k=4,
    batch_rows=64,
    buffer_rows=256,
    warmup_rows=128,
    normaliser_rows=512,
    dead_after_rows=512,
    reservoir_rows=100,
)


def make_rows(n, *, d=16, seed=0, start=T0, step=1000, per_request=8, dtype="float32"):
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(32, d))
    x = (rng.random((n, 32)) * (rng.random((n, 32)) < 0.08)) @ basis
    number = np.arange(n)
    return Rows(
        x.astype(dtype),
        dtype,
        (number // per_request).astype(np.int64),
        np.zeros(n, np.uint16),
        (number % per_request).astype(np.int32),
        (number % per_request >= 6).astype(np.uint8),
        np.where(number % 3, number, -1).astype(np.int32),
        (start + number * step).astype(np.int64),
    )


def learner(config=CONFIG, d=16):
    return StreamLearner(7, d, config)


def flat(state):
    return {f"{part}.{name}": torch.as_tensor(v) for part, values in state.items() for name, v in values.items()}


def assert_same_state(a, b):
    left, right = flat(a.state_dict()), flat(b.state_dict())
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_how_rows_are_split_into_batches_does_not_matter(sizes):
    total = sum(sizes)
    rows = make_rows(total)
    whole, parts = learner(), learner()
    whole.observe(rows)
    start = 0
    for size in sizes:
        parts.observe(rows.slice(start, start + size))
        start += size
    assert_same_state(whole, parts)
    for a, b in zip(whole.take_closed(), parts.take_closed(), strict=True):
        assert all(a[name].equals(b[name]) for name in a)


def test_saved_and_loaded_goes_on_exactly():
    rows = make_rows(4000)
    whole, first = learner(), learner()
    whole.observe(rows.slice(0, 2000))
    whole.state_dict()  # handles staged rows, as saving does
    whole.observe(rows.slice(2000, 4000))
    first.observe(rows.slice(0, 2000))
    second = learner()
    state = {
        part: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        for part, values in first.state_dict().items()
    }
    second.load_state(state)
    second.observe(rows.slice(2000, 4000))
    assert_same_state(whole, second)


def test_state_of_another_shape_is_refused():
    state = learner().state_dict()
    with pytest.raises(CheckpointError, match="width 8"):
        learner(d=8).load_state(state)
    with pytest.raises(CheckpointError, match="'sinks'"):
        learner().load_state({part: v for part, v in state.items() if part != "sinks"})


def test_every_row_is_scored_before_it_is_learned_and_learned_once():
    one = learner()
    one.observe(make_rows(5000))
    one.flush()
    status = one.status()
    assert status["rows_seen"] == 5000
    assert status["rows_learned"] == 5000 - status["rows_sink"] - status["rows_quarantined"]
    assert status["rows_scored"] == status["rows_learned"] - CONFIG.warmup_rows
    assert status["rows_buffered"] == 0


def test_windows_hold_all_rows_and_their_statistics_agree():
    one = learner()
    rows = make_rows(6000, step=10_000)  # one minute
    one.observe(rows)
    one.advance(int(rows.time[-1]) + 20_000_000)
    closed = one.take_closed()
    assert [sorted(window) for window in closed] == [sorted(tables.TABLES.keys() & closed[0].keys())] * len(closed)
    for window in closed:
        for name, batch in window.items():
            assert batch.schema.equals(tables.TABLES[name]), name
            batch.validate(full=True)
    stream = pa.Table.from_batches([window["stream_window"] for window in closed]).to_pylist()
    assert sum(window["rows"] for window in stream) == 6000
    assert all(window["window_end"] - window["window_start"] == np.timedelta64(10, "s") for window in stream)
    for window, figures in zip(closed, stream, strict=True):
        fired = window["feature_window"].column("fired").to_numpy()
        assert (fired > 0).all()
        if figures["rows_scored"]:
            assert abs(fired.sum() / figures["rows_scored"] - figures["l0"]) < 1e-9
        requests = window["request_rows"].to_pylist()
        assert sum(r["rows"] for r in requests) == figures["rows"]
        assert all(r["rows"] == r["rows_prompt"] + r["rows_decode"] for r in requests)
    # the first window begins before there is a dictionary: what is not known is null
    assert stream[0]["rows_scored"] < stream[0]["rows"]
    fvus = [window["fvu"] for window in stream if window["fvu"] is not None]
    assert fvus[-1] < fvus[0]


def test_before_the_dictionary_nothing_is_claimed():
    one = learner()
    one.observe(make_rows(64))
    one.advance(T0 + 11_000_000)
    (window,) = one.take_closed()
    figures = window["stream_window"].to_pylist()[0]
    assert figures["rows"] == 64
    assert all(figures[name] is None for name in ("fvu", "l0", "dead_fraction", "mean_norm", "features_fired"))
    assert window["feature_window"].num_rows == 0
    assert one.status()["fvu"] is None


def test_rows_that_are_not_finite_are_counted_apart_and_change_nothing():
    clean, dirty = learner(), learner()
    rows = make_rows(2048)
    bad = make_rows(64)
    bad.activation[::2, 3] = np.nan
    bad.activation[1::2, 5] = -np.inf
    clean.observe(rows)
    dirty.observe(rows.slice(0, 1024))
    dirty.observe(bad)
    dirty.observe(rows.slice(1024, 2048))
    assert dirty.status()["rows_quarantined"] == 64
    assert torch.equal(clean.dictionary.W_dec, dirty.dictionary.W_dec)


def test_sink_rows_are_counted_apart_and_change_nothing_that_is_learned():
    one = learner()
    rows = make_rows(2048)
    one.observe(rows.slice(0, 1024))
    huge = make_rows(64)
    huge.activation[:] = 1000.0
    before = one.dictionary.W_dec.clone()
    one.observe(huge)
    assert one.status()["rows_sink"] >= 64
    assert torch.equal(before, one.dictionary.W_dec)


def test_late_rows_are_counted_into_the_open_window():
    one = learner()
    one.observe(make_rows(64, start=T0 + 20_000_000))
    one.observe(make_rows(64, start=T0))
    one.advance(T0 + 40_000_000)
    figures = one.take_closed()[0]["stream_window"].to_pylist()[0]
    assert (figures["rows"], figures["rows_late"]) == (128, 64)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 90), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_windows_never_overlap_and_hold_every_row(batches):
    one = learner()
    total = 0
    for second, count, flush in batches:
        one.observe(make_rows(count, start=T0 + second * 1_000_000))
        total += count
        if flush:
            one.flush()
    one.flush()
    windows = [window["stream_window"].to_pylist()[0] for window in one.take_closed()]
    assert sum(window["rows"] for window in windows) == total
    for before, after in itertools.pairwise(windows):
        assert before["window_start"] < before["window_end"] <= after["window_start"]


def test_a_clock_that_is_set_back_does_not_stop_the_windows():
    one = learner()
    one.observe(make_rows(64, start=T0 + 3_600_000_000))
    one.advance(T0)
    one.observe(make_rows(64, start=T0))
    one.advance(T0 + 11_000_000)
    assert [window["stream_window"].to_pylist()[0]["rows"] for window in one.take_closed()] == [64, 64]


def test_a_slow_stream_learns_too():
    one = learner()
    one.observe(make_rows(100, step=1_000_000))
    one.advance(T0 + 200_000_000)
    assert one.status()["dictionary_version"] == 1


def test_bfloat16_bits_are_read_as_such():
    x = torch.randn(64, 16).bfloat16()
    rows = make_rows(64)._replace(activation=x.view(torch.uint16).numpy(), dtype="bfloat16")
    one = learner()
    one.observe(rows)
    assert torch.equal(one.reservoir.rows[:64], x.float())


def test_encode_marks_sinks_and_rows_that_are_not_finite():
    one = learner()
    rows = make_rows(2048)
    one.observe(rows)
    x = rows.activation[:4].copy()
    x[1] = np.nan
    x[2] = 1e4
    codes = one.encode(x)
    assert codes.index.shape == codes.value.shape == (4, 4)
    assert codes.finite.tolist() == [True, False, True, True]
    assert codes.sink[2]
    assert not codes.sink[0]
    assert (codes.index[1] == -1).all()
    assert (codes.value[1] == 0).all()
    assert (np.diff(codes.value, axis=1) <= 0).all()


def test_rows_are_rebuilt_in_their_own_scale_and_what_is_set_apart_comes_back_as_it_was():
    one = learner()
    rows = make_rows(6000)
    rows = rows._replace(activation=7 * rows.activation + 3)
    one.observe(rows)
    x = rows.activation[:1500].copy()  # many chunks of batch_rows
    x[1] = np.nan
    x[2] = 1e4
    x[3] = 3e38
    rebuilt = one.reconstruct(x)
    assert rebuilt.dictionary_version == one.dictionary_version == 1
    assert rebuilt.finite.tolist()[:5] == [True, False, True, False, True]
    assert rebuilt.sink.tolist()[:5] == [False, False, True, False, False]
    np.testing.assert_array_equal(rebuilt.row[1:4], x[1:4])
    kept = rebuilt.finite & ~rebuilt.sink
    error = rebuilt.row[kept] - x[kept]
    fvu = np.square(error).sum() / np.square(x[kept] - x[kept].mean(0)).sum()
    assert fvu < 0.5
    codes, dictionary = one.encode(x), one.dictionary
    decoded = np.einsum("nk,nkd->nd", codes.value, dictionary.W_dec.numpy()[codes.index]) + dictionary.b_dec.numpy()
    by_hand = decoded / one.normaliser.scale + one.normaliser.mean.numpy()
    np.testing.assert_allclose(rebuilt.row[kept], by_hand[kept], atol=1e-3)
    assert one.reconstruct(x[:0]).row.shape == (0, 16)


def test_wrong_width_is_refused():
    with pytest.raises(WidthMismatch, match="width 16"):
        learner().observe(make_rows(8, d=12))
    with pytest.raises(WidthMismatch, match=r"\(2, 3\)"):
        learner().encode(np.zeros((2, 3), np.float32))
    with pytest.raises(WidthMismatch, match=r"\(2, 3\)"):
        learner().reconstruct(np.zeros((2, 3), np.float32))


def test_config_errors_name_the_field():
    with pytest.raises(InvalidConfig, match="batch_rows = 0"):
        LearnerConfig(batch_rows=0)


@pytest.mark.parametrize("x", [np.zeros((1000, 16)), np.ones((1000, 16)), np.full((1000, 16), 1e-20)])
def test_constant_streams_give_null_and_not_arithmetic_errors(x):
    one = learner()
    one.observe(make_rows(1000)._replace(activation=x.astype(np.float32)))
    one.flush()
    assert one.status()["fvu"] is None
    assert bool(one.dictionary.W_enc.isfinite().all())


def test_width_one_and_one_row_at_a_time():
    one = StreamLearner(1, 1, CONFIG)
    rows = make_rows(300, d=1)
    for i in range(300):
        one.observe(rows.slice(i, i + 1))
    one.flush()
    assert one.status()["rows_seen"] == 300
