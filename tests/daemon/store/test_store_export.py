"""Parquet files of the store's tables: whole, typed, of one moment, and read by DuckDB as they are."""

import os
import shutil

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generated import LENGTH, START, GeneratedStream, as_table
from hydrophone_schemas.tables import TABLES
from hydrophoned.store import (
    BadTable,
    ExportFailed,
    ExportRange,
    Store,
    StoreLocked,
    StoreReader,
    StoreTooNew,
    StoreUnusable,
    export,
    export_tables,
)
from hydrophoned.store.views import MACROS
from test_store_queries import example, request, tokens
from test_store_versions import features, matches, version
from test_store_views import requests_and_outcomes

KEY = 7
SINCE, UNTIL = START + 4 * LENGTH, START + 17 * LENGTH


@pytest.fixture(scope="module")
def stream():
    return GeneratedStream(key=KEY)


@pytest.fixture(scope="module")
def path(tmp_path_factory, stream):
    path = tmp_path_factory.mktemp("store") / "h.duckdb"
    with Store(path) as store:
        stream.fill(store)
        store.write(version(1, key=KEY) | features(1, (1, 0, "born"), key=KEY))
        store.write(version(2, parent=1, key=KEY) | matches(2, ("stable", 1, 1, 0, 0), key=KEY))
        store.write(requests_and_outcomes())
        store.write({"request_tokens": tokens(1, 0, ["a", None, "é"]), "example": example(2, 1, 3.0, key=KEY)})
    return path


def contents(path, name):
    """The table as it is in the database file, in the order of its rows."""
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(f"SELECT * FROM {name} ORDER BY rowid").to_arrow_table().cast(TABLES[name])  # noqa: S608  our own names


def names_in(directory):
    return sorted(one.name for one in directory.iterdir())


def read_back(file):
    """What DuckDB makes of an exported file, opened with nothing else."""
    with duckdb.connect() as connection:
        return connection.execute(f"FROM '{file}'").to_arrow_table()


def test_duckdb_reads_each_exported_table_as_it_is_in_the_store(path, tmp_path):
    done = export_tables(path, tmp_path / "out")
    assert [one.table for one in done] == list(TABLES)
    for one in done:
        found, want = read_back(one.file), contents(path, one.table)
        assert found.schema.names == TABLES[one.table].names
        assert found.cast(TABLES[one.table]).equals(want), one.table
        assert (one.rows, one.bytes) == (want.num_rows, one.file.stat().st_size)
        assert pq.read_schema(one.file).equals(TABLES[one.table]), one.table  # what may be null is told too
    assert {one.table for one in done if one.rows} >= {"feature_window", "request_tokens", "outcome", "feature_match"}
    assert names_in(tmp_path / "out") == sorted(f"{name}.parquet" for name in TABLES)


def test_files_are_compressed_with_zstd(path, tmp_path):
    (one,) = export_tables(path, tmp_path, ["feature_window"])
    assert pq.ParquetFile(one.file).metadata.row_group(0).column(0).compression == "ZSTD"


def test_macros_answer_from_exported_files_too(path, tmp_path):
    export_tables(path, tmp_path)
    with duckdb.connect(str(path), read_only=True) as connection:
        want = connection.execute("FROM feature_rates('toy@1/layers.0')").to_arrow_table()
    with duckdb.connect() as connection:
        for name in TABLES:
            connection.execute(f"CREATE VIEW {name} AS FROM '{tmp_path / name}.parquet'")
        connection.execute(MACROS["feature_rates"].sql("feature_rates"))
        found = connection.execute("FROM feature_rates('toy@1/layers.0')").to_arrow_table()
    assert found.equals(want)
    assert want.num_rows


def test_only_the_named_tables_are_written_once_each(path, tmp_path):
    done = export_tables(path, tmp_path, ["outcome", "stream", "outcome"])
    assert [one.table for one in done] == ["outcome", "stream"]
    assert names_in(tmp_path) == ["outcome.parquet", "stream.parquet"]


def test_a_range_takes_the_windows_that_start_in_it_and_all_of_what_they_refer_to(path, tmp_path, stream):
    done = {one.table: one for one in export_tables(path, tmp_path, covered=ExportRange(SINCE, UNTIL))}
    for name in ("stream_window", "feature_window", "stream_split", "feature_split"):
        starts = read_back(done[name].file)["window_start"].cast(pa.int64()).to_pylist()
        whole = contents(path, name)["window_start"].cast(pa.int64()).to_pylist()
        assert starts == [start for start in whole if SINCE <= start < UNTIL]
        assert 0 < len(starts) < len(whole)
    assert done["stream_window"].rows == 13
    for name in ("stream", "dictionary", "feature", "feature_match"):
        assert done[name].rows == contents(path, name).num_rows > 0


def test_a_range_takes_requests_that_began_or_had_rows_in_it_with_what_belongs_to_them(tmp_path):
    path = tmp_path / "h.duckdb"
    with Store(path) as store:
        for key, began in ((1, START), (2, START), (3, SINCE), (4, UNTIL)):
            store.write({"request": request(key, f"r{key}", started=began), "request_tokens": tokens(key, 0, ["a"])})
            outcome = {
                "request_id": [f"r{key}"], "model": ["toy"], "time": [UNTIL + 9], "received": [UNTIL + 9],
                "source": ["judge"], "labels": ["{}"],
            }  # fmt: skip
            store.write({"outcome": as_table("outcome", outcome)})
        rows = {"request_key": [2], "stream_key": [KEY], "window_start": [SINCE]}
        rows |= {"rows": [3], "rows_prompt": [3], "rows_decode": [0]}
        store.write({"request_rows": as_table("request_rows", rows), "example": example(2, 1, 3.0)})
    done = {one.table: one for one in export_tables(path, tmp_path / "out", covered=ExportRange(SINCE, UNTIL))}
    for name in ("request", "request_tokens"):
        assert sorted(read_back(done[name].file)["request_key"].to_pylist()) == [2, 3]
    assert sorted(read_back(done["outcome"].file)["request_id"].to_pylist()) == ["r2", "r3"]
    assert (done["request_rows"].rows, done["example"].rows) == (1, 0)


def test_either_end_of_a_range_may_be_open(path, tmp_path):
    (first,) = export_tables(path, tmp_path / "a", ["stream_window"], ExportRange(until=SINCE))
    (rest,) = export_tables(path, tmp_path / "b", ["stream_window"], ExportRange(since=SINCE))
    assert (first.rows, rest.rows) == (4, 26)


def test_many_rows_are_written_in_bounded_groups_in_their_order(path, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_BATCH_ROWS", 50)
    monkeypatch.setattr(export, "_GROUP_ROWS", 100)
    (one,) = export_tables(path, tmp_path, ["feature_window"])
    about = pq.ParquetFile(one.file).metadata
    assert about.num_row_groups > 3
    assert max(about.row_group(n).num_rows for n in range(about.num_row_groups)) < 100 + 2048
    assert read_back(one.file).cast(TABLES["feature_window"]).equals(contents(path, "feature_window"))


def test_a_store_in_use_is_not_exported_and_the_user_is_told_what_to_do(path, tmp_path):
    with Store(path), pytest.raises(StoreLocked, match=f"in use by process {os.getpid()}.*while no daemon runs"):
        export_tables(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_acknowledged_before_a_crash_is_exported_and_the_store_is_left_as_it_was(tmp_path, stream):
    path, crashed = tmp_path / "h.duckdb", tmp_path / "crashed" / "h.duckdb"
    crashed.parent.mkdir()
    with Store(path) as store:
        store.write({"stream": stream.stream_row()} | stream.window(0))
        for file in (path, path.with_name("h.duckdb.wal")):
            shutil.copy(file, crashed.parent / file.name)
    before = {file: file.read_bytes() for file in crashed.parent.iterdir()}
    assert crashed.with_name("h.duckdb.wal") in before
    (one,) = export_tables(crashed, tmp_path / "out", ["stream_window"])
    assert one.rows == 1
    assert {file: file.read_bytes() for file in before} == before
    with Store(crashed) as store:  # and it is free again
        assert StoreReader(store).last_window_end(KEY) == START + LENGTH


def test_an_existing_file_is_never_written_over(path, tmp_path):
    (tmp_path / "outcome.parquet").write_bytes(b"kept")
    with pytest.raises(ExportFailed, match=r"outcome\.parquet exists already"):
        export_tables(path, tmp_path, ["stream", "outcome"])
    assert names_in(tmp_path) == ["outcome.parquet"]
    assert (tmp_path / "outcome.parquet").read_bytes() == b"kept"


def test_after_an_error_no_file_is_left(path, tmp_path):
    broken = tmp_path / "h.duckdb"
    shutil.copy(path, broken)
    with duckdb.connect(str(broken)) as connection:
        connection.execute("ALTER TABLE request DROP COLUMN sample")
    with pytest.raises(StoreUnusable, match="cannot be read"):
        export_tables(broken, tmp_path / "out", ["stream", "request"])
    assert names_in(tmp_path / "out") == []


@pytest.mark.parametrize("names", [["nothing"], ["stream", "schema_migration"], ["stream; DROP TABLE stream"]])
def test_an_unknown_table_is_refused_with_those_there_are(path, tmp_path, names):
    with pytest.raises(BadTable, match=r"there is no table .*; there are stream, stream_window"):
        export_tables(path, tmp_path, names)
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_written_says_so(path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportFailed, match="could not export to"):
        export_tables(path, tmp_path / "file")


def test_a_store_that_cannot_be_read_says_why(path, tmp_path):
    with pytest.raises(StoreUnusable, match="no daemon has run"):
        export_tables(tmp_path / "none.duckdb", tmp_path / "out")
    assert not (tmp_path / "none.duckdb").exists()
    assert not (tmp_path / "none.duckdb.lock").exists()
    other = tmp_path / "other.duckdb"
    for number, error, text in ((99, StoreTooNew, "version 99"), (1, StoreUnusable, "start the daemon on it once")):
        shutil.copy(path, other)
        with duckdb.connect(str(other)) as connection:
            connection.execute("DELETE FROM schema_migration WHERE number > 1")
            connection.execute("INSERT INTO schema_migration VALUES (?, 'other', now()::TIMESTAMP)", [number])
        with pytest.raises(error, match=text):
            export_tables(other, tmp_path / "out")
    other.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnusable, match="cannot be read"):
        export_tables(other, tmp_path / "out")
