import itertools

import numpy as np
import pytest
from hydrophoned.detect.config import WatchConfig
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.rows import Rows
from hydrophoned.runtime.watching import Watching

WIDTH = 8


def rows(count, request, time):
    column = np.arange(count, dtype=np.int32)
    return Rows(
        np.random.default_rng(request).normal(size=(count, WIDTH)).astype(np.float32), "float32",
        np.full(count, request), np.zeros(count, np.uint16), column, np.zeros(count, np.uint8), column,
        time + column.astype(np.int64),
    )  # fmt: skip


def test_a_request_goes_on_while_rows_wait_to_be_handled():
    learner = StreamLearner(1, WIDTH, LearnerConfig(features=32, k=4, batch_rows=64))
    watching = Watching("toy", learner, WatchConfig(idle_seconds=0.5))
    learner.observe(rows(100, request=1, time=0))  # 64 of them are handled, 36 wait
    for now in (100_000, 700_000, 900_000):  # the learner hands on what has waited for a second
        learner.advance(now)
        watching.advance(now)
    assert watching.watch.units.open == 1
    for now in (1_200_000, 1_300_000, 1_900_000):
        learner.advance(now)
        watching.advance(now)
    assert watching.watch.units.open == 0
    (comparison,) = watching.watch.comparisons.values()
    assert comparison.collected == 1


# -- what is no drift -------------------------------------------------------------------------------------------------


LEARN = LearnerConfig(features=64, k=4, batch_rows=64, buffer_rows=256, warmup_rows=128, window_seconds=1)
TOKENS, EVERY_US = 12, 100_000


def requests(first, count, *, seed=0, shift=0.0, every_us=EVERY_US):
    """Rows of requests, each of which has a topic that all its rows are near to."""
    rng = np.random.default_rng([seed, first])
    basis = np.random.default_rng(7).normal(size=(24, WIDTH))
    topic = rng.normal(size=(count, 1, WIDTH))
    x = topic + (rng.random((count, TOKENS, 24)) * (rng.random((count, TOKENS, 24)) < 0.1)) @ basis + shift
    number, column = np.divmod(np.arange(count * TOKENS), TOKENS)
    return Rows(
        x.reshape(-1, WIDTH).astype(np.float32), "float32", number + first, np.zeros(count * TOKENS, np.uint16),
        column.astype(np.int32), np.zeros(count * TOKENS, np.uint8), np.full(count * TOKENS, -1, np.int32),
        ((number + first) * every_us + column * 1000).astype(np.int64),
    )  # fmt: skip


def watched(seed, **settings):
    learner = StreamLearner(1, WIDTH, LEARN)
    return learner, Watching(
        "toy", learner, WatchConfig(reference_units=300, period_seconds=600, seed=seed, **settings)
    )


def feed(learner, watching, rows, sizes):
    """Rows in batches of ``sizes``, again and again, while the clock goes with them."""
    start = 0
    while start < rows.count:
        stop = min(rows.count, start + next(sizes))
        learner.observe(rows.slice(start, stop))
        learner.advance(int(rows.time[stop - 1]))
        watching.advance(int(rows.time[stop - 1]))
        start = stop
    return watching.watch.drifts


@pytest.mark.parametrize("seed", range(3))
def test_versions_batches_and_producers_that_come_and_go_are_no_drift_and_a_shift_is(seed):
    learner, watching = watched(seed)
    sizes = itertools.cycle([TOKENS, 700, 5, 64, 1000])
    for part in range(12):
        # every other part is of two producers at once, whose keys are far apart
        rows = requests(part * 100, 100, seed=seed)
        if part % 2:
            far = (np.arange(rows.count) // TOKENS) % 2 * 1_000_000
            rows = rows._replace(request=rows.request + far)
        assert feed(learner, watching, rows, sizes) == 0
        learner.publish(int(rows.time[-1]))
    assert learner.dictionary_version == 13
    assert watching.problem is None
    assert watching.watch.encoder.version > 3
    assert watching.watch.state == "watching"
    assert feed(learner, watching, requests(1200, 100, seed=seed, shift=2.0), sizes) == 1


def test_a_restart_is_no_drift():
    learner, watching = watched(0)
    sizes = itertools.cycle([500])
    feed(learner, watching, requests(0, 700), sizes)
    state = learner.state_dict(), watching.state_dict()
    again, watch_again = watched(0)
    again.load_state(state[0])
    watch_again.load_state(state[1])
    later = requests(700, 500)
    assert feed(again, watch_again, later, sizes) == feed(learner, watching, later, sizes) == 0
    assert again.dictionary_version == learner.dictionary_version


@pytest.mark.parametrize("jump", [86_400_000_000, -86_400_000_000, -10_000_000])
def test_a_clock_that_jumps_is_no_drift(jump):
    learner, watching = watched(1)
    sizes = itertools.cycle([300])
    assert feed(learner, watching, requests(0, 500), sizes) == 0
    later = requests(500, 700)
    assert feed(learner, watching, later._replace(time=later.time + jump), sizes) == 0
    assert watching.problem is None
    (comparison,) = watching.watch.comparisons.values()
    assert comparison.watched > 800


def test_a_stream_of_one_row_in_an_hour_is_watched_too():
    learner, watching = watched(2)
    one = requests(0, 400, every_us=3_600_000_000)
    one = one._replace(**{name: getattr(one, name)[::TOKENS] for name in one._fields if name != "dtype"})
    assert feed(learner, watching, one, itertools.cycle([1])) == 0
    assert watching.watch.state == "watching"
    assert watching.watch.rate == pytest.approx(1 / 3600, rel=0.01)


def test_rows_that_are_not_finite_and_constant_columns_are_no_drift():
    learner, watching = watched(3)
    sizes = itertools.cycle([300])
    for part in range(10):
        rows = requests(part * 100, 100)
        rows.activation[:, 0] = 5.0
        rows.activation[::50, 1] = np.nan
        assert feed(learner, watching, rows, sizes) == 0
    assert watching.problem is None
    assert learner.rows_quarantined == 240
