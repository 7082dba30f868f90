"""Every command and every line of code in docs/how-to/exchange-dictionaries.md works as it stands there."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs/how-to/exchange-dictionaries.md"


def blocks():
    """(language, text) of the fenced blocks, in their order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


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
    for language, text in blocks():
        assert language in ("sh", "python")
        if "sae_lens" in text and importlib.util.find_spec("sae_lens") is None:
            continue
        command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert run.returncode == 0, run.stdout + run.stderr
        done.append(run.stdout)
    fvu = re.search(r"held out: 2,000 rows, fvu (0\.\d+), l0 ", done[1])
    assert fvu is not None, done[1]
    assert float(fvu[1]) < 0.3
    theirs, back = tmp_path / "mine-saelens", tmp_path / "back"
    name = "sae_weights.safetensors"
    assert (theirs / name).read_bytes() == (back / name).read_bytes(), "bit for bit, as the page says"
