"""The ``hydrophone`` command against a real daemon that has learned from a small model."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from threading import Thread
from typing import get_args

import hydrophone
import pytest
import torch
from hydrophone.cli import app as commands
from hydrophone.cli import show
from hydrophone.cli.app import app
from hydrophone.cli.screen import Screen, printable
from hydrophone.demo.daemon import DemoDaemon
from hydrophone.errors import DaemonUnreachable, InvalidOption, RequestRefused
from hydrophone.rest_client import RestClient
from hydrophone_schemas import rest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

WIDTH = 16
STREAM = "toy@1/block"
STREAM_COLUMNS = ["stream", "rows", "dropped", "learned", "rows/s", "lag", "fvu", "l0", "dead", "features"]


class Model(nn.Module):
    """Embeds token ids."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, WIDTH)
        self.block = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids):
        return self.block(self.embed(input_ids))


class Tokenizer:
    """Token strings, one of which would clear a terminal."""

    def decode(self, ids, **_):
        return "".join("\x1b[2J" if int(one) == 7 else f" w{int(one)}" for one in ids)

    def convert_ids_to_tokens(self, ids):
        return [self.decode([one]) for one in ids]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with DemoDaemon(features=64, k=4, data_dir=tmp_path_factory.mktemp("daemon") / "data") as running:
        model, generator = Model(), torch.Generator().manual_seed(0)
        options = {"name": "toy", "version": "1", "daemon": running.address, "text": "text", "tokenizer": Tokenizer()}
        with hydrophone.attach(model, sites=["block"], **options) as tap, torch.inference_mode():
            for number in range(120):
                with tap.request(id=f"r/{number}", kind="odd" if number % 2 else "[even]"):
                    model(torch.randint(0, 50, (1, 32), generator=generator))
            tap.outcome("r/3", hallucinated=True)
            assert tap.flush(60)
        yield running


@pytest.fixture
def invoke(daemon, monkeypatch):
    monkeypatch.setenv("HYDROPHONE_URL", daemon.url)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def told(done):
    assert done.exit_code == 0, done.output
    return done.output


def test_status_shows_the_daemon_and_its_streams(invoke):
    text = told(invoke("status"))
    assert text.startswith(f"hydrophoned {hydrophone.__version__}  ready  pid ")
    assert STREAM in text
    answer = json.loads(told(invoke("status", "--json")))
    assert answer["ready"] == {"ready": True, "reasons": []}
    assert rest.SelfReport.model_validate_json(json.dumps(answer["self"])).pid
    assert [one["id"] for one in answer["streams"]] == [STREAM]


def test_streams_are_a_table_of_aligned_text(invoke):
    lines = told(invoke("streams")).splitlines()
    assert lines[0].replace("lag s", "lag").split() == STREAM_COLUMNS
    cells = lines[1].split()
    assert cells[:3] == [STREAM, "3,840", "0"]
    assert lines[0].index("rows") + len("rows") == lines[1].index("3,840") + len("3,840")
    assert rest.StreamList.model_validate_json(told(invoke("streams", "--json"))).items[0].rows_received == 3840


def test_features_are_sorted_and_filtered(invoke):
    answer = rest.FeatureList.model_validate_json(told(invoke("features", STREAM, "--limit", "5", "--json")))
    rates = [one.rate for one in answer.items]
    assert len(rates) == 5
    assert rates == sorted(rates, reverse=True)
    text = told(invoke("features", STREAM, "--limit", "5"))
    assert [int(line.split()[0]) for line in text.splitlines()[1:6]] == [one.index for one in answer.items]
    assert "there are more" in text
    options = ["--sort", "index", "--order", "asc", "--fired", "--min-rate", "0.01", "--limit", "64", "--json"]
    found = rest.FeatureList.model_validate_json(told(invoke("features", STREAM, *options))).items
    assert found
    assert all(one.rate >= 0.01 for one in found)
    assert [one.index for one in found] == sorted(one.index for one in found)
    assert "none is as asked" in told(invoke("features", STREAM, "--min-rate", "1"))


def test_a_feature_has_its_course_and_its_examples_with_the_firing_token_marked(invoke):
    index = json.loads(told(invoke("features", STREAM, "--limit", "1", "--json")))["items"][0]["index"]
    answer = json.loads(told(invoke("feature", STREAM, str(index), "--json")))
    assert answer["feature"]["index"] == index
    assert len(answer["examples"]) == 8
    text = told(invoke("feature", STREAM, str(index), "--examples", "3"))
    assert text.startswith(f"feature {index} of {STREAM}\nfired on ")
    assert "rate   " in text
    best = answer["examples"][0]
    marked = printable(best["context"][best["context_index"]])
    assert f"[{marked}]" in text.splitlines()[-3]
    assert "\x1b" not in text, "a token may not steer the terminal"


def test_a_token_finds_its_features(invoke):
    found = rest.FeatureSearch.model_validate_json(told(invoke("search", STREAM, "--token", "5", "--json"))).items
    assert found[0].fired > 0
    lines = told(invoke("search", STREAM, "--piece", " w5", "--limit", "3")).splitlines()
    assert lines[0].split() == ["feature", "score", "rate", "precision", "fired", "label"]
    assert int(lines[1].split()[0]) == found[0].index
    assert "no features" in told(invoke("search", STREAM, "--token", "999"))
    assert "give one of" in invoke("search", STREAM).output
    assert invoke("search", STREAM, "--token", "5", "--label", "x").exit_code == 2


def test_two_kinds_of_the_same_traffic_do_not_differ(invoke):
    sets = ["contrast", STREAM, "--a", "kind=odd", "--b", "kind=[even]"]
    answer = rest.Contrast.model_validate_json(told(invoke(*sets, "--json")))
    assert answer.items == []
    assert answer.requests_a > 10
    text = told(invoke(*sets))
    assert text.startswith("no feature differs")
    assert f"{answer.requests_a:,} requests of A" in text
    shown = told(invoke(*sets, "--max-q", "1", "--limit", "2")).splitlines()
    assert shown[0].split() == ["feature", "rate", "A", "rate", "B", "effect", "q", "label"]
    wrong = invoke("contrast", STREAM, "--a", "odd")
    assert wrong.exit_code == 2
    assert "NAME=VALUE" in wrong.output


def test_a_request_has_rows_text_and_outcomes(invoke):
    text = told(invoke("request", "r/3"))
    assert text.startswith("r/3  toy@1, began ")
    assert "kind=odd" in text
    assert f"{STREAM}: 32 rows (32 prompt, 0 decode)" in text
    assert "outcome  hallucinated=True" in text
    assert "kind=[even]" in told(invoke("request", "r/4")), "what stands in brackets is no markup"
    assert json.loads(told(invoke("request", "r/3", "--json")))["id"] == "r/3"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["features", "other@1/block"], 1, "error: 404: "),
        (["feature", STREAM, "64"], 1, "error: 404: "),
        (["request", "none"], 1, "error: 404: "),
        (["features", STREAM, "--since", "yesterday"], 1, "yesterday"),
        (["features", STREAM, "--sort", "size"], 2, "'size' is not one of"),
        (["feature", STREAM, "-1"], 2, "No such option"),
        (["streams", "--url", "ftp://host"], 2, "'ftp://host' is not the address of an API"),
        (["streams", "--url", "http://127.0.0.1:1"], 3, "Start one with: hydrophone serve"),
        (["status", "--url", "127.0.0.1:1"], 3, "no daemon answers at http://127.0.0.1:1"),
        (["bogus"], 2, "No such command"),
    ],
)
def test_exit_status_and_message_tell_what_went_wrong(invoke, arguments, status, message):
    done = invoke(*arguments)
    assert done.exit_code == status
    assert message in done.output
    assert "Traceback" not in done.output


def test_version(invoke):
    assert told(invoke("--version")) == f"hydrophone {hydrophone.__version__}\n"


def test_choices_are_the_apis_own():
    assert set(get_args(commands.Sort)) == {one.value for one in rest.Sort}


def on_terminal(form, answer, width=100):
    stream = StringIO()
    form(Screen(Console(file=stream, force_terminal=True, width=width, color_system="standard")), answer)
    return stream.getvalue()


def test_a_terminal_gets_colour(daemon):
    api = RestClient(daemon.url)
    assert "\x1b[36mtoy@1/block" in on_terminal(show.streams, api.get("/v1/streams"))
    example = api.get(f"/v1/streams/{STREAM}/features/0/examples")["items"]
    answer = api.get(f"/v1/streams/{STREAM}/features/0") | {"series": [], "examples": example}
    text = on_terminal(show.feature, answer)
    assert "\x1b[1;30;43m[" in text or not example


def test_what_is_unknown_is_no_zero_and_skipped_hooks_are_told():
    status = dict.fromkeys(rest.StreamStatus.model_fields) | {
        "id": "m@1/s",
        "rows_received": 10,
        "rows_dropped": {"queue_full": 2},
        "producers": [{"fires": 3, "forwards": 9, "dropped": {"pressure": 1}}],
    }
    stream = StringIO()
    show.streams(Screen(Console(file=stream, width=200)), {"items": [status]})
    _, line, warning = stream.getvalue().splitlines()
    assert line.split() == ["m@1/s", "10", "3", *"-------"]
    assert "fired 3 times in 9 forward passes" in warning


def test_no_streams_says_what_to_do():
    stream = StringIO()
    show.streams(Screen(Console(file=stream)), {"items": []})
    assert "hydrophone.attach(model)" in stream.getvalue()


@given(st.text())
def test_shown_text_has_no_control_characters(text):
    assert printable(text).isprintable()


# -- the command as a process --------------------------------------------------------------------------------------


def run(*arguments, environment=None, code=None):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "hydrophone.cli"]
    return subprocess.run(
        [*command, *arguments],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_serve_and_config_are_the_daemons_own():
    done = run("serve", "--help")
    assert done.returncode == 0, done.stderr
    assert "--ready-fd" in done.stdout
    done = run("config", "check", "--set", "learn.featurs=3")
    assert done.returncode == 2
    assert "did you mean features?" in done.stderr


def without(*modules):
    """Code that runs the command as if ``modules`` were not installed."""
    block = "".join(f"sys.modules[{module!r}] = None;" for module in modules)
    return f"import sys; {block} sys.argv = ['hydrophone', *sys.argv[1:]]; from hydrophone.cli import main; main()"


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_a_bare_install_says_what_to_install(module):
    done = run("status", code=without(module))
    assert done.returncode == 2
    assert done.stderr.endswith("pip install 'hydrophone[cli]'\n")


def test_the_client_needs_neither_torch_nor_the_daemons_libraries(daemon):
    absent = ("torch", "duckdb", "aiohttp", "pydantic_settings", "transformers")
    done = run("streams", "--url", daemon.url, code=without(*absent))
    assert done.returncode == 0, done.stderr
    assert STREAM in done.stdout


def test_a_daemon_without_its_libraries_says_what_to_install():
    code = "import sys; sys.modules['pydantic_settings'] = None; from hydrophoned.__main__ import main; main()"
    done = run("config", "check", code=code)
    assert done.returncode == 2
    assert done.stderr.endswith("pip install 'hydrophone[daemon]'\n")


# -- the client ----------------------------------------------------------------------------------------------------


@pytest.fixture
def answers():
    """A server that answers every request with the next (status, body)."""
    given = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = given.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield lambda *pairs: given.extend(pairs) or f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_problem_document_becomes_its_detail(answers):
    problem = {
        "title": "t",
        "detail": "no such thing",
        "errors": [{"location": "query", "name": "k", "message": "bad"}],
    }
    url = answers((422, json.dumps(problem).encode()), (500, b"<html>oops"), (502, b"[1]"))
    with pytest.raises(RequestRefused, match=r"^422: no such thing\nquery k: bad$"):
        RestClient(url).get("/v1/x")
    with pytest.raises(RequestRefused, match=r"^500: <html>oops$"):
        RestClient(url).get("/v1/x")
    with pytest.raises(RequestRefused, match=r"^502: \[1\]$"):
        RestClient(url).get("/v1/x")


def test_something_else_on_the_port_is_no_daemon(answers):
    with pytest.raises(DaemonUnreachable, match="is no Hydrophone daemon"):
        RestClient(answers((200, b"hello"))).get("/")


def test_all_pages_of_a_list_are_read(answers):
    pages = [{"items": [1, 2], "next": "a"}, {"items": [3], "next": None}]
    url = answers(*((200, json.dumps(page).encode()) for page in pages))
    assert RestClient(url).get_all("/v1/x") == {"items": [1, 2, 3], "next": None}


def test_an_answer_of_another_status_can_be_a_document(answers):
    url = answers((503, b'{"ready": false}'))
    assert RestClient(url).get("/readyz", also=(503,)) == {"ready": False}


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "http://", "ftp://127.0.0.1"])
def test_only_http_is_spoken(url):
    with pytest.raises(InvalidOption):
        RestClient(url)
