"""hydrophone.drift.compare reads what people have, and hands it to the installed daemon's analysis."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import hydrophone
import numpy as np
import pyarrow as pa
import pytest
import torch
from hydrophone import drift
from hydrophone_schemas.activations import DTYPE_KEY
from installed import entry_points_in

RANDOM = np.random.default_rng(0)
REFERENCE = RANDOM.standard_normal((200, 6)).astype(np.float32)
CURRENT = RANDOM.standard_normal((150, 6)).astype(np.float32)
CURRENT[:, 2] += 1.0


@pytest.fixture(autouse=True)
def analyses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(entry_points_in(tmp_path))


def lists(x: np.ndarray, **columns: Any) -> pa.Table:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    return pa.table({"activation": rows, **columns})


def columns(x: np.ndarray, **others: Any) -> pa.Table:
    return pa.table({f"c{number}": x[:, number] for number in range(x.shape[1])} | others)


def same(one: Any, other: Any) -> bool:
    return str(one._replace(names=None)) == str(other._replace(names=None))


def test_a_shift_is_found_where_it_is() -> None:
    found = drift.compare(REFERENCE, CURRENT)
    assert (found.units_reference, found.units_current) == (200, 150)
    assert found.p <= 0.01
    assert found.mahalanobis.effect == pytest.approx(1.0, abs=0.3)
    assert found.coordinates.shift[2] == pytest.approx(1.0, abs=0.2)
    assert np.flatnonzero(found.coordinates.shift_q < 0.05).tolist() == [2]
    assert 0.5 < found.classifier.low < found.classifier.auroc < found.classifier.high


@pytest.mark.parametrize(
    "given",
    [
        (torch.from_numpy(REFERENCE), torch.from_numpy(CURRENT).requires_grad_()),
        (REFERENCE.astype(np.float64), CURRENT.tolist()),
        (lists(REFERENCE), lists(CURRENT).to_batches()[0]),
        (lists(REFERENCE, name=["a"] * 200), pa.concat_tables([lists(CURRENT[:7]), lists(CURRENT[7:])])),
        (columns(REFERENCE), columns(CURRENT, text=["a"] * 150)),
        (REFERENCE, pa.table({"x": pa.array(list(CURRENT))})),
    ],
    ids=["tensors", "other dtypes", "a batch", "chunks", "columns", "lists without a size"],
)
def test_whatever_the_rows_come_in_the_answer_is_the_same(given: tuple[Any, Any]) -> None:
    assert same(drift.compare(*given, permutations=99), drift.compare(REFERENCE, CURRENT, permutations=99))


def test_columns_have_names() -> None:
    found = drift.compare(columns(REFERENCE), columns(CURRENT), permutations=99)
    assert found.names == ("c0", "c1", "c2", "c3", "c4", "c5")
    assert drift.compare(REFERENCE, CURRENT, permutations=99).names is None


def test_bfloat16_as_it_travels() -> None:
    halved = [torch.from_numpy(x).bfloat16() for x in (REFERENCE, CURRENT)]
    tables = [lists(x.view(torch.uint16).numpy()).replace_schema_metadata({DTYPE_KEY: b"bfloat16"}) for x in halved]
    assert same(drift.compare(*tables, permutations=99), drift.compare(*halved, permutations=99))


def test_what_is_null_or_not_finite_is_left_out_and_counted() -> None:
    rows = [row.tolist() for row in CURRENT]
    rows[3], rows[5] = None, [None, *rows[5][1:]]
    current = pa.table({"x": pa.array(rows, pa.list_(pa.float32(), 6))})
    reference = REFERENCE.copy()
    reference[0, 0] = np.inf
    found = drift.compare(reference, current, permutations=99)
    assert (found.units_reference, found.left_out_reference) == (199, 1)
    assert (found.units_current, found.left_out_current) == (148, 2)


def test_groups_are_ids_or_a_column() -> None:
    ids = np.arange(200) // 4, np.array([f"r{number // 3}" for number in range(150)])
    by_ids = drift.compare(REFERENCE, CURRENT, groups=ids, permutations=99)
    assert (by_ids.groups_reference, by_ids.groups_current) == (50, 50)
    tables = lists(REFERENCE, request=ids[0]), lists(CURRENT, request=ids[1])
    assert same(drift.compare(*tables, groups="request", permutations=99), by_ids)
    narrow = columns(REFERENCE, request=ids[0]), columns(CURRENT, request=np.arange(150) // 3)
    assert drift.compare(*narrow, groups="request", permutations=99).coordinates.shift.shape == (6,)
    arrow = pa.array(ids[0]), torch.arange(150) // 3
    assert same(drift.compare(REFERENCE, CURRENT, groups=arrow, permutations=99), by_ids)


@pytest.mark.parametrize(
    ("reference", "current", "options", "error", "said"),
    [
        (REFERENCE[0], CURRENT, {}, hydrophone.InvalidArray, r"reference has shape \(6,\)"),
        (REFERENCE, CURRENT[:, :5], {}, hydrophone.InvalidArray, r"\[200, 6\] and \[150, 5\]"),
        (REFERENCE, CURRENT[:19], {}, hydrophone.InvalidArray, "19 of the current sample .* 20 of each"),
        (REFERENCE, CURRENT * np.nan, {}, hydrophone.InvalidArray, "0 of the current sample"),
        (np.array([["a"]]), CURRENT, {}, hydrophone.InvalidArray, "dtype <U1"),
        (pa.table({"a": ["x"]}), CURRENT, {}, hydrophone.InvalidArray, "reference has no column"),
        (pa.table({"a": [[1.0], [1.0, 2.0]]}), CURRENT, {}, hydrophone.InvalidArray, "lists of 2 lengths"),
        (pa.table({"a": [[1.0]], "b": [[1.0]]}), CURRENT, {}, hydrophone.InvalidArray, "name one activation"),
        (columns(REFERENCE), columns(CURRENT).drop(["c5"]), {}, hydrophone.InvalidArray, "differ: .'c5'"),
        (REFERENCE, CURRENT, {"permutations": 0}, hydrophone.InvalidOption, "permutations=0"),
        (REFERENCE, CURRENT, {"groups": "request"}, hydrophone.InvalidOption, "not both Arrow tables"),
        (REFERENCE, CURRENT, {"groups": ([1], [2])}, hydrophone.InvalidOption, "one id for each of 200"),
        (REFERENCE, CURRENT, {"groups": 3}, hydrophone.InvalidOption, "neither"),
        (lists(REFERENCE), lists(CURRENT), {"groups": "tenant"}, hydrophone.InvalidOption, "it has activation"),
    ],
)
def test_what_cannot_be_compared(
    reference: Any, current: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        drift.compare(reference, current, **options)


def test_without_the_daemon_the_error_says_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "hydrophone-0.dist-info").mkdir(parents=True)
    (bare / "hydrophone-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hydrophone\nVersion: 0\n")
    code = """
import hydrophone
try:
    hydrophone.drift.compare([[1.0]], [[1.0]])
except hydrophone.DaemonNotFound as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60,
        env={"PYTHONPATH": ":".join([str(bare), *sys.path])},
    )  # fmt: skip
    assert b"pip install 'hydrophone[daemon]'" in found.stdout


def test_reading_samples_imports_neither_torch_nor_the_daemon() -> None:
    code = "import sys, hydrophone.drift; sys.exit(' '.join({'torch', 'hydrophoned'} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={"PYTHONPATH": ":".join(sys.path)})
