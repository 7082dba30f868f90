import threading

import pytest
from generated import GeneratedStream, as_table
from hydrophoned.store import BadTable, Store, StoreReader, StoreWriter


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "h.duckdb") as store:
        yield store


@pytest.fixture
def writer(store):
    writer = StoreWriter(store, patience_seconds=0.05)
    yield writer
    assert writer.close(10)


class Held:
    """Holds the store's write lock, so that the writer stands still until it is let go."""

    def __init__(self, store):
        self.store = store

    def __enter__(self):
        self.store._writing.acquire()

    def __exit__(self, *_):
        self.store._writing.release()


def test_flush_returns_when_everything_put_is_committed(store, writer):
    stream = GeneratedStream(key=1)
    writer.put({"stream": stream.stream_row()})
    rows = 1
    for w in range(stream.count):
        assert writer.put(stream.window(w))
        rows += sum(table.num_rows for table in stream.window(w).values())
    assert writer.flush(10)
    assert StoreReader(store).last_window_end(1) == stream.end
    assert (writer.rows_written, writer.queue_rows, writer.queue_bytes) == (rows, 0, 0)
    assert writer.lag_seconds == 0.0
    assert writer.report().rows_lost == {}


def test_empty_tables_are_nothing_to_write(writer):
    stream = GeneratedStream(key=1)
    assert writer.put({name: table.slice(0, 0) for name, table in stream.window(0).items()})
    assert writer.queue_rows == 0
    assert writer.flush(0)


def test_a_full_queue_loses_the_new_entry_and_counts_its_rows(store):
    stream = GeneratedStream(key=1)
    size = sum(table.nbytes for table in stream.window(0).values())
    writer = StoreWriter(store, max_bytes=3 * size, patience_seconds=0.01)
    with Held(store):
        put = [writer.put(stream.window(w)) for w in (0, 1, 2, 4, 5)]
        assert put[0]
        assert not put[-1]
        assert not writer.flush(0.01)
        assert writer.queue_bytes <= writer.max_bytes
    lost = sum(
        sum(t.num_rows for t in stream.window(w).values()) for w, ok in zip((0, 1, 2, 4, 5), put, strict=True) if not ok
    )
    assert writer.flush(10)
    assert writer.rows_lost == {"queue_full": lost}
    assert writer.close(10)


def test_an_entry_larger_than_the_queue_goes_in_alone(store):
    writer = StoreWriter(store, max_bytes=1, patience_seconds=0.01)
    assert writer.put(GeneratedStream(key=1).window(0))
    assert writer.flush(10)
    assert writer.close(10)


def test_put_waits_for_room_up_to_its_patience(store):
    writer = StoreWriter(store, max_bytes=1, patience_seconds=30)
    stream = GeneratedStream(key=1)
    result = []
    with Held(store):
        writer.put(stream.window(0))
        waiting = threading.Thread(target=lambda: result.append(writer.put(stream.window(1))))
        waiting.start()
        assert not writer.put(stream.window(2), patience_seconds=0)
    waiting.join(10)
    assert result == [True]
    assert writer.close(10)


def test_a_poisoned_entry_is_lost_alone(store):
    writer = StoreWriter(store)
    stream = GeneratedStream(key=1)
    store._connection.execute("DROP TABLE outcome")
    outcome = as_table(
        "outcome",
        {"request_id": ["r"], "model": ["m"], "time": [0], "received": [0], "source": ["s"], "labels": ["{}"]},
    )
    with Held(store):
        writer.put(stream.window(0))
        writer.put({"outcome": outcome})
        writer.put(stream.window(1))
    assert not writer.flush(10)
    assert writer.rows_lost == {"write_failed": 1}
    assert writer.rows_written == sum(t.num_rows for w in (0, 1) for t in stream.window(w).values())
    assert writer.problem is None
    assert writer.flush(10)  # the loss belonged to the flush before
    assert writer.close(10)


def test_tables_are_checked_where_they_are_put(writer):
    with pytest.raises(BadTable):
        writer.put({"nowhere": GeneratedStream(key=1).stream_row()})


def test_after_close_entries_are_counted_as_lost(store):
    writer = StoreWriter(store)
    assert writer.close(10)
    assert not writer.put({"stream": GeneratedStream(key=1).stream_row()})
    assert writer.rows_lost == {"closed": 1}


def test_close_writes_what_waits(store):
    writer = StoreWriter(store)
    stream = GeneratedStream(key=1)
    with Held(store):
        for w in range(3):
            writer.put(stream.window(w))
    assert writer.close(10)
    assert StoreReader(store).last_window_end(1) == stream.starts[3]


def test_a_passing_failure_is_tried_again(store, monkeypatch):
    from hydrophoned.store import WriteFailed

    real, calls = store.write, []

    def disk_full_at_first(tables):
        calls.append(1)
        if len(calls) == 1:
            raise WriteFailed("no space left on device", retry=True)
        return real(tables)

    monkeypatch.setattr(store, "write", disk_full_at_first)
    monkeypatch.setattr("hydrophoned.store.writer._RETRY_SECONDS", 0.01)
    writer = StoreWriter(store)
    writer.put(GeneratedStream(key=1).window(0))
    assert writer.flush(10)
    assert len(calls) == 2
    assert writer.problem is None
    assert not writer.rows_lost
    assert writer.close(10)
