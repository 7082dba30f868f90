"""A twin of a running stream's dictionary: what it says, how a run begins, ends and fails, and what is kept."""

import asyncio
import json

import numpy as np
import pytest
import torch
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.rest import StabilityKind, StabilityRunBody, StabilityState
from hydrophoned.analyse.stability import KINDS
from hydrophoned.api import Refused
from hydrophoned.ingest.sink import RequestSpec, StreamSpec
from hydrophoned.rows import Rows
from hydrophoned.runtime.backend import DaemonBackend
from hydrophoned.runtime.config import load_config
from hydrophoned.runtime.daemon import Daemon
from hydrophoned.runtime.stability import _dictionary, copied

WIDTH, FEATURES, PER_REQUEST = 48, 64, 40
START = 1_767_225_600_000_000
STREAM = "toy@1/layers.0"


def rows(requests, seed):
    """Rows of two of 64 strong atoms each, and no mean."""
    atoms = np.random.default_rng(0).normal(size=(FEATURES, WIDTH))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    n = requests * PER_REQUEST
    z = (random.random((n, FEATURES)) < 2 / FEATURES) * random.uniform(4, 8, (n, FEATURES))
    return (z @ atoms + 0.02 * random.normal(size=(n, WIDTH))).astype(np.float32)


def feed(daemon, requests, seed=1, site="layers.0"):
    key = daemon.open_stream(StreamSpec(StreamId("toy", "1", site), "f" * 16, WIDTH, "float32"), "p")
    x, n = rows(requests, seed), PER_REQUEST
    for request in range(requests):
        number = daemon.open_request(RequestSpec(f"r{seed}-{request}", "toy", "1", "p", START, 1.0, {}))
        daemon.put_rows(
            key,
            Rows(
                x[request * n : (request + 1) * n], "float32", np.full(n, number), np.zeros(n, np.uint16),
                np.arange(n), np.zeros(n, np.uint8), np.full(n, -1), np.full(n, START + request * 1000),
            ),
        )  # fmt: skip


def in_daemon(tmp_path, scenario, *, requests=1000):
    settings = {
        "daemon": {"data_dir": str(tmp_path / "data")},
        "learn": {"features": FEATURES, "k": 2, "batch_rows": 256, "reservoir_rows": 4096},
    }

    async def main():
        daemon = Daemon(load_config(None, settings))
        try:
            daemon.restore()
            if requests:
                feed(daemon, requests)
                await daemon.flush()
            return await asyncio.wait_for(scenario(daemon), 120)
        finally:
            await daemon.close()

    return asyncio.run(main())


async def run(daemon, stream=STREAM, **body):
    daemon.stability.start(daemon.streams.get(stream), StabilityRunBody(**{"passes": 40} | body))
    await daemon.stability._task
    return daemon.stability.of(stream)


async def asked(daemon, question):
    return await asyncio.wrap_future(daemon.streams.get(STREAM).worker.call(question))


def test_features_of_a_running_stream_are_found_again(tmp_path):
    async def scenario(daemon):
        none, nothing = daemon.stability.of(STREAM)
        assert (none.state, nothing) == (StabilityState.NONE, None)
        ended, found = await run(daemon)
        assert ended.state is StabilityState.DONE, ended.problem
        about = found.about
        assert (about["rows"], about["passes"], about["seed"], about["features"]) == (4096, 40, 1, FEATURES)
        assert about["rows_trained"] + about["rows_scored"] == 4096
        assert 300 < about["requests"] <= 1000
        assert about["time"] >= ended.started
        assert about["dictionary_version"] == await asked(daemon, lambda learner: learner.dictionary_version)
        assert about["compared"] > 40
        assert about["strong"] == (found.kind == KINDS.index("stable")).sum() / about["compared"] > 0.7
        assert about["weak_shuffled"] == 0
        assert about["strong_random"] < 0.1
        ids = await asked(daemon, lambda learner: learner.identity.ids.numpy().copy())
        assert np.array_equal(found.feature_id, ids)

    in_daemon(tmp_path, scenario)


def test_names_of_kinds_are_those_of_the_api():
    assert list(KINDS) == [kind.value for kind in StabilityKind]


def test_how_long_a_feature_has_lasted_is_counted_in_versions(tmp_path):
    async def scenario(daemon):
        first = await asked(daemon, lambda learner: learner.dictionary_version)
        for time in range(3):
            await asked(daemon, lambda learner, time=time: learner.publish(START + time))
        found = (await run(daemon, passes=1))[1]
        born = await asked(daemon, lambda learner: learner.identity.born.numpy().copy())
        assert found.about["dictionary_version"] == first + 3
        assert np.array_equal(found.persisted, first + 4 - born)
        assert (found.persisted >= 4).mean() > 0.9, "no rows came between the last three versions"

    in_daemon(tmp_path, scenario)


def test_the_copied_dictionary_says_what_the_live_one_says(tmp_path):
    async def scenario(daemon):
        taken = await asked(daemon, copied)
        x = await asked(daemon, lambda learner: learner.reservoir.rows[:100].clone())
        index, value, _, _ = await asked(daemon, lambda learner: learner.encode(x.numpy()))
        codes = _dictionary(taken).encode(taken.y[:100], exact=True)
        order = codes.value.argsort(dim=1, descending=True)
        assert codes.value.gather(1, order).numpy() == pytest.approx(value, rel=1e-4, abs=1e-5)
        assert (codes.index.gather(1, order).numpy() == index).mean() > 0.99
        before = taken.weights["W_dec"].clone()
        feed(daemon, 100, seed=7)
        await daemon.flush()
        assert torch.equal(taken.weights["W_dec"], before), "a copy does not learn on"

    in_daemon(tmp_path, scenario)


def test_one_run_is_at_a_time_and_the_learner_goes_on(tmp_path):
    async def scenario(daemon):
        feed(daemon, 100, site="other")
        stream = daemon.streams.get(STREAM)
        begun = daemon.stability.start(stream, StabilityRunBody(passes=1000, seconds=2))
        assert (begun.state, begun.stream) == (StabilityState.RUNNING, STREAM)
        for other in (STREAM, "toy@1/other"):
            with pytest.raises(Refused) as refused:
                daemon.stability.start(daemon.streams.get(other), StabilityRunBody())
            assert (refused.value.status, refused.value.name) == (409, "stability-in-progress")
            assert STREAM in str(refused.value)
        before = await asked(daemon, lambda learner: learner.rows_seen)
        feed(daemon, 50, seed=3)
        await daemon.flush()
        assert await asked(daemon, lambda learner: learner.rows_seen) == before + 50 * PER_REQUEST
        assert daemon.stability.of(STREAM)[0].state is StabilityState.RUNNING
        await daemon.stability._task
        ended, found = daemon.stability.of(STREAM)
        assert ended.state is StabilityState.DONE, ended.problem
        assert 1 <= found.about["passes"] < 1000, "it made do with what two seconds taught"
        assert daemon.stability.of("toy@1/other")[0].state is StabilityState.NONE

    in_daemon(tmp_path, scenario)


def test_a_run_in_progress_ends_with_the_daemon(tmp_path):
    async def scenario(daemon):
        daemon.stability.start(daemon.streams.get(STREAM), StabilityRunBody(passes=1000, seconds=3600))
        await asked(daemon, lambda _: None)  # after what the run asks for
        for _ in range(10):
            await asyncio.sleep(0)  # the loop hands the twin to its thread
        return daemon

    daemon = in_daemon(tmp_path, scenario)
    ended, found = daemon.stability.of(STREAM)
    assert (ended.state, found) == (StabilityState.FAILED, None)
    assert "shutting down" in ended.problem


@pytest.mark.parametrize(("requests", "problem"), [(0, "no dictionary yet"), (1, "no dictionary yet")])
def test_without_a_dictionary_a_run_fails_and_says_why(tmp_path, requests, problem):
    async def scenario(daemon):
        feed(daemon, requests)
        ended, found = await run(daemon)
        assert (ended.state, found) == (StabilityState.FAILED, None)
        assert problem in ended.problem

    in_daemon(tmp_path, scenario, requests=0)


def test_a_failed_run_keeps_the_former_answer(tmp_path):
    async def scenario(daemon):
        _, former = await run(daemon, passes=2)
        await asked(daemon, lambda learner: learner.reservoir.metadata.request.fill_(1))
        ended, found = await run(daemon)
        assert ended.state is StabilityState.FAILED
        assert "1 requests" in ended.problem
        assert found is former

    in_daemon(tmp_path, scenario)


def test_the_answer_outlives_the_daemon_and_a_damaged_one_is_passed_over(tmp_path, caplog):
    async def first(daemon):
        return (await run(daemon, passes=2))[1]

    async def second(daemon):
        return daemon.stability.of(STREAM)

    former = in_daemon(tmp_path, first)
    again, found = in_daemon(tmp_path, second, requests=0)
    assert again.state is StabilityState.DONE
    assert found.about == former.about
    for one, other in zip(found[1:], former[1:], strict=True):
        assert np.array_equal(one, other, equal_nan=one.dtype == np.float64)
    (path,) = (tmp_path / "data").rglob("stability.json")
    whole = json.loads(path.read_text())
    for text in ("{", "{}", json.dumps(whole | {"kind": [1]}), json.dumps(whole | {"rank": "x"})):
        path.write_text(text)
        again, found = in_daemon(tmp_path, second, requests=0)
        assert (again.state, found) == (StabilityState.NONE, None)
        assert "stability.json" in caplog.text
        caplog.clear()


def test_the_running_daemon_s_api_sees_it(tmp_path):
    async def scenario(daemon):
        backend = DaemonBackend(daemon, server=None)
        assert backend.stability(STREAM)[0].state is StabilityState.NONE
        assert backend.start_stability(STREAM, StabilityRunBody(passes=1)).state is StabilityState.RUNNING
        await daemon.stability._task
        assert backend.stability(STREAM)[1] is daemon.stability.of(STREAM)[1]

    in_daemon(tmp_path, scenario)


def test_a_learner_that_has_ended_does_not_answer(tmp_path):
    async def scenario(daemon):
        stream = daemon.streams.get(STREAM)
        stream.worker.stop()
        assert await asyncio.to_thread(stream.worker.join, 20)
        ended, found = await run(daemon)
        assert (ended.state, found) == (StabilityState.FAILED, None)
        assert f"the learner of {STREAM} did not answer" in ended.problem

    in_daemon(tmp_path, scenario)
