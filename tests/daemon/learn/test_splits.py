import numpy as np
import pytest
import torch
from hydrophone_schemas import tables
from hydrophoned.attributes import RequestAttributes
from hydrophoned.learn.splits import MAX_VALUES, OTHER, Splits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_request_counts import CPU, F, random_features, requests_of

WINDOW = {"stream_key": 4, "window_start": 1000, "window_end": 2000}


def chunk(rng, keys):
    feature = random_features(rng, len(keys))
    value = np.where(feature < F, rng.exponential(size=feature.shape), 0)
    return np.asarray(keys), feature, value, rng.integers(0, 2, len(keys)).astype(np.int32)


def feed(splits, parts):
    for keys, feature, value, phase in parts:
        splits.update(torch.tensor(feature), torch.tensor(value), torch.tensor(phase), requests_of(keys, phase))


def merged(parts):
    keys, phase = np.concatenate([part[0] for part in parts]), np.concatenate([part[3] for part in parts])
    return np.array([[key, (keys == key).sum(), phase[keys == key].sum()] for key in np.unique(keys)]).T.reshape(3, -1)


def recomputed(parts, groups_of):
    """Both tables as dicts: (attribute, value) to (rows, requests), and with feature to (fired, sum)."""
    cells, features = {}, {}
    for keys, feature, value, phase in parts:
        for key, of_row, values, decode in zip(keys.tolist(), feature, value, phase, strict=True):
            named = {"phase": ("prompt", "decode")[decode]} | groups_of(key)
            for cell in named.items():
                rows, requests = cells.get(cell, (0, set()))
                cells[cell] = (rows + 1, requests | ({key} if key >= 0 else set()))
                for one, x in zip(of_row.tolist(), values.tolist(), strict=True):
                    if one < F:
                        fired, total = features.get((*cell, one), (0, 0.0))
                        features[*cell, one] = (fired + 1, total + x)
    return {cell: (rows, len(requests)) for cell, (rows, requests) in cells.items()}, features


def assert_tables_are(closed, expected):
    cells, features = expected
    for name, batch in closed.items():
        assert batch.schema.equals(tables.TABLES[name])
        batch.validate(full=True)
    found = closed["stream_split"].to_pylist()
    assert {(r["attribute"], r["value"]): (r["rows_scored"], r["requests"]) for r in found} == cells
    assert len(found) == len(cells)
    rows = closed["feature_split"].to_pylist()
    found = {(r["attribute"], r["value"], r["feature"]): (r["fired"], r["sum"]) for r in rows}
    assert found.keys() == features.keys()
    assert len(rows) == len(features)
    for cell, (fired, total) in features.items():
        assert found[cell][0] == fired
        assert found[cell][1] == pytest.approx(total, rel=1e-12)


def attributes_for(rng, count, names=("tenant", "route")):
    known = RequestAttributes(names)
    for key in range(count):
        given = {"tenant": f"t{rng.integers(0, 5)}", "route": int(rng.integers(0, 3)), "unasked": "x"}
        known.add(key, {name: value for name, value in given.items() if rng.random() < 0.7})
    return known


@given(st.integers(0, 2**32), st.lists(st.integers(0, 25), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_splits_equal_a_recomputation(seed, sizes):
    rng = np.random.default_rng(seed)
    known = attributes_for(rng, 12)
    splits = Splits(F, CPU, split_by=("tenant", "route"), attributes=known)
    for _ in range(2):
        parts = [chunk(rng, rng.integers(-1, 14, size)) for size in sizes]
        feed(splits, parts)
        assert_tables_are(splits.close(merged(parts), WINDOW, 3), recomputed(parts, known.of))
        splits.clear()


def test_without_attributes_to_split_by_there_is_the_phase_alone():
    rng = np.random.default_rng(0)
    splits = Splits(F, CPU, attributes=attributes_for(rng, 9))
    parts = [chunk(rng, rng.integers(0, 9, 40))]
    feed(splits, parts)
    closed = splits.close(merged(parts), WINDOW, 3)
    assert set(closed["stream_split"]["attribute"].to_pylist()) == {"phase"}
    assert_tables_are(closed, recomputed(parts, lambda _: {}))


def test_values_beyond_the_first_32_are_counted_together_and_the_first_keep_their_place():
    rng = np.random.default_rng(0)
    known = RequestAttributes(["user"])
    for key in range(60):
        known.add(key, {"user": OTHER if key == 7 else f"u{key % 40}"})
    splits = Splits(F, CPU, split_by=("user",), attributes=known)
    first, kept = [chunk(rng, range(20))], {f"u{key}" for key in range(33) if key != 7}

    def groups_of(key):
        value = known.of(key)["user"]
        return {"user": value if value in kept else OTHER}

    feed(splits, first)
    assert_tables_are(splits.close(merged(first), WINDOW, 1), recomputed(first, groups_of))
    splits.clear()
    second = [chunk(rng, range(59, -1, -1)), chunk(rng, range(60))]
    known.add(99, {"user": "u33"})
    kept = {f"u{key}" for key in range(20) if key != 7}
    in_order = [known.of(key)["user"] for key in range(60)]  # a chunk's requests are taken in order of their keys
    for value in in_order:
        if len(kept) < MAX_VALUES and value != OTHER:
            kept.add(value)
    feed(splits, second)
    assert_tables_are(splits.close(merged(second), WINDOW, 1), recomputed(second, groups_of))
    assert len(kept) == MAX_VALUES


@given(st.integers(0, 2**32), st.integers(0, 4), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_state_round_trip_goes_on_exactly(seed, before, after):
    rng = np.random.default_rng(seed)
    known = attributes_for(rng, 12)
    whole, second = (Splits(F, CPU, split_by=("tenant", "route"), attributes=known) for _ in range(2))
    parts = [chunk(rng, rng.integers(-1, 12, 9)) for _ in range(before)]
    feed(whole, parts)
    state = {name: v.clone() for name, v in whole.state_dict().items()}
    second.load_state(state)
    rest = [chunk(rng, rng.integers(-1, 12, 9)) for _ in range(after)]
    for splits in (whole, second):
        feed(splits, rest)
    a, b = (splits.close(merged(parts + rest), WINDOW, 1) for splits in (whole, second))
    assert all(a[name].equals(b[name]) for name in a)


def test_a_restart_with_other_attributes_keeps_those_that_stayed():
    rng = np.random.default_rng(5)
    known = attributes_for(rng, 12, names=("tenant", "route", "model"))
    before = Splits(F, CPU, split_by=("tenant", "route"), attributes=known)
    parts = [chunk(rng, rng.integers(0, 12, 40))]
    feed(before, parts)
    after = Splits(F, CPU, split_by=("model", "route"), attributes=known)
    after.load_state(before.state_dict())
    closed = after.close(merged(parts), WINDOW, 1)
    assert_tables_are(closed, recomputed(parts, lambda key: {k: v for k, v in known.of(key).items() if k == "route"}))


def test_a_request_stays_where_it_is_counted_when_its_attributes_are_forgotten_within_the_window():
    rng = np.random.default_rng(0)
    known = RequestAttributes(["tenant"], capacity=1)
    known.add(1, {"tenant": "acme"})
    splits = Splits(F, CPU, split_by=("tenant",), attributes=known)
    parts = [chunk(rng, [1] * 20), chunk(rng, [2] * 20), chunk(rng, [1] * 20)]
    feed(splits, parts[:1])
    known.add(2, {"tenant": "umbra"})  # and nothing is known of request 1 any more
    feed(splits, parts[1:])
    tenants = {1: {"tenant": "acme"}, 2: {"tenant": "umbra"}}
    assert_tables_are(splits.close(merged(parts), WINDOW, 1), recomputed(parts, tenants.get))


def test_attributes_are_kept_of_the_latest_requests_as_text():
    known = RequestAttributes(["tenant", "beta"], capacity=2)
    known.add(1, {"tenant": "acme", "beta": True, "other": "x"})
    known.add(2, {"tenant": "", "beta": 0.5})
    known.add(3, {"other": "x"})  # nothing of it is asked for: it takes no room
    assert known.of(1) == {"tenant": "acme", "beta": "true"}
    assert known.of(2) == {"beta": "0.5"}
    assert known.of(3) == {}
    known.add(4, {"tenant": "n" * 1000})
    assert known.of(1) == {}
    assert known.of(4) == {"tenant": "n" * 200}
