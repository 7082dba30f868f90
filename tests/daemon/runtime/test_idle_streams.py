"""Learners that leave their device while idle. ``cpu:0`` stands for a device: torch takes it for another than cpu."""

import logging
import sys
import time
from pathlib import Path

import pytest
import torch
from hydrophone_schemas.names import StreamId
from hydrophoned.ingest.queue import RowQueue
from hydrophoned.ingest.sink import StreamSpec
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.placement import MAIN_MEMORY
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.placement import Rest, own_queue, settle, step_clock
from hydrophoned.runtime.settings import Config
from hydrophoned.runtime.streams import StreamRegistry
from hydrophoned.runtime.worker import LearnerWorker

sys.path.append(str(Path(__file__).parents[1] / "learn"))
from test_learner import CONFIG, assert_same_state, make_rows

DEVICE = torch.device("cpu", 0)
PATIENCE_SECONDS = 60.0


def learner(device=DEVICE):
    return StreamLearner(1, 16, CONFIG, device=device)


def full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more that is said")


class TestRest:
    def test_it_rests_once_it_is_due_and_comes_back_when_it_is_needed(self):
        one, rest = learner(), Rest("a", 300, now=1000.0)
        rest.needed(one, 1100.0)
        rest.tick(one, 1399.9)
        assert not one.parked
        rest.tick(one, 1400.0)
        assert one.parked
        assert one.device == MAIN_MEMORY
        rest.tick(one, 9000.0)
        rest.needed(one, 9001.0)
        assert not one.parked
        assert one.device == DEVICE
        rest.tick(one, 9300.0)
        assert not one.parked
        rest.tick(one, 9301.0)
        assert one.parked

    def test_with_zero_it_never_rests(self):
        one, rest = learner(), Rest("a", 0, now=0.0)
        rest.tick(one, 1e9)
        assert not one.parked

    def test_on_the_processor_nothing_happens(self):
        one, rest = learner(MAIN_MEMORY), Rest("a", 1, now=0.0)
        before = one.dictionary.W_dec
        rest.tick(one, 1e9)
        assert not one.parked
        assert one.dictionary.W_dec is before

    def test_where_there_is_no_room_to_come_back_it_goes_on_in_main_memory(self, caplog):
        one, other, rest = learner(), learner(), Rest("smollm@1/layer", 1, now=0.0)
        rows = make_rows(3000)
        for each in (one, other):
            each.observe(rows.slice(0, 1000))
        rest.tick(one, 10.0)
        one.wake = full
        rest.observing(one, lambda: one.observe(rows.slice(1000, 3000)), 20.0)
        other.observe(rows.slice(1000, 3000))
        assert not one.parked
        assert one.home == MAIN_MEMORY
        assert_same_state(one, other)
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "smollm@1/layer" in record.getMessage()
        assert "Tried to allocate 2.00 GiB." in record.getMessage()
        assert "much more" not in record.getMessage()

    def test_a_device_that_runs_out_of_memory_is_left_for_good(self, caplog):
        one, rest = learner(), Rest("a", 300, now=0.0)
        with pytest.raises(torch.OutOfMemoryError):
            rest.observing(one, full, 1.0)
        assert one.home == one.device == MAIN_MEMORY
        assert "works on the processor" in caplog.text
        caplog.clear()
        with pytest.raises(torch.OutOfMemoryError):  # not of a device: there is nowhere else to go
            rest.observing(one, full, 2.0)
        assert not caplog.records


class TestSettle:
    def test_what_fits_is_made_on_the_device(self, caplog):
        assert settle("a", DEVICE, 10, learner).device == DEVICE
        assert not caplog.records

    def test_what_does_not_fit_is_made_in_main_memory(self, caplog):
        def make(device):
            return learner(device) if device == MAIN_MEMORY else full()

        one = settle("smollm@1/layer", DEVICE, 3_490_000_000, make)
        assert one.device == one.home == MAIN_MEMORY
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "no room for 3,490 MB" in record.getMessage()
        assert "smollm@1/layer" in record.getMessage()

    def test_another_error_is_not_hidden(self):
        def make(_):
            raise RuntimeError("no driver")

        with pytest.raises(RuntimeError, match="no driver"):
            settle("a", DEVICE, 10, make)


def answered(worker, wanted):
    """Wait until ``wanted(learner)``, asked without waking it, is true."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while not worker.call(wanted, on_device=False).result(PATIENCE_SECONDS):
        assert time.monotonic() < limit
    return True


def test_a_worker_parks_its_learner_and_wakes_it_for_rows_and_questions():
    one, other = learner(), learner(MAIN_MEMORY)
    worker = LearnerWorker(
        "a", RowQueue(1 << 24), lambda: one, lambda _: None, now_us, device=DEVICE, idle_seconds=0.001
    )
    worker.start()
    rows = make_rows(2880, start=now_us(), step=1)  # whole chunks: none waits for its chunk to become full
    try:
        for start in range(0, 2880, 960):
            worker.put(rows.slice(start, start + 960))
            other.observe(rows.slice(start, start + 960))
            worker.call(lambda learner: learner.device).result(PATIENCE_SECONDS)  # after the rows
            assert answered(worker, lambda learner: learner.parked)
            assert worker.call(lambda learner: learner.device, after_queued=False).result(PATIENCE_SECONDS) == DEVICE
            assert answered(worker, lambda learner: learner.parked)
        assert worker.dropped() == {}
        state = worker.call(lambda learner: learner.state_dict(), on_device=False).result(PATIENCE_SECONDS)
        assert torch.equal(state["dictionary"]["W_dec"], other.dictionary.W_dec)
        assert worker.call(lambda learner: learner.parked, on_device=False).result(PATIENCE_SECONDS)
    finally:
        worker.stop()
        assert worker.join(PATIENCE_SECONDS)


def test_a_worker_whose_device_cannot_be_had_says_so_and_drops_rows(caplog):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    worker = LearnerWorker("a", RowQueue(1 << 24), learner, lambda _: None, now_us, device=torch.device("cuda"))
    worker.start()
    assert worker.join(PATIENCE_SECONDS)
    worker.put(make_rows(10))
    assert worker.dropped() == {"queue_full": 10}
    assert "cannot start" in caplog.text


def registry(tmp_path, **options):
    given = {
        "device": DEVICE,
        "queue_bytes": 1 << 24,
        "max_streams": 4,
        "keep_checkpoints": 1,
        "niceness": 0,
        "idle_seconds": 0.0,
    }
    return StreamRegistry(tmp_path, lambda _: CONFIG, lambda _: None, now_us, **(given | options))


def test_a_checkpoint_is_no_reason_to_come_back_and_a_stream_resumes_from_it(tmp_path):
    spec = StreamSpec(StreamId("m", "1", "layer"), "f", 16, "float32")
    streams = registry(tmp_path, idle_seconds=0.001)
    stream, _ = streams.open(spec, "p")
    stream.worker.put(make_rows(1000, start=now_us(), step=1))
    stream.worker.call(lambda learner: learner.rows_seen).result(PATIENCE_SECONDS)
    assert answered(stream.worker, lambda learner: learner.parked)
    state, config = stream.worker.call(lambda learner: (learner.state_dict(), learner.config), on_device=False).result(
        PATIENCE_SECONDS
    )
    streams.save(stream, state, config)
    assert stream.worker.call(lambda learner: learner.parked, on_device=False).result(PATIENCE_SECONDS)
    again, _ = registry(tmp_path).open(spec, "p")
    assert again.worker.call(lambda learner: learner.device).result(PATIENCE_SECONDS) == DEVICE
    for one in (stream, again):
        one.worker.stop()
        assert one.worker.join(PATIENCE_SECONDS)


def test_the_processor_has_no_queue_and_no_clock_of_its_own():
    with own_queue(MAIN_MEMORY):
        assert step_clock(MAIN_MEMORY) is time.monotonic


def test_idle_seconds_is_a_setting_of_the_daemon_and_not_of_a_stream():
    assert Config().learn.idle_seconds == 300
    with pytest.raises(ValueError, match="idle_seconds"):
        Config(learn={"override": [{"match": "*", "idle_seconds": 3}]})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_each_thread_has_a_queue_and_parking_gives_memory_back():
    device = torch.device("cuda", 0)
    with own_queue(device):
        assert torch.cuda.current_stream(device) != torch.cuda.default_stream(device)
        one, other = learner(device), learner(device)
        rows = make_rows(4000)
        for each in (one, other):
            each.observe(rows.slice(0, 2000))
        held = torch.cuda.memory_allocated(device)
        one.park()
        assert torch.cuda.memory_allocated(device) < held
        one.wake()
        for each in (one, other):
            each.observe(rows.slice(2000, 4000))
        assert torch.equal(one.dictionary.W_dec, other.dictionary.W_dec)
        assert step_clock(device)() <= time.monotonic()
