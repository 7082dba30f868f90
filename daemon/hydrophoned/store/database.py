"""The DuckDB file: opened once per daemon, migrated, written in transactions."""

import contextlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import duckdb
import pyarrow as pa
from hydrophone_schemas.tables import TABLES

from hydrophoned.store.errors import BadTable, StoreClosed, StoreUnusable, WriteFailed
from hydrophoned.store.lock import StoreLock
from hydrophoned.store.migrations import migrate
from hydrophoned.store.retention import Retained, retain
from hydrophoned.store.views import create_macros

_log = logging.getLogger(__name__)
Tables = Mapping[str, pa.Table | pa.RecordBatch]
_MEMORY_BYTES: Final = 512 << 20


class StoreSize(NamedTuple):
    """Bytes on disk of the database file and its write-ahead log, and bytes of its blocks in use."""

    file_bytes: int
    used_bytes: int


def connection_settings(threads: int = 1, memory_bytes: int = _MEMORY_BYTES) -> dict[str, Any]:
    """DuckDB's settings: bounded, no extensions installed or loaded, no SQL that reaches other files."""
    return {
        "threads": threads,
        "memory_limit": f"{memory_bytes}B",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "enable_external_access": "false",
    }


class Store:
    """One DuckDB file and the one connection that writes it.

    Extensions are neither installed nor loaded, and SQL cannot reach other files. ``threads`` is the number of
    processor threads one query may use, ``memory_bytes`` the bound of DuckDB's own memory. Raises StoreLocked,
    StoreTooNew or StoreUnusable.
    """

    def __init__(self, path: Path, *, threads: int = 1, memory_bytes: int = _MEMORY_BYTES) -> None:
        self.path = Path(path)
        self._lock_file = StoreLock(self.path)
        self._writing = threading.Lock()
        self._closed = False
        try:
            self._connection = self._open(threads, memory_bytes)
        except BaseException:
            self._lock_file.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, tables: Tables) -> int:
        """Append ``tables`` in one transaction; returns the number of table rows.

        Raises :class:`BadTable` before anything is written, :class:`WriteFailed` when nothing was.
        """
        ready = {name: check_table(name, table) for name, table in tables.items()}
        with self._writing:
            connection = self._live()
            connection.begin()
            try:
                for name, table in ready.items():
                    if table.num_rows:
                        self._append(connection, name, table)
                connection.commit()
            except duckdb.Error as error:
                self._rollback(connection)
                retry = isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException | duckdb.HTTPException)
                raise WriteFailed(f"could not write {', '.join(ready)}: {error}", retry=retry) from error
        return sum(table.num_rows for table in ready.values())

    def retain(
        self,
        now_us: int,
        *,
        max_age_us: int | None = None,
        max_bytes: int | None = None,
        examples_per_feature: int | None = None,
    ) -> Retained:
        """Delete what is no longer kept, and return how much was deleted of what.

        That is what is older than ``max_age_us``, the oldest windows while the blocks in use exceed ``max_bytes``, and
        examples beyond the best ``examples_per_feature`` of their feature; None keeps without bound. A request that an
        example of a feature still shows is kept, with its tokens. Blocks, takes seconds when there is much to delete,
        and writes wait meanwhile.
        """
        with self._writing:
            connection = self._live()
            done = retain(
                connection,
                now_us,
                max_age_us=max_age_us,
                max_bytes=max_bytes,
                used_bytes=self._used_bytes(connection),
                examples_per_feature=examples_per_feature,
            )
            if any(done):
                self._checkpoint(connection)
        return done

    @property
    def file_bytes(self) -> int:
        """Bytes on disk of the file and its write-ahead log."""
        total = 0
        for path in (self.path, self.path.with_name(f"{self.path.name}.wal")):
            with contextlib.suppress(FileNotFoundError):  # the log comes and goes with checkpoints
                total += path.stat().st_size
        return total

    def size(self) -> StoreSize:
        """Size of the file and of what is in use in it."""
        cursor = self.cursor()
        try:
            return StoreSize(self.file_bytes, self._used_bytes(cursor))
        finally:
            cursor.close()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same database, for one query or one thread; close it after use."""
        return self._live().cursor()

    def close(self) -> None:
        """Checkpoint and close; doing so twice is harmless."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
            self._checkpoint(self._connection)
            self._connection.close()
            self._lock_file.release()

    def _open(self, threads: int, memory_bytes: int) -> duckdb.DuckDBPyConnection:
        connection = None
        try:
            connection = duckdb.connect(str(self.path), config=connection_settings(threads, memory_bytes))
            applied = migrate(connection)
            create_macros(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, duckdb.Error):
                raise StoreUnusable(
                    f"{self.path} cannot be opened: {error}. Move it away to begin with an empty store."
                ) from error
            raise
        if applied:
            _log.info("store %s brought to version %d", self.path, applied[-1])
        return connection

    def _live(self) -> duckdb.DuckDBPyConnection:
        if self._closed:
            raise StoreClosed(f"the store {self.path} was closed")
        return self._connection

    @staticmethod
    def _append(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
        columns = ", ".join(f'"{column}"' for column in table.column_names)
        connection.register("incoming", table)
        try:
            # both names come from hydrophone_schemas.tables: check_table saw to it
            connection.execute(f'INSERT INTO "{name}" ({columns}) SELECT {columns} FROM incoming')  # noqa: S608  names from our own schemas
        finally:
            connection.unregister("incoming")

    @staticmethod
    def _rollback(connection: duckdb.DuckDBPyConnection) -> None:
        try:
            connection.rollback()
        except duckdb.Error as error:
            # a failed commit has rolled back already
            _log.debug("rollback: %s", error)

    @staticmethod
    def _checkpoint(connection: duckdb.DuckDBPyConnection) -> None:
        try:
            connection.execute("CHECKPOINT")
        except duckdb.Error as error:
            # a query in progress can stand in the way; the log is kept and replayed at the next opening
            _log.debug("checkpoint: %s", error)

    @staticmethod
    def _used_bytes(connection: duckdb.DuckDBPyConnection) -> int:
        row = connection.execute("SELECT block_size * used_blocks FROM pragma_database_size()").fetchone()
        return int(row[0]) if row else 0


def check_table(name: str, table: pa.Table | pa.RecordBatch) -> pa.Table:
    """``table`` as a pa.Table with exactly the columns of the store's table ``name``; raises :class:`BadTable`."""
    schema = TABLES.get(name)
    if schema is None:
        raise BadTable(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    if not table.schema.equals(schema):
        raise BadTable(f"table {name!r} was given with columns\n{table.schema}\nexpected\n{schema}")
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise BadTable(f"table {name!r} has nulls in column {field.name!r}, which cannot be unknown")
    return table
