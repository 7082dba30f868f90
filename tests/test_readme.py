"""Every command and every line of code in README.md works as it stands there.

What is written for one's own machine is moved to a private one: the daemon's addresses and folders come from the
environment, which every command reads.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SECONDS = 120


class Block(NamedTuple):
    line: int
    language: str
    text: str


def blocks(path):
    """Fenced blocks of a Markdown file, in their order."""
    found, begun = [], None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if begun is not None and line.strip() == "```":
            found.append(Block(begun[0], begun[1], "\n".join(begun[2])))
            begun = None
        elif begun is not None:
            begun[2].append(line)
        elif fence := re.match(r"```(\w*)", line):
            begun = (number, fence[1], [])
    assert begun is None, f"{path}: the block of line {begun and begun[0]} is not closed"
    return found


def commands(language="sh"):
    """(line, command) of every shell block, one command a line."""
    return [
        (block.line + offset, line)
        for block in blocks(README)
        if block.language == language
        for offset, line in enumerate(block.text.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]


def named(pairs):
    return [pytest.param(command, id=f"{line}: {command}") for line, command in pairs]


MAKE = [pair for pair in commands() if pair[1].startswith("make ")]
SERVE = [pair for pair in commands() if pair[1].endswith("&")]
ASK = [pair for pair in commands() if pair not in MAKE and pair not in SERVE]


class Running(NamedTuple):
    environment: dict[str, str]
    http: str


@pytest.fixture(scope="module")
def daemon():
    """The daemon that the README starts, and the environment in which its other commands run."""
    ((_, command),) = SERVE
    with (
        tempfile.TemporaryDirectory(prefix="hy") as folder,
        socket.socket() as probe,
    ):  # short: sockets have short paths
        bin_dir, home = Path(folder, "bin"), Path(folder)
        bin_dir.mkdir()
        for name, module in (("hydrophone", "hydrophone.cli"), ("python", "")):
            script = bin_dir / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {f"-m {module}" if module else ""} "$@"\n')
            script.chmod(0o755)
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HYDROPHONE_")} | {
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HYDROPHONE_DAEMON__DATA_DIR": str(home / "data"),
            "HYDROPHONE_INGEST__SOCKET": str(home / "s"),
            "HYDROPHONE_SOCKET": str(home / "s"),
            "HYDROPHONE_HTTP__ADDRESS": address,
            "HYDROPHONE_URL": f"http://{address}",
        }
        reader, writer = os.pipe()
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command.rstrip('& ')} --ready-fd {writer}"],
            env=environment,
            pass_fds=[writer],
            cwd=home,
        )
        os.close(writer)
        try:
            with os.fdopen(reader) as pipe:
                ready = json.loads(pipe.readline())
            yield Running(environment, ready["http"].removeprefix("http://"))
        finally:
            process.terminate()
            assert process.wait(SECONDS) == 0


@pytest.fixture(scope="module")
def instrumented(daemon):
    """The README's own model has sent its activations."""
    (code,) = [block.text for block in blocks(README) if block.language == "python"]
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=daemon.environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return daemon


def test_there_is_one_daemon_one_example_and_the_two_commands():
    assert len(SERVE) == 1
    assert [command for _, command in MAKE] == ["make demo", "make test"]
    assert sum(block.language == "python" for block in blocks(README)) == 1
    assert {block.language for block in blocks(README)} <= {"sh", "python", "text"}


@pytest.mark.parametrize("command", named(MAKE))
def test_make_knows_its_goals(command):
    done = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", named(ASK))
def test_commands_do_what_they_say(instrumented, command):
    program = command.split()[0]
    if shutil.which(program, path=instrumented.environment["PATH"]) is None:
        pytest.skip(f"{program} is not installed")
    private = command.replace("curl -s ", "curl -sS --fail ").replace("127.0.0.1:8417", instrumented.http)
    done = subprocess.run(
        ["bash", "-c", private], env=instrumented.environment, capture_output=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    assert done.stdout.strip()


def test_the_example_is_ten_lines_of_ones_own():
    (block,) = [block for block in blocks(README) if block.language == "python"]
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 10
