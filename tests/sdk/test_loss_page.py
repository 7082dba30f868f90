"""The code in docs/how-to/measure-loss-recovered.md works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydrophone.loss import LossRecovered

PAGE = Path(__file__).parents[2] / "docs/how-to/measure-loss-recovered.md"
TEXT = PAGE.read_text(encoding="utf-8")
MEASURE, OTHER_LOSS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.llm
@pytest.mark.timeout(600)
def test_the_page_measures_a_language_model(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HYDROPHONE_")}
    environment = kept | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "HYDROPHONE_SOCKET": str(tmp_path / "none"),
    }
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=False, timeout=580
    )
    assert done.returncode == 0, done.stderr
    recovered, loss = done.stdout.splitlines()
    assert 0 < float(recovered.split()[2]) < 1
    clean, rebuilt, mean = (float(number) for number in re.findall(r"\d+\.\d+", loss))
    assert clean < rebuilt < mean


def test_the_other_loss_is_a_sum_and_a_number() -> None:
    class Output:
        logits = torch.randn(5, 3)

    names: dict[str, object] = {}
    exec(OTHER_LOSS, names)  # noqa: S102  the page's own code
    total, count = names["label_loss"](Output, {"labels": torch.tensor([0, 1, 2, 0, 1])})  # type: ignore[operator]
    assert count == 5
    assert float(total) > 0


def test_every_field_of_the_result_is_explained() -> None:
    rows = re.findall(r"^\| (`.*?) \| .+ \|$", TEXT, re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(LossRecovered._fields)
