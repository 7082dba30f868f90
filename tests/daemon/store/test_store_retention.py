import numpy as np
import pytest
from generated import LENGTH, START, GeneratedStream, as_table
from hydrophoned.store import Store, StoreReader, WindowRange
from test_store_queries import example, request, tokens

FOREVER = 1 << 60


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "h.duckdb") as store:
        yield store


def starts(store, key=1):
    table = StoreReader(store).windows(key, WindowRange(0, FOREVER, 100_000))
    return table["window_start"].cast("int64").to_pylist()


def test_windows_that_ended_before_the_age_are_deleted_and_counted(store):
    stream = GeneratedStream(key=1)
    stream.fill(store)
    done = store.retain(stream.end, max_age_us=10 * LENGTH)
    assert starts(store) == stream.starts[20:].tolist()
    assert done.stream_window == 20
    assert done.feature_window == np.count_nonzero(stream.fired[:20])
    decode = [stream.decode(w)[1] for w in range(20)]
    assert done.feature_split == sum(
        np.count_nonzero(n) + np.count_nonzero(stream.fired[w] - n) for w, n in enumerate(decode)
    )
    assert done.stream_split == 2 * np.count_nonzero(stream.rows[:20])
    assert not any(store.retain(stream.end, max_age_us=10 * LENGTH))


def test_without_bounds_nothing_is_deleted(store):
    stream = GeneratedStream(key=1)
    stream.fill(store)
    assert not any(store.retain(FOREVER // 2))
    assert len(starts(store)) == stream.count


def test_bytes_take_the_oldest_windows_first_and_free_their_blocks(store):
    stream = GeneratedStream(key=1, features=3000, count=60, never=0)
    stream.fill(store)
    store.retain(0, examples_per_feature=8)
    store._checkpoint(store._connection)
    used = store.size().used_bytes
    done = store.retain(stream.end, max_bytes=used // 2)
    kept = starts(store)
    assert kept == stream.starts[-len(kept) :].tolist()
    assert done.stream_window == stream.count - len(kept)
    assert 15 <= len(kept) <= 30
    assert store.retain(stream.end, max_bytes=1 << 40).stream_window == 0


def test_examples_beyond_the_best_of_each_feature_go(store):
    scores = {(1, 10): 3.0, (1, 11): 5.0, (1, 12): 4.0, (2, 13): 1.0}
    for (feature, key), score in scores.items():
        store.write({"example": example(feature, key, score)})
    store.write({"example": example(1, 11, 4.5)})  # given up by its own request's better row
    done = store.retain(0, examples_per_feature=2)
    assert done.example == 2
    reader = StoreReader(store)
    assert reader.examples(1, 1, limit=9)["request_key"].to_pylist() == [11, 12]
    assert reader.examples(1, 2, limit=9)["request_key"].to_pylist() == [13]


def test_features_of_requests_go_by_age(store):
    for start in (START, START + 50 * LENGTH):
        row = {
            "stream_key": [1], "request_key": [3], "window_start": [start], "rows_scored": [4], "sample": [0.5],
            "features": [[1, 2]], "fired": [[1, 4]], "sum": [[0.5, 2.0]], "max": [[0.5, 1.0]],
            "dictionary_version": [1],
        }  # fmt: skip
        store.write({"request_feature": as_table("request_feature", row)})
    done = store.retain(START + 60 * LENGTH, max_age_us=20 * LENGTH)
    assert done.request_feature == 1
    left = store._connection.execute("SELECT epoch_us(window_start) FROM request_feature").fetchall()
    assert left == [(START + 50 * LENGTH,)]


def test_old_requests_go_with_their_tokens_but_not_those_an_example_shows(store):
    for key in (1, 2):
        store.write({"request": request(key, f"r{key}"), "request_tokens": tokens(key, 0, ["a"])})
        rows = {
            "request_key": [key], "stream_key": [1], "window_start": [START], "rows": [1], "rows_prompt": [1],
            "rows_decode": [0],
        }  # fmt: skip
        store.write({"request_rows": as_table("request_rows", rows)})
    store.write({"request": request(3, "new", started=START + 100 * LENGTH)})
    store.write({"example": example(1, 2, 1.0, position=0)})
    done = store.retain(START + 100 * LENGTH, max_age_us=LENGTH)
    assert (done.request, done.request_tokens, done.request_rows) == (1, 1, 2)
    reader = StoreReader(store)
    assert [reader.requests(name, limit=5).num_rows for name in ("r1", "r2", "new")] == [0, 1, 1]
    assert reader.examples(1, 1, limit=5, context=3)["context"].to_pylist() == [["a"]]
    assert reader.max_request_key() == 3
