"""Time passes only when a test lets it."""

import pytest
import torch
from hydrophoned.learn.budget import Budget
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.errors import InvalidConfig
from test_trainer import Stream


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Costly:
    """A stream whose every step takes ``cost`` seconds of the clock, and every chunk of 128 rows ``between``."""

    def __init__(self, share, *, cost, between, **settings):
        self.clock, self.cost, self.between = Clock(), cost, between
        self.stream = Stream(learn_time_share=share, clock=self.clock, **settings)
        self.trainer = self.stream.trainer
        self.learned = 0.0
        fit = self.trainer.dictionary.partial_fit

        def costly(x):
            self.clock.now += cost
            self.learned += cost
            return fit(x)

        self.trainer.dictionary.partial_fit = costly

    def feed(self, rows, **options):
        basis = self.stream.basis()
        for part in self.stream.rows(rows, basis).split(128):
            self.clock.now += self.between
            self.stream.feed(part, **options)


@pytest.mark.parametrize(("share", "cost", "between"), [(0.1, 0.2, 0.05), (0.5, 0.01, 0.002), (0.9, 0.3, 0.01)])
def test_steps_take_their_share_of_the_time_that_passes_and_no_more(share, cost, between):
    costly = Costly(share, cost=cost, between=between)
    costly.feed(1024)  # the first dictionary
    begun, learned = costly.clock.now, costly.learned
    costly.feed(80_000)
    passed = costly.clock.now - begun
    spent = costly.learned - learned
    assert spent <= share * (passed + 1) + cost
    assert spent >= share * passed - cost
    assert costly.trainer.rows_skipped > 0


def test_every_row_is_learned_skipped_or_still_there():
    costly = Costly(0.2, cost=0.05, between=0.01)
    costly.feed(30_000)
    trainer = costly.trainer
    assert trainer.rows_learned + trainer.rows_skipped + trainer.buffer.count == 30_000


def test_what_is_learned_from_is_a_uniform_sample_of_the_stream():
    """Rows that carry their own number: no time of the stream is learned from more than another."""
    costly = Costly(0.25, cost=0.05, between=0.05, replay_share=0.0)
    costly.feed(4096)
    seen = []
    fit = costly.trainer.dictionary.partial_fit

    def numbered(x):
        seen.append(x[:, 0].clone())
        return fit(x)

    costly.trainer.dictionary.partial_fit = numbered
    total = 64_000
    rows = torch.zeros(total, 32)
    rows[:, 0] = torch.arange(total) / total
    for part in rows.split(128):
        costly.clock.now += costly.between
        for batch in costly.trainer.buffer.push(part):
            if costly.trainer.budget.allows(len(batch), 0):
                costly.trainer.train(batch)
    numbers = torch.cat(seen)
    numbers = numbers[(numbers > 0) & (numbers < 0.9)]  # of the last ones many are in the buffer still
    tenths = torch.histc(numbers, 9, 0, 0.9) / len(numbers)
    assert len(numbers) > 8000
    assert float((tenths - 1 / 9).abs().max()) < 0.03


def test_within_the_share_nothing_is_skipped():
    costly = Costly(0.5, cost=0.01, between=0.05)
    costly.feed(40_000)
    assert costly.trainer.rows_skipped == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_a_limit_no_clock_is_read(share):
    def never():
        raise AssertionError("the clock was read")

    stream = Stream(learn_time_share=share, clock=never)
    stream.feed(stream.rows(4096, stream.basis()))
    assert stream.trainer.rows_skipped == 0


def test_without_a_clock_a_share_is_no_limit():
    stream = Stream(learn_time_share=0.01)
    stream.feed(stream.rows(4096, stream.basis()))
    assert stream.trainer.rows_skipped == 0


def test_both_rules_hold_together():
    costly = Costly(0.9, cost=0.001, between=0.01, learn_rows_per_second=1000.0)
    costly.feed(40_000, per_second=4000)
    assert 9_000 < costly.trainer.rows_learned < 11_500


def used(budget, clock, *, steps, cost, every):
    """How many of ``steps`` asked for, one ``every`` seconds, are taken, each of ``cost`` seconds."""
    taken = 0
    for _ in range(steps):
        clock.now += every
        if budget.allows(1, 0):
            taken += 1
            with budget.step():
                clock.now += cost
    return taken


def test_an_hour_of_silence_is_not_saved_up():
    clock = Clock()
    budget = Budget(0, 0.1, clock)
    used(budget, clock, steps=100, cost=0.1, every=0.1)
    clock.now += 3600
    assert used(budget, clock, steps=20, cost=0.1, every=0.0) <= 2  # what a second brings is 0.1 s


def test_a_machine_that_slept_within_a_step_learns_on_soon():
    clock = Clock()
    budget = Budget(0, 0.5, clock)
    with budget.step():
        clock.now += 8 * 3600
    assert used(budget, clock, steps=200, cost=0.1, every=1.0) > 50


def test_a_step_that_fails_is_paid_for_too():
    clock = Clock()
    budget = Budget(0, 0.5, clock)

    def failing():
        with budget.step():
            clock.now += 30
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        failing()
    assert not budget.allows(1, 0)


def test_steps_that_a_flush_takes_count_too():
    costly = Costly(0.1, cost=1.0, between=0.1)
    costly.feed(2048)
    costly.clock.now += 1000
    assert costly.trainer.budget.allows(128, 0)
    costly.trainer.train_some(128)
    assert not costly.trainer.budget.allows(128, 0)


def test_a_share_beyond_one_is_refused():
    with pytest.raises(InvalidConfig, match=r"learn_time_share = 1\.5"):
        LearnerConfig(learn_time_share=1.5)
