"""From hook to query with the real parts: a torch model, the SDK, a daemon process, DuckDB, REST."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import hydrophone
import numpy as np
import pytest
import torch
from hydrophone.demo.daemon import DemoDaemon
from hydrophone_schemas.wire import PREAMBLE, FrameType, encode_control
from torch import nn

WIDTH = 16


class Model(nn.Module):
    """Embeds token ids; its block gives rows that are sums of a few directions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, WIDTH)
        self.block = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids):
        return self.block(self.embed(input_ids) + 0.1 * torch.randn(*input_ids.shape, WIDTH))


@pytest.fixture
def daemon(tmp_path):
    with DemoDaemon(features=64, k=4, data_dir=tmp_path / "data") as running:
        yield running


def attach(daemon, model=None, **options):
    return hydrophone.attach(
        model or Model(), sites=["block"], **({"name": "toy", "version": "1", "daemon": daemon.address} | options)
    )


def run_requests(tap, model, count, *, length=32, start=0):
    generator = torch.Generator().manual_seed(start)
    with torch.inference_mode():
        for number in range(start, start + count):
            with tap.request(id=f"r{number}", kind="even" if number % 2 == 0 else "odd"):
                model(torch.randint(0, 50, (1, length), generator=generator))


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


STREAM = "toy@1/block"
BASE = f"/v1/streams/{STREAM}"


def test_rows_become_features_that_can_be_queried(daemon):
    model = Model()
    with attach(daemon, model) as tap:
        run_requests(tap, model, 200)
        assert tap.flush(60)
        (stream,) = daemon.streams()
        assert stream["id"] == STREAM
        assert stream["rows_received"] == 200 * 32
        assert stream["rows_dropped"] == {}
        assert stream["rows_learned"] + stream["rows_sink"] == 200 * 32
        assert 0 < stream["fvu"] < 1
        assert stream["producers"][0]["connected"]
    features = daemon.get(f"{BASE}/features", sort="rate", limit=5)["items"]
    assert len(features) == 5
    assert all(a["rate"] >= b["rate"] > 0 for a, b in itertools.pairwise(features))
    top = features[0]["index"]
    series = daemon.get(f"{BASE}/features/{top}/series")["items"]
    assert sum(point["fired"] or 0 for point in series) == features[0]["fired"]
    examples = daemon.get(f"{BASE}/features/{top}/examples")["items"]
    assert examples
    assert all(example["request"].startswith("r") for example in examples)
    assert all(example["context"] is None for example in examples), "no text was opted in"
    request = daemon.get(f"/v1/requests/{examples[0]['request']}")
    assert request["requests"][0]["attributes"]["kind"] in ("even", "odd")
    assert request["requests"][0]["rows"] == [{"stream": STREAM, "rows": 32, "rows_prompt": 32, "rows_decode": 0}]


def test_encode_over_rest_equals_what_examples_say(daemon):
    model = Model()
    with attach(daemon, model) as tap:
        run_requests(tap, model, 100)
        assert tap.flush(60)
    from hydrophone.rest_client import RestClient

    rows = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    answer = RestClient(daemon.url).post(f"{BASE}/encode", {"rows": rows.tolist()})
    assert len(answer["items"]) == 3
    for code in answer["items"]:
        assert len(code["index"]) == len(code["value"]) == 4
        assert code["value"] == sorted(code["value"], reverse=True)


def test_a_clean_stop_and_restart_resumes_dictionary_and_statistics(tmp_path):
    model = Model()
    with DemoDaemon(features=64, k=4, data_dir=tmp_path / "data") as daemon:
        with attach(daemon, model) as tap:
            run_requests(tap, model, 150)
            assert tap.flush(60)
        before = daemon.streams()[0]
        features = daemon.get(f"{BASE}/features", limit=64)["items"]
        codes = _encode(daemon)
    with DemoDaemon(features=64, k=4, data_dir=tmp_path / "data") as daemon:
        wait_until(lambda: daemon.streams()[0]["rows_learned"] is not None)
        after = daemon.streams()[0]
        assert after["rows_learned"] == before["rows_learned"]
        assert after["dictionary_version"] == before["dictionary_version"] == 1
        assert daemon.get(f"{BASE}/features", limit=64)["items"] == features
        assert _encode(daemon) == codes
        with attach(daemon, model) as tap:
            run_requests(tap, model, 50, start=1000)
            assert tap.flush(60)
        assert daemon.streams()[0]["rows_learned"] > before["rows_learned"]


def _encode(daemon):
    from hydrophone.rest_client import RestClient

    rows = np.random.default_rng(1).normal(size=(2, WIDTH)).astype(np.float32)
    return RestClient(daemon.url).post(f"{BASE}/encode", {"rows": rows.tolist()})["items"]


def test_the_model_runs_on_when_the_daemon_is_killed_and_rows_flow_again_when_it_is_back(tmp_path):
    model = Model()
    expected = None
    with DemoDaemon(features=64, k=4, data_dir=tmp_path / "data") as daemon:
        tap = attach(daemon, model)
        run_requests(tap, model, 20)
        assert tap.flush(60)
        os.kill(daemon.pid, signal.SIGKILL)
        run_requests(tap, model, 20, start=100)
        assert not tap.flush(0.5)
        address = daemon.address
        second = DemoDaemon(features=64, k=4, data_dir=tmp_path / "data")
        second.address = address
        with second:
            wait_until(lambda: tap.status().connected)
            run_requests(tap, model, 20, start=200)
            assert tap.flush(60)
            expected = second.streams()[0]["rows_received"]
            status = tap.status()
            tap.detach()
    sent = status.streams[0]["sent"]
    assert 20 * 32 <= expected <= sent
    assert status.caught == {}


def test_rows_that_are_not_finite_are_quarantined_and_counted(daemon):
    hydrophone.log("notes@1/rows", np.full((10, 4), np.nan, np.float32), daemon=daemon.address)
    hydrophone.log("notes@1/rows", np.ones((5, 4), np.float32), daemon=daemon.address)
    assert hydrophone.flush(30)
    (stream,) = daemon.streams()
    assert stream["rows_received"] == 15
    assert stream["rows_quarantined"] == 10


OTHER_PRODUCER = """
import sys, json, numpy as np, hydrophone
from hydrophone.log import flush
address, stream, width = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = np.random.default_rng(0).normal(size=(50, width)).astype(np.float32)
hydrophone.log(stream, rows, daemon=address)
hydrophone.flush(30)
"""


def other_producer(daemon, stream, width):
    command = [sys.executable, "-c", OTHER_PRODUCER, daemon.address, stream, str(width)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_producers_feed_one_stream_and_one_of_another_width_is_refused(daemon):
    other_producer(daemon, "notes@1/rows", 8)
    other_producer(daemon, "notes@1/rows", 8)
    refusal = other_producer(daemon, "notes@1/rows", 12)
    other_producer(daemon, "notes@1/rows", 8)
    (stream,) = daemon.streams()
    assert stream["rows_received"] == 3 * 50
    assert "width 8" in refusal
    assert "width 12" in refusal
    assert daemon.get("/v1/self")["counters"]["errors_width_mismatch"] == 1


def test_a_model_with_other_weights_under_the_same_name_is_refused(daemon):
    model = Model()
    with attach(daemon, model) as tap:
        run_requests(tap, model, 5)
        assert tap.flush(30)
    other = Model()
    torch.nn.init.ones_(other.block.weight)
    with attach(daemon, other) as tap:
        run_requests(tap, other, 5, start=50)
        tap.flush(30)
        assert tap.status().dropped == {"stream_conflict": 5 * 32}
    assert daemon.streams()[0]["rows_received"] == 5 * 32


@pytest.mark.parametrize(
    "payload",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(4096),
        PREAMBLE + os.urandom(4096),
        PREAMBLE + encode_control(FrameType.ACK, {}),
    ],
    ids=["http", "random", "random after preamble", "frame of the wrong side"],
)
def test_a_client_that_sends_garbage_is_told_and_closed_and_the_daemon_goes_on(daemon, payload):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(daemon.address)
        client.sendall(payload)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while chunk := client.recv(4096):
                answer += chunk
        except ConnectionResetError:
            pass
    assert len(answer) > 16, "an ERROR frame says why"
    model = Model()
    with attach(daemon, model) as tap:
        run_requests(tap, model, 2)
        assert tap.flush(30)
    assert daemon.streams()[0]["rows_received"] == 64


def test_outcomes_reach_the_store(daemon):
    model = Model()
    with attach(daemon, model) as tap:
        run_requests(tap, model, 1)
        tap.outcome("r0", hallucinated=True, judge="human")
        assert tap.flush(30)
    (outcome,) = daemon.get("/v1/requests/r0")["outcomes"]
    assert outcome["labels"] == {"hallucinated": True, "judge": "human"}


def test_a_queue_that_overflows_drops_and_counts_and_the_model_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDROPHONE_INGEST__QUEUE_BYTES", str(10 << 20))  # two batches
    model = nn.Sequential()
    model.add_module("block", nn.Linear(512, 512))
    with DemoDaemon(features=8192, k=32, data_dir=tmp_path / "data") as daemon:
        with attach(daemon, model) as tap, torch.inference_mode():
            rows = torch.randn(2048, 512)
            for _ in range(40):  # 160 MB, many times what the learner takes in that time
                assert model(rows).shape == (2048, 512)
            assert tap.flush(120)
            assert not tap.status().caught
        (stream,) = daemon.streams()
        (sent,) = tap.status().streams  # the SDK, too, samples and drops under pressure, and counts both
        assert sent["captured"] + sent["sampled_out"] == 40 * 2048
        assert stream["rows_received"] == sent["acked"] == sent["captured"] - sum(sent["dropped"].values())
        assert set(stream["rows_dropped"]) == {"queue_full"}
        kept = stream["rows_received"] - stream["rows_dropped"]["queue_full"]
        assert stream["rows_learned"] + stream["rows_sink"] == kept > 0
