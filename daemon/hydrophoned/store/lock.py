"""The lock beside the database file: one daemon per store.

DuckDB locks its file with POSIX record locks, which vanish when any descriptor of the file is closed anywhere in the
process. An flock on a file of our own belongs to one open file description and ends with the process, however it ends.
"""

import fcntl
import os
from pathlib import Path

from hydrophoned.store.errors import StoreLocked


class StoreLock:
    """Holds ``PATH.lock`` exclusively. The file stays behind when it is released: removing it would be a race."""

    def __init__(self, database: Path) -> None:
        """Take the lock; raises :class:`StoreLocked` naming the process that has it."""
        self.path = database.with_name(f"{database.name}.lock")
        self._descriptor: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            self.release()
            raise StoreLocked(
                f"{database} is in use by process {holder}: one daemon per data directory. Stop that daemon, or give "
                "this one another data directory."
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock up; doing so twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
