"""Whitened streams as the daemon makes them: control rows from a file, and a checkpoint that knows its own."""

import logging
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hydrophone_schemas.names import StreamId
from hydrophoned.formats.errors import UnreadableRows
from hydrophoned.ingest.sink import StreamSpec
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.errors import InvalidConfig, LearnError
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.rows import Rows
from hydrophoned.runtime.checkpoint import copy_state, save_checkpoint
from hydrophoned.runtime.streams import StreamRegistry

D = 12
SPEC = StreamSpec(StreamId("m", "1", "layers.3"), "f", D, "float32")
CONFIG = LearnerConfig(features=32, k=4, batch_rows=64, buffer_rows=256, warmup_rows=128, reservoir_rows=50)


def rows_of(n, seed=0, d=D):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32) * np.logspace(0, 1, d, dtype="f4")


def observe(learner, n=500):
    narrow = np.zeros(n, np.int32)
    time = np.arange(n, dtype=np.int64) + 1_700_000_000_000_000
    request = np.arange(n, dtype=np.int64)
    learner.observe(
        Rows(rows_of(n), "float32", request, narrow.astype(np.uint16), narrow, narrow.astype(np.uint8), narrow, time)
    )


@pytest.fixture
def make(tmp_path):
    """A learner of the stream as the daemon would make it in its thread."""

    def call(config, control=None):
        registry = StreamRegistry(
            tmp_path / "streams",
            lambda _: config,
            lambda _: None,
            lambda: 0,
            device=torch.device("cpu"),
            queue_bytes=1 << 20,
            max_streams=4,
            keep_checkpoints=2,
            niceness=0,
            idle_seconds=0.0,
            control_file=lambda stream_id: {"m@1/layers.3": control}[stream_id],
        )
        return registry._make_learner(1, SPEC, torch.device("cpu"))

    return call


def control_config():
    return LearnerConfig(**asdict(CONFIG) | {"normalise": "control"})


def test_control_rows_are_read_from_the_streams_own_file(make, tmp_path, caplog):
    np.save(tmp_path / "c.npy", rows_of(100))
    with caplog.at_level(logging.INFO):
        one = make(control_config(), tmp_path / "c.npy")
    assert one.normaliser.whitening.rows == 100
    assert "stream m@1/layers.3 is whitened by control rows: {'file': 'c.npy', 'rows': 100" in caplog.text
    assert "stream m@1/layers.3 is whitened by 100 rows of width 12: fewer than 120" in caplog.text
    observe(one)
    assert one.dictionary_version == 1
    assert one.status()["normalise"] == "control"


def test_control_rows_that_cannot_be_had_are_said(make, tmp_path):
    np.save(tmp_path / "few.npy", rows_of(12))
    np.save(tmp_path / "wide.npy", rows_of(100, d=13))
    with pytest.raises(LearnError, match="12 control rows are too few"):
        make(control_config(), tmp_path / "few.npy")
    with pytest.raises(UnreadableRows, match=r"wide\.npy has control rows of width 13; the rows to whiten have 12"):
        make(control_config(), tmp_path / "wide.npy")
    with pytest.raises(UnreadableRows, match=r"none\.npy cannot be read"):
        make(control_config(), tmp_path / "none.npy")
    with pytest.raises(InvalidConfig, match=r"m@1/layers\.3 needs learn\.control_file"):
        make(control_config())


@pytest.mark.parametrize("kind", ["whiten", "control"])
def test_a_stream_goes_on_as_its_checkpoint_was_whitened(make, tmp_path, kind, caplog):
    np.save(tmp_path / "c.npy", rows_of(200))
    config = LearnerConfig(**asdict(CONFIG) | {"normalise": kind})
    one = make(config, tmp_path / "c.npy")
    observe(one)
    save(tmp_path, one, asdict(config))
    (tmp_path / "c.npy").unlink()  # what it was whitened by is in the checkpoint
    for now in (config, CONFIG):
        caplog.clear()
        other = make(now, tmp_path / "c.npy")
        assert other.config.normalise == kind
        assert torch.equal(other.normaliser.whitening.matrix, one.normaliser.whitening.matrix)
        probe = rows_of(30, seed=4)
        assert all(np.array_equal(*pair) for pair in zip(one.encode(probe), other.encode(probe), strict=True))
        told = f"goes on with normalise={kind} of its checkpoint; the config's scale applies to new streams"
        assert (told in caplog.text) == (now is CONFIG)


def test_a_checkpoint_from_before_there_was_whitening_goes_on(make, tmp_path):
    one = StreamLearner(1, D, CONFIG)
    observe(one)
    old = {name: value for name, value in asdict(CONFIG).items() if name != "normalise"}
    save(tmp_path, one, old)
    other = make(LearnerConfig(**asdict(CONFIG) | {"normalise": "whiten"}))
    assert other.config.normalise == "scale"
    assert other.normaliser.whitening is None
    assert other.rows_learned == one.rows_learned
    assert torch.equal(other.dictionary.W_dec, one.dictionary.W_dec)


def save(tmp_path, learner, config):
    about = {"stream": str(SPEC.id), "fingerprint": "f", "width": D, "learner": config}
    save_checkpoint(tmp_path / "streams" / "m@1%2Flayers.3", copy_state(learner.state_dict()), about)
