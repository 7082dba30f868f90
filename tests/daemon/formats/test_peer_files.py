"""Folders that the other libraries wrote: the same codes here, and the same bits when written back."""

import json
from dataclasses import replace

import pytest
import torch
from hydrophoned.formats import detect, hydrophone
from hydrophoned.formats.errors import NotCarried, UnknownFormat
from hydrophoned.formats.exchange import remarks, to_dictionary
from hydrophoned.learn.sae import files
from peer_folders import DATA, WEIGHTS, dense, library, same_bits, weights
from safetensors.torch import load_file


def test_the_format_is_told_from_the_files(peer):
    assert detect.detect(peer) == library(peer)


def test_codes_and_reconstructions_are_the_librarys_own(peer):
    expected = load_file(peer / "expected.safetensors")
    exchange = detect.load(peer)
    codes, rebuilt = dense(to_dictionary(exchange), expected["rows"])
    assert torch.equal(codes > 0, expected["codes"] > 0)
    scale = unit_factor(exchange)
    torch.testing.assert_close(codes, expected["codes"] * scale, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rebuilt, expected["rebuilt"], rtol=1e-5, atol=2e-5)


def unit_factor(exchange):
    """What values take over from decoder rows whose norm is not 1: nothing where the library did it already."""
    norms = exchange.W_dec.norm(dim=1)
    kept = exchange.rescaled or exchange.variant in ("topk", "batchtopk")
    return torch.ones_like(norms) if kept else norms


def test_decoder_rows_have_norm_1_where_that_changes_no_code(peer):
    exchange = detect.load(peer)
    norms = to_dictionary(exchange).W_dec.norm(dim=1)
    if any("stay as they are" in remark for remark in remarks(exchange)):
        assert peer.parts[-1] == "saelens-topk-plain" or "sparsify-topk-norms" in peer.parts
        torch.testing.assert_close(norms, exchange.W_dec.norm(dim=1))
    else:
        torch.testing.assert_close(norms, torch.ones(64), rtol=2e-5, atol=0)


def test_written_back_it_is_the_same_bit_for_bit(peer, tmp_path):
    form = library(peer)
    detect.FORMATS[form].save(detect.load(peer), tmp_path / "back")
    assert same_bits(weights(tmp_path / "back", form), weights(peer, form))


def test_by_way_of_our_own_folder_it_is_the_same_bit_for_bit(peer, tmp_path):
    form = library(peer)
    hydrophone.save(detect.load(peer), tmp_path / "own")
    detect.FORMATS[form].save(detect.load(tmp_path / "own"), tmp_path / "back")
    assert same_bits(weights(tmp_path / "back", form), weights(peer, form))


def test_what_has_learned_on_is_written_as_it_is_now(tmp_path):
    peer = DATA / "saelens-jumprelu"
    hydrophone.save(detect.load(peer), tmp_path / "own")
    saved = files.read(tmp_path / "own")
    rows = load_file(peer / "expected.safetensors")["rows"]
    saved.dictionary.partial_fit(rows)
    files.save(saved.dictionary, tmp_path / "own", about=saved.about, beside=saved.beside)
    exchange = detect.load(tmp_path / "own")
    detect.FORMATS["saelens"].save(exchange, tmp_path / "back")
    assert not same_bits(weights(tmp_path / "back", "saelens"), weights(peer, "saelens"))
    ours, _ = dense(saved.dictionary, rows)
    theirs, _ = dense(to_dictionary(detect.load(tmp_path / "back")), rows)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_the_names_of_model_site_and_layer_come_along():
    about = detect.load(DATA / "saelens-topk").metadata
    assert (about["model"], about["site"]) == ("tiny", "blocks.1.hook_resid_post")
    assert detect.load(DATA / "sparsify-topk" / "layers.1").metadata["site"] == "layers.1"
    about = detect.load(DATA / "dictionary_learning-BatchTopKSAE").metadata
    assert (about["model"], about["layer"]) == ("tiny", 1)


def test_nested_prefixes_come_along(tmp_path):
    exchange = detect.load(DATA / "dictionary_learning-MatryoshkaBatchTopKSAE")
    assert (exchange.variant, exchange.prefixes) == ("batchtopk", (4, 16, 64))
    assert to_dictionary(exchange).config.prefixes == (4, 16, 64)


def test_a_row_has_at_most_twice_k_latents_where_k_is_not_known():
    exchange = detect.load(DATA / "saelens-standard")
    assert exchange.k is None
    assert to_dictionary(exchange).encode(torch.randn(3, 16)).index.shape == (3, 64)
    known = to_dictionary(replace(exchange, k=5))
    assert known.encode(torch.randn(3, 16)).index.shape == (3, 10)


# -- refusals ---------------------------------------------------------------------------------------------------------


def copy(peer, target, **changes):
    """A copy of ``peer`` whose config has other values; None takes a key out."""
    target.mkdir()
    for path in peer.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (path,) = target.glob("c*f*g.json")
    config = json.loads(path.read_text())
    place = config.get("trainer", config)
    place |= changes
    for name in [name for name, value in place.items() if value is None]:
        del place[name]
    path.write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("saelens-topk", {"architecture": "batchtopk"}, "save_inference_model"),
        ("saelens-standard", {"activation_fn": "tanh-relu"}, "'tanh-relu' of 'standard' is not known"),
        ("saelens-standard", {"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm'"),
        ("saelens-standard", {"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ("sparsify-topk/layers.1", {"activation": "groupmax"}, "activation 'groupmax' is not known"),
        ("sparsify-topk/layers.1", {"transcode": True}, "another site"),
        ("sparsify-topk/layers.1", {"skip_connection": True}, "a linear path"),
        ("sparsify-topk/layers.1", {"signed": True}, "codes below 0"),
        ("dictionary_learning-AutoEncoder", {"dict_class": "AutoEncoderNew"}, "dict_class 'AutoEncoderNew'"),
        ("dictionary_learning-AutoEncoder", {"dict_class": ["x"]}, "dict_class"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(tmp_path, name, changes, message):
    directory = copy(DATA / name, tmp_path / "x", **changes)
    with pytest.raises(NotCarried, match=message):
        detect.load(directory)


def test_a_topk_of_version_5_is_not_read_as_relu(tmp_path):
    old = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 8}, "k": None}
    exchange = detect.load(copy(DATA / "saelens-topk-plain", tmp_path / "x", **old))
    assert (exchange.variant, exchange.k) == ("topk", 8)
    expected = load_file(DATA / "saelens-topk-plain" / "expected.safetensors")
    codes, _ = dense(to_dictionary(exchange), expected["rows"])
    torch.testing.assert_close(codes, expected["codes"], rtol=1e-5, atol=1e-6)


def test_variants_that_a_format_cannot_carry_are_refused_with_those_that_can(tmp_path):
    exchange = detect.load(DATA / "saelens-gated")
    with pytest.raises(NotCarried, match="topk dictionaries, not gated; saelens and dictionary_learning do"):
        detect.FORMATS["sparsify"].save(exchange, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_folders_that_are_nothing_or_two_things_are_named(tmp_path):
    with pytest.raises(UnknownFormat, match="is no folder"):
        detect.detect(tmp_path / "none")
    with pytest.raises(UnknownFormat, match=r"holds none of dictionary\.safetensors"):
        detect.detect(tmp_path)
    with pytest.raises(UnknownFormat, match=r"but in layers\.1"):
        detect.detect(DATA / "sparsify-topk")
    for name in (WEIGHTS["saelens"], WEIGHTS["sparsify"]):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnknownFormat, match="saelens and sparsify"):
        detect.detect(tmp_path)
