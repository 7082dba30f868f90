"""Attributes of requests on their way from the producer to the tables, over a restart."""

import asyncio
import json

import numpy as np
from hydrophone_schemas.names import StreamId
from hydrophoned.ingest.sink import RequestSpec, StreamSpec
from hydrophoned.rows import Rows
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.config import load_config
from hydrophoned.runtime.daemon import Daemon

SPEC = StreamSpec(StreamId("toy", "1", "layers.0"), "f" * 16, 16, "float32")
LEARN = {"features": 64, "k": 4, "batch_rows": 64, "buffer_rows": 256, "warmup_rows": 128, "split_by": "tenant, beta"}


def rows_of(key, count, rng):
    basis = np.random.default_rng(99).normal(size=(32, 16))
    x = ((rng.random((count, 32)) * (rng.random((count, 32)) < 0.08)) @ basis).astype(np.float32)
    column = np.arange(count, dtype=np.int32)
    return Rows(
        x, "float32", np.full(count, key, np.int64), np.zeros(count, np.uint16), column,
        np.zeros(count, np.uint8), column, np.full(count, now_us(), np.int64),
    )  # fmt: skip


def request(daemon, number, attributes):
    return daemon.open_request(RequestSpec(f"r{number}", "toy", "1", "p", now_us(), 1.0, attributes))


def cells(daemon, key):
    found = daemon.reader.splits(key, 0, 1 << 60).to_pylist()
    return {(row["attribute"], row["value"]): row["rows"] for row in found if row["attribute"] != "phase"}


def test_rows_are_split_by_what_their_requests_are_like_also_after_a_restart(tmp_path):
    config = load_config(None, {"daemon": {"data_dir": str(tmp_path), "nice": 0}, "learn": LEARN})
    rng = np.random.default_rng(0)

    async def first():
        daemon = Daemon(config)
        daemon.restore()
        stream = daemon.open_stream(SPEC, "p")
        daemon.put_rows(stream, rows_of(request(daemon, 0, {}), 256, rng))
        await daemon.flush()
        acme = request(daemon, 1, {"tenant": "acme", "beta": True})
        other = request(daemon, 2, {"tenant": "umbra", "unasked": 1})
        daemon.put_rows(stream, rows_of(acme, 128, rng))
        daemon.put_rows(stream, rows_of(other, 64, rng))
        await daemon.flush()
        scored = cells(daemon, stream)
        await daemon.close()
        return stream, acme, scored

    async def second(stream, acme):
        daemon = Daemon(config)
        daemon.restore()
        daemon.put_rows(stream, rows_of(acme, 64, rng))
        await daemon.flush()
        scored = cells(daemon, stream)
        await daemon.close()
        return scored

    stream, acme, scored = asyncio.run(first())
    sinks = 20  # a few rows may be set apart
    assert set(scored) == {("tenant", "acme"), ("tenant", "umbra"), ("beta", "true")}
    assert 128 - sinks <= scored["tenant", "acme"] <= 128
    assert scored["beta", "true"] == scored["tenant", "acme"]
    assert 64 - sinks <= scored["tenant", "umbra"] <= 64
    again = asyncio.run(second(stream, acme))
    assert 64 - sinks <= again["tenant", "acme"] - scored["tenant", "acme"] <= 64
    assert again["tenant", "umbra"] == scored["tenant", "umbra"]


def test_split_by_is_read_from_a_flag_a_file_and_the_environment(tmp_path, monkeypatch):
    assert load_config(None, {"learn": {"split_by": "tenant,route"}}).learn.split_by == ("tenant", "route")
    path = tmp_path / "c.toml"
    path.write_text("[learn]\nsplit_by = ['tenant']\n[[learn.override]]\nmatch = 'a@*'\nsplit_by = ['model']\n")
    config = load_config(path, {})
    assert config.split_by == {"tenant", "model"}
    assert config.learner_config("a@1/b").split_by == ("model",)
    assert config.learner_config("b@1/b").split_by == ("tenant",)
    monkeypatch.setenv("HYDROPHONE_LEARN__SPLIT_BY", json.dumps(["route"]))
    assert load_config(path, {}).learn.split_by == ("route",)
