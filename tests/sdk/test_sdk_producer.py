"""The model never notices what becomes of the daemon: slow, silent, killed, absent, forgetful, back again."""

import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import hydrophone
import numpy as np
import pytest
import torch
from conftest import Blocks
from hydrophone.buffer import Buffer
from hydrophone.streams import Stream
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.wire import FrameType
from sink import Sink


def attach(model: torch.nn.Module, path: Path, **options: object) -> hydrophone.Tap:
    return hydrophone.attach(model, "blocks.1", name="m", version="1", daemon=str(path), **options)  # type: ignore[arg-type]


def run(model: Blocks, count: int, start: int = 0, rows: int = 1) -> None:
    """Forward passes whose rows say which they are: request ids are their numbers."""
    with torch.inference_mode():
        for number in range(start, start + count):
            model(torch.full((1, rows, 8), float(number)))


class Number:
    def __init__(self, stream: Stream, nbytes: int, taken: float) -> None:
        self.stream, self.rows, self.nbytes, self.taken = stream, 1, nbytes, taken


def test_the_buffer_is_bounded_wakes_once_and_drops_the_oldest() -> None:
    stream, wakes = Stream(StreamId("m", "1", "s"), "f", 1), []
    buffer: Buffer[Number] = Buffer(100, lambda: wakes.append(1))
    for age in range(15):
        buffer.put(Number(stream, 10, float(age)))
        assert buffer.nbytes <= 100
    assert stream.dropped == {"buffer_full": 5}
    assert len(wakes) == 1
    assert [item.taken for item in buffer.take(30)] == [5.0, 6.0, 7.0]
    assert buffer.discard_before(9.0, "daemon_away") == 1
    assert stream.dropped == {"buffer_full": 5, "daemon_away": 1}
    assert buffer.dropped_rows == 5  # what an absent daemon costs is no pressure
    buffer.put(Number(stream, 1000, 20.0))  # more than it can ever hold
    assert buffer.nbytes == 0
    assert buffer.put_count == buffer.gone_count == 16


def test_rows_survive_a_broken_connection_without_loss_or_duplicates(blocks: Blocks, sink: Sink) -> None:
    with attach(blocks, sink.path) as tap:
        for part in range(8):
            run(blocks, 200, part * 200)
            if part % 2:
                sink.drop()
        assert tap.flush()
        report = tap.status().streams[0]
        assert tap.status().counters["connections"] >= 2
    with torch.inference_mode():
        every = torch.arange(1600.0).view(-1, 1, 1).expand(-1, 1, 8)
        expected = blocks.blocks[1](torch.tanh(blocks.blocks[0](every))).reshape(-1, 8)
    np.testing.assert_allclose(sink.values(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert sink.gaps == 0
    assert report["captured"] == report["sent"] == report["acked"] == 1600


def test_a_daemon_that_comes_back_without_memory_gets_rows_with_their_requests(
    blocks: Blocks, socket_path: Path
) -> None:
    first = Sink(socket_path).start()
    with attach(blocks, socket_path) as tap, tap.request(id="long"):
        run(blocks, 10)
        assert tap.flush()
        first.stop()
        run(blocks, 10, 10)  # the same request goes on while nobody listens
        second = Sink(socket_path).start()
        assert tap.flush()
        assert tap.status().counters["frames_lost"] > 0  # what the first one had taken and forgot
    second.stop()
    assert len(second.rows()) == 10
    assert {row.request for row in second.rows()} == {"long"}


def test_an_absent_daemon_costs_only_the_bound(
    blocks: Blocks, socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tap = attach(blocks, socket_path, buffer_bytes=1 << 20)
    run(blocks, 400, rows=100)
    status = tap.status()
    assert not status.connected
    assert status.buffer_bytes <= (1 << 20) * 3 // 4
    dropped = status.dropped["buffer_full"]
    assert 0 < dropped < 40_000
    assert not tap.flush(timeout=0.2)
    tap.detach(timeout=0.2)
    assert caplog.text.count("no daemon at") == 1
    report = tap.status().streams[0]
    assert (report["fires"], report["captured"], report["sent"]) == (400, 40_000, 0)


def test_old_captures_are_dropped_while_the_daemon_is_away(
    blocks: Blocks, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydrophone.producer.AWAY_SECONDS", 0.0)
    tap = attach(blocks, socket_path)
    run(blocks, 10)
    deadline = time.monotonic() + 5
    while tap.status().dropped != {"daemon_away": 10} and time.monotonic() < deadline:
        tap.flush(timeout=0.05)
    assert tap.status().dropped == {"daemon_away": 10}
    assert tap.status().buffer_bytes == 0
    tap.detach(timeout=0)


def test_a_daemon_that_reads_nothing_holds_up_neither_model_nor_detach(blocks: Blocks, socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        tap = attach(blocks, socket_path, buffer_bytes=1 << 20)
        run(blocks, 300, rows=100)
        assert tap.status().buffer_bytes <= 1 << 20
        started = time.monotonic()
        tap.detach(timeout=0.3)
        assert time.monotonic() - started < 3


def test_a_killed_daemon_is_unnoticed(blocks: Blocks, socket_path: Path) -> None:
    source = Path(__file__).with_name("sink.py")
    process = subprocess.Popen([sys.executable, str(source), str(socket_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    tap = attach(blocks, socket_path)
    run(blocks, 50)
    assert tap.flush()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    run(blocks, 50)
    assert tap.status().caught == {}
    assert tap.status().streams[0]["fires"] == 100
    tap.detach(timeout=0.1)


def test_a_refused_stream_is_dropped_under_the_code_and_said_once(
    blocks: Blocks, socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink(socket_path, refuse="stream_conflict").start()
    with attach(blocks, socket_path) as tap:
        run(blocks, 1)
        assert tap.flush()
        run(blocks, 5)
        assert tap.flush()
        run(blocks, 5)
        assert tap.flush()
        assert tap.status().dropped == {"stream_conflict": 11}
    sink.stop()
    assert caplog.text.count("as the test wants") == 1


def test_a_peer_that_speaks_something_else_is_left_alone(blocks: Blocks, socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        answered = threading.Event()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            answered.set()

        threading.Thread(target=answer, daemon=True).start()
        tap = attach(blocks, socket_path)
        run(blocks, 5)
        assert answered.wait(5)
        run(blocks, 5)
        assert not tap.status().connected
        tap.detach(timeout=0.1)


def test_reports_tell_the_daemon_what_was_dropped_and_how_often_hooks_fired(blocks: Blocks, sink: Sink) -> None:
    with attach(blocks, sink.path) as tap:
        run(blocks, 3)
        sink.wait(lambda seen: any(r["streams"][0]["forwards"] == 3 for r in seen.of_type(FrameType.REPORT)))
        assert tap.url == "http://127.0.0.1:1"
    report = next(r for r in sink.of_type(FrameType.REPORT) if r["streams"][0]["forwards"] == 3)
    assert report["sample"] == 1.0
    assert report["streams"][0]["stream"] == "m@1/blocks.1"
    assert (report["streams"][0]["fires"], report["streams"][0]["captured"]) == (3, 3)


def test_outcomes_arrive_for_each_request(blocks: Blocks, sink: Sink) -> None:
    with attach(blocks, sink.path) as tap:
        with tap.request(id=["a", "b"]) as scope:
            blocks(torch.zeros(2, 1, 8))
        tap.outcome(scope, hallucinated=True)
        tap.outcome("c", score=0.5)
        assert tap.flush()
        with pytest.raises(hydrophone.InvalidOption):
            tap.outcome(None, x=1)
    outcomes = [(o["id"], o["model"], o["labels"]) for o in sink.of_type(FrameType.OUTCOME)]
    assert outcomes == [
        ("a", "m", {"hallucinated": True}),
        ("b", "m", {"hallucinated": True}),
        ("c", "m", {"score": 0.5}),
    ]


def test_two_taps_share_one_connection_and_the_last_one_closes_it(blocks: Blocks, sink: Sink) -> None:
    one = attach(blocks, sink.path)
    two = hydrophone.attach(blocks, "blocks.2", name="other", daemon=str(sink.path))
    run(blocks, 4)
    one.detach()
    run(blocks, 4)
    two.detach()
    assert len(sink.received) == 1
    assert (len(sink.rows("m@1/blocks.1")), len(sink.rows("blocks.2"))) == (4, 8)


def test_a_forked_child_is_a_producer_of_its_own(blocks: Blocks, sink: Sink) -> None:
    with attach(blocks, sink.path) as tap:
        run(blocks, 5)
        assert tap.flush()
        child = subprocess.run(  # in a process of its own, as forking a process with torch's threads is not for tests
            [sys.executable, "-c", FORK, str(sink.path.with_name("f"))], capture_output=True, timeout=60, check=False
        )
    assert child.stdout.decode().splitlines() == ["parent True 10", "child True 7"], child.stderr.decode()


FORK = textwrap.dedent(
    """
    import os, sys, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    sys.path.insert(0, "TESTS")
    import torch
    torch.set_num_threads(1)
    import hydrophone
    from conftest import Blocks
    from sink import Sink

    path = Path(sys.argv[1])
    sink = Sink(path).start()
    model = Blocks()
    tap = hydrophone.attach(model, "blocks.1", daemon=str(path))
    with torch.inference_mode():
        for _ in range(10):
            model(torch.zeros(1, 1, 8))
        done = tap.flush()
        print("parent", done, len(sink.rows()), flush=True)
        child = os.fork()
        if child == 0:
            own = Sink(path.with_name("g"))  # the parent's sink serves one connection at a time
            tap._producer.address = tap._producer.address._replace(path=str(own.path))
            own.start()
            for _ in range(7):
                model(torch.zeros(1, 1, 8))
            done = tap.flush()
            ids = {row.request for row in own.rows()} - {row.request for row in sink.rows()}
            print("child", done, len(ids), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    tap.detach()
    """
).replace("TESTS", str(Path(__file__).parent))


def test_what_was_captured_is_sent_at_exit(sink: Sink) -> None:
    script = FORK.partition("path = Path")[0] + textwrap.dedent(
        """
        model = Blocks()
        tap = hydrophone.attach(model, "blocks.1", daemon=sys.argv[1])
        with torch.inference_mode():
            for _ in range(20):
                model(torch.zeros(1, 1, 8))
        """
    )
    subprocess.run([sys.executable, "-c", script, str(sink.path)], check=True, timeout=60)
    assert len(sink.rows()) == 20


def test_attaching_and_detaching_leaks_no_descriptor(blocks: Blocks, sink: Sink) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with attach(blocks, sink.path):
        run(blocks, 1)
    before = descriptors()
    for _ in range(20):
        with attach(blocks, sink.path):
            run(blocks, 1)
    assert abs(descriptors() - before) <= 2  # the sink's own last connection may still be open
