"""The service manager's protocols, on a socket that plays its part; and the units, by systemd's own checks."""

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hydrophoned.runtime import systemd
from hydrophoned.runtime.cli import app
from hydrophoned.runtime.config import load_config
from typer.testing import CliRunner

UNITS = Path(__file__).parents[3] / "systemd"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def manager():
    """A datagram socket, as the service manager has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.settimeout(5)
        yield opened


def test_notes_reach_a_socket_with_a_path(manager, tmp_path, monkeypatch):
    manager.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    assert systemd.notify("READY=1", "STATUS=listening")
    assert manager.recv(1000) == b"READY=1\nSTATUS=listening"


def test_notes_reach_an_abstract_socket(manager, monkeypatch):
    name = f"hydrophone-test-{os.getpid()}"
    manager.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    assert systemd.notify("WATCHDOG=1")
    assert manager.recv(1000) == b"WATCHDOG=1"


def test_without_a_manager_there_is_no_note(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not systemd.notify("READY=1")


def test_a_manager_that_is_gone_is_logged_and_no_more(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING):
        assert not systemd.notify("READY=1")
    assert "does not hear READY=1" in caplog.text


def test_the_watchdogs_time_is_ours_only_if_it_names_us(monkeypatch):
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert systemd.watchdog_seconds() is None
    monkeypatch.setenv("WATCHDOG_USEC", "1500000")
    assert systemd.watchdog_seconds() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_seconds() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.watchdog_seconds() is None
    monkeypatch.setenv("WATCHDOG_USEC", "0")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_seconds() is None


INHERIT = """
import os, sys
descriptors = [int(one) for one in sys.argv[1].split(",")]
spare = [os.dup(one) for one in descriptors]  # so that none of them is overwritten before it is moved
high = [os.dup2(one, 50 + number) for number, one in enumerate(spare)]
for number, one in enumerate(high):
    os.dup2(one, 3 + number)
os.environ |= {"LISTEN_FDS": str(len(high)), "LISTEN_PID": str(os.getpid() + int(sys.argv[2])), "LISTEN_FDNAMES": "a:b"}
from hydrophoned.runtime import systemd
from hydrophoned.runtime.cli import app
from hydrophoned.runtime.config import load_config
from typer.testing import CliRunner
found = systemd.inherited_sockets()
assert not any(name.startswith("LISTEN_") for name in os.environ)
for one in found:
    print(one.getsockname(), one.fileno(), one.get_inheritable())
"""


def inherit(*sockets, pid_offset=0):
    command = [sys.executable, "-c", INHERIT, ",".join(str(one.fileno()) for one in sockets), str(pid_offset)]
    done = subprocess.run(
        command, pass_fds=[one.fileno() for one in sockets], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_sockets_of_the_manager_are_taken(tmp_path):
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        lines, _ = inherit(unix, tcp)
    assert lines[0] == f"{tmp_path / 's'} 3 False"
    assert len(lines) == 2
    assert lines[1].endswith("4 False")


def test_sockets_for_another_process_are_left_alone(tmp_path):
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        assert inherit(unix, pid_offset=1)[0] == []


def test_what_is_no_listening_stream_is_left_out_and_logged(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram, socket.socket(socket.AF_UNIX) as unix:
        datagram.bind(str(tmp_path / "d"))
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        lines, logged = inherit(datagram, unix)
    assert lines == [f"{tmp_path / 's'} 4 False"]
    assert "socket 3 (a)" in logged


def test_nothing_is_inherited_without_the_variables():
    assert systemd.inherited_sockets({}) == []
    assert systemd.inherited_sockets({"LISTEN_FDS": "many", "LISTEN_PID": str(os.getpid())}) == []


@pytest.fixture
def units(tmp_path):
    """The units with an executable that exists here in place of the installed one."""
    for path in UNITS.glob("hydrophone.s*"):
        text = path.read_text()
        (tmp_path / path.name).write_text(re.sub(r"/\S+/bin/hydrophoned", "/bin/true", text))
    return tmp_path


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@needs_systemd
@pytest.mark.parametrize("name", ["hydrophone.service", "hydrophone.socket"])
def test_systemd_accepts_the_units(units, name):
    done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(units / name))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_the_service_is_hardened(units):
    done = run(
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=20",
        "--no-pager",
        str(units / "hydrophone.service"),
    )
    assert done.returncode == 0, done.stdout
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(exposure) < 2.0


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_sysusers_makes_the_user(tmp_path):
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", str(UNITS / "hydrophone.sysusers"))
    assert done.returncode == 0, done.stderr
    assert "hydrophone:" in (tmp_path / "etc/passwd").read_text()


@pytest.mark.skipif(
    shutil.which("systemd-tmpfiles") is None or os.geteuid() != 0,
    reason="needs systemd-tmpfiles and the right to chown",
)
def test_tmpfiles_make_the_folders_and_a_configuration_that_is_valid(tmp_path):
    (tmp_path / "etc").mkdir()
    assert run("systemd-sysusers", f"--root={tmp_path}", str(UNITS / "hydrophone.sysusers")).returncode == 0
    done = run("systemd-tmpfiles", "--create", f"--root={tmp_path}", str(UNITS / "hydrophone.tmpfiles"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/hydrophone").stat().st_uid != 0
    load_config(tmp_path / "etc/hydrophone/hydrophone.toml", {})


def test_the_service_reads_what_the_daemon_knows():
    """The flags and variables in the unit exist."""
    text = (UNITS / "hydrophone.service").read_text()
    help_text = CliRunner().invoke(app, ["serve", "--help"]).output
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    for flag in re.findall(r"--[a-z-]+", command):
        assert flag in help_text
