"""Damaged and lying folders of other libraries: an error that names file and value, and nothing run or allocated."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from hydrophoned.formats import detect
from hydrophoned.formats.errors import FormatError
from hydrophoned.learn.errors import CheckpointError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peer_folders import DATA, WEIGHTS, library, weights
from safetensors.torch import save_file


def copied(peer, tmp_path):
    return shutil.copytree(peer, tmp_path / "x")


def rewrite(directory, form, tensors):
    path = directory / WEIGHTS[form]
    torch.save(tensors, path) if path.suffix == ".pt" else save_file(tensors, path)


def config_of(directory):
    (path,) = directory.glob("c*f*g.json")
    return path, json.loads(path.read_text())


def test_a_file_cut_short_is_refused(peer, tmp_path):
    directory = copied(peer, tmp_path)
    path = directory / WEIGHTS[library(peer)]
    for size in (0, 7, 100, path.stat().st_size - 1):
        path.write_bytes((peer / path.name).read_bytes()[:size])
        with pytest.raises(CheckpointError, match=path.name):
            detect.load(directory, library(peer))


def test_a_missing_tensor_is_named(peer, tmp_path):
    directory, form = copied(peer, tmp_path), library(peer)
    tensors = weights(peer, form)
    # a topk file of dictionary_learning has a threshold that it does not need, and old ones had none
    for name in set(tensors) - ({"threshold"} if "AutoEncoderTopK" in str(peer) else set()):
        rewrite(directory, form, {key: one for key, one in tensors.items() if key != name})
        with pytest.raises(CheckpointError, match=name):
            detect.load(directory)


def test_an_unknown_tensor_is_refused_by_name(peer, tmp_path):
    directory, form = copied(peer, tmp_path), library(peer)
    rewrite(directory, form, dict(weights(peer, form)) | {"W_skip": torch.zeros(16, 16)})
    with pytest.raises(FormatError, match="W_skip"):
        detect.load(directory)


def test_a_shape_against_the_settings_is_named(peer, tmp_path):
    directory = copied(peer, tmp_path)
    path, config = config_of(directory)
    place = config.get("trainer", config)
    for name in {"d_in", "activation_dim"} & set(place):
        place[name] = 8
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"\[(8|64|16)(, (8|64|16))?\]"):
        detect.load(directory)


@pytest.mark.parametrize("value", [1 << 40, 10**30, 0, -1, 1.5, "64", None, True, [64]])
def test_an_absurd_size_allocates_nothing(peer, tmp_path, value):
    directory = copied(peer, tmp_path)
    path, config = config_of(directory)
    place = config.get("trainer", config)
    for name in {"d_sae", "num_latents", "dict_size"} & set(place):
        place[name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        detect.load(directory)


def test_values_that_are_not_finite_are_counted(peer, tmp_path):
    directory, form = copied(peer, tmp_path), library(peer)
    tensors = {name: one.clone() for name, one in weights(peer, form).items()}
    name = next(name for name, one in tensors.items() if one.ndim == 2)
    tensors[name][3, :2] = float("nan")
    rewrite(directory, form, tensors)
    with pytest.raises(CheckpointError, match=f"2 of 1,024 values of {name} are not finite"):
        detect.load(directory)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_torch_archive_does_not_run(tmp_path):
    directory = copied(DATA / "dictionary_learning-AutoEncoder", tmp_path)
    torch.save({"bias": Trap(tmp_path / "ran")}, directory / "ae.pt")
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        detect.load(directory)
    assert not (tmp_path / "ran").exists()


def test_a_compressed_archive_is_refused(tmp_path):
    directory = copied(DATA / "dictionary_learning-AutoEncoder", tmp_path)
    path = directory / "ae.pt"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match="compressed"):
        detect.load(directory)


def test_a_tensor_that_repeats_a_small_storage_is_refused(tmp_path):
    directory = copied(DATA / "dictionary_learning-AutoEncoder", tmp_path)
    tensors = weights(directory, "dictionary_learning")
    torch.save(dict(tensors) | {"encoder.weight": torch.zeros(1).expand(64, 16)}, directory / "ae.pt")
    with pytest.raises(CheckpointError, match=r"encoder\.weight is no plain tensor"):
        detect.load(directory)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"trainer": 3}', '{"d_in": NaN}', "\x00"])
def test_a_config_that_is_none_is_refused(peer, tmp_path, text):
    directory = copied(peer, tmp_path)
    path, _ = config_of(directory)
    path.write_text(text)
    with pytest.raises((CheckpointError, FormatError), match=path.name):
        detect.load(directory)


def test_a_huge_config_is_not_read(peer, tmp_path):
    directory = copied(peer, tmp_path)
    path, _ = config_of(directory)
    path.write_text(" " * (2 << 20))
    with pytest.raises(CheckpointError, match="bytes; at most"):
        detect.load(directory)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_changed_bytes_give_a_dictionary_or_a_clear_error(tmp_path, data):
    peer = data.draw(st.sampled_from([DATA / "saelens-topk", DATA / "dictionary_learning-BatchTopKSAE"]))
    directory = tmp_path / "x"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(peer, directory)
    path = data.draw(st.sampled_from([config_of(directory)[0], directory / WEIGHTS[library(peer)]]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 1500) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    told = str(directory)
    try:
        detect.load(directory)
    except (CheckpointError, FormatError) as error:
        told = str(error)
    assert str(directory) in told
