"""``hydrophone dictionary train``: whitening, the device, and files whose rows lie in some order."""

import json

import numpy as np
import pytest
import torch
from hydrophoned.formats import detect
from hydrophoned.formats.exchange import to_dictionary
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.offline import OfflineTrainer
from hydrophoned.learn.sae import files
from hydrophoned.runtime.cli import app
from peer_folders import dense, rows_of
from typer.testing import CliRunner

SMALL = ("--features", 64, "--k", 4, "--batch-rows", 128)
STRETCH = torch.diag(torch.logspace(-0.7, 0.7, 16))


@pytest.fixture
def train(tmp_path):
    def call(*arguments, to="own", status=0):
        command = ["dictionary", "train", *map(str, arguments), "--to", str(tmp_path / to)]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == status, done.output
        return done

    return call


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "a.npy", (rows_of(8000, seed=1) @ STRETCH).numpy())
    return tmp_path / "a.npy"


def told(done):
    return json.loads(done.stdout)


def test_rows_are_whitened_by_their_own_covariance(train, path, tmp_path):
    done = told(train(path, *SMALL, "--normalise", "whiten", "--json"))
    assert (done["normalise"], done["whitening_rows"], done["control"], done["notes"]) == ("whiten", 2048, None, [])
    held = torch.from_numpy(np.load(path)[7200:])
    _, rebuilt = dense(to_dictionary(detect.load(tmp_path / "own")), held)
    fvu = float((rebuilt - held).square().sum() / (held - held.mean(0)).square().sum())
    assert done["holdout"]["fvu_raw"] == pytest.approx(fvu, rel=0.05)
    assert done["holdout"]["fvu"] != done["holdout"]["fvu_raw"]
    assert (
        "whitened by 2,048 rows of their own; of the rows as they were: fvu"
        in train(path, *SMALL, "--normalise", "whiten", to="two").stdout
    )
    plain = told(train(path, *SMALL, "--json", to="three"))
    assert (plain["normalise"], plain["whitening_rows"]) == ("scale", None)
    assert plain["holdout"]["fvu"] == plain["holdout"]["fvu_raw"]


def test_rows_are_whitened_by_control_rows(train, path, tmp_path):
    control = rows_of(300, seed=70).numpy()
    control[3, 2], control[9] = np.nan, control[9] * 1000
    np.save(tmp_path / "c.npy", control)
    done = told(train(path, *SMALL, "--normalise", "control", "--control", tmp_path / "c.npy", "--json"))
    assert done["control"] == {"file": "c.npy", "rows": 298, "rows_sink": 1, "rows_skipped": 1}
    assert done["whitening_rows"] == 298
    assert detect.load(tmp_path / "own").metadata["training"]["control"]["file"] == "c.npy"
    np.save(tmp_path / "few.npy", control[20:60])
    few = train(path, *SMALL, "--normalise", "control", "--control", tmp_path / "few.npy", to="few").stdout
    assert "note: whitened by 40 rows of width 16: fewer than 160 (10 per element)" in few
    assert "whitened by 40 control rows;" in few


def test_what_is_wrong_with_control_rows_is_said(train, path, tmp_path):
    np.save(tmp_path / "few.npy", rows_of(16).numpy())
    np.save(tmp_path / "wide.npy", rows_of(300, d=17).numpy())
    options = ("--normalise", "control", "--control")
    err = train(path, *options, tmp_path / "few.npy", status=1).stderr
    assert "16 control rows are too few to whiten rows of width 16: at least 17" in err
    err = train(path, *options, tmp_path / "wide.npy", status=1).stderr
    assert "wide.npy has control rows of width 17; the rows to whiten have 16" in err
    err = train(path, *options, tmp_path / "none.npy", status=1).stderr
    assert "none.npy cannot be read" in err
    for wrong in (("--normalise", "control"), ("--control", path), ("--normalise", "whiten", "--control", path)):
        assert "go together" in train(path, *wrong, status=2).stderr
    assert not (tmp_path / "own").exists()


def test_too_few_rows_to_whiten_by_are_said(train, path, tmp_path):
    np.save(tmp_path / "b.npy", np.random.default_rng(0).standard_normal((100, 60), dtype=np.float32))
    err = train(tmp_path / "b.npy", "--holdout", 0, "--normalise", "whiten", status=1).stderr
    assert "100 rows are too few to learn from: at least 120 are needed" in err
    np.save(tmp_path / "c.npy", np.random.default_rng(0).standard_normal((200, 60), dtype=np.float32))
    out = train(tmp_path / "c.npy", "--holdout", 0, "--normalise", "whiten").stdout
    assert "note: whitened by 200 rows of width 60: fewer than 600" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_and_auto_does_without(train, path):
    err = train(path, *SMALL, "--device", "cuda", status=2).stderr
    assert "torch finds no CUDA device here; take auto or cpu" in err
    train(path, *SMALL, "--device", "auto")
    train(path, *SMALL, "--device", "cpu", to="two")


def test_a_file_sorted_by_what_its_rows_are_is_learned_as_one_that_is_mixed(train, tmp_path):
    """Ten topics with atoms of their own, one after the other: read in order, the first are forgotten again."""
    generator = np.random.default_rng(3)
    directions = generator.standard_normal((10, 6, 32))
    weights = generator.random((10, 3000, 6)) * (generator.random((10, 3000, 6)) < 0.4)
    rows = (weights @ directions).reshape(-1, 32).astype(np.float32)
    np.save(tmp_path / "sorted.npy", rows)
    np.save(tmp_path / "mixed.npy", generator.permutation(rows))
    options = ("--features", 96, "--k", 4, "--batch-rows", 128, "--holdout", 0, "--json")
    fvu = {}
    for name in ("sorted", "mixed"):
        train(tmp_path / f"{name}.npy", *options, to=name)
        one = to_dictionary(detect.load(tmp_path / name))
        x = torch.from_numpy(rows[::10])
        _, rebuilt = dense(one, x)
        fvu[name] = float((rebuilt - x).square().sum() / (x - x.mean(0)).square().sum())
    assert fvu["sorted"] < 1.6 * fvu["mixed"]
    in_order = OfflineTrainer(32, LearnerConfig(features=96, k=4, batch_rows=128))
    list(in_order.train([(0.0, rows[start : start + 128]) for start in range(0, len(rows), 128)]))
    assert in_order.score([rows[::10]]).fvu > 2.5 * fvu["mixed"], "or there was nothing to mend"
    train(tmp_path / "sorted.npy", *options, to="again")
    assert (tmp_path / "sorted" / files.TENSORS).read_bytes() == (tmp_path / "again" / files.TENSORS).read_bytes()
