"""What is deleted from the store, by age and by bytes, in plain SQL."""

from typing import Final, NamedTuple

import duckdb

from hydrophoned.store.drift_sql import OF_DETECTIONS, OLD_DETECTIONS, OLD_REFERENCES
from hydrophoned.store.versions import TRIM

_SPARE: Final = 0.9
"""After a deletion by bytes the blocks in use are brought down to this share of the bound, so that it is rare."""

_BEST_EXAMPLES: Final = """
    SELECT DISTINCT stream_key, feature, request_key, sequence, score FROM (
        SELECT stream_key, feature, request_key, sequence, max(score) AS score
        FROM example GROUP BY stream_key, feature, request_key, sequence)
    QUALIFY row_number() OVER (PARTITION BY stream_key, feature ORDER BY score DESC, request_key, sequence) <= ?
"""


class Retained(NamedTuple):
    """Table rows deleted, by table."""

    stream_window: int = 0
    feature_window: int = 0
    stream_split: int = 0
    feature_split: int = 0
    request_feature: int = 0
    example: int = 0
    request: int = 0
    request_tokens: int = 0
    request_rows: int = 0
    outcome: int = 0
    feature_match: int = 0
    feature: int = 0
    detection: int = 0
    detection_end: int = 0
    detection_feature: int = 0
    detection_request: int = 0
    detection_attribute: int = 0
    novel_request: int = 0
    reference: int = 0


def retain(
    connection: duckdb.DuckDBPyConnection,
    now_us: int,
    *,
    max_age_us: int | None,
    max_bytes: int | None,
    used_bytes: int,
    examples_per_feature: int | None,
) -> Retained:
    """Delete in one transaction what is too old, too much, or no longer current; see ``Store.retain``."""
    connection.begin()
    try:
        cut = 0 if max_age_us is None else now_us - max_age_us
        if max_bytes is not None and used_bytes > max_bytes:
            cut = max(cut, _cut_for_bytes(connection, 1 - _SPARE * max_bytes / used_bytes))
        examples = 0 if examples_per_feature is None else _trim_examples(connection, examples_per_feature)
        done = _delete_before(connection, cut)._replace(example=examples) if cut > 0 else Retained(example=examples)
        connection.commit()
    except duckdb.Error:
        connection.rollback()
        raise
    return done


def _cut_for_bytes(connection: duckdb.DuckDBPyConnection, share: float) -> int:
    """Time in us before which ``share`` of all feature windows lie, told from the small table of stream windows."""
    row = connection.execute(
        """
        SELECT epoch_us(min(window_end)) FROM (
            SELECT window_end, sum(1 + coalesce(features_fired, 0)) OVER (ORDER BY window_end) AS covered,
                   sum(1 + coalesce(features_fired, 0)) OVER () AS total
            FROM stream_window)
        WHERE covered >= total * ?
        """,
        [share],
    ).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def _trim_examples(connection: duckdb.DuckDBPyConnection, count: int) -> int:
    former = _deleted(
        connection,
        """
        DELETE FROM example USING (
            SELECT stream_key, feature, max(dictionary_version) AS version FROM feature WHERE state <> 'lost'
            GROUP BY stream_key, feature) AS here
        WHERE here.stream_key = example.stream_key AND here.feature = example.feature
          AND example.dictionary_version < here.version
        """,
        [],
    )
    return former + _deleted(
        connection,
        # rows given up by a better row of the same request go too: only the best of each request is current
        f"DELETE FROM example WHERE (stream_key, feature, request_key, sequence, score) NOT IN ({_BEST_EXAMPLES})",  # noqa: S608  our own text
        [count],
    )


def _delete_before(connection: duckdb.DuckDBPyConnection, cut: int) -> Retained:
    old_window = "window_end <= make_timestamp(?)"
    windows = {
        table: _deleted(connection, f"DELETE FROM {table} WHERE {old_window}", [cut])  # noqa: S608  names from here
        for table in ("stream_window", "feature_window", "stream_split", "feature_split")
    }
    of_requests = {
        table: _deleted(connection, f"DELETE FROM {table} WHERE window_start < make_timestamp(?)", [cut])  # noqa: S608  as above
        for table in ("request_rows", "request_feature")
    }
    drifts = _delete_drifts(connection, cut)
    connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE old_request AS
        SELECT request_key FROM request
        WHERE started < make_timestamp(?)
          AND request_key NOT IN (SELECT request_key FROM example)
          AND request_key NOT IN (SELECT request_key FROM request_rows)
          AND request_key NOT IN (SELECT request_key FROM detection_request)
          AND request_key NOT IN (SELECT request_key FROM novel_request)
        """,
        [cut],
    )
    old = "request_key IN (SELECT request_key FROM old_request)"
    tokens = _deleted(connection, f"DELETE FROM request_tokens WHERE {old}", [])  # noqa: S608  our own text
    requests = _deleted(connection, f"DELETE FROM request WHERE {old}", [])  # noqa: S608  our own text
    connection.execute("DROP TABLE old_request")
    outcomes = _deleted(connection, "DELETE FROM outcome WHERE received < make_timestamp(?)", [cut])
    matches, features = (_deleted(connection, statement, [cut]) for statement in TRIM)
    return Retained(
        **windows,
        **of_requests,
        **drifts,
        request=requests,
        request_tokens=tokens,
        outcome=outcomes,
        feature_match=matches,
        feature=features,
    )


def _delete_drifts(connection: duckdb.DuckDBPyConnection, cut: int) -> dict[str, int]:
    """Drifts found before ``cut`` with all of theirs, novel requests, and references that nothing is left of."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE old_detection AS {OLD_DETECTIONS}", [cut])
    old = "(stream_key, number) IN (SELECT stream_key, number FROM old_detection)"
    done = {table: _deleted(connection, f"DELETE FROM {table} WHERE {old}", []) for table in OF_DETECTIONS}  # noqa: S608  names from there
    connection.execute("DROP TABLE old_detection")
    done["novel_request"] = _deleted(connection, "DELETE FROM novel_request WHERE time < make_timestamp(?)", [cut])
    done["reference"] = _deleted(connection, OLD_REFERENCES, [cut])
    return done


def _deleted(connection: duckdb.DuckDBPyConnection, statement: str, parameters: list[float]) -> int:
    row = connection.execute(statement, parameters).fetchone()
    return int(row[0]) if row else 0
