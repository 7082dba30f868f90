import threading

import numpy as np
from hydrophoned.ingest.decode import decode_rows
from hydrophoned.ingest.producers import ProducerRegistry
from hydrophoned.ingest.queue import RowQueue
from hypothesis import given
from hypothesis import strategies as st
from ingest_peer import message, record_batch
from pyarrow import py_buffer


def rows(count=1, position=0):
    batch = record_batch(count, position=np.full(count, position))
    return decode_rows(py_buffer(message(batch)), 8, "float32", lambda number: number)


def held(count):
    """Bytes that a queue counts for a batch."""
    queue = RowQueue(1 << 30)
    queue.put(rows(count))
    return queue.nbytes


def test_batches_come_out_in_order_and_leave_nothing():
    queue = RowQueue(1 << 20)
    assert all(queue.put(rows(3, number)) for number in range(5))
    assert queue.rows == 15
    assert [queue.get(0).position[0] for _ in range(5)] == list(range(5))
    assert (queue.rows, queue.nbytes, queue.dropped_rows) == (0, 0, 0)
    assert queue.get(0) is None


def test_the_newest_rows_win():
    queue = RowQueue(3 * held(2))
    assert [queue.put(rows(2, number)) for number in range(5)] == [True, True, True, False, False]
    assert queue.dropped_rows == 4
    assert [queue.get(0).position[0] for _ in range(3)] == [2, 3, 4]


def test_a_batch_larger_than_the_bound_is_dropped_and_the_others_stay():
    queue = RowQueue(held(2))
    assert queue.put(rows(2))
    assert not queue.put(rows(500))
    assert (queue.rows, queue.dropped_rows) == (2, 500)


@given(st.lists(st.one_of(st.integers(1, 30), st.none()), max_size=40), st.integers(1, 8000))
def test_every_row_is_waiting_taken_or_dropped(steps, bound):
    queue = RowQueue(bound)
    put = taken = 0
    for count in steps:
        if count is None:
            got = queue.get(0)
            taken += got.count if got else 0
        else:
            queue.put(rows(count))
            put += count
        assert queue.nbytes <= bound
        assert put == taken + queue.rows + queue.dropped_rows


def test_closing_wakes_the_reader_and_lets_it_finish():
    queue = RowQueue(1 << 20)
    got = []
    reader = threading.Thread(target=lambda: got.extend(iter(lambda: queue.get(30), None)))
    reader.start()
    queue.put(rows(1))
    queue.close()
    reader.join(10)
    assert not reader.is_alive()
    assert len(got) == 1
    assert not queue.put(rows(4))
    assert queue.dropped_rows == 4


def test_the_request_used_longest_ago_is_forgotten():
    producer, _ = ProducerRegistry(max_requests=3).connect("p", None, object())
    for number in (1, 2, 3):
        producer.remember_request(number, number * 10)
    assert producer.request_key(1) == 10
    producer.remember_request(4, 40)
    assert [producer.request_key(number) for number in (1, 2, 3, 4)] == [10, -1, 30, 40]


def test_producers_that_are_away_are_bounded_and_those_connected_kept():
    registry = ProducerRegistry(max_away=2)
    connections = {name: object() for name in "abcde"}
    known = {name: registry.connect(name, None, connection)[0] for name, connection in connections.items()}
    for name in "bcda":
        registry.disconnect(known[name], connections[name])
    assert {producer.id for producer in registry} == {"d", "a", "e"}


def test_reports_are_listed_by_stream():
    registry = ProducerRegistry()
    producer, _ = registry.connect("p", "train.py", object())
    producer.streams.add("m@1/a")
    producer.reports["m@1/a"] = {"fires": 3}
    (report,) = registry.of_stream("m@1/a")
    assert (report.name, report.connected, report.report) == ("train.py", True, {"fires": 3})
    assert registry.of_stream("m@1/b") == []
