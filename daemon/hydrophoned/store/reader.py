"""The queries of the API and of a restart. Each opens a cursor of its own, so they run side by side with the writer."""

import threading
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

from hydrophoned.store.contexts import with_contexts
from hydrophoned.store.database import Store
from hydrophoned.store.errors import QueryTimeout
from hydrophoned.store.features import FeatureQuery, features_sql
from hydrophoned.store.windows import WindowRange, series_sql, windows_sql


class StoreReader:
    """Reads a store; thread-safe. Times in and out are UTC; numbers of time are microseconds.

    Every query raises :class:`QueryTimeout` when it takes longer than ``timeout_s`` seconds, and
    :class:`StoreClosed` after the store was closed.
    """

    def __init__(self, store: Store, *, timeout_s: float = 10.0) -> None:
        self.timeout_s = timeout_s
        self._store = store

    # -- restart ------------------------------------------------------------------------------------------------

    def streams(self) -> pa.Table:
        """Every stream ever opened, ordered by id, with the columns of the table ``stream``."""
        return self._query("SELECT DISTINCT ON (id) * FROM stream ORDER BY id, created")

    def max_request_key(self) -> int:
        """The largest request key in any table; 0 when there is none. A new key must be larger."""
        table = self._query(
            """
            SELECT max(request_key) AS key FROM (
                SELECT max(request_key) AS request_key FROM request
                UNION ALL SELECT max(request_key) FROM request_rows
                UNION ALL SELECT max(request_key) FROM request_tokens
                UNION ALL SELECT max(request_key) FROM example)
            """
        )
        return max(0, table["key"][0].as_py() or 0)

    # -- windows and features -----------------------------------------------------------------------------------

    def last_window_end(self, stream_key: int) -> int | None:
        """End of the stream's last closed window in us; None when it has none."""
        table = self._query(
            "SELECT epoch_us(max(window_end)) AS time FROM stream_window WHERE stream_key = ?", [stream_key]
        )
        time: int | None = table["time"][0].as_py()
        return time

    def windows(self, stream_key: int, covered: WindowRange) -> pa.Table:
        """The stream's windows, or steps of several, oldest first: the columns of ``rest.StreamWindow``."""
        return self._query(*windows_sql(stream_key, covered))

    def features(self, stream_key: int, query: FeatureQuery) -> pa.Table:
        """Features over a range of windows: the columns of ``rest.Feature``. Raises :class:`BadQuery`."""
        return self._query(*features_sql(stream_key, query))

    def series(self, stream_key: int, feature: int, covered: WindowRange) -> pa.Table:
        """One feature per window, or step of several, oldest first: the columns of ``rest.SeriesPoint``.

        A window in which rows were scored and the feature did not fire has fired = 0; one without scored rows has
        fired = null.
        """
        return self._query(*series_sql(stream_key, feature, covered))

    def examples(self, stream_key: int, feature: int, *, limit: int, context: int = 0) -> pa.Table:
        """The ``limit`` top rows of a feature by score, at most one per request and sequence.

        Columns of ``rest.Example``: with ``context`` pieces to either side where token strings are kept.
        """
        top = self._query(
            """
            WITH best AS (
                SELECT * FROM example WHERE stream_key = ? AND feature = ?
                QUALIFY row_number() OVER (PARTITION BY request_key, sequence ORDER BY score DESC, time) = 1
                ORDER BY score DESC, request_key, sequence LIMIT ?),
            named AS (
                SELECT request_key, any_value(id) AS request FROM request
                WHERE request_key IN (SELECT request_key FROM best) GROUP BY request_key)
            SELECT value::DOUBLE AS value, score, request, best.request_key, sequence, position, token, time,
                   dictionary_version
            FROM best LEFT JOIN named USING (request_key)
            ORDER BY score DESC, best.request_key, sequence
            """,
            [stream_key, feature, limit],
        )
        if not context or not top.num_rows:
            return with_contexts(top, None, context)
        runs = self._query(
            """
            WITH top AS (
                SELECT unnest(?::BIGINT[]) AS request_key, unnest(?::INTEGER[]) AS sequence,
                       unnest(?::INTEGER[]) AS position, unnest(?::INTEGER[]) AS place)
            SELECT top.place, greatest(run.position, top.position - $reach) AS position,
                   list_slice(run.pieces, greatest(top.position - $reach - run.position, 0) + 1,
                              top.position + $reach - run.position + 1) AS pieces
            FROM request_tokens AS run JOIN top USING (request_key, sequence)
            WHERE run.position <= top.position + $reach AND run.position + len(run.pieces) > top.position - $reach
            """.replace("$reach", str(int(context))),
            [top[name].to_pylist() for name in ("request_key", "sequence", "position")] + [list(range(top.num_rows))],
        )
        return with_contexts(top, runs, context)

    # -- requests -----------------------------------------------------------------------------------------------

    def requests(self, request_id: str, *, limit: int) -> pa.Table:
        """Requests of that id, latest first, with the columns of the table ``request``."""
        return self._query(
            "SELECT * FROM request WHERE id = ? ORDER BY started DESC, request_key DESC LIMIT ?", [request_id, limit]
        )

    def request_rows(self, request_keys: Sequence[int]) -> pa.Table:
        """Rows of requests by stream: request_key, stream (id, null if unknown), rows, rows_prompt, rows_decode."""
        return self._query(
            """
            SELECT request_key, any_value(id) AS stream, sum("rows")::BIGINT AS "rows",
                   sum(rows_prompt)::BIGINT AS rows_prompt, sum(rows_decode)::BIGINT AS rows_decode
            FROM request_rows
            LEFT JOIN (SELECT stream_key, any_value(id) AS id FROM stream GROUP BY stream_key) USING (stream_key)
            WHERE request_key IN (SELECT unnest(?::BIGINT[]))
            GROUP BY request_key, stream_key ORDER BY request_key, stream, stream_key
            """,
            [list(request_keys)],
        )

    def request_tokens(self, request_keys: Sequence[int]) -> pa.Table:
        """Token strings of requests as they came, in order: the columns of the table ``request_tokens``."""
        return self._query(
            """
            SELECT request_key, sequence, position, pieces FROM request_tokens
            WHERE request_key IN (SELECT unnest(?::BIGINT[])) ORDER BY request_key, sequence, position
            """,
            [list(request_keys)],
        )

    def outcomes(self, request_id: str, *, limit: int) -> pa.Table:
        """Outcomes of a request id, latest received first, with the columns of the table ``outcome``."""
        return self._query(
            "SELECT * FROM outcome WHERE request_id = ? ORDER BY received DESC, time DESC LIMIT ?", [request_id, limit]
        )

    def request_models(self, request_id: str) -> list[str]:
        """Distinct names of the models that served requests of that id."""
        table = self._query("SELECT DISTINCT model FROM request WHERE id = ? ORDER BY model", [request_id])
        models: list[str] = table["model"].to_pylist()
        return models

    # -- inside -------------------------------------------------------------------------------------------------

    def _query(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pa.Table:
        cursor = self._store.cursor()
        with _TimeLimit(cursor, self.timeout_s):
            return cursor.execute(sql, parameters).to_arrow_table()


class _TimeLimit:
    """Stops a cursor's query after ``seconds`` and closes the cursor at the end."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, seconds: float) -> None:
        self._cursor, self._seconds = cursor, seconds
        self._lock = threading.Lock()
        self._ended = False
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._timer.cancel()
        with self._lock:  # an interrupt of a closed cursor would fail in the timer's thread
            self._ended = True
            self._cursor.close()
        if isinstance(error, duckdb.InterruptException):
            raise QueryTimeout(f"the query took longer than {self._seconds:g} s and was stopped") from error

    def _stop(self) -> None:
        with self._lock:
            if not self._ended:
                self._cursor.interrupt()
