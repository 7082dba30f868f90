"""Finding a daemon: the one that listens, else a child of this process, or one in a thread of it."""

import atexit
import fcntl
import importlib.metadata
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from hydrophone_schemas.errors import SchemaError
from hydrophone_schemas.places import Address, parse_address, socket_candidates

from hydrophone.errors import DaemonFailed, DaemonNotFound, InvalidOption

START_TIMEOUT: Final = 60.0
"""Seconds within which a child daemon has to listen."""
_STOP_TIMEOUT: Final = 5.0
_SLOTS: Final = 64
_OUTPUT_BYTES: Final = 4000


class Located(NamedTuple):
    """Where a daemon listens; ``http`` is the URL of its API if known."""

    address: Address
    http: str | None = None


class _Child(NamedTuple):
    process: "subprocess.Popen[bytes]"
    address: Address
    alive: int
    """Our end of the pipe: the child ends when it closes."""


def locate(daemon: str | None, data_dir: Path | None = None) -> Located:
    """The daemon meant by ``daemon``: an address, ``"inline"``, or None for the one that listens, else a child.

    Raises :class:`InvalidOption` for an address that cannot be read, :class:`DaemonNotFound` if a child or inline
    daemon is asked for and none is installed, :class:`DaemonFailed` if a child does not start.
    """
    if daemon == "inline":
        return _inline(data_dir)
    if daemon is not None:
        try:
            return Located(parse_address(daemon))
        except SchemaError as error:
            raise InvalidOption(f"daemon={daemon!r}: {error}") from None
    for path in socket_candidates():
        if _listens(path):
            return Located(Address(path=str(path)))
    return Located(_child(data_dir))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _inline(data_dir: Path | None) -> Located:
    with _LOCK:
        if not _INLINE:
            entries = importlib.metadata.entry_points(group="hydrophone.daemon", name="inline")
            if not entries:
                raise DaemonNotFound("daemon='inline' needs the daemon: pip install 'hydrophone[daemon]'")
            try:
                start = next(iter(entries)).load()
            except ImportError as error:
                raise DaemonNotFound(
                    f"daemon='inline' needs the daemon's dependencies ({error}): pip install 'hydrophone[daemon]'"
                ) from error
            _INLINE.append(start(data_dir=data_dir))
            atexit.register(_INLINE[0].close)
        handle = _INLINE[0]
    return Located(parse_address(handle.address), handle.http)


def _child(data_dir: Path | None) -> Address:
    with _LOCK:
        if _CHILDREN and _CHILDREN[0].process.poll() is None:
            return _CHILDREN[0].address
        _CHILDREN.clear()
        if importlib.util.find_spec("hydrophoned") is None:
            raise DaemonNotFound(
                "no daemon listens at " + ", ".join(map(str, socket_candidates())) + " and none is installed here: "
                "pip install 'hydrophone[daemon]', or give the address of one with daemon="
            )
        child = _start(data_dir)
        _CHILDREN.append(child)
        return child.address


def _start(data_dir: Path | None) -> _Child:
    private = Path(tempfile.mkdtemp(prefix="hydrophone-"))
    directory, lock = (data_dir, None) if data_dir is not None else _claim_directory()
    read, write = os.pipe()  # neither end is inherited by other programs
    path = private / "ingest.sock"
    command = [sys.executable, "-m", "hydrophoned", "serve", "--data-dir", str(directory), "--socket", str(path)]
    command += ["--http", "127.0.0.1:0", "--parent-fd", str(read)]
    output = (private / "daemon.log").open("w+b")
    try:
        # The child shares the lock on its directory, so that it is held until both have ended.
        inherited = [read] if lock is None else [read, lock]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=inherited, start_new_session=True
        )
    finally:
        os.close(read)
    deadline = time.monotonic() + START_TIMEOUT
    while not _listens(path):
        if process.poll() is not None or time.monotonic() > deadline:
            os.close(write)
            _stop(process)
            tail = _tail(output)
            raise DaemonFailed(f"the daemon {' '.join(command)} did not start: {tail or 'it printed nothing'}")
        time.sleep(0.02)
    output.close()
    return _Child(process, Address(path=str(path)), write)


def _claim_directory() -> tuple[Path, int]:
    """A directory that lasts from run to run and that no other process uses, with the lock on it."""
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "hydrophone"
    for slot in range(_SLOTS):
        directory = home / f"embedded-{slot}"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            continue
        return directory, lock
    raise DaemonFailed(f"{_SLOTS} embedded daemons already use the directories under {home}")


def _tail(output: Any) -> str:
    output.seek(0)
    text: str = output.read()[-_OUTPUT_BYTES:].decode(errors="replace").strip()
    output.close()
    return text


def _stop(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_children() -> None:
    """At exit, after the producers have flushed: close the pipe and give the child time to checkpoint."""
    for child in _CHILDREN:
        os.close(child.alive)
        try:
            child.process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            child.process.returncode = 0  # it drains on its own; it is not ours to wait for any longer
    _CHILDREN.clear()


def _after_fork() -> None:
    global _LOCK  # noqa: PLW0603  another thread may have held it when the process forked
    _LOCK = threading.Lock()
    for child in _CHILDREN:
        os.close(child.alive)  # else the daemon would outlive its parent
        child.process.returncode = 0  # not our child to wait for
    _FORKED.extend(_CHILDREN)
    _CHILDREN.clear()


_CHILDREN: list[_Child] = []
_FORKED: list[_Child] = []
_INLINE: list[Any] = []
_LOCK = threading.Lock()
atexit.register(_end_children)
os.register_at_fork(after_in_child=_after_fork)
