"""The demo's daemon: a child process with its own data directory, ended with the demo."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hydrophone.demo.errors import DemoError
from hydrophone.rest_client import RestClient

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


class DemoDaemon:
    """Starts ``hydrophoned serve`` on a private socket; a context manager that ends it and removes its own files."""

    def __init__(
        self,
        *,
        features: int,
        k: int,
        data_dir: Path | None = None,
        http: str = "127.0.0.1:0",
        window_seconds: int = 5,
        reference_units: int = 400,
    ) -> None:
        self._private = Path(tempfile.mkdtemp(prefix="hydrophone-demo-"))
        self.data_dir = data_dir or self._private / "data"
        self.address = str(self._private / "ingest.sock")
        self.url = ""
        self._http = http
        self._environment = {
            "HYDROPHONE_LEARN__FEATURES": str(features),
            "HYDROPHONE_LEARN__K": str(k),
            "HYDROPHONE_LEARN__WINDOW_SECONDS": str(window_seconds),
            "HYDROPHONE_DRIFT__REFERENCE_UNITS": str(reference_units),
            "HYDROPHONE_DRIFT__IDLE_SECONDS": "0.5",  # requests follow each other at once
            "HYDROPHONE_DRIFT__PERIOD_DAYS": str(1 / 24),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)  # the daemon ends when its parent's end of the pipe closes
            self._lifeline = None
        if self._process is not None:
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._private, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self._process is not None  # noqa: S101  started by __enter__
        return self._process.pid

    def streams(self) -> list[dict[str, Any]]:
        """Status of every stream."""
        items: list[dict[str, Any]] = self.get("/v1/streams")["items"]
        return items

    def get(self, path: str, **query: Any) -> Any:
        """A JSON document of the API."""
        return RestClient(self.url).get(path, **query)

    def _start(self) -> None:
        parent_end, child_end = os.pipe()
        ready_end, told_end = os.pipe()
        self._lifeline = child_end
        command = [sys.executable, "-m", "hydrophoned", "serve", "--data-dir", str(self.data_dir)]
        command += ["--socket", self.address, "--http", self._http]
        command += ["--parent-fd", str(parent_end), "--ready-fd", str(told_end), "--log-level", "warning"]
        self._process = subprocess.Popen(
            command, pass_fds=(parent_end, told_end), env=os.environ | self._environment, start_new_session=True
        )
        os.close(parent_end)
        os.close(told_end)
        with contextlib.closing(os.fdopen(ready_end, "rb")) as ready:
            deadline = time.monotonic() + _START_SECONDS
            if not select.select([ready], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise DemoError(f"the daemon did not start within {_START_SECONDS:.0f} s; see its messages above")
            line = ready.readline()
        if not line:
            raise DemoError(f"the daemon ended with status {self._process.wait()}; see its messages above")
        self.url = json.loads(line)["http"]
