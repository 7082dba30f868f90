"""What is known of the features of sets of requests: from the store, and from the sample of rows."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hydrophone_schemas.rest import StreamStatus, TrafficSet
from hydrophoned.api.errors import Refused
from hydrophoned.learn.code_sample import CodedRows
from hydrophoned.runtime.question_samples import Sampled
from hydrophoned.runtime.traffic_sets import Known, kept, matches, times
from hydrophoned.store import Store
from hydrophoned.store.questions import QuestionReader

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from generated import SECOND, START, as_table

KEY, FEATURES = 7, 10


def status():
    figures = dict.fromkeys(("rows_received", "queue_rows", "queue_bytes"), 0)
    return StreamStatus(
        id="toy@1/layers.0", stream_key=KEY, model="toy", version="1", site="layers.0", width=8, dtype="float32",
        fingerprint="f" * 16, created=datetime(2026, 1, 1, tzinfo=UTC), rows_dropped={}, features=FEATURES, **figures,
    )  # fmt: skip


def sample(request, feature, time):
    """Rows with one active feature each."""
    n = len(request)
    zeros = np.zeros(n, dtype=np.int32)
    rows = CodedRows(
        np.array(feature, dtype=np.int32)[:, None], np.ones((n, 1), dtype=np.float32), np.array(request), zeros, zeros,
        zeros, zeros, np.array(time),
    )  # fmt: skip
    return Sampled(rows, FEATURES, 3)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "h.duckdb") as opened:
        count = 6
        opened.write(
            {
                "request": as_table(
                    "request",
                    {"request_key": np.arange(count), "id": ["r0", "r1", "r2", "r3", "r4", "r0"],
                     "model": ["toy"] * count, "version": ["1"] * count, "producer": ["p"] * count,
                     "started": [START] * count, "sample": [1.0] * count,
                     "attributes": [json.dumps({"n": n, "even": n % 2 == 0}) for n in range(count)]},
                ),
                "outcome": as_table(
                    "outcome",
                    {"request_id": ["r1", "r1", "r2"], "model": ["toy"] * 3, "time": [START] * 3,
                     "received": [START, START + 1, START], "source": ["s"] * 3,
                     "labels": ['{"bad": true, "why": "x"}', '{"bad": false}', '{"bad": true}']},
                ),
                "request_feature": as_table(
                    "request_feature",
                    {"stream_key": [KEY] * 3, "request_key": [0, 0, 1], "window_start": [START, START + SECOND, START],
                     "rows_scored": [10, 20, 5], "sample": [0.5, 0.25, 0.5], "features": [[1, 2], [2], [3]],
                     "fired": [[3, 4], [6], [5]], "sum": [[1.0, 2.0], [3.0], [4.0]], "max": [[1.0, 1.0], [1.0], [1.0]],
                     "dictionary_version": [1, 2, 2]},
                ),
                "feature": as_table(
                    "feature",
                    {"stream_key": [KEY] * 3, "dictionary_version": [1, 1, 2], "feature_id": [1, 2, 9],
                     "feature": [1, 2, 2], "state": ["born", "born", "born"]},
                ),
            }
        )  # fmt: skip
        yield QuestionReader(opened)


def test_windows_of_a_request_are_added_up_and_other_requests_come_from_the_sample(store):
    rows = sample([0, 1, 2, 2, 2, 3], [5, 5, 4, 4, 6, 4], [START] * 6)
    found = kept(store, status(), rows, np.array([0, 1, 2]))
    assert found.key.tolist() == [0, 1, 2]
    assert found.whole.tolist() == [True, True, False], (
        "rows in the sample of requests that the store has are not added"
    )
    assert found.traffic.rows.tolist() == [30, 5, 3]
    assert found.probability == (0.25, 0.5)
    fired = np.zeros((3, FEATURES))
    fired[found.traffic.request, found.traffic.feature] = found.traffic.fired
    # feature 2 was born anew with version 2: what its index did before is another feature's
    assert fired[0].tolist() == [0, 3, 6, 0, 0, 0, 0, 0, 0, 0]
    assert fired[1].tolist() == [0, 0, 0, 5, 0, 0, 0, 0, 0, 0]
    assert fired[2].tolist() == [0, 0, 0, 0, 2, 0, 1, 0, 0, 0]


def test_a_range_takes_windows_by_their_start_and_sampled_rows_by_their_time(store):
    rows = sample([0, 2, 2], [5, 4, 4], [START, START, START + SECOND])
    early = kept(store, status(), rows, np.array([0, 1, 2]), (START, START + SECOND))
    late = kept(store, status(), rows, np.array([0, 1, 2]), (START + SECOND, START + 2 * SECOND))
    assert (early.key.tolist(), early.traffic.rows.tolist()) == ([0, 1, 2], [10, 5, 1])
    assert (late.key.tolist(), late.traffic.rows.tolist()) == ([0, 2], [20, 1])
    nothing = kept(store, status(), rows, np.array([5]))
    assert (nothing.traffic.requests, nothing.probability) == (0, None)


def test_sets_go_by_attributes_outcomes_and_ids(store):
    known = Known.of(store, status())
    ids = np.array(known.ids)

    def members(**wanted):
        return sorted(known.key[known.members(TrafficSet(**wanted), "a")].tolist())

    assert len(ids) == 6
    assert members() == [0, 1, 2, 3, 4, 5]
    assert members(attributes={"even": True}) == [0, 2, 4]
    assert members(attributes={"even": 1}) == [], "1 is not true"
    assert members(attributes={"even": True, "n": 2.0}) == [2]
    assert members(requests=["r0"]) == [0, 5], "an id may be used again"
    assert members(outcomes={"bad": True}) == [2]
    assert members(outcomes={"bad": False}) == [1], "the latest of a label counts"
    assert members(outcomes={"why": "x"}) == [1], "a label that a later outcome does not name stays"
    with pytest.raises(Refused, match="no request 'x', 'y' of"):
        members(requests=["y", "r1", "x"])


def test_times_of_a_set_are_read_as_those_of_queries():
    now = START + 60 * SECOND
    assert times(TrafficSet(), now, "a") == (0, 1 << 60)
    assert times(TrafficSet(since="-30s", until="-10s"), now, "a") == (now - 30 * SECOND, now - 10 * SECOND)
    with pytest.raises(Refused, match=r"a\.since: -10s is after"):
        times(TrafficSet(since="-10s", until="-30s"), now, "a")


@pytest.mark.parametrize(
    ("value", "wanted", "same"),
    [(True, True, True), (True, 1, False), (0, False, False), (1, 1.0, True), ("1", 1, False), (None, None, True)],
)
def test_values_match_by_what_they_are(value, wanted, same):
    assert matches({"x": value}, {"x": wanted}) is same
    assert not matches({}, {"x": wanted})
