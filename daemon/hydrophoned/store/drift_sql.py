"""SQL of drifts, references and novel requests.

``number`` counts the drifts of one stream. A drift's own row, and those of what changed, are written when it is found,
and again when more has come after it to tell of: the last ``telling`` counts. After a crash the same may be told twice,
and then what was written last counts. When a drift is over, a row follows in ``detection_end``; where another reference
of its stratum is taken, or another drift of it is found, it is over then. What changed is told by the ids of features,
which stay, so that labels and places are those of today.
"""

from typing import Any, Final, NamedTuple

from hydrophoned.store.labels import BEST_BY_ID

_ALL: Final = 1 << 60

_DETECTIONS: Final = """
    WITH known AS (SELECT stream_key, any_value(id) AS stream FROM stream GROUP BY stream_key),
    told AS (
        SELECT * FROM detection
        QUALIFY row_number() OVER (
            PARTITION BY stream_key, number, time
            ORDER BY telling DESC, units_after DESC NULLS LAST, rowid DESC) = 1),
    ends AS (
        SELECT stream_key, number, min(time) AS ended FROM (
            FROM detection_end UNION ALL
            SELECT stream_key, number, made AS time FROM detection JOIN reference USING (stream_key, stratum)
            WHERE made >= detection.time
            UNION ALL
            SELECT stream_key, one.number, next.time FROM detection AS one
            JOIN detection AS next USING (stream_key, stratum) WHERE next.number > one.number)
        GROUP BY stream_key, number)
    SELECT stream, told.stream_key, number, stratum, time, ended, detector, guarantee, unit, statistic, threshold,
           run_length, reference_name, reference_version, nullif(dictionary_version, 0) AS dictionary_version,
           change_time, change_low, change_high, telling, units_after, shift, changed_features, dictionary_changed
    FROM told JOIN known USING (stream_key) LEFT JOIN ends USING (stream_key, number)
    WHERE {where} ORDER BY time DESC, told.stream_key DESC, number DESC LIMIT $limit
"""
_TOLD: Final = """
    SELECT * FROM {table}
    WHERE stream_key = $stream AND number = $number
      AND telling = (SELECT max(telling) FROM detection WHERE stream_key = $stream AND number = $number)
    QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY rowid DESC) = 1
"""
_FEATURES: Final = f"""
    WITH told AS ({_TOLD.format(table="detection_feature", key="rank")}),
    place AS (
        SELECT feature_id, feature, state FROM feature SEMI JOIN told USING (feature_id) WHERE stream_key = $stream
        QUALIFY row_number() OVER (PARTITION BY feature_id ORDER BY dictionary_version DESC, rowid DESC) = 1),
    best AS ({BEST_BY_ID})
    SELECT told.rank, told.feature AS index, told.feature_id,
           CASE WHEN state <> 'lost' THEN place.feature END AS index_now, label, label_source, rate_before, rate_after,
           units_before, units_after, effect, p, q
    FROM told LEFT JOIN place USING (feature_id) LEFT JOIN best USING (feature_id) ORDER BY told.rank
"""  # noqa: S608  our own text
REQUESTS: Final = f"""
    WITH told AS ({_TOLD.format(table="detection_request", key="rank")}),
    named AS (
        SELECT request_key, any_value(id) AS request, any_value(started) AS started FROM request
        SEMI JOIN told USING (request_key) GROUP BY request_key)
    SELECT rank, request, request_key, started, score FROM told LEFT JOIN named USING (request_key) ORDER BY rank
"""  # noqa: S608  our own text
"""Statement of ``DetectionReader.detected_requests``."""
ATTRIBUTES: Final = f"""
    SELECT attribute, value, units_before, units_after, share_before, share_after, share_q, shift, elsewhere, shift_q
    FROM ({_TOLD.format(table="detection_attribute", key="attribute, value")})
    ORDER BY least(share_q, shift_q) NULLS LAST, attribute, value
"""  # noqa: S608  our own text
"""Statement of ``DetectionReader.detected_attributes``."""
_REFERENCES: Final = """
    SELECT * EXCLUDE (stream_key) FROM reference WHERE stream_key = $stream AND {where}
    ORDER BY made DESC, stratum DESC, version DESC LIMIT $limit
"""
_NOVEL: Final = """
    WITH latest AS (
        SELECT * FROM novel_request
        WHERE stream_key = $stream AND time >= make_timestamp($since) AND time < make_timestamp($until) AND {where}
        ORDER BY time DESC, request_key DESC LIMIT $limit),
    named AS (
        SELECT request_key, any_value(id) AS request FROM request SEMI JOIN latest USING (request_key)
        GROUP BY request_key)
    SELECT request, latest.request_key, time, p, reference_version
    FROM latest LEFT JOIN named USING (request_key) ORDER BY time DESC, latest.request_key DESC
"""
LAST_REFERENCES: Final = """
    SELECT stratum, max(version) AS version FROM (
        SELECT stratum, version FROM reference WHERE stream_key = $stream
        UNION ALL SELECT stratum, reference_version FROM detection WHERE stream_key = $stream)
    GROUP BY stratum ORDER BY stratum
"""
"""Statement of ``DetectionReader.last_references``."""

OF_DETECTIONS: Final = ("detection", "detection_end", "detection_feature", "detection_request", "detection_attribute")
"""Tables of which each row belongs to a drift, by stream_key and number."""
OLD_DETECTIONS: Final = """
    SELECT stream_key, number FROM detection
    WHERE time < make_timestamp(?) AND (
        (stream_key, number) IN (SELECT stream_key, number FROM detection_end)
        OR (stream_key, number) NOT IN (SELECT stream_key, max(number) FROM detection GROUP BY stream_key))
"""
"""Drifts found before a time, in us, but for one that has not ended."""
OLD_REFERENCES: Final = """
    DELETE FROM reference
    WHERE made < make_timestamp(?)
      AND (stream_key, stratum, version) NOT IN (
          SELECT stream_key, stratum, max(version) FROM reference GROUP BY stream_key, stratum)
      AND (stream_key, stratum, version) NOT IN (SELECT stream_key, stratum, reference_version FROM detection)
      AND (stream_key, version) NOT IN (SELECT stream_key, reference_version FROM novel_request)
"""
"""Deletes references taken before a time, in us, but for the latest of a stratum and those that something refers to."""


class DetectionQuery(NamedTuple):
    """Which drifts: found in [since, until), in us, of one stream, of one number.

    ``after`` is time, stream key and number of the last one of the page before.
    """

    limit: int
    since: int = 0
    until: int = _ALL
    stream_key: int | None = None
    number: int | None = None
    after: tuple[int, int, int] | None = None


class NovelQuery(NamedTuple):
    """Which novel requests: ended in [since, until), in us, behind ``after``, time and key of the last one."""

    limit: int
    since: int = 0
    until: int = _ALL
    after: tuple[int, int] | None = None


def detections_sql(query: DetectionQuery) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``DetectionReader.detections``."""
    values: dict[str, Any] = {"limit": query.limit, "since": query.since, "until": query.until}
    where = ["time >= make_timestamp($since)", "time < make_timestamp($until)"]
    if query.stream_key is not None:
        values["stream"] = query.stream_key
        where.append("told.stream_key = $stream")
    if query.number is not None:
        values["number"] = query.number
        where.append("number = $number")
    if query.after is not None:
        values |= dict(zip(("after_time", "after_stream", "after_number"), query.after, strict=True))
        where.append("(time, told.stream_key, number) < (make_timestamp($after_time), $after_stream, $after_number)")
    return _DETECTIONS.format(where=" AND ".join(where)), values


def detected_features_sql(stream_key: int, number: int) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``DetectionReader.features``."""
    return _FEATURES, {"stream": stream_key, "number": number}


def references_sql(
    stream_key: int, limit: int, after: tuple[int, str, int] | None = None
) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``DetectionReader.references``."""
    values: dict[str, Any] = {"stream": stream_key, "limit": limit}
    if after is None:
        return _REFERENCES.format(where="true"), values
    values |= dict(zip(("after_made", "after_stratum", "after_version"), after, strict=True))
    behind = "(made, stratum, version) < (make_timestamp($after_made), $after_stratum, $after_version)"
    return _REFERENCES.format(where=behind), values


def novel_sql(stream_key: int, query: NovelQuery) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``DetectionReader.novel``."""
    values: dict[str, Any] = {"stream": stream_key, "limit": query.limit, "since": query.since, "until": query.until}
    if query.after is None:
        return _NOVEL.format(where="true"), values
    values["after_time"], values["after_key"] = query.after
    return _NOVEL.format(where="(time, request_key) < (make_timestamp($after_time), $after_key)"), values
