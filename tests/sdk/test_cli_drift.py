"""How the watch over a stream and a drift look on the command line."""

from io import StringIO

import pytest
from hydrophone.cli import show_drift
from hydrophone.cli.app import app
from hydrophone.cli.screen import Screen
from rich.console import Console
from typer.testing import CliRunner

TIME = "2026-01-31T12:00:00Z"


def shown(form, answer):
    stream = StringIO()
    form(Screen(Console(file=stream, width=200)), answer)
    return stream.getvalue()


def detector(**other):
    return {
        "name": "betting", "guarantee": "run_length", "statistic": 99.0, "threshold": 9999.0, "run_length": 9999.0,
        "seconds": 5400.0, "share": 0.5, "units": 70, "left_out": 0, "dictionary_version": None,
    } | other  # fmt: skip


def stratum(**other):
    reference = {
        "stratum": "", "name": "dep\x1bloy", "version": 2, "source": "recent", "made": TIME, "units": 1000,
        "since": TIME, "until": TIME, "units_per_second": 0.5, "autocorrelation_time": 2.5, "thin": 3,
        "halves_p": 0.001,
    }  # fmt: skip
    return {
        "stratum": "", "state": "watching", "problem": None, "watched": 1234, "collected": 0, "wanted": 1000,
        "reference": reference, "detectors": [detector()],
    } | other  # fmt: skip


def watch(**other):
    return {
        "stream": "toy@1/x", "state": "watching", "problem": None, "units_per_second": 0.5,
        "budget": {"false_alarms": 1.0, "period_seconds": 30 * 86_400.0}, "drifts": 0, "drift_since": None,
        "strata": [stratum()], "novelty": None, "detections": [],
    } | other  # fmt: skip


def drift(**other):
    return {
        "stream": "toy@1/x", "number": 4, "stratum": "", "time": TIME, "ended": None, "detector": "firing",
        "guarantee": "run_length", "unit": 41, "statistic": 2500.0, "threshold": 2000.0, "run_length": 2000.0,
        "reference_name": "default", "reference_version": 2, "dictionary_version": 7, "change_time": TIME,
        "change_low": TIME, "change_high": TIME, "telling": 1, "units_after": 30, "shift": 1.5, "changed_features": 12,
        "dictionary_changed": True,
    } | other  # fmt: skip


def test_a_watch_says_how_near_an_alarm_is_and_what_speaks_against_its_reference():
    text = shown(show_drift.status, watch())
    assert text.startswith(
        "toy@1/x  watching\n1,234 requests watched since reference 2 dep\N{REPLACEMENT CHARACTER}loy"
    )
    assert "one of 3 is looked at" in text
    assert "its halves differ (p = 0.001)" in text
    (line,) = [line for line in text.splitlines() if line.startswith("betting")]
    assert line.split()[1] == "█" * 10 + "·" * 10  # half of the way, since evidence multiplies
    assert "1 h 30 min" in line
    assert "budget: 1 false alarm in 30 d\n" in text
    assert text.endswith("no drift so far\n")


def test_a_watch_that_cannot_begin_says_what_it_waits_for():
    waiting = stratum(state="insufficient", problem="all are the same", reference=None, collected=70, detectors=[])
    text = shown(show_drift.status, watch(state="insufficient", strata=[waiting]))
    assert "70 of the 1,000 requests of a reference have come\nall are the same\n" in text
    assert "no request has ended yet" in shown(show_drift.status, watch(state="collecting", strata=[]))
    off = dict.fromkeys(watch()) | {"stream": "toy@1/x", "state": "off", "strata": [], "detections": []}
    assert shown(show_drift.status, off) == "toy@1/x  off\nthe daemon watches no stream: drift.enabled = false\n"
    starting = shown(show_drift.status, off | {"state": "starting"})
    assert starting == "toy@1/x  starting\nthe stream's learner is starting; ask again in a moment\n"
    ended = shown(show_drift.status, off | {"problem": "the stream's learner has ended"})
    assert ended == "toy@1/x  off\nthe stream's learner has ended\n"


def test_the_parts_of_a_divided_stream_are_told_apart():
    parts = [stratum(stratum=f"tenant={name}", detectors=[detector(left_out=3, statistic=None)]) for name in "ab"]
    novelty = {"units": 70, "novel": 7, "share": 0.1, "p": 0.01, "reference_share": None}
    text = shown(
        show_drift.status,
        watch(
            state="drifting", drift_since=TIME, strata=parts, novelty=novelty, detections=[drift(stratum="tenant=b")]
        ),
    )
    assert text.splitlines()[0].startswith("toy@1/x  drifting since 20")
    rows = [line.split() for line in text.splitlines() if "betting" in line]
    assert [(row[0], row[2]) for row in rows] == [("tenant=a", "-"), ("tenant=b", "-")]
    assert "6 requests were left out" in text
    assert "novel requests (p <= 0.01): 7 of 70 (10.00%)\n" in text
    assert text.splitlines()[-1].split()[:2] == ["4", "tenant=b"]
    assert text.splitlines()[-1].split()[-2:] == ["12", "30"]


def test_a_drift_says_when_what_and_who():
    feature = {
        "rank": 0, "index": 17, "feature_id": 5, "index_now": None, "label": "pro\x1bse", "label_source": "rule",
        "rate_before": 0.1, "rate_after": 0.4, "units_before": 1000, "units_after": 30, "effect": 0.7, "p": 1e-9,
        "q": 1e-6,
    }  # fmt: skip
    request = {"rank": 0, "request": None, "request_key": 3, "started": None, "score": 4.25}
    attribute = {
        "attribute": "tenant", "value": "acme", "units_before": 200, "units_after": 27, "share_before": 0.2,
        "share_after": 0.9, "share_q": 1e-6, "shift": 2.0, "elsewhere": None, "shift_q": None,
    }  # fmt: skip
    answer = {"detection": drift(), "features": [feature], "requests": [request], "attributes": [attribute]}
    text = shown(show_drift.detection, answer)
    assert text.startswith("drift 4 of toy@1/x, found 20")
    assert "by firing, not over\n" in text
    assert "it reached 2.5e+03 of 2e+03 at request 42 since reference 2 (default)" in text
    assert "what follows is of 30 requests since it began, told again since it was found\nthey lie +1.50 " in text
    assert "told by version 7 of the dictionary, before and after" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["17", "-", "10.00%", "40.00%", "+0.70", "1e-06", "pro\N{REPLACEMENT CHARACTER}se"] in lines
    assert ["-", "-", "4.25"] in lines
    assert ["tenant=acme", "20.0%", "90.0%", "1e-06", "+2.00", "-", "-"] in lines
    assert "in 30 requests after, 1,000 of the reference; 12 changed (q <= 0.1)" in text
    many = answer | {"features": [feature] * 30}
    assert shown(show_drift.detection, many).count("+0.70") == 20
    bare = {"detection": drift(change_time=None, shift=None), "features": [], "requests": [], "attributes": []}
    text = shown(show_drift.detection, bare)
    assert "which features changed is not known" in text
    assert "it began before the requests that are held, 2026-01-31" in text
    unknown = bare | {"detection": drift(change_time=None, change_low=None, change_high=None, units_after=None)}
    assert "it began" not in shown(show_drift.detection, unknown)
    once = bare | {"detection": drift(change_low=None, telling=0)}
    text = shown(show_drift.detection, once)
    assert "at the latest)\nwhat follows is of 30 requests since it began\n" in text


@pytest.mark.parametrize("arguments", [["toy@1/x"], ["status", "toy@1/x"], ["show", "toy@1/x", "1"]])
def test_a_stream_stands_in_the_place_of_a_command(arguments):
    done = CliRunner().invoke(app, ["drift", *arguments, "--url", "127.0.0.1:1"])
    assert done.exit_code == 3, "it got as far as asking"
    assert "no daemon answers" in done.output


def test_help_and_wrong_usage():
    assert "hydrophone drift STREAM" in CliRunner().invoke(app, ["drift", "--help"]).output
    assert CliRunner().invoke(app, ["drift", "show", "toy@1/x"]).exit_code == 2
    assert CliRunner().invoke(app, ["drift", "rebaseline", "toy@1/x", "--source", "old"]).exit_code == 2
