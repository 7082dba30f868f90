"""What the real learner writes of its windows, against all of it computed again from the codes that were stored."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hydrophone_schemas import tables
from hydrophone_schemas.buckets import BUCKETS, bucket_ends
from hydrophoned.attributes import RequestAttributes
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.request_features import hashed
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learner import CONFIG, T0, assert_same_state, make_rows

CONFIG = replace(
    CONFIG, sink_norm_factor=1e9, normaliser_rows=10**9, split_by=("tenant",), request_features_per_window=2
)
EDGES = np.array([bucket_ends(bucket)[0] for bucket in range(1, BUCKETS)])


class Scored(NamedTuple):
    """Scored rows in the order in which they were scored."""

    row: np.ndarray
    index: np.ndarray
    value: np.ndarray


class Recorder:
    """Stands before a learner's dictionary and keeps what it encoded and what came out."""

    def __init__(self, learner):
        self.learner, self.seen = learner, []
        self._encode = learner.dictionary.encode
        learner.dictionary.encode = self.encode

    def encode(self, y, **options):
        codes = self._encode(y, **options)
        self.seen.append((y.clone(), codes.index.clone(), codes.value.clone()))
        return codes

    def scored(self, x):
        """Which rows of x [n, d], all different, were scored, and their codes."""
        number = {row.tobytes(): i for i, row in enumerate(self.learner.normaliser.apply(torch.from_numpy(x)).numpy())}
        assert len(number) == len(x)
        y, index, value = (torch.cat(parts).numpy() for parts in zip(*self.seen, strict=True))
        return Scored(np.array([number[row.tobytes()] for row in y]), index, value)


@st.composite
def traffic(draw):
    """Batches of rows as (start in s, rows, producer, rows per request, flush): some late, some over a window's end."""
    batch = st.tuples(
        st.integers(0, 45), st.integers(1, 120), st.integers(0, 2), st.sampled_from([1, 7, 200]), st.booleans()
    )
    return draw(st.lists(batch, min_size=1, max_size=10))


def rows_of(batches, seed):
    """Rows of the batches, one after the other: each producer has requests of its own, and some are not known."""
    rng = np.random.default_rng(seed)
    parts = []
    for number, (second, count, producer, per_request, _) in enumerate(batches):
        # 25 ms from row to row: a long batch reaches over the end of a window
        rows = make_rows(count, seed=1000 + number, start=T0 + second * 1_000_000, step=25_000, per_request=per_request)
        x = rows.activation + rng.normal(size=rows.activation.shape).astype(np.float32) * 0.01
        request = np.where(rng.random(count) < 0.01, -1, 1000 * producer + rows.request + 3 * (number // 3))
        parts.append(rows._replace(activation=x, request=request, phase=rng.integers(0, 2, count).astype(np.uint8)))
    return parts


def attributes():
    known = RequestAttributes(["tenant"])
    for key in range(0, 4000, 2):  # every other request has it
        known.add(key, {"tenant": ("acme", "umbra", "zeta")[key // 2 % 3]})
    return known


def run(batches, seed, variant="topk"):
    """(closed windows, scored rows, all rows' metadata) of a learner that took the batches."""
    warmup = make_rows(256, seed=7, start=T0 - 60_000_000)
    learner = StreamLearner(7, 16, replace(CONFIG, variant=variant), attributes=attributes())
    learner.observe(warmup)
    learner.flush()
    learner.take_closed()
    assert learner.dictionary_version == 1
    recorder, parts = Recorder(learner), rows_of(batches, seed)
    for (*_, flush), rows in zip(batches, parts, strict=True):
        learner.observe(rows)
        if flush:
            learner.flush()
    learner.flush()
    columns = {name: np.concatenate([getattr(rows, name) for rows in parts]) for name in ("request", "phase", "time")}
    x = np.concatenate([rows.activation for rows in parts])
    return learner.take_closed(), recorder.scored(x), columns


def windows_of(closed, scored, columns):
    """Each closed window with the rows scored in it: (tables, codes, columns)."""
    stop = 0
    for window in closed:
        figures = window["stream_window"].to_pylist()[0]
        start, stop = stop, stop + figures["rows_scored"]
        part = Scored(*(column[start:stop] for column in scored))
        told = {name: column[part.row] for name, column in columns.items()}
        bounds = [
            window["stream_window"].column(name).cast("int64")[0].as_py() for name in ("window_start", "window_end")
        ]
        assert (told["time"] < bounds[1]).all()
        assert (told["time"] < bounds[0]).sum() <= figures["rows_late"]
        yield window, part, told
    assert stop == len(scored.row)


def dense_of(part):
    """Values by row and feature, float32 [n, F]; 0 where it did not fire."""
    dense = np.zeros((len(part.row), CONFIG.features), np.float32)
    active = part.value > 0
    rows = np.broadcast_to(np.arange(len(dense))[:, None], active.shape)
    dense[rows[active], part.index[active]] = part.value[active]
    return dense


def check_features(batch, dense, request):
    assert batch.schema.equals(tables.FEATURE_WINDOW)
    batch.validate(full=True)
    (fired,) = dense.any(0).nonzero()
    rows = batch.to_pylist()
    assert [row["feature"] for row in rows] == fired.tolist()
    for row, feature in zip(rows, fired, strict=True):
        inside = dense[:, feature] > 0
        value, requests = dense[inside, feature], set(request[inside].tolist())
        assert row["fired"] == inside.sum()
        assert row["requests"] == (None if -1 in requests else len(requests))
        wide = value.astype(np.float64)
        assert row["sum"] == pytest.approx(wide.sum(), rel=1e-12)
        assert row["sum_squares"] == pytest.approx((wide**2).sum(), rel=1e-12)
        assert row["max"] == value.max()
        bucket, count = np.unique(np.searchsorted(EDGES, value, side="right"), return_counts=True)
        assert (row["buckets"], row["counts"]) == (bucket.tolist(), count.tolist())


def check_splits(window, dense, told, groups):
    cells = {("phase", "prompt"): told["phase"] == 0, ("phase", "decode"): told["phase"] == 1}
    cells |= {("tenant", value): groups == value for value in ("acme", "umbra", "zeta")}
    cells = {cell: inside for cell, inside in cells.items() if inside.any()}
    streams = {(row["attribute"], row["value"]): row for row in window["stream_split"].to_pylist()}
    assert streams.keys() == cells.keys()
    features = {(row["attribute"], row["value"], row["feature"]): row for row in window["feature_split"].to_pylist()}
    expected = 0
    for cell, inside in cells.items():
        request = told["request"][inside]
        assert streams[cell]["rows_scored"] == inside.sum()
        assert streams[cell]["requests"] == len(set(request.tolist()) - {-1})
        for feature in dense[inside].any(0).nonzero()[0].tolist():
            value = dense[inside, feature].astype(np.float64)
            assert features[*cell, feature]["fired"] == (value > 0).sum()
            assert features[*cell, feature]["sum"] == pytest.approx(value.sum(), rel=1e-12)
            expected += 1
    assert len(features) == expected


def check_request_features(batch, dense, request):
    rows = batch.to_pylist()
    known = np.unique(request[request >= 0])
    chosen = known[hashed(known) < rows[0]["sample"]] if rows else []
    assert [row["request_key"] for row in rows] == list(chosen)
    for row in rows:
        own = dense[request == row["request_key"]]
        assert row["rows_scored"] == len(own)
        assert row["features"] == own.any(0).nonzero()[0].tolist()
        assert row["fired"] == (own[:, row["features"]] > 0).sum(0).tolist()
        np.testing.assert_allclose(row["sum"], own[:, row["features"]].sum(0, dtype=np.float64), rtol=1e-6)
        assert row["max"] == own[:, row["features"]].max(0).tolist()


@pytest.mark.parametrize("variant", ["topk", "batchtopk"])
@given(batches=traffic(), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_statistics_equal_a_recomputation_from_the_codes(variant, batches, seed):
    closed, scored, columns = run(batches, seed, variant)
    known = attributes()
    total, most = 0, 1.0
    for window, part, told in windows_of(closed, scored, columns):
        dense = dense_of(part)
        check_features(window["feature_window"], dense, told["request"])
        groups = np.array([known.of(key).get("tenant", "") for key in told["request"].tolist()], dtype=object)
        check_splits(window, dense, told, groups)
        check_request_features(window["request_feature"], dense, told["request"])
        assert all(sample <= most for sample in window["request_feature"]["sample"].to_pylist())
        requests = len(set(told["request"].tolist()) - {-1})
        most = min(1.0, CONFIG.request_features_per_window / requests) if requests else 1.0
        total += len(dense)
    assert total == sum(count for _, count, *_ in batches)


def test_saved_in_the_middle_of_a_window_and_loaded_goes_on_exactly():
    rows = make_rows(4000, step=2_500)
    known = attributes()
    first, second = (StreamLearner(7, 16, CONFIG, attributes=known) for _ in range(2))
    first.observe(rows.slice(0, 2000))
    state = {
        part: {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
        for part, values in first.state_dict().items()
    }
    first.take_closed()
    second.load_state(state)
    for learner in (first, second):
        learner.observe(rows.slice(2000, 4000))
    assert_same_state(first, second)
    for learner in (first, second):
        learner.flush()
    for a, b in zip(first.take_closed(), second.take_closed(), strict=True):
        assert all(a[name].equals(b[name]) for name in a)


def test_state_is_as_large_after_many_rows_as_after_some():
    learner = StreamLearner(7, 16, CONFIG, attributes=attributes())
    sizes = []
    for number in range(30):
        learner.observe(make_rows(2000, seed=number, start=T0 + number * 10_000_000, step=4_000))
        learner.advance(T0 + number * 10_000_000 + 9_000_000)
        learner.take_closed()
        sizes.append(sum(v.nbytes for v in learner.statistics.state_dict().values() if isinstance(v, torch.Tensor)))
    assert max(sizes[15:]) <= 1.1 * max(sizes[5:15])
