"""Versions and ids over restarts: clean ones, from an older checkpoint, from none, and from another model's."""

import asyncio
import json
import shutil

import numpy as np
import pytest
from hydrophone_schemas.names import StreamId
from hydrophoned.ingest.sink import StreamSpec
from hydrophoned.rows import Rows
from hydrophoned.runtime import versions
from hydrophoned.runtime.backend import DaemonBackend
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.config import load_config
from hydrophoned.runtime.daemon import Daemon

STREAM, WIDTH, F = "toy@1/layers.0", 16, 64
SPEC = StreamSpec(StreamId.parse(STREAM), "f" * 16, WIDTH, "float32")
LEARN = {
    "features": F, "k": 4, "batch_rows": 64, "buffer_rows": 256, "warmup_rows": 128, "publish_moved": 0.0,
    "dead_after_rows": 400,
}  # fmt: skip


class Run:
    """One life of a daemon on a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.config = load_config(None, {"daemon": {"data_dir": str(folder), "nice": 0}, "learn": LEARN})

    def live(self, scenario):
        async def main():
            daemon = Daemon(self.config)
            daemon.restore()
            key = daemon.open_stream(SPEC, "p")
            try:
                return await scenario(daemon, key)
            finally:
                await daemon.close()

        return asyncio.run(main())

    @property
    def streams(self):
        return self.folder / "streams"

    @property
    def stream(self):
        (folder,) = (path for path in self.streams.iterdir() if ".damaged" not in path.name)
        return folder


async def feed(daemon, key, seed, count=2000):
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(32, WIDTH))
    x = ((rng.random((count, 32)) * (rng.random((count, 32)) < 0.08)) @ basis).astype(np.float32)
    column = np.arange(count, dtype=np.int32)
    daemon.put_rows(
        key,
        Rows(x, "float32", (column // 8).astype(np.int64), np.zeros(count, np.uint16), column % 8,
             np.zeros(count, np.uint8), column, np.full(count, now_us(), np.int64)),
    )  # fmt: skip
    await daemon.flush()


async def state(daemon):
    """Version, ids by index, and the first id not given yet, of the learner."""
    worker = daemon.streams.get(STREAM).worker
    question = worker.call(
        lambda one: (one.dictionary_version, one.identity.ids.tolist(), one.identity.next_id, one.publication.digest)
    )
    return await asyncio.wrap_future(question)


async def first_life(daemon, key):
    """Version 1 and a checkpoint; then version 2, and a second checkpoint when it ends."""
    await feed(daemon, key, 0)
    await daemon.checkpoint()
    at_checkpoint = await state(daemon)
    await feed(daemon, key, 1)
    row = await DaemonBackend(daemon, None).publish(STREAM)
    assert row["version"] == 2
    assert row["born"] > 0
    return at_checkpoint, await state(daemon)


def told(daemon, key, ids):
    """What the store says of the index of each id."""
    return [daemon.reader.feature_of_id(key, feature_id) for feature_id in ids]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_a_clean_restart_goes_on_where_it_was(run):
    _, before = run.live(first_life)

    async def again(daemon, key):
        await feed(daemon, key, 2, 64)
        return await state(daemon), daemon.reader.versions(key, limit=9)["version"].to_pylist()

    after, stored = run.live(again)
    assert after == before
    assert stored == [2, 1]
    assert versions.numbers(run.stream / "versions") == [1, 2]


def test_one_that_was_killed_takes_no_number_and_no_id_twice_and_puts_right_what_was_told(run):
    at_checkpoint, lost = run.live(first_life)
    shutil.rmtree(max(run.stream.glob("checkpoint-*")))  # as if it had been killed before it was written
    assert at_checkpoint[0] == 1

    async def again(daemon, key):
        before = await state(daemon)
        await feed(daemon, key, 5)
        after = await state(daemon)
        rows = daemon.reader.versions(key, limit=9).to_pylist()
        return before, after, rows, told(daemon, key, after[1]), told(daemon, key, set(lost[1]) - set(after[1]))

    before, after, rows, living, ended = run.live(again)
    assert before[:2] == at_checkpoint[:2]
    assert [(row["version"], row["parent"], row["reason"]) for row in rows] == [
        (3, 1, "resumed"), (2, 1, "requested"), (1, None, "first"),
    ]  # fmt: skip
    assert after[0] == 3
    new = set(after[1]) - set(at_checkpoint[1])
    assert not new & set(lost[1])
    assert not new or min(new) >= lost[2]
    assert [row["index"] for row in living] == list(range(F))
    assert all(row["state"] != "lost" for row in living)
    assert ended
    assert all((row["state"], row["version"]) == ("lost", 3) for row in ended)
    assert versions.numbers(run.stream / "versions") == [1, 2, 3]


def test_one_whose_checkpoints_are_damaged_begins_anew_and_goes_on_numbering(run):
    _, lost = run.live(first_life)
    for path in run.stream.glob("checkpoint-*"):
        (path / "state.json").write_text("{}")

    async def again(daemon, key):
        before = await state(daemon)
        await feed(daemon, key, 5)
        after = await state(daemon)
        return before, after, daemon.reader.versions(key, limit=1).to_pylist(), told(daemon, key, lost[1])

    before, after, rows, ended = run.live(again)
    assert before[:2] == (0, [])
    assert after[0] == 3
    assert (rows[0]["reason"], rows[0]["parent"]) == ("first", None)
    assert min(after[1]) >= lost[2]
    assert all((row["state"], row["version"]) == ("lost", 3) for row in ended)
    assert versions.numbers(run.stream / "versions") == [1, 2, 3]
    assert len(list(run.streams.glob("*.damaged-*"))) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fingerprint", "a" * 16, f"fingerprint {'a' * 16}, not {'f' * 16}"),
        ("stream", "toy@1/layers.9", "site layers.9, not layers.0"),
        ("width", 12, "width 12, not 16"),
    ],
)
def test_a_checkpoint_of_another_model_site_or_width_is_not_taken_up(run, caplog, name, value, message):
    run.live(first_life)
    for path in run.stream.glob("checkpoint-*"):
        document = json.loads((path / "state.json").read_text())
        document["about"][name] = value
        (path / "state.json").write_text(json.dumps(document))

    async def again(daemon, key):
        return await state(daemon)

    assert run.live(again)[:2] == (0, [])
    assert message in caplog.text
    aside = next(run.streams.glob("*.damaged-*"))
    assert versions.numbers(aside / "versions") == [1, 2]  # of that model too
