"""What we write, read by the other libraries' own loaders. Runs where they are installed."""

from dataclasses import replace

import pytest
import torch
from hydrophoned.formats import detect, hydrophone
from hydrophoned.formats.exchange import from_dictionary, to_dictionary
from peer_folders import dense, library, rows_of

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # theirs
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def codes_of_saelens(directory, rows):
    sae = pytest.importorskip("sae_lens").SAE.load_from_disk(directory, dtype="float32")
    codes = sae.encode(rows)
    return codes.detach(), sae.decode(codes).detach()


def codes_of_sparsify(directory, rows):
    coder = pytest.importorskip("sparsify").SparseCoder.load_from_disk(directory)
    top, index, _ = coder.encode(rows)
    codes = torch.zeros(len(rows), coder.num_latents).scatter_(1, index, top.detach())
    return codes, coder.decode(top, index).detach()


def codes_of_dictionary_learning(directory, rows):
    pytest.importorskip("dictionary_learning")
    from dictionary_learning.utils import load_dictionary

    autoencoder, _ = load_dictionary(str(directory), "cpu")
    codes = autoencoder.encode(rows)
    return codes.detach(), autoencoder.decode(codes).detach()


READERS = {
    "saelens": codes_of_saelens,
    "sparsify": codes_of_sparsify,
    "dictionary_learning": codes_of_dictionary_learning,
}


def agree(theirs, ours):
    assert torch.equal(theirs[0] > 0, ours[0] > 0)
    torch.testing.assert_close(theirs[0], ours[0], rtol=1e-5, atol=1e-5 * float(ours[0].max()))
    torch.testing.assert_close(theirs[1], ours[1], rtol=1e-5, atol=1e-5 * float(ours[1].abs().max()))


@pytest.mark.parametrize("form", READERS)
def test_their_loader_gives_our_codes(form, variant, learned, tmp_path):
    if form == "sparsify" and variant not in ("topk", "matryoshka"):
        pytest.skip("sparsify has topk only")
    dictionary, mean, scale = learned(variant)
    exchange = from_dictionary(dictionary, mean=mean, scale=scale, metadata={"model": "m@1", "site": "s"})
    detect.FORMATS[form].save(exchange, tmp_path / "x")
    rows = rows_of(300, seed=20)
    # they keep all active latents of a row, we keep 2 k: with this k all
    whole = exchange if variant in ("topk", "matryoshka") else replace(exchange, k=exchange.features // 2)
    agree(READERS[form](tmp_path / "x", rows), dense(to_dictionary(whole), rows))


@pytest.mark.parametrize("form", READERS)
def test_their_dictionaries_in_each_others_formats_keep_their_codes(form, peer, tmp_path):
    hydrophone.save(detect.load(peer), tmp_path / "own")
    exchange = detect.load(tmp_path / "own")
    if form == "sparsify" and exchange.variant != "topk":
        pytest.skip("sparsify has topk only")
    detect.FORMATS[form].save(exchange, tmp_path / "x")
    rows = rows_of(100, seed=21)
    theirs, before = READERS[form](tmp_path / "x", rows), READERS[library(peer)](peer, rows)
    assert torch.equal(theirs[0] > 0, before[0] > 0)
    torch.testing.assert_close(theirs[1], before[1], rtol=1e-5, atol=1e-5 * float(before[1].abs().max()))
