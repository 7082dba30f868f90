"""Logs: their two forms, that a failing loop cannot flood them, and that users' text stays out."""

import io
import json
import logging
import os

import pytest
from hydrophoned.runtime import logs
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def configured():
    """Configure logging onto a stream in memory; what it was comes back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()

    def configure(form, level="info"):
        logs.configure(level, form, stream)
        return logging.getLogger("test"), lambda: stream.getvalue().splitlines()

    yield configure
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = before


def record(message="m", **fields):
    made = logging.LogRecord("test", logging.INFO, "file.py", 7, message, (), None)
    made.__dict__.update(fields)
    return made


def test_text_shows_message_and_fields(configured):
    log, lines = configured("text")
    log.info("stream %s opened", "a@1/x", extra={"width": 576, "note": "two words"})
    (line,) = lines()
    time, _, rest = line.partition(" ")
    assert time.endswith("Z")
    assert rest == 'info    test: stream a@1/x opened width=576 note="two words"'


def test_json_has_one_object_per_line(configured):
    log, lines = configured("json")
    try:
        int("broken\nin two")
    except ValueError:
        log.exception("failed\non a row", extra={"rows": 3})
    (line,) = lines()
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"], found["rows"]) == (
        "error",
        "test",
        "failed\non a row",
        3,
    )
    assert "ValueError: invalid literal" in found["traceback"]


def test_a_field_cannot_replace_what_the_record_says():
    assert json.loads(logs.JsonFormatter().format(record("m", level="none")))["level"] == "info"


def test_the_level_is_the_least_that_is_logged(configured):
    log, lines = configured("text", "warning")
    log.info("low")
    log.warning("high")
    assert [line.split(": ")[1] for line in lines()] == ["high"]


@given(st.text())
def test_what_comes_from_outside_stays_on_its_line(text):
    shown = logs.TextFormatter().format(record(text, name_of_client=text))
    assert len(shown.splitlines()) == 1


def test_long_messages_are_cut():
    shown = logs.TextFormatter().format(record("x" * 100_000))
    assert len(shown) < 5000
    assert "(100000 characters)" in shown


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()], ids=["text", "json"])
def test_fields_that_may_hold_users_text_are_withheld(formatter):
    shown = formatter.format(record(tokens=["secret", "word"], text="secret", context=3, width=4))
    assert "secret" not in shown
    assert "<2 withheld>" in shown
    assert "4" in shown


def test_a_failing_loop_cannot_flood():
    now = 0.0
    limit = logs.RateLimit(burst=5, per_second=1.0, clock=lambda: now)
    assert sum(limit.filter(record()) for _ in range(1000)) == 5
    assert limit.filter(other := logging.LogRecord("test", logging.INFO, "file.py", 8, "m", (), None))
    assert not hasattr(other, "held_back")
    now = 1.5
    passed = record()
    assert limit.filter(passed)
    assert passed.held_back == 995
    assert "held_back=995" in logs.TextFormatter().format(passed)
    assert not limit.filter(record())
    now = 1000.0
    assert sum(limit.filter(record()) for _ in range(1000)) == 5


def test_the_journal_gets_priorities_and_no_time(tmp_path, monkeypatch):
    with (tmp_path / "journal").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert not logs._is_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert logs._is_journal(stream)
    shown = {
        level: logs.TextFormatter(journal=True).format(logging.LogRecord("test", level, "f", 1, "m", (), None))
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL)
    }
    assert list(shown.values()) == ["<7>debug test: m", "<6>info test: m", "<4>warning test: m", "<3>critical test: m"]


def test_a_stream_without_a_file_is_no_journal():
    assert not logs._is_journal(io.StringIO())
