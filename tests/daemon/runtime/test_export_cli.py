"""``hydrophone export``: what it writes, what it says, and its exit statuses."""

import json
import subprocess
import sys

import duckdb
import pyarrow as pa
import pytest
from hydrophone_schemas.tables import TABLES
from hydrophoned.runtime.cli import app
from hydrophoned.runtime.clock import now_us
from hydrophoned.store import Store
from typer.testing import CliRunner

DAY = 86_400_000_000


@pytest.fixture
def data(tmp_path):
    """A data directory with an outcome of ten days ago and one of now, of requests of then."""
    data = tmp_path / "data"
    data.mkdir()
    now = now_us()
    with Store(data / "hydrophone.duckdb") as store:
        for number, time in enumerate((now - 10 * DAY, now)):
            request = {"request_key": number, "id": f"r{number}", "model": "toy", "version": "1", "producer": "p"}
            request |= {"started": time, "sample": 1.0, "attributes": "{}"}
            outcome = {"request_id": f"r{number}", "model": "toy", "time": time, "received": time}
            outcome |= {"source": "judge", "labels": "{}"}
            store.write({"request": table("request", request), "outcome": table("outcome", outcome)})
    return data


def table(name, row):
    return pa.Table.from_pylist([row], schema=TABLES[name])


@pytest.fixture
def export(data, monkeypatch):
    monkeypatch.delenv("HYDROPHONE_CONFIG", raising=False)
    monkeypatch.setenv("HYDROPHONE_DAEMON__DATA_DIR", str(data))
    return lambda *arguments: CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_every_table_is_written_and_told(export, data, tmp_path):
    done = export(tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["store"] == str(data / "hydrophone.duckdb")
    assert [one["table"] for one in told["tables"]] == list(TABLES)
    assert {one["table"]: one["rows"] for one in told["tables"]}["outcome"] == 2
    with duckdb.connect() as connection:
        assert connection.read_parquet(f"{tmp_path}/out/outcome.parquet").count("*").fetchone() == (2,)


def test_what_is_exported_is_nobody_elses_to_read(export, tmp_path):
    assert export(tmp_path / "out").exit_code == 0
    for path in (tmp_path / "out", *(tmp_path / "out").iterdir()):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("option", "left"), [("--since", "r1"), ("--until", "r0")])
def test_times_may_be_relative(export, tmp_path, option, left):
    done = export(tmp_path / "out", "--table", "outcome", "--table", "request", option, "-7d")
    assert done.exit_code == 0, done.output
    assert [line.partition(": ")[2][:7] for line in done.stdout.splitlines()] == ["1 rows,", "1 rows,"]
    with duckdb.connect() as connection:
        found = connection.read_parquet(f"{tmp_path}/out/outcome.parquet").project("request_id").fetchall()
    assert found == [(left,)]


def test_a_data_directory_may_be_named(export, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HYDROPHONE_DAEMON__DATA_DIR", str(tmp_path / "elsewhere"))
    assert export(tmp_path / "out").exit_code == 1
    assert export(tmp_path / "out", "--data-dir", data).exit_code == 0
    assert export(tmp_path / "out2", "--set", f"daemon.data_dir={data}").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--table", "outcomes"], "there is no table 'outcomes'"),
        (["--since", "yesterday"], "'yesterday' is not a time"),
        (["--until", "2026-01-01T00:00:00"], "has no zone"),
        (["--set", "daemon"], "is not SECTION.FIELD=VALUE"),
    ],
)
def test_wrong_usage_is_told(export, tmp_path, arguments, text):
    done = export(tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert text in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_store_in_use_ends_with_status_1_and_what_to_do(export, data, tmp_path):
    with Store(data / "hydrophone.duckdb"):
        done = export(tmp_path / "out")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert "Stop that daemon" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_one_command_passes_it_on(data, tmp_path):
    command = [sys.executable, "-m", "hydrophone.cli", "export", tmp_path / "out", "--data-dir", data]
    done = subprocess.run([*map(str, command), "--table", "outcome"], capture_output=True, text=True, check=True)
    file = tmp_path / "out/outcome.parquet"
    assert done.stdout == f"{file}: 2 rows, {file.stat().st_size} bytes\n"
