"""Where the two sides meet by default: socket paths, the HTTP address, and how an address is written."""

import os
from pathlib import Path
from typing import Final, NamedTuple

from hydrophone_schemas.errors import SchemaError

DEFAULT_HTTP: Final = "127.0.0.1:8417"
SYSTEM_SOCKET: Final = Path("/run/hydrophone/ingest.sock")
SOCKET_VARIABLE: Final = "HYDROPHONE_SOCKET"


class Address(NamedTuple):
    """Where a daemon listens for producers: a Unix socket path, or a TCP host and port."""

    path: str | None = None
    host: str | None = None
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else f"tcp:{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read ``/path``, ``unix:/path``, ``tcp:host:port`` or ``host:port``; raises :class:`SchemaError`.

    >>> parse_address("unix:/run/h.sock")
    Address(path='/run/h.sock', host=None, port=0)
    >>> parse_address("127.0.0.1:8416")
    Address(path=None, host='127.0.0.1', port=8416)
    """
    if text.startswith(("/", "unix:")):
        path = text.removeprefix("unix:")
        if not path or len(os.fsencode(path)) > 107:
            raise SchemaError(f"socket path {path!r} must have 1 to 107 bytes (a limit of the kernel)")
        return Address(path=path)
    host, colon, port = text.removeprefix("tcp:").removeprefix("//").rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise SchemaError(f"address {text!r} is none of /path, unix:/path, tcp:host:port and host:port")
    return Address(host=host.strip("[]"), port=int(port))


def user_socket() -> Path:
    """The default socket of this user's own daemon."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime or f"/tmp/hydrophone-{os.getuid()}") / ("hydrophone/ingest.sock" if runtime else "ingest.sock")  # noqa: S108  private: made with mode 0700 by the daemon


def socket_candidates() -> list[Path]:
    """Where a producer without an address looks for a daemon, in order."""
    named = os.environ.get(SOCKET_VARIABLE)
    return [Path(named)] if named else [user_socket(), SYSTEM_SOCKET]
