"""Every command and every line of code in docs/how-to/act-on-drift.md works as it stands there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydrophone.demo.daemon import DemoDaemon
from hydrophone_schemas import rest

PAGE = Path(__file__).parents[2] / "docs/how-to/act-on-drift.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_works_from_top_to_bottom(tmp_path):
    script = tmp_path / "bin" / "hydrophone"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hydrophone.cli "$@"\n')
    script.chmod(0o755)
    with DemoDaemon(features=128, k=4, data_dir=tmp_path / "data") as daemon:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HYDROPHONE_")} | {
            "PATH": f"{script.parent}:{os.environ['PATH']}",
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
    _, first, told, rebaselined, references, novel = answers
    assert first.startswith("toy@1/mix  drifting since ")
    shown, _, detail = told.partition("{")
    assert shown.startswith("drift 1 of toy@1/mix, found ")
    drift = rest.DetectionDetail.model_validate_json("{" + detail)
    assert drift.features[0].rate_after != drift.features[0].rate_before
    assert all(request.request and int(request.request[1:]) >= 900 for request in drift.requests[:5])
    assert ("tenant", "acme") in {(one.attribute, one.value) for one in drift.attributes}
    assert rebaselined.startswith("toy@1/mix  watching\n")
    assert "after-r900" in rebaselined
    named = [(one["name"], one["source"]) for one in json.loads(references)["items"]]
    assert named == [("after-r900", "recent"), ("default", "next")]
    assert rest.NoveltyList.model_validate_json(novel)


def test_the_fields_that_are_explained_exist():
    table = TEXT.partition("| question | where |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", table))
    models = (rest.Detection, rest.DetectionDetail, rest.DetectedFeature, rest.DetectedAttribute)
    assert named
    assert named <= {field for model in models for field in model.model_fields}
