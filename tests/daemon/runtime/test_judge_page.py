"""Every command and every line of code in docs/how-to/judge-a-dictionary.md works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs/how-to/judge-a-dictionary.md"


def test_the_page_works_from_top_to_bottom(tmp_path):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "hydrophone"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hydrophone.cli "$@"\n')
    script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{script.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = []
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for language, text in blocks:
        command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert run.returncode == 0, run.stdout + run.stderr
        done.append(run.stdout)
    assessed, labelled, compared = done[2:]
    fvu, rival = (float(one) for one in re.findall(r"fvu (0\.\d+)", assessed)[:2])
    assert fvu < rival, "better than components"
    assert "split over 2 features" in labelled
    assert "requests by column request" in compared
