"""``hydrophone dictionary`` as a user runs it."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hydrophone_schemas.activations import Phase
from hydrophoned.formats import detect, hydrophone
from hydrophoned.formats.exchange import from_dictionary, to_dictionary
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.sae import files
from hydrophoned.rows import Rows
from hydrophoned.runtime.checkpoint import save_checkpoint
from hydrophoned.runtime.cli import app
from peer_folders import DATA, dense, library, rows_of, same_bits, weights
from typer.testing import CliRunner


def run(*arguments, status=0):
    command = [sys.executable, "-m", "hydrophone.cli", "dictionary", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=os.environ)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_dictionary_of_another_tool_goes_in_and_out_bit_for_bit(tmp_path):
    peer = DATA / "saelens-topk"
    told = json.loads(run("import", peer, "--to", tmp_path / "own", "--json").stdout)
    assert {name: told[name] for name in ("format", "variant", "features", "width", "k", "notes")} == {
        "format": "saelens",
        "variant": "topk",
        "features": 64,
        "width": 16,
        "k": 8,
        "notes": [],
    }
    done = run("export", tmp_path / "own", "--format", "saelens", "--to", tmp_path / "back")
    assert done.stdout == (
        f"exported a topk dictionary of 64 features (width 16, k 8) as saelens to {tmp_path / 'back'}\n"
    )
    assert same_bits(weights(tmp_path / "back", library(peer)), weights(peer, library(peer)))


@pytest.fixture
def invoke():
    """The same in this process, where starting one would take longer than what it does."""

    def call(*arguments, status=0):
        done = CliRunner().invoke(app, ["dictionary", *map(str, arguments)])
        assert done.exit_code == status, done.output
        return done

    return call


def test_notes_say_what_is_not_as_expected(tmp_path, invoke):
    out = invoke("import", DATA / "saelens-standard", "--to", tmp_path / "own").stdout
    assert "note: the file does not say how many latents are active" in out
    invoke("import", DATA / "saelens-standard", "--k", 5, "--to", tmp_path / "with-k")
    assert files.load(tmp_path / "with-k").k == 5
    err = invoke("import", DATA / "saelens-topk", "--k", 5, "--to", tmp_path / "x", status=1).stderr
    assert "says k = 8 itself" in err


def test_what_cannot_be_done_is_said_without_a_trace(tmp_path, invoke):
    err = invoke("import", tmp_path, "--to", tmp_path / "x", status=1).stderr
    assert err.startswith(f"error: {tmp_path} holds none of ")
    err = invoke("export", DATA / "saelens-topk", "--format", "sparsify", "--to", tmp_path / "x", status=1).stderr
    assert "Import it first" in err
    invoke("import", DATA / "saelens-gated", "--to", tmp_path / "gated")
    err = invoke("export", tmp_path / "gated", "--format", "sparsify", "--to", tmp_path / "x", status=1).stderr
    assert "not gated; saelens and dictionary_learning do" in err
    err = invoke("import", DATA / "saelens-gated", "--to", tmp_path / "gated", status=1).stderr
    assert "exists and is not empty" in err
    invoke("export", tmp_path / "gated", "--format", "onnx", "--to", tmp_path / "x", status=2)
    invoke("train", tmp_path / "x.npy", status=2)


@pytest.fixture
def checkpoints(tmp_path):
    """A stream's folder of checkpoints as the daemon writes it, and the learner it is of."""
    config = LearnerConfig(features=64, k=4, batch_rows=128, warmup_rows=256, normaliser_rows=512)
    learner = StreamLearner(1, 16, config)
    x = rows_of(3000).numpy()
    n = len(x)
    rows = Rows(
        activation=x,
        dtype="float32",
        request=np.arange(n, dtype=np.int64),
        sequence=np.zeros(n, np.uint16),
        position=np.zeros(n, np.int32),
        phase=np.full(n, Phase.PROMPT, np.uint8),
        token=np.full(n, -1, np.int32),
        time=np.arange(n, dtype=np.int64) + 1_700_000_000_000_000,
    )
    learner.observe(rows)
    learner.flush()
    about = {"stream": "m@1/layers.3", "fingerprint": "f", "width": 16, "learner": asdict(config)}
    save_checkpoint(tmp_path / "stream", learner.state_dict(), about)
    return tmp_path / "stream", learner


def test_a_streams_checkpoint_is_exported_with_its_normaliser_folded_in(checkpoints, tmp_path):
    folder, learner = checkpoints
    told = json.loads(run("export", folder, "--format", "saelens", "--to", tmp_path / "x", "--json").stdout)
    assert (told["variant"], told["features"], told["k"]) == ("topk", 64, 4)
    exchange = detect.load(tmp_path / "x")
    assert (exchange.metadata["model"], exchange.metadata["site"]) == ("m@1", "layers.3")
    expected = from_dictionary(learner.dictionary, mean=learner.normaliser.mean, scale=learner.normaliser.scale)
    rows = rows_of(100, seed=40)
    one, other = dense(to_dictionary(exchange), rows), dense(to_dictionary(expected), rows)
    assert torch.equal(one[0], other[0])
    rebuilt = learner.normaliser.invert(
        learner.dictionary.decode(learner.dictionary.encode(learner.normaliser.apply(rows)))
    )
    # products of the learner itself may be in bfloat16: a row here and there has another latent of nearly the same size
    assert ((one[1] - rebuilt).norm(dim=1) / rebuilt.norm(dim=1)).median() < 0.01


def test_one_checkpoint_instead_of_the_streams_folder_is_told(checkpoints, tmp_path, invoke):
    folder, _ = checkpoints
    err = invoke("export", folder / "checkpoint-000001", "--format", "saelens", "--to", tmp_path / "x", status=1).stderr
    assert "Name the folder above" in err


def test_training_on_files(tmp_path):
    rows = rows_of(9000, seed=1).numpy()
    rows[5, 3] = np.nan
    rows[100] *= 1000
    np.save(tmp_path / "a.npy", rows[:5000])
    np.save(tmp_path / "b.npy", rows[5000:].astype(np.float16))
    options = ["--features", 64, "--k", 4, "--passes", 3, "--batch-rows", 128, "--holdout", 0.2, "--seed", 3]
    files_ = [tmp_path / "a.npy", tmp_path / "b.npy"]
    done = run("train", *files_, "--to", tmp_path / "one", *options, "--json")
    told = json.loads(done.stdout)
    assert (told["rows_skipped"], told["rows_sink"]) == (3, 3), "in each pass once"
    assert told["rows_learned"] == 3 * (4000 + 3200 - 2)
    assert told["holdout"]["rows"] == 1800
    assert told["holdout"]["fvu"] < 0.35
    assert told["holdout"]["l0"] <= 4
    assert "of 21,600 rows  " in done.stderr, "plain lines where there is no terminal"
    assert "rows/s" in done.stderr
    # the figure is that of the saved dictionary on these very rows
    exchange = detect.load(tmp_path / "one")
    assert exchange.metadata["training"]["files"] == ["a.npy", "b.npy"]
    held = torch.from_numpy(np.concatenate([np.load(files_[0])[4000:], np.load(files_[1])[3200:]]).astype(np.float32))
    _, rebuilt = dense(to_dictionary(exchange), held)
    fvu = float((rebuilt - held).square().sum() / (held - held.mean(0)).square().sum())
    assert told["holdout"]["fvu"] == pytest.approx(fvu, rel=0.05)
    run("train", *files_, "--to", tmp_path / "two", *options)
    assert same_tensors(tmp_path / "one", tmp_path / "two"), "the same seed gives the same dictionary"


def same_tensors(one, other):
    return (one / files.TENSORS).read_bytes() == (other / files.TENSORS).read_bytes()


def test_a_trained_dictionary_can_be_exported_and_learns_on(tmp_path):
    np.save(tmp_path / "a.npy", rows_of(3000).numpy())
    run("train", tmp_path / "a.npy", "--to", tmp_path / "own", "--features", 64, "--k", 4, "--variant", "batchtopk")
    run("export", tmp_path / "own", "--format", "dictionary_learning", "--to", tmp_path / "x")
    assert detect.load(tmp_path / "x").variant == "batchtopk"
    saved = files.read(tmp_path / "own")
    mean, scale = saved.beside[hydrophone._MEAN], float(saved.beside[hydrophone._SCALE])
    report = saved.dictionary.partial_fit(((rows_of(512, seed=9) - mean) * scale).float())
    assert report.fvu < 0.6


def test_too_few_rows_and_unreadable_files_are_said(tmp_path, invoke):
    np.save(tmp_path / "a.npy", np.ones((40, 4), np.float32))
    err = invoke("train", tmp_path / "a.npy", "--to", tmp_path / "x", "--holdout", 0, status=1).stderr
    assert "40 rows are too few to learn from: at least 64" in err
    err = invoke("train", tmp_path / "none.npy", "--to", tmp_path / "x", status=1).stderr
    assert "none.npy cannot be read" in err
    np.save(tmp_path / "b.npy", np.ones((40, 5), np.float32))
    err = invoke("train", tmp_path / "a.npy", tmp_path / "b.npy", "--to", tmp_path / "x", status=1).stderr
    assert "b.npy has rows of width 5" in err
    err = invoke("train", tmp_path / "a.npy", "--to", tmp_path / "x", "--sink-norm-factor", 0, status=2).stderr
    assert "--sink-norm-factor" in err
    assert not (tmp_path / "x").exists()
