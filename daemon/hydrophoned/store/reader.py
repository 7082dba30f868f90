"""The queries of the API and of a restart. Each opens a cursor of its own, so they run side by side with the writer."""

import threading
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

from hydrophoned.store.contexts import TOP_EXAMPLES, with_contexts
from hydrophoned.store.database import Store
from hydrophoned.store.errors import QueryTimeout
from hydrophoned.store.features import FeatureQuery, SplitCell, features_sql
from hydrophoned.store.labels import BEST_LABELS, PIECES, LabelQuery, labels_sql, places
from hydrophoned.store.quantiles import quantiles_sql
from hydrophoned.store.versions import (
    LAST_GIVEN,
    MatchQuery,
    feature_at_sql,
    feature_of_id_sql,
    matches_sql,
    standing_sql,
    versions_sql,
)
from hydrophoned.store.windows import WindowRange, series_of_id_sql, series_sql, windows_sql


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
                UNION ALL SELECT max(request_key) FROM example
                UNION ALL SELECT max(request_key) FROM detection_request
                UNION ALL SELECT max(request_key) FROM novel_request)
            """
        )
        return max(0, table["key"][0].as_py() or 0)

    def latest_attributes(self, limit: int) -> pa.Table:
        """Key and attributes (JSON) of the ``limit`` latest requests, oldest first."""
        return self._query(
            """
            SELECT request_key, attributes FROM (
                SELECT request_key, attributes FROM request ORDER BY request_key DESC LIMIT ?)
            ORDER BY request_key
            """,
            [limit],
        )

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
        asked = None
        if query.sort == "stability":
            known = query.stability or ()
            asked = pa.table(
                {"index": pa.array(range(len(known)), pa.int32()), "stability": pa.array(known, pa.float64())}
            )
        return self._query(*features_sql(stream_key, query), asked=asked)

    def quantiles(
        self, stream_key: int, feature: int, quantiles: Sequence[float], *, since: int, until: int
    ) -> list[float | None]:
        """Quantiles of a feature's values over windows that start in [since, until); raises :class:`BadQuery`.

        Each is off by at most 1/17 of itself; None where it lies beyond the buckets or the feature did not fire.
        """
        table = self._query(*quantiles_sql(stream_key, feature, quantiles, since, until))
        return table["quantiles"][0].as_py() if table.num_rows else [None] * len(quantiles)

    def splits(self, stream_key: int, since: int, until: int) -> pa.Table:
        """What the windows that start in [since, until) are split by: the columns of ``rest.Split``."""
        return self._query(
            """
            SELECT attribute, value, sum(rows_scored)::BIGINT AS "rows", sum(requests)::BIGINT AS requests
            FROM stream_split
            WHERE stream_key = ? AND window_start >= make_timestamp(?) AND window_start < make_timestamp(?)
            GROUP BY attribute, value ORDER BY attribute, "rows" DESC, value
            """,
            [stream_key, since, until],
        )

    def series(
        self, stream_key: int, feature: int, covered: WindowRange, *, split: SplitCell | None = None
    ) -> pa.Table:
        """One feature per window, or step of several, oldest first: the columns of ``rest.SeriesPoint``.

        With ``split`` only rows of that cell are counted; requests and maximum, which are not kept by cell, are null.
        A window in which rows were scored and the feature did not fire has fired = 0; one without scored rows has
        fired = null.
        """
        return self._query(*series_sql(stream_key, feature, covered, split))

    def series_of_id(self, stream_key: int, feature_id: int, covered: WindowRange) -> pa.Table:
        """As :meth:`series`, of a feature by its id: while it lived, at whichever index it stood."""
        return self._query(*series_of_id_sql(stream_key, feature_id, covered))

    def examples(self, stream_key: int, feature: int, *, limit: int, context: int = 0) -> pa.Table:
        """The ``limit`` top rows of a feature by score, at most one per request and sequence.

        Columns of ``rest.Example``: with ``context`` pieces to either side where token strings are kept.
        """
        top = self._query(TOP_EXAMPLES, {"stream": stream_key, "feature": feature, "limit": limit})
        return self.with_context(top, context)

    def with_context(self, rows: pa.Table, reach: int) -> pa.Table:
        """``rows`` with the columns ``context`` and ``context_index``, null where no token strings are kept.

        ``rows`` has the columns request_key, sequence and position; ``reach`` pieces to either side are given.
        """
        if not reach or not rows.num_rows:
            return with_contexts(rows, None, reach)
        runs = self._query(
            """
            SELECT asked.place, greatest(run.position, asked.position - $reach) AS position,
                   list_slice(run.pieces, greatest(asked.position - $reach - run.position, 0) + 1,
                              asked.position + $reach - run.position + 1) AS pieces
            FROM request_tokens AS run JOIN asked USING (request_key, sequence)
            WHERE run.position <= asked.position + $reach AND run.position + len(run.pieces) > asked.position - $reach
            """,
            {"reach": reach},
            asked=places(rows),
        )
        return with_contexts(rows, runs, reach)

    # -- labels -------------------------------------------------------------------------------------------------

    def labels(self, stream_key: int, query: LabelQuery) -> pa.Table:
        """Labels in force, in order of index, id and source: the columns of ``rest.FeatureLabel``."""
        return self._query(*labels_sql(stream_key, query))

    def best_labels(self, stream_key: int, indices: Sequence[int]) -> pa.Table:
        """index, label, label_source, label_score of those features that have one.

        A manual label comes first, then an imported one, then the one with the highest score.
        """
        asked = pa.table({"index": pa.array(indices, pa.int32())})
        return self._query(BEST_LABELS, {"stream": stream_key}, asked=asked)

    def pieces(self, keys: Sequence[int], sequences: Sequence[int], positions: Sequence[int]) -> pa.Table:
        """The token strings at given rows: place (in the lists given), piece, and previous, the piece before.

        Rows of which neither is kept are left out.
        """
        rows = pa.table({"request_key": keys, "sequence": sequences, "position": positions})
        return self._query(PIECES, asked=places(rows))

    def request_attributes(self, request_keys: Sequence[int]) -> pa.Table:
        """request_key and attributes (JSON) of requests."""
        return self._query(
            "SELECT request_key, attributes FROM request WHERE request_key IN (SELECT request_key FROM asked)",
            asked=pa.table({"request_key": pa.array(request_keys, pa.int64())}),
        )

    # -- versions -----------------------------------------------------------------------------------------------

    def versions(self, stream_key: int, *, limit: int, before: int | None = None, only: int | None = None) -> pa.Table:
        """Versions of the stream's dictionary, the latest first: the table ``dictionary``, with counts of matches."""
        return self._query(*versions_sql(stream_key, limit, before=before, only=only))

    def matches(self, stream_key: int, query: MatchQuery) -> pa.Table:
        """How the features of a version came from those of its parent: the columns of ``rest.FeatureMatch``."""
        return self._query(*matches_sql(stream_key, query))

    def feature_at(self, stream_key: int, index: int, version: int) -> tuple[int, int] | None:
        """Id of the feature at an index in a version, and the version it was born in; None where it is not known."""
        table = self._query(*feature_at_sql(stream_key, index, version))
        return (table["feature_id"][0].as_py(), table["born_version"][0].as_py()) if table.num_rows else None

    def standing(self, stream_key: int, indices: Sequence[int], version: int) -> pa.Table:
        """Index, feature_id and born_version of the features at ``indices`` in a version, in order; null: unknown."""
        asked = pa.table({"feature": pa.array(indices, pa.int32()), "place": range(len(indices))})
        return self._query(*standing_sql(stream_key, version), asked=asked)

    def feature_of_id(self, stream_key: int, feature_id: int) -> dict[str, Any] | None:
        """Where a feature stands: index, state, version (in which that began) and born_version; None of no such id."""
        table = self._query(*feature_of_id_sql(stream_key, feature_id))
        return table.to_pylist()[0] if table.num_rows else None

    def last_given(self, stream_key: int) -> tuple[int, int]:
        """The highest version of the stream's dictionary, 0 for none, and the first feature id beyond all known."""
        table = self._query(LAST_GIVEN, {"stream": stream_key})
        return table["version"][0].as_py(), table["next_id"][0].as_py()

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

    def _query(
        self, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), *, asked: pa.Table | None = None
    ) -> pa.Table:
        """The statement's answer; ``asked`` is a table of that name in it: a long list given as a parameter is slow."""
        cursor = self._store.cursor()
        with _TimeLimit(cursor, self.timeout_s):
            if asked is not None:
                cursor.register("asked", asked)
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
