"""``hydrophone demo`` on the real language model."""

import json
import subprocess
import sys

import pytest


def run_demo(tmp_path, *arguments, timeout):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "hydrophone.cli", "demo", "--once", "--http", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--report", str(report), *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text()), done.stdout


@pytest.mark.llm
@pytest.mark.timeout(600)
def test_short_demo_learns_and_tells(tmp_path):
    report, output = run_demo(tmp_path, "--tokens", "8000", timeout=500)
    assert report["tokens"] == 8000
    assert report["rows_sent"] == 8000
    assert report["rows_received"] + report["rows_dropped"] == 8000
    assert report["rows_learned"] >= 0.98 * report["rows_received"]
    assert report["fvu_holdout"] < 0.6
    assert report["l0"] == 32
    assert "telling features" in output
    assert "hydrophone features" in output


@pytest.mark.long
@pytest.mark.llm
@pytest.mark.timeout(1800)
def test_full_demo_reaches_its_figures(tmp_path):
    report, output = run_demo(tmp_path, "--tokens", "60000", timeout=1700)
    assert report["rows_received"] + report["rows_dropped"] == report["rows_sent"] == 60_000
    assert report["fvu_holdout"] < 0.32
    assert report["dead_fraction"] < 0.5
    fvus = [window["fvu"] for window in report["fvu_by_window"] if window["rows"] >= 1000]
    thirds = [
        sum(part) / len(part)
        for part in (fvus[: len(fvus) // 3], fvus[len(fvus) // 3 : -(len(fvus) // 3)], fvus[-(len(fvus) // 3) :])
    ]
    assert thirds[0] > thirds[1] > thirds[2]
    assert output.count("of its top contexts on") >= 10
