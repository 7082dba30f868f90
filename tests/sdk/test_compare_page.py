"""The code in docs/how-to/compare-two-samples.md works as it stands there, and says what the page says of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from hydrophone.drift import Comparison
from installed import entry_points_in

PAGE = Path(__file__).parents[2] / "docs/how-to/compare-two-samples.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_works_from_top_to_bottom(tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(entry_points_in(tmp_path)), *filter(None, sys.path)])
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    alike, told, *changes, groups = done.stdout.splitlines()
    assert re.fullmatch(r"p = 0\.00\d, of 300 and 200 requests", alike)
    auroc, low, high = (float(number) for number in re.findall(r"\d\.\d+", told))
    assert 0.55 < low < auroc < high
    assert [change.partition(":")[0] for change in changes] == ["shift of coordinate 3", "spread of coordinate 5"]
    careless, careful = (float(number) for number in re.findall(r"\d\.\d+", groups))
    assert careless <= 0.01
    assert careful > 0.05


def test_every_field_is_explained() -> None:
    rows = re.findall(r"^\| (`.*?) \| .+ \|$", TEXT, re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(Comparison._fields)
