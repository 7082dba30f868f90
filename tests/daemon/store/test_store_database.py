import subprocess
import sys
import textwrap
import threading
from datetime import UTC

import duckdb
import pyarrow as pa
import pytest
from generated import LENGTH, START, GeneratedStream, as_table
from hydrophone_schemas.tables import TABLES
from hydrophoned.store import (
    BadTable,
    FeatureQuery,
    Store,
    StoreClosed,
    StoreLocked,
    StoreReader,
    StoreTooNew,
    StoreUnusable,
    WindowRange,
    WriteFailed,
)
from hydrophoned.store.migrations import MIGRATIONS, Migration, migrate

DUCKDB_NAMES = {
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("us"): "TIMESTAMP",
    pa.list_(pa.string()): "VARCHAR[]",
    pa.list_(pa.int16()): "SMALLINT[]",
    pa.list_(pa.int32()): "INTEGER[]",
    pa.list_(pa.float32()): "FLOAT[]",
    pa.list_(pa.float64()): "DOUBLE[]",
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "h.duckdb"


def columns_in(path):
    with duckdb.connect(str(path)) as connection:
        return connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable = 'YES' FROM information_schema.columns "
            "WHERE table_name != 'schema_migration' ORDER BY table_name, ordinal_position"
        ).fetchall()


def test_the_file_has_exactly_the_columns_of_the_arrow_schemas(path):
    Store(path).close()
    expected = [
        (name, column.name, DUCKDB_NAMES[column.type], column.nullable)
        for name in sorted(TABLES)
        for column in TABLES[name]
    ]
    assert columns_in(path) == expected


def test_there_is_no_index_and_no_key_on_any_table(path):
    Store(path).close()
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT count(*) FROM duckdb_indexes()").fetchone() == (0,)
        kinds = connection.execute("SELECT DISTINCT constraint_type FROM duckdb_constraints()").fetchall()
    assert kinds == [("NOT NULL",)]


def test_opening_again_migrates_nothing_and_keeps_rows(path):
    stream = GeneratedStream(key=1)
    with Store(path) as store:
        stream.fill(store)
    with Store(path) as store:
        assert StoreReader(store).last_window_end(1) == stream.end
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT number, name FROM schema_migration").fetchall() == [
            (migration.number, migration.name) for migration in MIGRATIONS
        ]


def test_migrations_are_numbered_without_gaps():
    assert [migration.number for migration in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_a_file_of_a_later_version_is_refused_and_left_alone(path):
    Store(path).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO schema_migration VALUES (99, 'from the future', now()::TIMESTAMP)")
    before = path.read_bytes()
    with pytest.raises(StoreTooNew, match=f"version 99; this daemon knows versions up to {len(MIGRATIONS)}"):
        Store(path)
    assert path.read_bytes() == before


def test_a_failing_migration_leaves_the_version_before(path):
    with duckdb.connect(str(path)) as connection:
        migrate(connection)
        broken = (
            *MIGRATIONS,
            Migration(len(MIGRATIONS) + 1, "broken", ("CREATE TABLE extra (a INTEGER)", "SELECT * FROM nowhere")),
        )
        with pytest.raises(duckdb.CatalogException):
            migrate(connection, broken)
        assert connection.execute("SELECT max(number) FROM schema_migration").fetchone() == (len(MIGRATIONS),)
        assert ("extra",) not in connection.execute("SHOW TABLES").fetchall()


def test_a_file_that_is_no_database_says_so(path):
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnusable, match="cannot be opened"):
        Store(path)
    path.unlink()
    Store(path).close()  # the failed attempt released its lock


def test_a_second_daemon_on_the_same_file_is_told_who_has_it(path):
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from hydrophoned.store import Store, StoreLocked
        try:
            Store(Path({str(path)!r}))
        except StoreLocked as error:
            print(error)
        """
    )
    with Store(path):
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        with pytest.raises(StoreLocked):
            Store(path)
    import os

    assert f"in use by process {os.getpid()}" in found.stdout
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == ""


def test_the_lock_is_free_after_close_and_closing_twice_is_harmless(path):
    for _ in range(3):
        store = Store(path)
        store.close()
        store.close()
    with pytest.raises(StoreClosed):
        store.write({"stream": GeneratedStream(key=1).stream_row()})
    with pytest.raises(StoreClosed):
        StoreReader(store).streams()


def test_fifty_openings_leave_no_descriptor_open(path):
    import psutil

    Store(path).close()
    before = psutil.Process().num_fds()
    for _ in range(50):
        with Store(path) as store:
            StoreReader(store).streams()
    assert psutil.Process().num_fds() <= before


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"streams": pa.table({})}, "there is no table 'streams'"),
        ({"stream": pa.table({"id": ["a"]})}, "was given with columns"),
        (
            {"stream": pa.Table.from_pylist([{"stream_key": 1}], schema=TABLES["stream"])},
            "has nulls in column 'id'",
        ),
    ],
)
def test_tables_that_are_not_the_stores_are_refused(path, tables, message):
    with Store(path) as store:
        with pytest.raises(BadTable, match=message):
            store.write({"stream": GeneratedStream(key=1).stream_row()} | tables)
        assert StoreReader(store).streams().num_rows == 0


def test_a_write_is_whole_or_not_at_all(path):
    with Store(path) as store:
        store._connection.execute("DROP TABLE outcome")
        outcome = {"request_id": ["r"], "model": ["m"], "time": [0], "received": [0], "source": ["s"], "labels": ["{}"]}
        with pytest.raises(WriteFailed, match="outcome") as caught:
            store.write({"stream": GeneratedStream(key=1).stream_row(), "outcome": as_table("outcome", outcome)})
        assert not caught.value.retry
        assert StoreReader(store).streams().num_rows == 0
        store.write({"stream": GeneratedStream(key=1).stream_row()})
        assert StoreReader(store).streams().num_rows == 1


def test_what_was_committed_survives_a_killed_process(path):
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {__file__.rpartition("/")[0]!r})
        from generated import GeneratedStream
        from hydrophoned.store import Store
        store = Store(Path({str(path)!r}))
        GeneratedStream(key=1).fill(store)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    stream = GeneratedStream(key=1)
    with Store(path) as store:
        assert StoreReader(store).last_window_end(1) == stream.end
        (first, *_) = (
            StoreReader(store).features(1, FeatureQuery(0, 1 << 60, 1, sort="index", descending=False)).to_pylist()
        )
    assert first["fired"] == stream.fired[:, first["index"]].sum()


def test_the_same_window_twice_is_kept_twice(path):
    """Append-only: nothing is overwritten, so a replay must not send what was committed."""
    stream = GeneratedStream(key=1)
    with Store(path) as store:
        assert store.write(stream.window(0)) == store.write(stream.window(0))
        found = StoreReader(store).features(1, FeatureQuery(START, START + LENGTH, 100)).to_pylist()
    assert sum(row["fired"] for row in found) == 2 * stream.fired[0].sum()


def test_readers_see_whole_windows_while_others_write_and_delete(path):
    stream = GeneratedStream(key=1, count=200, silent=frozenset())
    problems, done = [], threading.Event()
    with Store(path) as store:
        reader = StoreReader(store)

        def read():
            try:
                while not done.is_set():
                    covered = reader.windows(1, WindowRange(0, 1 << 60, 1000)).to_pylist()
                    if covered:
                        last = covered[-1]
                        start = int(last["window_start"].replace(tzinfo=UTC).timestamp() * 1e6)
                        found = reader.features(1, FeatureQuery(start, start + 1, 100)).to_pylist()
                        assert len(found) == last["features_fired"]
            except BaseException as error:
                problems.append(error)
                raise

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for w in range(stream.count):
            store.write(stream.window(w))
            if w % 50 == 49:
                store.retain(int(stream.starts[w]), max_age_us=20 * LENGTH)
        done.set()
        for thread in threads:
            thread.join(10)
        assert not problems
        assert reader.last_window_end(1) == stream.end
