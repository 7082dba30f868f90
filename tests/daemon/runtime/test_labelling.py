"""Automatic labelling in a daemon: by rule and by a model behind a real HTTP endpoint on loopback."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.rest import LabelMethod, LabelRunBody, LabelRunState
from hydrophoned.api import Refused
from hydrophoned.ingest.sink import RequestSpec, StreamSpec
from hydrophoned.rows import Rows
from hydrophoned.runtime.config import load_config
from hydrophoned.runtime.daemon import Daemon
from hydrophoned.runtime.label_evidence import feature_ids
from hydrophoned.store import Label, LabelQuery, label_table

# the labeller's made-up text; test folders are not packages
sys.path.insert(0, str(Path(__file__).parents[1] / "analyse"))

from labelled import PIECES, text

WIDTH, FEATURES = 48, 96
STREAM = "toy@1/layers.0"
START = 1_767_225_600_000_000
MADE = text(requests=150, length=60)


def activations():
    """Rows of one atom each: one of digits, one of line ends, one of each other token."""
    random = np.random.default_rng(0)
    atoms = random.normal(size=(len(PIECES) + 2, WIDTH))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    kind = np.arange(len(PIECES))
    kind[[piece.isdecimal() for piece in PIECES]] = len(PIECES)
    kind[["\n" in piece for piece in PIECES]] = len(PIECES) + 1
    rows = atoms[kind[MADE.rows.token]] * random.uniform(4, 6, (MADE.rows.rows, 1))
    return (rows + 0.02 * random.normal(size=rows.shape)).astype(np.float32)


def feed(daemon, *, with_text=True):
    key = daemon.open_stream(StreamSpec(StreamId("toy", "1", "layers.0"), "f" * 16, WIDTH, "float32"), "p")
    x, rows = activations(), MADE.rows
    for request in range(150):
        own = rows.request == request
        first = int(np.flatnonzero(own)[0])
        attributes = {name: values[first] for name, values in MADE.attributes.items()}
        number = daemon.open_request(RequestSpec(f"r{request}", "toy", "1", "p", START, 1.0, attributes))
        n = int(own.sum())
        daemon.put_rows(
            key,
            Rows(
                x[own], "float32", np.full(n, number), np.zeros(n, np.uint16), rows.position[own],
                rows.phase[own].astype(np.uint8), rows.token[own], np.full(n, START + request * 1000),
            ),
        )  # fmt: skip
        if with_text:
            daemon.put_tokens(number, 0, 0, [PIECES[token] for token in rows.token[own]])


def in_daemon(tmp_path, scenario, labels=None, **options):
    settings = {
        "daemon": {"data_dir": str(tmp_path / "data")},
        "learn": {"features": FEATURES, "k": 2, "batch_rows": 64, "warmup_rows": 512, "replay_share": 0.0},
        "labels": labels or {},
    }

    async def main():
        daemon = Daemon(load_config(None, settings))
        try:
            feed(daemon, **options)
            await daemon.flush()
            return await asyncio.wait_for(scenario(daemon), 120)
        finally:
            await daemon.close()

    return asyncio.run(main())


async def ended(daemon):
    await daemon.labelling._task
    return daemon.labelling.run


async def run(daemon, **body):
    daemon.labelling.start(daemon.streams.get(STREAM), LabelRunBody(**body))
    return await ended(daemon)


def stored(daemon, **query):
    return daemon.reader.labels(1, LabelQuery(limit=1000, **query)).to_pylist()


def best(labels):
    """Labels by text; of several with one text the best."""
    return {label["text"]: label for label in sorted(labels, key=lambda label: label["score"] or 0)}


# -- by rule ------------------------------------------------------------------------------------------------------


def test_features_of_a_running_stream_are_labelled(tmp_path):
    async def scenario(daemon):
        done = await run(daemon, count=60)
        assert done.state is LabelRunState.DONE, done.problem
        assert (done.stream, done.method) == (STREAM, LabelMethod.RULE)
        assert 100 < done.requests <= 150  # rows before the first dictionary are not scored
        assert done.done == done.features
        assert done.ended >= done.started
        found = stored(daemon)
        assert len(found) == done.labelled > 10
        assert {label["source"] for label in found} == {"rule"}
        texts = best(found)
        assert texts["token is digits"]["score"] > 0.7  # an early dictionary gave the first codes of the sample
        assert texts["token is line end"]["score"] > 0.7
        assert sum(one.startswith(("token is", "word is")) and " and " not in one for one in texts) > 10
        version = daemon.streams.get(STREAM).worker.status["dictionary_version"]
        for label in found:
            assert json.loads(label["rule"])["any"]
            assert label["dictionary_version"] == version
            assert 0 < label["fired"] < label["rows"]
            assert label["index"] is not None

    in_daemon(tmp_path, scenario)


def test_without_text_rules_are_of_ids_and_attributes(tmp_path):
    async def scenario(daemon):
        done = await run(daemon, count=60)
        assert done.state is LabelRunState.DONE, done.problem
        assert done.labelled > 10
        assert not any("word" in label["text"] or "before" in label["text"] for label in stored(daemon))

    in_daemon(tmp_path, scenario, with_text=False)


def test_only_the_named_features_are_looked_at_and_a_lost_label_is_taken_back(tmp_path):
    async def scenario(daemon):
        await run(daemon, count=60)
        index = next(label["index"] for label in stored(daemon) if label["text"] == "token is digits")
        done = await run(daemon, features=[index, index, FEATURES + 5])
        assert (done.features, done.labelled) == (1, 1)
        fired, ids = await asyncio.wrap_future(daemon.streams.get(STREAM).worker.call(fired_and_ids))
        silent = int(np.argmin(fired))
        old = Label(int(ids[silent]), silent, 1, START, "rule", "token is once upon a time", rule="{}", score=0.5)
        daemon.writer.put({"label": label_table(1, [old])})
        daemon.writer.flush(10)
        assert stored(daemon, place=silent)
        done = await run(daemon, features=[silent])
        assert (done.features, done.done, done.labelled) == (1, 1, 0)
        assert not stored(daemon, place=silent)

    def fired_and_ids(learner):
        rows = learner.sample.rows()
        return np.bincount(rows.index[rows.value > 0], minlength=FEATURES), feature_ids(learner)

    in_daemon(tmp_path, scenario)


def test_one_run_at_a_time_within_its_time_and_none_outlives_the_daemon(tmp_path):
    async def scenario(daemon):
        stream = daemon.streams.get(STREAM)
        first = daemon.labelling.start(stream, LabelRunBody(count=96))
        assert first.state is LabelRunState.RUNNING
        with pytest.raises(Refused, match="are being labelled") as refused:
            daemon.labelling.start(stream, LabelRunBody())
        assert (refused.value.status, refused.value.name) == (409, "labelling-in-progress")
        assert (await ended(daemon)).state is LabelRunState.DONE
        late = await run(daemon, count=96, seconds=1e-3)
        assert late.state is LabelRunState.STOPPED
        assert "0.001 s" in late.problem
        assert late.done < late.features
        daemon.labelling.start(stream, LabelRunBody(count=96))  # closed while it runs
        return daemon

    daemon = in_daemon(tmp_path, scenario)
    assert daemon.labelling.run.state is not LabelRunState.RUNNING


def test_a_stream_with_too_few_requests_says_so(tmp_path):
    async def scenario(daemon):
        key = daemon.open_stream(StreamSpec(StreamId("toy", "1", "other"), "f" * 16, WIDTH, "float32"), "p")
        number = daemon.open_request(RequestSpec("one", "toy", "1", "p", START, 1.0, {}))
        x = activations()[:3000]
        n = len(x)
        column = np.zeros(n, np.int32)
        daemon.put_rows(
            key,
            Rows(
                x, "float32", np.full(n, number), column.astype(np.uint16), column, column.astype(np.uint8), column,
                np.full(n, START),
            ),
        )  # fmt: skip
        await daemon.flush()
        daemon.labelling.start(daemon.streams.get("toy@1/other"), LabelRunBody())
        done = await ended(daemon)
        assert done.state is LabelRunState.FAILED
        assert "rows are of 1 request" in done.problem

    in_daemon(tmp_path, scenario)


# -- by a model ---------------------------------------------------------------------------------------------------


class Endpoint:
    """Speaks the protocol of chat completions; ``answer`` gives the content, or a whole response."""

    def __init__(self, answer):
        self.answer = answer
        self.asked, self.keys, self.open, self.most_open = [], [], 0, 0

    async def handle(self, request):
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            body = await request.json()
            self.keys.append(request.headers.get("Authorization"))
            self.asked.append(body)
            given = await self.answer(body["messages"][1]["content"])
        finally:
            self.open -= 1
        if isinstance(given, web.Response):
            return given
        return web.json_response({"choices": [{"index": 0, "message": {"role": "assistant", "content": given}}]})

    @contextlib.asynccontextmanager
    async def serve(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()


async def knows_digits(question):
    """What a model might say: a rule for digits, a mere sentence for the rest."""
    await asyncio.sleep(0.01)
    lines = [
        json.loads(line[2:]) for line in question.split("It does not fire on:")[0].splitlines() if line[:2] == "- "
    ]
    marked = [line.partition("<<")[2].partition(">>")[0].strip() for line in lines]
    if all(one.isdecimal() for one in marked):
        return 'Here it is: {"label": "single digits", "words": [], "classes": ["digits"]}'
    if len(set(marked)) == 1 and marked[0]:
        return json.dumps({"label": f"the word {marked[0]}", "words": [marked[0].title()], "classes": []})
    return '{"label": "something in the\\n text", "words": [], "classes": []}'


def with_endpoint(tmp_path, endpoint, scenario, **options):
    async def main(daemon):
        async with endpoint.serve() as url:
            # settings are frozen at the start of a daemon; the endpoint's port is known only now
            settings = daemon.labelling._config.model_copy(update={"url": url})
            daemon.labelling._config = settings
            return await scenario(daemon)

    labels = {"url": "http://127.0.0.1:1/v1", "model": "toy-gpt", "text_egress": True, "concurrency": 3, "timeout_s": 2}
    return in_daemon(tmp_path, main, labels=labels | options.pop("labels", {}), **options)


def test_a_model_is_asked_and_what_it_says_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_KEY", "secret")
    endpoint = Endpoint(knows_digits)

    async def scenario(daemon):
        done = await run(daemon, method=LabelMethod.MODEL, count=40)
        assert done.state is LabelRunState.DONE, done.problem
        assert done.labelled == done.done == done.features == len(endpoint.asked)
        found = best(stored(daemon, source="toy-gpt"))
        digits = found["single digits"]
        assert digits["score"] > 0.7
        assert json.loads(digits["rule"]) == {"any": [[{"field": "token", "classes": ["digits"]}]]}
        assert digits["rows"] > 1000
        assert max(label["score"] for text, label in found.items() if text.startswith("the word")) > 0.7
        unchecked = found["something in the text"]
        assert [unchecked[name] for name in ("rule", "score", "precision", "rows")] == [None] * 4

    with_endpoint(tmp_path, endpoint, scenario, labels={"api_key_env": "TOY_KEY"})
    assert set(endpoint.keys) == {"Bearer secret"}
    assert endpoint.most_open <= 3
    assert {body["model"] for body in endpoint.asked} == {"toy-gpt"}
    question = endpoint.asked[0]["messages"][1]["content"]
    assert "It fires most on:" in question
    assert question.count("<<") >= 15


def test_no_text_leaves_before_the_user_says_so(tmp_path):
    endpoint = Endpoint(knows_digits)

    async def scenario(daemon):
        with pytest.raises(Refused, match="text_egress is false") as refused:
            await run(daemon, method=LabelMethod.MODEL)
        assert (refused.value.status, refused.value.name) == (409, "label-endpoint-off")

    with_endpoint(tmp_path, endpoint, scenario, labels={"text_egress": False})
    assert endpoint.asked == []


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("TOY_KEY", raising=False)

    async def no_endpoint(daemon):
        with pytest.raises(Refused, match="no endpoint is set"):
            await run(daemon, method=LabelMethod.MODEL)

    in_daemon(tmp_path, no_endpoint)

    async def no_key(daemon):
        with pytest.raises(Refused, match="no variable TOY_KEY"):
            await run(daemon, method=LabelMethod.MODEL)

    with_endpoint(tmp_path / "2", Endpoint(knows_digits), no_key, labels={"api_key_env": "TOY_KEY"})


def test_without_kept_text_there_is_nothing_to_show(tmp_path):
    endpoint = Endpoint(knows_digits)

    async def scenario(daemon):
        done = await run(daemon, method=LabelMethod.MODEL)
        assert done.state is LabelRunState.FAILED
        assert "no token strings" in done.problem

    with_endpoint(tmp_path, endpoint, scenario, with_text=False)
    assert endpoint.asked == []


def answering(*responses):
    """An endpoint that gives these statuses in turn, then answers."""
    waiting = list(responses)

    async def answer(question):
        if waiting:
            status, headers = waiting.pop(0)
            return web.Response(status=status, headers=headers, text='{"error": {"message": "no"}}')
        return await knows_digits(question)

    return Endpoint(answer)


FAILURES = [
    (401, {}, 3, "status 401"),  # one each for the questions that are open: no other will be answered
    (302, {"Location": "http://127.0.0.1:1/"}, 3, "status 302"),
    (500, {}, 5, "status 500"),  # three in a row, and those that were open meanwhile
    (503, {"Retry-After": "0"}, 10, "status 503"),  # each is tried once more
]


@pytest.mark.parametrize(("status", "headers", "most", "message"), FAILURES)
def test_an_endpoint_that_keeps_failing_is_left_alone(tmp_path, status, headers, most, message):
    endpoint = answering(*[(status, headers)] * 1000)

    async def scenario(daemon):
        done = await run(daemon, method=LabelMethod.MODEL, count=60)
        assert done.state is LabelRunState.FAILED
        assert message in done.problem
        assert "secret" not in done.problem

    with_endpoint(tmp_path, endpoint, scenario)
    assert 1 <= len(endpoint.asked) <= most


def test_a_full_endpoint_is_asked_once_more_and_a_passing_failure_costs_one_feature(tmp_path):
    endpoint = answering((429, {"Retry-After": "0"}), (500, {}), (429, {"Retry-After": "3600"}))

    async def scenario(daemon):
        done = await run(daemon, method=LabelMethod.MODEL, count=20)
        assert done.state is LabelRunState.DONE, done.problem
        assert done.done == 20
        assert done.labelled == 18
        assert len(endpoint.asked) == 21

    with_endpoint(tmp_path, endpoint, scenario, labels={"concurrency": 1})


BAD_ANSWERS = [
    ("no JSON at all", 0),
    ('{"label": ""}', 0),
    ('{"label": 3}', 0),
    ("[" * 5000, 0),
    ('{"label": "x", "words": "digits", "classes": [7, "vowels"]}', 20),
]


@pytest.mark.parametrize(("content", "labelled"), BAD_ANSWERS)
def test_an_answer_that_holds_no_label_gives_none(tmp_path, content, labelled):
    async def answer(_):
        return content

    async def scenario(daemon):
        done = await run(daemon, method=LabelMethod.MODEL, count=20)
        assert (done.state, done.done, done.labelled) == (LabelRunState.DONE, 20, labelled)
        assert all(label["rule"] is None for label in stored(daemon))

    with_endpoint(tmp_path, Endpoint(answer), scenario)


@pytest.mark.parametrize("response", ["{}", '{"choices": []}', "x" * (2 << 20), '{"choices": [{"message": {}}]}'])
def test_what_is_no_chat_completion_is_a_failure(tmp_path, response):
    async def answer(_):
        return web.Response(text=response, content_type="application/json")

    async def scenario(daemon):
        done = await run(daemon, method=LabelMethod.MODEL, count=20)
        assert done.state is LabelRunState.FAILED
        assert len(done.problem) < 1000

    with_endpoint(tmp_path, Endpoint(answer), scenario)


def test_a_slow_endpoint_is_given_up_in_time(tmp_path):
    async def answer(_):
        await asyncio.sleep(60)

    async def scenario(daemon):
        done = await run(daemon, method=LabelMethod.MODEL, count=20)
        assert done.state is LabelRunState.FAILED
        assert "within 0.2 s" in done.problem
        done = await run(daemon, method=LabelMethod.MODEL, count=20, seconds=0.1)
        assert done.state is LabelRunState.STOPPED

    with_endpoint(tmp_path, Endpoint(answer), scenario, labels={"timeout_s": 0.2})
