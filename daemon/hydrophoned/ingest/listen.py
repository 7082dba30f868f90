"""Listening sockets: a Unix socket that only one daemon holds, and TCP that never leaves the machine."""

import contextlib
import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hydrophone_schemas.errors import SchemaError
from hydrophone_schemas.places import parse_address

from hydrophoned.ingest.errors import CannotListen

_BACKLOG: Final = 128
_PROBE_SECONDS: Final = 1.0


class UnixSocket:
    """A listening Unix socket at ``path`` with permissions ``mode``.

    Its folder is made private if it is not there. What a dead daemon left is removed; raises CannotListen where another
    daemon listens, where something else lies, and where others could put their own socket in its place.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_folder(path.parent)
            with _locked(path):
                _clear_stale(path)
                self.socket = _bind(path, mode)
            self._inode = _inode(path)
        except OSError as error:
            raise CannotListen(f"cannot listen on the socket {path}: {error}") from error

    def remove(self) -> None:
        """Remove the file, unless another daemon has put its own there since."""
        with contextlib.suppress(FileNotFoundError), _locked(self.path):
            if _inode(self.path) == self._inode:
                self.path.unlink()


def listen_tcp(address: str) -> socket.socket:
    """A socket that listens on ``host:port`` of the loopback interface; raises CannotListen."""
    try:
        parsed = parse_address(address)
    except SchemaError as error:
        raise CannotListen(f"ingest.tcp: {error}") from None
    host = "127.0.0.1" if parsed.host == "localhost" else parsed.host
    if host is None or not _is_loopback(host):
        raise CannotListen(
            f"ingest.tcp = {address!r} is not an address of the loopback interface, such as 127.0.0.1:8416; "
            "producers on other machines are not served"
        )
    try:
        return socket.create_server(
            (host, parsed.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error}") from error


def check_inherited(given: socket.socket) -> None:
    """Raise CannotListen unless ``given`` is a local stream socket that listens."""
    if given.type != socket.SOCK_STREAM or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise CannotListen(f"the socket {given.getsockname()!r} passed to the daemon is no listening stream socket")
    if given.family != socket.AF_UNIX and not _is_loopback(given.getsockname()[0]):
        raise CannotListen(
            f"the socket {given.getsockname()!r} passed to the daemon is not on the loopback interface; "
            "producers on other machines are not served"
        )


def _bind(path: Path, mode: int) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listening.fileno(), mode)  # the file is made with it: never, for a moment, open to more
        listening.bind(os.fspath(path))
        path.chmod(mode)  # what the umask took away
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _check_folder(folder: Path) -> None:
    """Raise CannotListen if another user could replace what lies in ``folder``."""
    for found in (folder.lstat(), folder.stat()):
        if found.st_uid not in (0, os.geteuid()):
            raise CannotListen(f"the folder {folder} belongs to user {found.st_uid}, who could replace the socket")
    sticky = found.st_mode & stat.S_ISVTX
    if found.st_mode & stat.S_IWOTH and not sticky:
        raise CannotListen(f"everybody may write to the folder {folder}, and replace the socket; chmod it to 0700")


def _clear_stale(path: Path) -> None:
    """Remove the socket of a daemon that has ended."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotListen(f"{path} exists and is not a socket; remove it, or choose another ingest.socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass  # its queue is full: somebody listens
    raise CannotListen(f"another daemon listens on {path}; stop it, or choose another ingest.socket")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a socket's place, so that of two daemons that start at once one sees the other."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
