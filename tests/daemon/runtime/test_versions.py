import hashlib
import io
import stat
import tarfile

import numpy as np
import pytest
import torch
from hydrophoned.formats import detect
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.errors import CheckpointError, OtherOrigin
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.sae import files
from hydrophoned.rows import Rows
from hydrophoned.runtime import dictionaries, versions
from hydrophoned.runtime.cli import app
from hydrophoned.runtime.versions import Origin, VersionWriter
from typer.testing import CliRunner

T0 = 1_700_000_000_000_000
STREAM = "toy@1/layers.0"
ORIGIN = Origin("f" * 16, "layers.0", 8)


def rows(count, seed=0):
    number = np.arange(count)
    return Rows(
        np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32), "float32", number // 4,
        np.zeros(count, np.uint16), (number % 4).astype(np.int32), np.zeros(count, np.uint8),
        np.full(count, -1, np.int32), T0 + seed * 1_000_000 + number,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learner():
    """A learner, and the content of the five versions that it published."""
    config = LearnerConfig(features=32, k=3, batch_rows=64, buffer_rows=128, warmup_rows=128, publish_moved=0.0)
    one, kept = StreamLearner(1, 8, config), []
    one.on_version = kept.append
    for seed in range(5):
        one.observe(rows(512, seed))
        if seed:
            one.publish(T0 + seed)
    return one, kept


@pytest.fixture
def directory(tmp_path, learner):
    directory = tmp_path / "versions"
    for artefact in learner[1]:
        versions.write(directory, artefact, STREAM, ORIGIN, keep=3)
    return directory


def test_the_newest_are_kept_and_nothing_else_lies_about(directory):
    assert versions.numbers(directory) == [3, 4, 5]
    assert sorted(path.name for path in directory.iterdir()) == ["v000003", "v000004", "v000005"]


def test_what_is_written_is_what_was_published_and_says_of_what(directory, learner):
    one, kept = learner
    folder = directory / "v000005"
    saved = versions.load(folder, ORIGIN)
    assert torch.equal(saved.dictionary.W_dec, one.dictionary.W_dec)
    metadata = saved.about["metadata"]
    assert {name: metadata[name] for name in ("stream", "model", "site", "fingerprint", "width")} == {
        "stream": STREAM, "model": "toy@1", "site": "layers.0", "fingerprint": "f" * 16, "width": 8,
    }  # fmt: skip
    assert metadata["training"]["version"] == 5
    assert metadata["training"]["rows_learned"] == one.rows_learned
    assert hashlib.sha256((folder / files.TENSORS).read_bytes()).hexdigest() == kept[-1].digest
    assert versions.origin_of(folder) == ORIGIN


def test_a_version_never_changes(directory, learner):
    for path in (directory / "v000005").iterdir():
        assert not stat.S_IMODE(path.stat().st_mode) & 0o222
    with pytest.raises(FileExistsError, match="never changes"):
        versions.write(directory, learner[1][-1], STREAM, ORIGIN, keep=3)


def test_one_that_was_damaged_is_refused(directory):
    path = directory / "v000004" / files.TENSORS
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its digest"):
        versions.load(directory / "v000004")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Origin(fingerprint="a" * 16), f"fingerprint {'f' * 16}, not {'a' * 16}"),
        (Origin(site="layers.7"), "site layers.0, not layers.7"),
        (Origin(width=12), "width 8, not 12"),
        (Origin("a" * 16, "layers.7", 12), f"{'f' * 16}, not {'a' * 16}; site layers.0, not layers.7; width 8, not 12"),
    ],
)
def test_a_dictionary_of_another_model_site_or_width_is_refused_with_both(directory, wanted, message):
    with pytest.raises(OtherOrigin, match=message):
        versions.load(directory / "v000005", wanted)


def test_what_was_given_out_last_is_known_from_the_folder_alone(directory, learner, tmp_path):
    given = versions.last_given(directory)
    assert given.version == 5
    assert given.next_id == learner[0].identity.next_id
    assert torch.equal(given.ids, learner[0].identity.ids)
    assert versions.last_given(tmp_path / "none") is None
    path = directory / "v000005" / files.CONFIG
    path.chmod(0o644)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="which ids it gave"):
        versions.last_given(directory)


def test_a_write_that_was_cut_short_leaves_no_version(tmp_path, learner, monkeypatch):
    monkeypatch.setattr(versions.files, "config_text", lambda _: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        versions.write(tmp_path, learner[1][0], STREAM, ORIGIN, keep=3)
    assert list(tmp_path.iterdir()) == []


def test_the_tar_holds_the_folder_to_the_byte(directory, tmp_path):
    found = versions.artefact_files(directory / "v000005")
    content = b"".join(found.chunks())
    assert len(content) == found.nbytes
    assert found.name == "v000005.tar"
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    for path in (directory / "v000005").iterdir():
        assert (tmp_path / "out/v000005" / path.name).read_bytes() == path.read_bytes()
    assert versions.load(tmp_path / "out/v000005", ORIGIN)
    assert versions.artefact_files(directory / "v000001") is None


def test_other_tools_and_our_own_commands_read_it(directory, learner, tmp_path):
    assert detect.detect(directory / "v000005") == "hydrophone"
    dictionaries.give_out(directory / "v000005", tmp_path / "sae", form="saelens")
    exchange = detect.load(tmp_path / "sae")
    assert (exchange.features, exchange.width) == (32, 8)
    x = torch.from_numpy(rows(64, 9).activation)
    own = learner[0].encode(x.numpy())
    shift = exchange.b_dec if exchange.centred else 0.0
    p = torch.relu((x - shift) @ exchange.W_enc.T + exchange.b_enc)
    values = p.topk(3, dim=1)
    active = own.value > 0
    assert (np.where(active, values.indices.numpy(), -1) == np.where(active, own.index, -1)).mean() > 0.98


def test_the_command_refuses_one_of_another_model_or_site(directory, tmp_path):
    def export(*options):
        to = str(tmp_path / "out")
        arguments = ["dictionary", "export", str(directory / "v000005"), "--format", "hydrophone", "--to", to, *options]
        return CliRunner().invoke(app, arguments)

    for options, message in (
        (("--fingerprint", "a" * 16), f"fingerprint {'f' * 16}, not {'a' * 16}"),
        (("--site", "layers.7"), "site layers.0, not layers.7"),
    ):
        done = export(*options)
        assert done.exit_code == 1
        assert message in done.output
        assert not (tmp_path / "out").exists()
    assert export("--fingerprint", "f" * 16, "--site", "layers.0").exit_code == 0
    # what came from another tool does not say of which model it is
    foreign = dictionaries.open_dictionary(tmp_path / "out")
    with pytest.raises(OtherOrigin, match=f"fingerprint unknown, not {'f' * 16}"):
        versions.check_origin("it", Origin(None, "layers.0", foreign.width), ORIGIN)


def test_versions_are_written_in_a_thread_and_a_failure_is_told(tmp_path, learner, caplog):
    writer = VersionWriter()
    for artefact in learner[1]:
        writer.put(tmp_path / "a", artefact, STREAM, ORIGIN, keep=9)
    writer.flush()
    assert versions.numbers(tmp_path / "a") == [1, 2, 3, 4, 5]
    writer.put(tmp_path / "a", learner[1][0], STREAM, ORIGIN, keep=9)
    writer.close()
    assert "version 1 of the dictionary of toy@1/layers.0 is not kept" in caplog.text
