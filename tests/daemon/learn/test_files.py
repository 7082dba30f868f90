"""A dictionary on disk: it goes on exactly, and what lies is refused with file, value and remedy."""

import json
import os
from dataclasses import asdict

import pytest
import torch
from hydrophoned.learn.errors import CheckpointError
from hydrophoned.learn.sae import VARIANTS, DictionaryConfig, SparseAutoencoder, files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file


def rows(n, seed=0, d=12):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(20, d, generator=torch.Generator().manual_seed(7))
    return torch.rand(n, 20, generator=generator).pow(6) @ basis


def learning(variant="topk", *, steps=12, **settings):
    config = DictionaryConfig(
        width=12, features=32, k=3, variant=variant, dead_after_rows=256, revive_every_rows=256, **settings
    )
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(4))
    dictionary.initialise(rows(128))
    for step in range(steps):
        dictionary.partial_fit(rows(64, step))
    return dictionary


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_goes_on_exactly(variant, tmp_path):
    dictionary = learning(variant)
    dictionary.b_enc[:8] = -20.0  # some die, so that both revival and AuxK draw on what was saved
    dictionary.save(tmp_path / "x")
    again = SparseAutoencoder.load(tmp_path / "x")
    assert again.config == dictionary.config
    for step in range(20):
        one, other = dictionary.partial_fit(rows(64, 100 + step)), again.partial_fit(rows(64, 100 + step))
        assert torch.equal(one.fvu, other.fvu)
        assert one.revived == other.revived
    assert dictionary.rows_revived_total > 0
    for name, tensor in dictionary.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    assert torch.equal(dictionary.generator.get_state(), again.generator.get_state())


def test_double_precision_stays_double(tmp_path):
    config = DictionaryConfig(width=3, features=5, k=2)
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    files.save(dictionary, tmp_path / "x")
    assert torch.equal(files.load(tmp_path / "x").W_dec, dictionary.W_dec)


def test_what_lies_beside_and_what_is_said_about_it_come_back(tmp_path):
    beside = {"mean": torch.arange(3.0), "half": torch.ones(2, dtype=torch.bfloat16)}
    files.save(learning(), tmp_path / "x", about={"site": "s", "n": [1, None]}, beside=beside)
    saved = files.read(tmp_path / "x")
    assert saved.about == {"site": "s", "n": [1, None]}
    assert saved.beside.keys() == beside.keys()
    assert all(torch.equal(saved.beside[name], one) for name, one in beside.items())


def test_saving_again_takes_the_place_and_leaves_nothing_else(tmp_path):
    dictionary = learning()
    files.save(dictionary, tmp_path / "x")
    dictionary.partial_fit(rows(64, 77))
    files.save(dictionary, tmp_path / "x")
    assert torch.equal(files.load(tmp_path / "x").W_enc, dictionary.W_enc)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_save_that_fails_leaves_the_former_one(tmp_path, monkeypatch):
    dictionary = learning()
    files.save(dictionary, tmp_path / "x")
    before = dictionary.W_enc.clone()
    dictionary.partial_fit(rows(64, 77))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.save(dictionary, tmp_path / "x")
    monkeypatch.undo()
    assert torch.equal(files.load(tmp_path / "x").W_enc, before)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "note").write_text("mine")
    with pytest.raises(CheckpointError, match="no saved dictionary"):
        files.save(learning(), tmp_path / "x")
    assert (tmp_path / "x" / "note").read_text() == "mine"


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no .*config\.json"):
        files.load(tmp_path)


# -- lies -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The two files of a good folder."""
    folder = tmp_path_factory.mktemp("good") / "x"
    files.save(learning("jumprelu"), folder)
    return json.loads((folder / files.CONFIG).read_text()), load_file(folder / files.TENSORS)


def written(tmp_path, saved, *, config=None, tensors=None, **document):
    """A folder with changes: the digest is right unless ``document`` says otherwise."""
    folder = tmp_path / "x"
    folder.mkdir(exist_ok=True)
    save_file(saved[1] | (tensors or {}), folder / files.TENSORS)
    told = json.loads(json.dumps(saved[0]))
    told["config"] |= config or {}
    told["tensors_bytes"] = (folder / files.TENSORS).stat().st_size
    told["tensors_sha256"] = files._digest(folder / files.TENSORS)
    told |= document
    (folder / files.CONFIG).write_text(json.dumps(told))
    return folder


def test_the_unchanged_folder_loads(tmp_path, saved):
    assert files.load(written(tmp_path, saved)).features == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"variant": "relu"}}, "variant = 'relu' is no value"),
        ({"config": {"fetures": 3}}, "config has fetures"),
        ({"config": {"features": 33}}, r"W_dec is \[32, 12\], but \[33, 12\]"),
        ({"config": {"width": 13}}, r"W_dec is \[32, 12\], but \[32, 13\]"),
        ({"config": {"features": 1 << 40, "width": 1 << 40}}, "W_dec is"),
        ({"config": {"features": 10**400}}, "W_dec is"),
        ({"config": {"features": "32"}}, "features = '32'"),
        ({"config": {"features": True}}, "features = True"),
        ({"config": {"features": 32.0}}, r"features = 32\.0"),
        ({"config": {"k": 99}}, "k = 99 is outside"),
        ({"config": {"learning_rate": float("nan")}}, "learning_rate = nan"),
        ({"config": {"learning_rate": None}}, "learning_rate = None"),
        ({"config": {"prefixes": [1, "2"]}}, "prefixes = "),
        ({"config": {"prefixes": [1, 2]}}, "do not rise to features"),
        ({"config": {"low_precision": 1}}, "low_precision = 1"),
        ({"format": 2}, "format is 2; this version reads 1"),
        ({"kind": "another"}, "kind is 'another'"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"dtype": ["float32"]}, "dtype is"),
        ({"dtype": "float64"}, "W_dec is torch.float32"),
        ({"extra": 1}, "document has extra"),
        ({"about": [1]}, "about is a list"),
        ({"config": {}, "numbers": []}, "numbers is a list"),
        ({"numbers": {}}, "numbers lacks any_dead, batches"),
        ({"tensors_bytes": 5}, "cut short"),
        ({"tensors_sha256": "00"}, "is damaged"),
        ({"tensors": {"W_enc": torch.full((32, 12), float("nan"))}}, "384 of 384 values of W_enc are not finite"),
        ({"tensors": {"b_dec": torch.full((12,), float("inf"))}}, "12 of 12 values of b_dec are not finite"),
        ({"tensors": {"steps": torch.full((32,), -1)}}, "32 of 32 values of steps are negative"),
        ({"tensors": {"W_enc": torch.zeros(32, 12, dtype=torch.float64)}}, "W_enc is torch.float64"),
        ({"tensors": {"steps": torch.zeros(32, dtype=torch.int32)}}, "steps is torch.int32"),
        ({"tensors": {"b_enc": torch.zeros(31)}}, r"b_enc is \[31\], but \[32\]"),
        ({"tensors": {"log_threshold": torch.zeros(31)}}, "log_threshold is"),
        ({"tensors": {"extra": torch.zeros(3)}}, "file has extra"),
        ({"tensors": {"generator": torch.zeros(16, dtype=torch.uint8)}}, "dictionary.safetensors: "),
        ({"tensors": {"generator": torch.zeros(16)}}, "dictionary.safetensors: "),
    ],
)
def test_what_lies_is_named(tmp_path, saved, changes, message):
    folder = written(tmp_path, saved, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        files.load(folder)
    assert str(folder) in str(caught.value), "it says which file"


@pytest.mark.parametrize("value", [-1, 1.0, True, None, 1 << 64])
def test_a_counter_that_is_no_count_is_named(tmp_path, saved, value):
    folder = written(tmp_path, saved, numbers=saved[0]["numbers"] | {"batches": value})
    with pytest.raises(CheckpointError, match="batches = "):
        files.load(folder)


def test_every_tensor_is_needed(tmp_path, saved):
    for name in saved[1]:
        left = {key: one for key, one in saved[1].items() if key != name}
        folder = written(tmp_path, (saved[0], left))
        with pytest.raises(CheckpointError, match=name):
            files.load(folder)


def test_every_setting_is_needed(tmp_path, saved):
    for name in asdict(DictionaryConfig(width=1, features=1, k=1)):
        folder = written(tmp_path, saved)
        document = json.loads((folder / files.CONFIG).read_text())
        del document["config"][name]
        (folder / files.CONFIG).write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match=f"config lacks {name}"):
            files.load(folder)


def test_a_file_cut_short_with_a_digest_to_match_is_refused(tmp_path, saved):
    folder = written(tmp_path, saved)
    path = folder / files.TENSORS
    data = path.read_bytes()
    for size in (0, 8, 500, len(data) - 1):
        path.write_bytes(data[:size])
        document = json.loads((folder / files.CONFIG).read_text())
        document |= {"tensors_bytes": size, "tensors_sha256": files._digest(path)}
        (folder / files.CONFIG).write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            files.load(folder)


@given(data=st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_changed_bytes_give_a_clear_error(tmp_path, saved, data):
    folder = written(tmp_path, saved)
    path = folder / data.draw(st.sampled_from([files.CONFIG, files.TENSORS]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    content[place] = byte
    path.write_bytes(content)
    told = ""
    try:
        files.load(folder)
    except CheckpointError as error:
        told = str(error)
    assert told or path.name == files.CONFIG, "a tensor changed without anyone noticing"
    assert not told or str(folder) in told
