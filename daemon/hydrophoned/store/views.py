"""Macros that live in the database file: the usual questions in SQL, for whoever opens the file without a daemon.

Their bodies are the very statements of the API, with the macro's parameters in the place of values, so that both say
the same. They are made anew at each opening, not by migrations, and so follow the code.
"""

import re
from typing import Final, NamedTuple

import duckdb

from hydrophoned.store.contexts import TOP_EXAMPLES
from hydrophoned.store.drift_sql import (
    DetectionQuery,
    NovelQuery,
    detected_features_sql,
    detections_sql,
    novel_sql,
    references_sql,
)
from hydrophoned.store.features import FeatureQuery, SplitCell, features_sql
from hydrophoned.store.labels import LabelQuery, labels_sql
from hydrophoned.store.quantiles import FEWEST_FIRED, FEWEST_REQUESTS, quantile_tables_sql
from hydrophoned.store.versions import versions_sql
from hydrophoned.store.windows import WindowRange, series_sql, windows_sql

_ALL: Final = 1 << 60
_RANGE: Final = "since := NULL, until := NULL"
# no parameter has the name of a column: it would take its place
_VALUES: Final = {
    "stream": "(SELECT min(stream_key) FROM stream WHERE id = stream_id)",
    "feature": "feature_index",
    "since": "coalesce(epoch_us(since::TIMESTAMP), 0)",
    "until": f"coalesce(epoch_us(until::TIMESTAMP), {_ALL})",
    "step": "coalesce(epoch_us(step::INTERVAL), 1)",
    "limit": str(_ALL),
    "attribute": "split_attribute",
    "value": "split_value",
    "number": "detection_number",
}
_QUANTILE: Final = """
    WITH asked AS (SELECT $feature::INTEGER AS index),
    totals AS (
        SELECT coalesce(sum(fired), 0)::BIGINT AS fired, max(max)::DOUBLE AS largest,
               CASE WHEN count(requests) = count(*) THEN sum(requests)::BIGINT END AS requests
        FROM feature_window
        WHERE stream_key = $stream AND feature = $feature AND window_start >= make_timestamp($since)
          AND window_start < make_timestamp($until)),
    {quantile_tables}
    SELECT CASE WHEN NOT coalesce(q BETWEEN 0 AND 1, false)
                    THEN error('there is no quantile ' || coalesce(q::VARCHAR, 'NULL') || ': q is a number in 0..1')
                WHEN fired < {fewest_fired} OR requests < {fewest_requests} THEN NULL
                WHEN asked_q > largest THEN largest ELSE asked_q END AS value,
           fired, requests
    FROM totals LEFT JOIN quantiles ON true
"""
_OUTCOMES: Final = """
    WITH told AS (
        SELECT request_id, model, time, received, source, rowid AS number,
               unnest(map_entries(labels::JSON::MAP(VARCHAR, JSON))) AS entry
        FROM outcome),
    latest AS (
        SELECT * FROM told
        QUALIFY row_number() OVER (
            PARTITION BY request_id, model, entry.key ORDER BY received DESC, time DESC, number DESC) = 1)
    SELECT request_key, id AS request, request.model, version, started, sample, attributes, entry.key AS label,
           entry.value AS value, source, time, received
    FROM request LEFT JOIN latest ON latest.request_id = request.id AND latest.model = request.model
    ORDER BY request_key, label
"""
_NOW: Final = """
    WITH known AS (SELECT DISTINCT ON (id) * FROM stream ORDER BY id, created),
    total AS (
        SELECT stream_key, min(window_start) AS first_window_start, max(window_end) AS last_window_end,
               sum("rows")::BIGINT AS "rows", sum(rows_scored)::BIGINT AS rows_scored,
               sum(rows_learned)::BIGINT AS rows_learned
        FROM stream_window GROUP BY stream_key),
    last_window AS (
        SELECT stream_key, rows_scored AS last_rows_scored, fvu, l0, dead_fraction, mean_norm, features_fired,
               dictionary_version
        FROM stream_window
        QUALIFY row_number() OVER (PARTITION BY stream_key ORDER BY window_end DESC, rowid DESC) = 1),
    published AS (SELECT stream_key, arg_max(features, version) AS features FROM dictionary GROUP BY stream_key)
    SELECT id AS stream, width, created, first_window_start, last_window_end, "rows", rows_scored, rows_learned,
           last_rows_scored, fvu, l0, dead_fraction, mean_norm, features_fired, features, dictionary_version
    FROM known LEFT JOIN total USING (stream_key) LEFT JOIN last_window USING (stream_key)
         LEFT JOIN published USING (stream_key)
    ORDER BY id
"""


class Macro(NamedTuple):
    """A table macro: ``parameters`` as they are declared, those with ``:=`` by default; ``body`` is one statement."""

    parameters: str
    body: str

    def sql(self, name: str) -> str:
        """The statement that makes it."""
        return f'CREATE OR REPLACE MACRO "{name}"({self.parameters}) AS TABLE {self.body}'


def _filled(statement: str, **values: str) -> str:
    """``statement`` with macro parameters for its ``$names``; raises KeyError where there is none for one of them."""
    known = _VALUES | values
    return re.sub(r"\$(\w+)", lambda found: known[found[1]], statement)


def _features(split: SplitCell | None = None) -> str:
    return _filled(features_sql(0, FeatureQuery(0, _ALL, _ALL, split=split))[0])


def _series(split: SplitCell | None = None) -> str:
    return _filled(series_sql(0, 0, WindowRange(0, _ALL, _ALL), split)[0])


_CELL: Final = SplitCell("", "")
_QUANTILE_BODY: Final = _QUANTILE.format(
    quantile_tables=quantile_tables_sql("asked", {"asked_q": "q::DOUBLE"}).lstrip(),
    fewest_fired=FEWEST_FIRED,
    fewest_requests=FEWEST_REQUESTS,
)

MACROS: Final = {
    "stream_now": Macro("", _NOW),
    "stream_windows": Macro(
        f"stream_id, {_RANGE}, step := NULL", _filled(windows_sql(0, WindowRange(0, _ALL, _ALL))[0])
    ),
    "dictionary_versions": Macro("stream_id", _filled(versions_sql(0, _ALL, before=None, only=None)[0])),
    "feature_rates": Macro(f"stream_id, {_RANGE}", _features()),
    "feature_rates_in": Macro(f"stream_id, split_attribute, split_value, {_RANGE}", _features(_CELL)),
    "feature_series": Macro(f"stream_id, feature_index, {_RANGE}, step := NULL", _series()),
    "feature_series_in": Macro(
        f"stream_id, feature_index, split_attribute, split_value, {_RANGE}, step := NULL", _series(_CELL)
    ),
    "feature_quantile": Macro(f"stream_id, feature_index, q, {_RANGE}", _filled(_QUANTILE_BODY)),
    "top_examples": Macro("stream_id, feature_index, n := 10", _filled(TOP_EXAMPLES, limit="n")),
    "feature_labels": Macro("stream_id", _filled(labels_sql(0, LabelQuery(_ALL))[0])),
    "request_outcomes": Macro("", _OUTCOMES),
    "detections": Macro(_RANGE, _filled(detections_sql(DetectionQuery(_ALL))[0])),
    "detection_features": Macro("stream_id, detection_number", _filled(detected_features_sql(0, 0)[0])),
    "stream_references": Macro("stream_id", _filled(references_sql(0, _ALL)[0])),
    "novel_requests": Macro(f"stream_id, {_RANGE}", _filled(novel_sql(0, NovelQuery(_ALL))[0])),
}
"""The macros by name; docs/reference/sql.md says what each answers, with its columns."""


def create_macros(connection: duckdb.DuckDBPyConnection) -> None:
    """Make or replace every macro, in one transaction."""
    connection.begin()
    try:
        for name, macro in MACROS.items():
            connection.execute(macro.sql(name))
        connection.commit()
    except duckdb.Error:
        connection.rollback()
        raise
