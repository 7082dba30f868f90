"""The service manager's two protocols: notes (sd_notify) and inherited sockets (LISTEN_FDS).

A few lines each, of interfaces that sd_notify(3) and sd_listen_fds(3) promise to keep.
"""

import logging
import os
import socket
from collections.abc import MutableMapping
from typing import Final

_log = logging.getLogger(__name__)
_FIRST_DESCRIPTOR: Final = 3
_LISTEN_VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def notify(*states: str) -> bool:
    """Tell the service manager ``states``, such as ``READY=1``; False when there is none or it does not hear.

    A note that cannot be sent is logged and no more: the daemon works without its manager.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall("\n".join(states).encode())
    except OSError as error:
        _log.warning("the service manager does not hear %s: %s", states[0], error)
        return False
    return True


def watchdog_seconds() -> float | None:
    """Seconds within which the service manager wants to hear ``WATCHDOG=1``; None when it does not watch us."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1e6 if ours and microseconds.isdigit() and int(microseconds) else None


def inherited_sockets(environment: MutableMapping[str, str] | None = None) -> list[socket.socket]:
    """Listening sockets passed by the service manager; none when they were passed to another process.

    The variables are removed, and the sockets are closed in programs that this process starts. A descriptor that is no
    listening stream socket is closed and logged: the unit that passes it is wrong, and other sockets may do.
    """
    environment = os.environ if environment is None else environment
    count, pid, names = (environment.pop(variable, "") for variable in _LISTEN_VARIABLES)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for descriptor, name in zip(
        range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)),
        names.split(":") + [""] * int(count),
        strict=False,
    ):
        try:
            given = socket.socket(fileno=descriptor)
        except OSError as error:
            _log.warning("descriptor %d (%s) of the service manager is no socket: %s", descriptor, name, error)
            continue
        given.set_inheritable(False)
        if given.type == socket.SOCK_STREAM and given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.append(given)
        else:
            _log.warning("socket %d (%s) of the service manager is no listening stream; left out", descriptor, name)
            given.close()
    return found
