"""Fixtures of the API's tests: a backend on a real store, and calls of a real server in front of it."""

import sys
from pathlib import Path

import pytest
from hydrophoned.store import Store

# the store's generated windows are the API's too; test folders are not packages
sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from generated import GeneratedStream
from loopback import Api, StoreBackend


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    streams = [GeneratedStream(key=7), GeneratedStream(key=8, id="toy@1/layers.1:input[0]", seed=1)]
    with Store(tmp_path_factory.mktemp("api") / "h.duckdb") as store:
        for stream in streams:
            stream.fill(store)
        backend = StoreBackend(store, streams)
        yield backend
        assert backend.writer.close(10)


@pytest.fixture
def api(backend):
    live = dict(backend.live)
    yield Api(backend)
    backend.live, backend.reasons, backend.busy, backend.time = live, [], False, backend.generated[0].end
