"""Rows that hold NaN or Inf must not poison a dictionary, whoever gives them to it."""

import math

import pytest
import torch
from hydrophoned.learn.errors import LearnError, RowsNotFinite
from hydrophoned.learn.kernels import cpu, plain
from hydrophoned.learn.sae import VARIANTS, DictionaryConfig, SparseAutoencoder
from test_dictionary import all_finite, assert_same_state, copied, measured, planted

EACH = pytest.mark.parametrize("variant", VARIANTS)
BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
KERNELS = pytest.mark.parametrize(
    "kernels_module",
    [
        pytest.param(plain, id="plain"),
        pytest.param(
            cpu,
            id="compiled",
            marks=pytest.mark.skipif(not cpu.available(), reason="the compiled kernels were not built"),
        ),
    ],
)


def started(variant, x, **settings):
    config = DictionaryConfig(width=32, features=128, k=4, dead_after_rows=512, revive_every_rows=512, variant=variant)
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(0), **settings)
    dictionary.initialise(x[:1024])
    for rows in x[:4096].split(128):
        dictionary.partial_fit(rows)
    return dictionary


@EACH
@BAD
@KERNELS
def test_a_step_on_them_is_refused_before_anything_has_moved(variant, bad, kernels_module):
    x, _ = planted(8192)
    dictionary = started(variant, x, kernels_module=kernels_module)
    before, generator = copied(dictionary.state_dict()), dictionary.generator.get_state().clone()
    rows = x[4096:4224].clone()
    rows[3, 5] = rows[77, 0] = bad
    with pytest.raises(RowsNotFinite, match="2 of 128 rows"):
        dictionary.partial_fit(rows)
    assert_same_state(before, dictionary.state_dict())
    assert torch.equal(generator, dictionary.generator.get_state())
    undisturbed = started(variant, x, kernels_module=kernels_module)
    for each in (dictionary, undisturbed):
        each.partial_fit(x[4096:4224])
    assert_same_state(undisturbed.state_dict(), dictionary.state_dict())


@EACH
@BAD
def test_a_dictionary_is_not_made_of_them(variant, bad):
    x, _ = planted(1024)
    config = DictionaryConfig(width=32, features=128, k=4, variant=variant)
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(0))
    before = copied(dictionary.state_dict())
    rows = x.clone()
    rows[9, 30] = bad
    with pytest.raises(RowsNotFinite, match="1 of 1024 rows"):
        dictionary.initialise(rows)
    assert_same_state(before, dictionary.state_dict())


def test_rows_too_large_together_are_told_apart_from_those_too_large_alone():
    x, _ = planted(8192)
    dictionary = started("topk", x)
    before = copied(dictionary.state_dict())
    with pytest.raises(RowsNotFinite, match=r"the error of 128 rows is larger than 1e\+09"):
        dictionary.partial_fit(x[:128] * 1e8)
    assert_same_state(before, dictionary.state_dict())


@EACH
def test_rows_a_million_times_too_large_are_taken_and_leave_all_finite(variant):
    x, _ = planted(8192)
    dictionary = started(variant, x)
    for rows in (x[:128] * 1e6, torch.full((128, 32), 1e6)):
        assert dictionary.partial_fit(rows).rows == 128
        assert all_finite(dictionary)


def test_it_is_an_error_of_learning():
    assert issubclass(RowsNotFinite, LearnError)


@EACH
@BAD
@KERNELS
def test_where_nobody_waits_they_count_as_rows_at_the_centre(variant, bad, kernels_module):
    """What a GPU does: it goes on without knowing, and learns from the other rows."""
    x, _ = planted(24_000)
    dictionary = started(variant, x, kernels_module=kernels_module)
    dictionary._masks = True
    fvu = measured(dictionary, x[20_000:])[0]
    for rows in x[4096:20_000].split(128):
        dirty = rows.clone()
        dirty[::16, 3] = bad
        report = dictionary.partial_fit(dirty)
        assert not math.isfinite(report.fvu) or report.fvu > 0
    assert all_finite(dictionary)
    assert measured(dictionary, x[20_000:])[0] < fvu + 0.02


@EACH
def test_where_nobody_waits_clean_rows_are_learned_as_ever(variant):
    x, _ = planted(8192)
    waiting, masking = started(variant, x), started(variant, x)
    masking._masks = True
    for rows in x[4096:].split(128):
        for each in (waiting, masking):
            each.partial_fit(rows)
    assert_same_state(waiting.state_dict(), masking.state_dict())


@EACH
@BAD
def test_where_nobody_waits_a_batch_of_nothing_else_does_no_harm(variant, bad):
    x, _ = planted(8192)
    dictionary = started(variant, x)
    dictionary._masks = True
    before = dictionary.W_dec.clone()
    for _ in range(3):
        dictionary.partial_fit(torch.full((128, 32), bad))
    assert all_finite(dictionary)
    assert float((dictionary.W_dec * before).sum(1).min()) > 0.9
