"""Without an address the SDK starts a daemon of its own, which ends with the process that started it, and no later."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = textwrap.dedent(
    """
    import os, sys, time, warnings
    warnings.simplefilter("ignore")
    import torch, hydrophone
    from hydrophone import embedded
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    tap = hydrophone.attach(model, "0", name="toy", version="1")
    with torch.inference_mode():
        model(torch.ones(2, 4))
    print(embedded._CHILDREN[0].process.pid, tap.flush(60), tap.status().streams[0]["acked"], tap.url, flush=True)
    """
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HYDROPHONE_")}
    return kept | {"XDG_DATA_HOME": str(tmp_path / "data"), "HYDROPHONE_SOCKET": str(tmp_path / "none")}


def ends(pid: int) -> bool:
    """Whether the process with this id ends within 20 seconds."""
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_child_daemon_takes_the_rows_and_ends_with_the_process(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    pid, flushed, acked, url = done.stdout.split()
    assert (flushed, acked) == ("True", "2")
    assert url.startswith("http://127.0.0.1:")
    assert ends(int(pid))


def test_a_child_daemon_ends_when_its_parent_is_killed_though_a_fork_of_it_lives(environment: dict[str, str]) -> None:
    script = SCRIPT + "if os.fork() == 0: print(os.getpid(), flush=True)\ntime.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[0])
        fork = int(parent.stdout.readline())
        try:
            parent.kill()
            assert ends(pid)
            assert psutil.pid_exists(fork)
        finally:
            os.kill(fork, signal.SIGKILL)


def test_two_processes_have_two_daemons_with_directories_of_their_own(environment: dict[str, str]) -> None:
    script = SCRIPT + "input()\n"
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with (
        subprocess.Popen([sys.executable, "-c", script], **options) as one,
        subprocess.Popen([sys.executable, "-c", script], **options) as two,
    ):
        answers = [process.stdout.readline().split() for process in (one, two)]
        for process in (one, two):
            process.communicate("\n", timeout=60)
    assert [answer[1:3] for answer in answers] == [["True", "2"]] * 2
    assert answers[0][0] != answers[1][0]
    assert all(ends(int(answer[0])) for answer in answers)


def test_a_daemon_that_does_not_start_says_why(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    script = SCRIPT.replace('version="1"', f'version="1", data_dir="{tmp_path}/file/x"')
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "DaemonFailed" in done.stderr
    assert "did not start" in done.stderr
    assert f"{tmp_path}/file" in done.stderr.partition("did not start")[2]
