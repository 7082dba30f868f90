"""What a watch tells of itself, as the API shows it."""

import math
from datetime import UTC, datetime

import pytest
from hydrophone_schemas import rest
from hydrophoned.runtime.drift_view import drift_status

TIME = 1_767_225_600_000_000
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def told(**other):
    """A watch over a divided stream, as its own status has it: one part is watched, the other is collecting."""
    reference = {
        "name": "default", "version": 3, "source": "next", "made": TIME, "units": 400, "since": TIME, "until": TIME,
        "units_per_second": None, "autocorrelation_time": 1.5, "thin": 1, "halves_p": 0.2,
    }  # fmt: skip
    detector = {
        "name": "betting", "guarantee": "run_length", "statistic": 2.0, "threshold": 500.0, "run_length": 500.0,
        "seconds": None, "share": 0.5, "units": 40, "left_out": 0, "dictionary_version": None,
    }  # fmt: skip
    watched = {
        "stratum": "tenant=a", "state": "watching", "problem": None, "watched": 40, "collected": 0, "wanted": 400,
        "reference": reference, "detectors": [detector],
    }  # fmt: skip
    collecting = {
        "stratum": "tenant=b", "state": "insufficient", "problem": "there are 9", "watched": 0, "collected": 9,
        "wanted": 800, "reference": None, "detectors": [],
    }  # fmt: skip
    return {
        "state": "drifting", "problem": None, "units_per_second": 0.25,
        "budget": {"false_alarms": 1.0, "period_seconds": 3600.0}, "drifts": 2, "drift_since": TIME,
        "strata": [watched, collecting], "novelty": None,
    } | other  # fmt: skip


def test_times_are_times_and_each_reference_says_of_which_part_it_is():
    shown = drift_status("toy@1/x", told())
    assert (shown.stream, shown.state, shown.drift_since) == ("toy@1/x", rest.DriftState.DRIFTING, MOMENT)
    first, second = shown.strata
    assert first.reference is not None
    assert (first.reference.stratum, first.reference.made, first.reference.units_per_second) == (
        "tenant=a",
        MOMENT,
        None,
    )
    assert (second.reference, second.state, second.problem) == (None, rest.DriftState.INSUFFICIENT, "there are 9")


def test_novelty_is_shown_where_it_is_told():
    novelty = {"units": 40, "novel": 2, "share": 0.05, "p": 0.01, "reference_share": None}
    assert drift_status("toy@1/x", told(novelty=novelty)).novelty == rest.NoveltyStatus(**novelty)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(value):
    given = told()
    given["strata"][0]["detectors"][0]["statistic"] = value
    shown = drift_status("toy@1/x", given)
    assert shown.strata[0].detectors[0].statistic is None
    assert rest.DriftStatus.model_validate_json(shown.model_dump_json()) == shown


def test_without_a_watch_nothing_is_said_but_that():
    shown = drift_status("toy@1/x", None).model_dump()
    assert shown.pop("stream") == "toy@1/x"
    assert shown.pop("state") is rest.DriftState.OFF
    assert shown.pop("strata") == []
    assert set(shown.values()) == {None}
