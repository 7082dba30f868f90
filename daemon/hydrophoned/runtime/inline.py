"""The daemon in a thread of the calling process, for notebooks and tests."""

import asyncio
import logging
import shutil
import tempfile
import threading
from pathlib import Path

from hydrophoned.runtime.config import load_config
from hydrophoned.runtime.daemon import Ready, run

_log = logging.getLogger(__name__)
_START_SECONDS = 60.0


class InlineDaemon:
    """A running daemon. ``address`` is its socket for producers, ``http`` its API's URL."""

    def __init__(self, data_dir: Path | None) -> None:
        self._own = Path(tempfile.mkdtemp(prefix="hydrophone-"))
        self._data_dir = data_dir or self._own / "data"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._listening: Ready | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="hydrophone daemon", daemon=True)

    def start(self) -> "InlineDaemon":
        """Start the thread and wait until it listens; raises what kept it from it."""
        self._thread.start()
        started = self._ready.wait(_START_SECONDS)
        if self._error is not None:
            raise self._error
        if not started:
            raise TimeoutError(f"the inline daemon did not listen within {_START_SECONDS:.0f} s")
        return self

    @property
    def address(self) -> str:
        """Socket for producers."""
        assert self._listening is not None  # noqa: S101  set before start() returns
        return str(self._listening.socket)

    @property
    def http(self) -> str | None:
        """URL of the API."""
        return self._listening.http if self._listening else None

    def close(self, timeout: float = 60.0) -> None:
        """Checkpoint and end; a data directory that was made for it is removed."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout)
        if self._thread.is_alive():
            _log.warning("the inline daemon is still ending after %.0f s", timeout)
            return
        shutil.rmtree(self._own, ignore_errors=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001  handed to start(), or logged
            if self._ready.is_set():
                _log.exception("the inline daemon ended")
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        config = load_config(
            None,
            {
                "daemon": {"data_dir": str(self._data_dir), "nice": 0},
                "ingest": {"socket": str(self._own / "ingest.sock")},
                "http": {"address": "127.0.0.1:0"},
            },
        )

        def ready(listening: Ready) -> None:
            self._listening = listening
            self._ready.set()

        await run(config, ready, self._stop)


def start(data_dir: str | Path | None = None) -> InlineDaemon:
    """Start a daemon in a thread of this process; entry point ``inline`` of ``hydrophone.daemon``."""
    return InlineDaemon(Path(data_dir) if data_dir is not None else None).start()
