"""Our own dictionaries through each format: the same codes on raw rows, with normaliser and whitening folded in."""

from dataclasses import replace

import pytest
import torch
from hydrophoned.formats import detect, hydrophone
from hydrophoned.formats.errors import FormatError, NotCarried
from hydrophoned.formats.exchange import can_be_unit, centred, from_dictionary, to_dictionary, uncentred, unit
from hydrophoned.learn.errors import CheckpointError
from peer_folders import dense, rows_of, trained_on

FORMATS = tuple(detect.FORMATS)


def close(one, other):
    """The same latents, values within 1e-5 of the largest: float32 sums cannot be told apart closer."""
    assert torch.equal(one > 0, other > 0)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.max()))


def test_the_normaliser_is_folded_into_the_weights(variant, learned):
    dictionary, mean, scale = learned(variant)
    rows = rows_of(200, seed=8)
    codes, rebuilt = dense(dictionary, (rows - mean) * scale)
    raw, raw_rebuilt = dense(to_dictionary(from_dictionary(dictionary, mean=mean, scale=scale)), rows)
    assert (codes > 0).sum(1).float().mean() > 1
    close(raw, codes / scale)
    torch.testing.assert_close(raw_rebuilt, rebuilt / scale + mean, rtol=1e-5, atol=2e-5)


def test_without_a_normaliser_the_weights_stay_as_they_are_bit_for_bit(variant, learned):
    dictionary, _, _ = learned(variant)
    exchange = from_dictionary(dictionary)
    back = to_dictionary(exchange)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(back, name), getattr(dictionary, name))
    assert back.config.variant == variant


@pytest.mark.parametrize("form", FORMATS)
def test_codes_are_the_same_after_every_format(form, variant, learned, tmp_path):
    dictionary, mean, scale = learned(variant)
    about = {"model": "m@1", "site": "layers.3", "notes": "n"}
    exchange = from_dictionary(dictionary, mean=mean, scale=scale, metadata=about)
    if form == "sparsify" and variant not in ("topk", "matryoshka"):
        with pytest.raises(NotCarried, match=f"not {variant}"):
            detect.FORMATS[form].save(exchange, tmp_path / "x")
        return
    detect.FORMATS[form].save(exchange, tmp_path / "x")
    back = detect.load(tmp_path / "x")
    assert {name: back.metadata[name] for name in about} == about
    assert (back.variant, back.k) == (variant, 4), "what the format cannot say stands beside it"
    if variant == "matryoshka":
        assert back.prefixes == (2, 8, 32, 64)
    rows = rows_of(200, seed=9)
    one, other = dense(to_dictionary(back), rows), dense(to_dictionary(exchange), rows)
    close(one[0], other[0])
    torch.testing.assert_close(one[1], other[1], rtol=1e-5, atol=2e-5)


def test_a_whitened_dictionary_works_on_raw_rows():
    rows = rows_of(4000) @ torch.diag(torch.linspace(0.3, 4, 16))
    mean = rows.mean(0)
    eigenvalues, vectors = torch.linalg.eigh(torch.cov((rows - mean).T))
    A = torch.diag((eigenvalues + 1e-2).rsqrt()) @ vectors.T
    y = (rows - mean) @ A.T
    dictionary = trained_on(y, "topk")
    exchange = from_dictionary(dictionary, mean=mean, whitening=A)
    assert not can_be_unit(exchange)
    codes, rebuilt = dense(dictionary, y[:200])
    raw, raw_rebuilt = dense(to_dictionary(exchange), rows[:200])
    torch.testing.assert_close(raw, codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(raw_rebuilt, rebuilt @ torch.linalg.inv(A).T + mean, rtol=1e-3, atol=1e-3)


def test_a_whitening_without_inverse_and_a_scale_of_nothing_are_refused(learned):
    dictionary, mean, _ = learned("topk")
    with pytest.raises(FormatError, match="no inverse"):
        from_dictionary(dictionary, mean=mean, whitening=torch.zeros(16, 16))
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(FormatError, match="must be above 0"):
            from_dictionary(dictionary, mean=mean, scale=scale)


def test_folding_the_row_shift_changes_no_code(variant, learned):
    dictionary, mean, scale = learned(variant)
    exchange = from_dictionary(dictionary, mean=mean, scale=scale)
    assert not uncentred(exchange).centred
    rows = rows_of(200, seed=10)
    close(dense(to_dictionary(centred(uncentred(exchange))), rows)[0], dense(to_dictionary(exchange), rows)[0])


def test_folding_decoder_norms_changes_no_reconstruction(variant, learned):
    dictionary, _, _ = learned(variant)
    plain = from_dictionary(dictionary)
    norms = 0.5 + torch.rand(64, generator=torch.Generator().manual_seed(1))
    # the same function with other norms: values shrink as decoder rows grow
    stretched = replace(plain, W_dec=plain.W_dec * norms[:, None])
    if variant == "gated":
        stretched = replace(stretched, r_mag=plain.r_mag - norms.log(), b_mag=plain.b_mag / norms)
    else:
        stretched = replace(stretched, W_enc=plain.W_enc / norms[:, None], b_enc=plain.b_enc / norms)
        if variant == "jumprelu":
            stretched = replace(stretched, threshold=plain.threshold / norms)
    rows = rows_of(200, seed=11)
    if variant in ("topk", "matryoshka", "batchtopk"):
        assert not can_be_unit(stretched)
        with pytest.raises(NotCarried, match="differing norms"):
            unit(stretched)
        stretched = replace(stretched, rescaled=True)  # selected by p times norm it is the same function again
    folded = to_dictionary(stretched)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(64), rtol=2e-5, atol=0)
    close(dense(folded, rows)[0], dense(dictionary, rows)[0])


def test_one_norm_for_all_is_folded_even_where_latents_compete(learned):
    dictionary, _, _ = learned("topk")
    plain = from_dictionary(dictionary)
    tripled = replace(plain, W_dec=plain.W_dec * 3)
    rows = rows_of(100, seed=12)
    one, other = dense(to_dictionary(tripled), rows), dense(dictionary, rows)
    close(one[0], other[0] * 3)
    torch.testing.assert_close(one[1] - plain.b_dec, (other[1] - plain.b_dec) * 3, rtol=1e-4, atol=1e-4)


def test_our_own_folder_keeps_a_normalised_dictionary_as_it_stands(variant, learned, tmp_path):
    dictionary, mean, scale = learned(variant)
    hydrophone.save_normalised(dictionary, tmp_path / "x", mean=mean, scale=scale, metadata={"site": "s"})
    exchange = detect.load(tmp_path / "x")
    expected = from_dictionary(dictionary, mean=mean, scale=scale)
    assert exchange.metadata == {"site": "s"}
    for name, tensor in expected.tensors().items():
        assert torch.equal(exchange.tensors()[name], tensor)


def test_tensors_that_do_not_fit_each_other_are_refused(learned):
    plain = from_dictionary(learned("topk")[0])
    for changes, message in (
        ({"b_dec": torch.zeros(3)}, "b_dec is"),
        ({"k": 65}, "k = 65"),
        ({"variant": "gated"}, "needs r_mag"),
        ({"variant": "jumprelu"}, "needs threshold"),
        ({"variant": "jumprelu", "threshold": torch.zeros(())}, "threshold is"),
    ):
        with pytest.raises(CheckpointError, match=message):
            replace(plain, **changes)


def test_a_folder_that_holds_something_is_left_alone(learned, tmp_path):
    exchange = from_dictionary(learned("topk")[0])
    (tmp_path / "note.txt").write_text("mine")
    for form in FORMATS:
        with pytest.raises((FormatError, CheckpointError), match="exists and is n"):
            detect.FORMATS[form].save(exchange, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
