"""Every command and every line of code in docs/how-to/ask-about-features.md works as it stands there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydrophone.demo.daemon import DemoDaemon
from hydrophone_schemas.rest import ContrastedFeature

PAGE = Path(__file__).parents[2] / "docs/how-to/ask-about-features.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_works_from_top_to_bottom(tmp_path):
    with DemoDaemon(features=128, k=4, data_dir=tmp_path / "data") as daemon:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HYDROPHONE_")} | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HYDROPHONE_SOCKET": daemon.address,
            "HYDROPHONE_URL": daemon.url,
        }
        answers = []
        for language, text in BLOCKS:
            private = text.replace("curl -s ", "curl -sS --fail ").replace("http://127.0.0.1:8417", daemon.url)
            command = [sys.executable, "-W", "error", "-c", text] if language == "python" else ["bash", "-euc", private]
            run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
            assert run.returncode == 0, (text, run.stdout + run.stderr)
            answers.append(run.stdout)
    kinds, wrong, probes, requests, features, inspected, found, firings, near, decoded = answers[1:]
    assert all(item["q"] <= 0.05 for item in json.loads(kinds)["items"])
    assert json.loads(kinds)["items"]
    culprits = [item["index"] for item in json.loads(wrong)["items"]]  # a token may have several features
    assert json.loads(wrong)["items"][0]["q"] < 1e-6
    assert json.loads(probes)["items"][0]["features"][0] in culprits
    assert json.loads(probes)["items"][0]["auroc_low"] > 0.8
    assert all(item["score"] is not None for item in json.loads(requests)["items"])
    assert json.loads(features)["items"][0]["index"] in culprits
    assert json.loads(inspected)["items"]
    assert json.loads(_first(found))["items"][0]["index"] in culprits
    assert {item["band"] for item in json.loads(firings)["items"]} == {1, 2, 3, 4}
    assert len(json.loads(_first(near))["items"]) == 5
    rows = [item["row"] for item in json.loads(decoded)["items"]]
    assert rows[0] != rows[1]


def _first(text):
    """The first of two documents that follow each other."""
    _, end = json.JSONDecoder().raw_decode(text)
    return text[:end]


def test_the_fields_that_are_explained_exist():
    table = TEXT.partition("How to read an item:")[2].partition("\n- ")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert named
    assert named <= set(ContrastedFeature.model_fields)
