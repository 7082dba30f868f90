"""Tables of the store as Parquet files, for whatever reads Parquet: streamed, never whole in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from hydrophone_schemas.tables import TABLES

from hydrophoned.store.database import connection_settings
from hydrophoned.store.drift_sql import OF_DETECTIONS
from hydrophoned.store.errors import BadTable, ExportFailed, StoreLocked, StoreUnusable
from hydrophoned.store.lock import StoreLock
from hydrophoned.store.migrations import MIGRATIONS, check_version

_BATCH_ROWS: Final = 2048  # of what DuckDB hands over at a time: its own unit, so that wide rows stay few
_GROUP_ROWS: Final = 122_880
_GROUP_BYTES: Final = 32 << 20
_MEMORY_BYTES: Final = 128 << 20  # of DuckDB's, which would keep what it has read

_REQUESTS: Final = """
    SELECT request_key FROM request
    WHERE started >= make_timestamp($since) AND started < make_timestamp($until)
    UNION SELECT request_key FROM request_rows
    WHERE window_start >= make_timestamp($since) AND window_start < make_timestamp($until)
"""
_BY_TIME: Final = "{column} >= make_timestamp($since) AND {column} < make_timestamp($until)"
_SEEN: Final = _BY_TIME.format(column='"time"')
_OF_DRIFTS: Final = f"(stream_key, number) IN (SELECT stream_key, number FROM detection WHERE {_SEEN})"  # noqa: S608  our own text
_IN_RANGE: Final = {
    **dict.fromkeys(
        ("stream_window", "feature_window", "stream_split", "feature_split", "request_feature", "request_rows"),
        _BY_TIME.format(column="window_start"),
    ),
    **dict.fromkeys(("example", "detection", "novel_request"), _SEEN),
    **dict.fromkeys(("request", "request_tokens"), f"request_key IN ({_REQUESTS})"),
    **dict.fromkeys(OF_DETECTIONS[1:], _OF_DRIFTS),
    "outcome": f"request_id IN (SELECT id FROM request WHERE request_key IN ({_REQUESTS}))",  # noqa: S608  our own text
}
"""Which rows lie in a range of time, by table; the others are small, and the rest cannot be read without them."""


class Exported(NamedTuple):
    """A file that was written: ``rows`` of the table, and its ``bytes``."""

    table: str
    file: Path
    rows: int
    bytes: int


class ExportRange(NamedTuple):
    """What was seen from ``since`` until before ``until``, in us; None is without bound.

    Windows by their start, examples by the time of their row, drifts by when they were found, with all that belongs to
    them, novel requests by their end. Requests that started in the range or had rows in it, with their tokens and
    outcomes.
    """

    since: int | None = None
    until: int | None = None


def export_tables(
    database: Path, directory: Path, names: Sequence[str] = (), covered: ExportRange | None = None
) -> list[Exported]:
    """Write tables of the file ``database`` to ``directory``/TABLE.parquet, zstd; all of them where none is named.

    Columns, their order and types are those of ``hydrophone_schemas.tables``; rows are in the order they were written.
    The directory is made where it is missing. The store is read only and locked meanwhile, so that all tables are of
    one moment. Raises :class:`BadTable` for a name that is no table's, :class:`StoreLocked` where a daemon uses the
    store, :class:`StoreTooNew` or :class:`StoreUnusable` where it cannot be read, and :class:`ExportFailed` where a
    file exists already or cannot be written. After an error no file is left behind.
    """
    for name in names:
        if name not in TABLES:
            raise BadTable(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    wanted = list(dict.fromkeys(names)) or list(TABLES)
    written: list[Exported] = []
    try:
        with _reading(database) as connection:
            directory.mkdir(parents=True, exist_ok=True)
            for name in wanted:
                _refuse_to_overwrite(directory / f"{name}.parquet")
            written.extend(_export(connection, name, directory, covered) for name in wanted)
    except BaseException as error:
        for one in written:
            one.file.unlink(missing_ok=True)
        if isinstance(error, duckdb.Error):
            raise StoreUnusable(f"{database} cannot be read: {error}") from error
        if isinstance(error, OSError):
            raise ExportFailed(f"could not export to {directory}: {error}") from error
        raise
    return written


@contextmanager
def _reading(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    if not database.is_file():
        raise StoreUnusable(f"there is no store {database}: no daemon has run with this data directory yet")
    try:
        lock = StoreLock(database)
    except StoreLocked as error:
        raise StoreLocked(
            f"{error} A store is exported while no daemon runs on it; a running one gives its lists as Arrow over the "
            "REST API."
        ) from None
    except OSError as error:
        raise StoreUnusable(f"{database} cannot be locked: {error}") from error
    try:
        with duckdb.connect(
            str(database), read_only=True, config=connection_settings(memory_bytes=_MEMORY_BYTES)
        ) as connection:
            version = check_version(connection)
            if version < MIGRATIONS[-1].number:
                raise StoreUnusable(
                    f"{database} is at version {version}, this is version {MIGRATIONS[-1].number}: start the daemon on "
                    "it once, which brings it there"
                )
            yield connection
    finally:
        lock.release()


def _refuse_to_overwrite(file: Path) -> None:
    if file.exists():
        raise ExportFailed(f"{file} exists already: name another folder, or remove the file")


def _export(connection: duckdb.DuckDBPyConnection, name: str, directory: Path, covered: ExportRange | None) -> Exported:
    """Write one table under a name of its own, and give it its final one once it is whole."""
    file, partial = directory / f"{name}.parquet", directory / f".{name}.parquet.partial"
    try:
        with pq.ParquetWriter(partial, TABLES[name], compression="zstd") as writer:
            for group in _row_groups(_batches(connection, name, covered)):
                writer.write_table(group.cast(TABLES[name]), row_group_size=group.num_rows)
        rows = pq.read_metadata(partial).num_rows
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(name, file, rows, file.stat().st_size)


def _batches(connection: duckdb.DuckDBPyConnection, name: str, covered: ExportRange | None) -> pa.RecordBatchReader:
    columns = ", ".join(f'"{column}"' for column in TABLES[name].names)
    statement = f'SELECT {columns} FROM "{name}"'  # noqa: S608  names from our own schemas
    values: dict[str, Any] = {}
    if covered is not None and name in _IN_RANGE:
        statement = f"{statement} WHERE {_IN_RANGE[name]}"
        values = {"since": covered.since or 0, "until": 1 << 60 if covered.until is None else covered.until}
    return connection.execute(statement, values).to_arrow_reader(_BATCH_ROWS)


def _row_groups(batches: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The batches put together to row groups of bounded rows and bytes."""
    held: list[pa.RecordBatch] = []
    rows = nbytes = 0
    for batch in batches:
        held.append(batch)
        rows, nbytes = rows + batch.num_rows, nbytes + batch.nbytes
        if rows >= _GROUP_ROWS or nbytes >= _GROUP_BYTES:
            yield pa.Table.from_batches(held)
            held, rows, nbytes = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)
