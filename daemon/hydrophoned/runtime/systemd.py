"""The service manager's two protocols: readiness notes (sd_notify) and inherited sockets (LISTEN_FDS).

Fifteen lines each, documented as stable interfaces in sd_notify(3) and sd_listen_fds(3); the packages for it are unkept.
"""

import os
import socket

_FIRST_DESCRIPTOR = 3


def notify(state: str) -> bool:
    """Tell the service manager ``state``, e.g. ``READY=1``; False when there is none. Raises OSError if it is gone."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.sendall(state.encode())
    return True


def watchdog_seconds() -> float | None:
    """Seconds within which the service manager wants to hear ``WATCHDOG=1``; None when it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    wanted = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1e6 if wanted and microseconds.isdigit() and int(microseconds) else None


def inherited_sockets() -> list[socket.socket]:
    """Listening sockets passed by the service manager; the environment is cleared so that children do not take them."""
    count = os.environ.get("LISTEN_FDS", "")
    mine = os.environ.get("LISTEN_PID") == str(os.getpid())
    for variable in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    if not mine or not count.isdigit():
        return []
    return [socket.socket(fileno=_FIRST_DESCRIPTOR + number) for number in range(int(count))]
