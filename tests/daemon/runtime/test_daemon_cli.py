"""The daemon's commands as processes: readiness, notes to the service manager, exit statuses, the environment."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from hydrophoned.runtime.cli import app
from typer.testing import CliRunner

SERVE_SECONDS = 60


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    monkeypatch.delenv("HYDROPHONE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def serve(tmp_path, *arguments, environment=None, pass_fds=()):
    command = [sys.executable, "-m", "hydrophoned", "serve", "--data-dir", str(tmp_path / "data")]
    command += ["--socket", str(tmp_path / "ingest.sock"), "--http", "127.0.0.1:0", *arguments]
    return subprocess.Popen(
        command,
        env=os.environ | (environment or {}),
        pass_fds=pass_fds,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process, number=signal.SIGTERM):
    if number is not None:
        process.send_signal(number)
    try:
        out, err = process.communicate(timeout=SERVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def read_ready(descriptor):
    with os.fdopen(descriptor) as pipe:
        return json.loads(pipe.readline())


def test_serve_says_when_it_is_ready_and_ends_well_on_sigterm(tmp_path):
    reader, writer = os.pipe()
    process = serve(tmp_path, "--ready-fd", str(writer), "--log-format", "json", pass_fds=[writer])
    os.close(writer)
    told = read_ready(reader)
    assert told["pid"] == process.pid
    assert told["socket"] == str(tmp_path / "ingest.sock")
    assert told["version"]
    with urllib.request.urlopen(f"{told['http']}/livez", timeout=10) as answer:  # noqa: S310  its own daemon
        assert answer.status == 200
    status, out, err = end(process)
    assert (status, out) == (0, "")
    assert all(json.loads(line)["level"] in ("info", "debug") for line in err.splitlines()), err
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_serve_can_say_it_on_standard_output(tmp_path):
    process = serve(tmp_path, "--ready-fd", "1")
    told = json.loads(process.stdout.readline())
    status, _, err = end(process, signal.SIGINT)
    assert (status, told["pid"]) == (0, process.pid), err


def test_the_service_manager_hears_of_start_life_and_stop(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(SERVE_SECONDS)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        process = serve(tmp_path, environment=environment)
        ready = manager.recv(1000).decode().splitlines()
        assert ready[0] == "READY=1"
        assert str(tmp_path / "ingest.sock") in ready[1]
        assert [manager.recv(1000) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        process.terminate()
        notes = []
        while b"STOPPING=1" not in notes:
            notes.append(manager.recv(1000))
        status, _, err = end(process, None)
    assert status == 0, err


INHERIT = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "hydrophoned", "serve", "--socket", "none", *sys.argv[2:]])
"""


def test_the_service_managers_socket_is_taken_and_left_in_place(tmp_path):
    path = tmp_path / "manager.sock"
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as producer:
        listening.bind(str(path))
        listening.listen()
        producer.connect(str(path))  # waits in the backlog until the daemon is there
        command = [sys.executable, "-c", INHERIT, str(listening.fileno()), "--data-dir", str(tmp_path / "data")]
        command += ["--http", "none", "--ready-fd", str(writer)]
        process = subprocess.Popen(
            command, pass_fds=[listening.fileno(), writer], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        os.close(writer)
        told = read_ready(reader)
        assert (told["socket"], told["http"]) == (str(path), None)
        producer.settimeout(SERVE_SECONDS)
        producer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert producer.recv(1000), "the daemon answers on the inherited socket, if only to refuse"
        status, _, err = end(process)
    assert status == 0, err
    assert path.exists(), "it is the manager's to remove"


def test_the_daemon_ends_with_its_parent(tmp_path):
    reader, writer = os.pipe()
    alive, child_end = os.pipe()
    process = serve(tmp_path, "--parent-fd", str(reader), "--ready-fd", str(child_end), pass_fds=[reader, child_end])
    os.close(reader)
    os.close(child_end)
    read_ready(alive)
    os.close(writer)
    status, _, err = end(process, None)
    assert status == 0, err


def test_a_second_daemon_on_the_same_data_is_refused(tmp_path):
    reader, writer = os.pipe()
    first = serve(tmp_path, "--ready-fd", str(writer), pass_fds=[writer])
    os.close(writer)
    read_ready(reader)
    status, _, err = end(serve(tmp_path, "--socket", str(tmp_path / "other.sock")), None)
    assert status == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert end(first)[0] == 0


def test_an_address_in_use_is_refused_with_a_hint(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, err = end(serve(tmp_path, "--http", f"127.0.0.1:{taken.getsockname()[1]}"), None)
    assert status == 1
    assert "choose another address with --http" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--http", "0.0.0.0:80"], "http.address = '0.0.0.0:80': is not on the loopback interface"),
        (["--set", "learn.featurs=3"], "did you mean features?"),
        (["--set", "learn"], "is not SECTION.FIELD=VALUE"),
        (["--config", "none.toml"], "none.toml: cannot be read"),
        (["--ready-fd", "999"], "999 is no open file descriptor"),
        (["--parent-fd", "999"], "999 is no open file descriptor"),
    ],
)
def test_wrong_usage_and_configuration_end_with_status_2(invoke, arguments, message):
    done = invoke("serve", *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_check_says_what_is_wrong(invoke, tmp_path):
    path = tmp_path / "h.toml"
    path.write_text("[learn]\nk = 0\n")
    done = invoke("config", "check", "--config", str(path))
    assert done.exit_code == 2
    assert f"error: {path}:2: learn.k = 0: " in done.output
    done = invoke("config", "check", "--config", str(path), "--json")
    assert done.exit_code == 2
    assert json.loads(done.output)["valid"] is False
    path.write_text("[learn]\nk = 1\n")
    done = invoke("config", "check", "--config", str(path), "--json")
    assert (done.exit_code, json.loads(done.output)) == (0, {"valid": True, "file": str(path), "problems": []})
    assert invoke("config", "check").output.startswith("the configuration is valid")


def test_show_prints_what_is_in_force_and_where_it_comes_from(invoke, tmp_path):
    path = tmp_path / "h.toml"
    path.write_text("[learn]\nk = 3\n")
    shown = invoke("config", "show", "--config", str(path), "--set", "daemon.nice=4").output
    assert f"k = 3  # from {path}:2" in shown
    assert "nice = 4  # from the command line" in shown
    override = {"match": "*", "seed": 5}
    path.write_text(shown.replace("[store]", "[[learn.override]]\nmatch = '*'\nseed = 5\n[store]"))
    found = json.loads(invoke("config", "show", "--config", str(path), "--json").output)
    assert (found["learn"]["k"], found["learn"]["override"]) == (3, [override]), "an override shows only what it gives"


def test_schema_is_a_json_schema(invoke):
    schema = json.loads(invoke("config", "schema").output)
    assert set(schema["properties"]) == {"daemon", "drift", "ingest", "http", "labels", "learn", "store"}


def test_the_numerics_are_prepared_before_torch_and_the_users_choice_stays():
    code = (
        "import os, sys; from hydrophoned.runtime.cli import prepare_numerics; prepare_numerics(3);"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'], 'torch' in sys.modules)"
    )

    def run(**environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        return subprocess.run(
            [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
        ).stdout.split()

    assert run() == ["PASSIVE", "3", "False"]
    assert run(OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="7") == ["ACTIVE", "7", "False"]
