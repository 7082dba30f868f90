"""Training on rows that are all there: the learner's own order of things, with time given from outside."""

import numpy as np
import pytest
import torch
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.errors import LearnError, WidthMismatch
from hydrophoned.learn.offline import OfflineTrainer
from hydrophoned.learn.sae import VARIANTS

D = 16


def rows(n, seed=0):
    generator = np.random.default_rng(seed)
    basis = np.random.default_rng(9).standard_normal((30, D))
    weight = generator.random((n, 30)) * (generator.random((n, 30)) < 0.1)
    return (weight @ basis + 1).astype(np.float32)


def trainer(**settings):
    given = {"features": 64, "k": 4, "batch_rows": 128, "warmup_rows": 512, "normaliser_rows": 1024} | settings
    return OfflineTrainer(D, LearnerConfig(**given))


def batches(x, size=200, every=0.5):
    return [(every * number, x[start : start + size]) for number, start in enumerate(range(0, len(x), size))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_what_it_is_shown(variant):
    one = trainer(variant=variant)
    reports = list(one.train(batches(rows(30_000))))
    held = one.score([rows(2000, seed=1)])
    first = next(report.fvu for report in reports if report.fvu is not None)
    assert held.fvu < 0.45
    assert held.fvu < first
    assert held.rows + held.rows_sink == 2000
    assert 1 < held.l0 < 8


def test_every_row_is_learned_once_and_the_same_seed_gives_the_same():
    one, other = trainer(seed=5), trainer(seed=5)
    x = rows(5000)
    report = list(one.train(batches(x)))[-1]
    assert report.rows_seen == 5000
    assert report.rows_learned + report.rows_sink == 5000
    list(other.train(batches(x)))
    assert torch.equal(one.dictionary.W_dec, other.dictionary.W_dec)
    third = trainer(seed=6)
    list(third.train(batches(x)))
    assert not torch.equal(one.dictionary.W_dec, third.dictionary.W_dec)


def test_sinks_and_rows_that_are_not_finite_are_set_apart_in_training_and_in_scoring():
    x = rows(4000)
    x[10], x[20, 3], x[30] = 1e4, np.nan, 3e38
    one = trainer()
    report = list(one.train(batches(x)))[-1]
    assert (report.rows_sink, report.rows_quarantined) == (1, 2)
    assert report.rows_learned == 3997
    held = one.score([x[:100]])
    assert (held.rows, held.rows_sink) == (97, 1)
    assert held.fvu < 1, "a sink would be nearly all of the variance"


def test_the_rate_is_of_the_times_that_were_given():
    reports = list(trainer().train(batches(rows(1000), size=100, every=2.0)))
    assert reports[0].rows_per_second is None
    assert reports[4].rows_per_second == pytest.approx(500 / 8)


def test_figures_are_unknown_before_the_first_step():
    reports = list(trainer().train(batches(rows(5000), size=100)))
    assert reports[0].fvu is None
    assert reports[0].l0 is None
    assert 0 < reports[-1].fvu < 1
    assert reports[-1].dead_fraction is not None


def test_few_rows_are_enough_and_fewer_are_not():
    one = trainer()
    report = list(one.train(batches(rows(64))))[-1]
    assert report.rows_learned == 64
    with pytest.raises(LearnError, match="63 rows are too few to learn from: at least 64"):
        list(trainer().train(batches(rows(63))))
    with pytest.raises(LearnError, match="0 rows are too few"):
        list(trainer().train([]))


def test_nothing_to_score_has_no_figures():
    one = trainer()
    list(one.train(batches(rows(1000))))
    assert one.score([]) == (0, 0, None, None, None)
    assert one.score([np.full((5, D), 2.0, np.float32)]).fvu is None, "equal rows have no variance"


def test_rows_of_another_width_are_refused():
    with pytest.raises(WidthMismatch, match="width 16"):
        list(trainer().train([(0.0, np.zeros((4, 3), np.float32))]))
