import numpy as np
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
