"""Each example runs, and what it says it sends arrives."""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from hydrophone_schemas.wire import FrameType
from sink import Sink

EXAMPLES = Path(__file__).parents[2] / "examples"


def environment(sink: Sink) -> dict[str, str]:
    return os.environ | {"HYDROPHONE_SOCKET": str(sink.path), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(name: str, sink: Sink) -> str:
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, env=environment(sink), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_attach(sink: Sink) -> None:
    output = run("attach.py", sink)
    assert output.count("rows sent: 3200 dropped: {}") == 2
    assert len(sink.rows()) == 6400


def test_log_embeddings(sink: Sink) -> None:
    assert run("log_embeddings.py", sink) == "sent 3 rows of width 64\n"
    assert {row.request for row in sink.rows()} == {"sentence-0", "sentence-1", "sentence-2"}


def post(url: str, body: dict[str, object]) -> dict[str, object]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310  our own server
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  our own server
        return json.load(answer)


def test_generate_server(sink: Sink) -> None:
    command = [sys.executable, str(EXAMPLES / "generate_server.py"), "--port", "0"]
    with subprocess.Popen(
        command, env=environment(sink), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            url = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))
            answers: dict[int, dict[str, object]] = {}

            def ask(length: int) -> None:
                prompt = list(range(2, 2 + length))
                answers[length] = post(f"{url}/generate", {"prompt": prompt, "max_new_tokens": 4})

            threads = [threading.Thread(target=ask, args=(length,)) for length in (3, 6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            post(f"{url}/outcome", {"request": answers[3]["request"], "labels": {"hallucinated": True}})
        finally:
            server.terminate()
            server.wait(30)
    for length in (3, 6):
        rows = [row for row in sink.rows() if row.request == answers[length]["request"]]
        assert [row.position for row in rows] == list(range(length + 3))
        assert [row.token for row in rows] == [*range(2, 2 + length), *answers[length]["tokens"][:3]]
    assert [body["id"] for body in sink.of_type(FrameType.OUTCOME)] == [answers[3]["request"]]
