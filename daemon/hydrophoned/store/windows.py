"""SQL of what happened window by window: of a stream, and of one feature."""

from typing import Any, NamedTuple

from hydrophoned.store.features import SplitCell
from hydrophoned.store.quantiles import TOLD, wilson_sql
from hydrophoned.store.versions import IDS, LIVES


class WindowRange(NamedTuple):
    """Windows that start in [since, until), in us, joined in steps of ``step`` us (None: each window by itself).

    Steps begin at multiples of ``step`` since 1970. ``limit`` is the number of windows or steps at most.
    """

    since: int
    until: int
    limit: int
    step: int | None = None

    def after(self, window_start: int) -> "WindowRange":
        """The rest of the range behind the window or step that holds ``window_start``."""
        step = self.step or 1
        return self._replace(since=max(self.since, window_start - window_start % step + step))


# Windows of one stream may share their start: a window that was closed early, at a restart or a flush, is followed
# by another one of the same slice of time. They are joined here.
_WINDOWS = """
    SELECT min(window_start) AS window_start, max(window_end) AS window_end, sum("rows")::BIGINT AS "rows",
           sum(rows_sink)::BIGINT AS rows_sink, sum(rows_quarantined)::BIGINT AS rows_quarantined,
           sum(rows_late)::BIGINT AS rows_late, sum(rows_scored)::BIGINT AS rows_scored,
           sum(rows_learned)::BIGINT AS rows_learned,
           CASE WHEN count(*) = 1 THEN any_value(requests) END AS requests,
           sum(fvu * rows_scored) / nullif(sum(rows_scored) FILTER (fvu IS NOT NULL), 0) AS fvu,
           sum(l0 * rows_scored) / nullif(sum(rows_scored) FILTER (l0 IS NOT NULL), 0) AS l0,
           arg_max_null(dead_fraction, window_end) AS dead_fraction,
           sum(mean_norm * rows_scored) / nullif(sum(rows_scored) FILTER (mean_norm IS NOT NULL), 0) AS mean_norm,
           arg_max_null(median_norm, window_end) AS median_norm,
           CASE WHEN count(*) = 1 THEN any_value(features_fired) END AS features_fired,
           max(dictionary_version) AS dictionary_version
    FROM stream_window
    WHERE stream_key = $stream AND window_start >= make_timestamp($since) AND window_start < make_timestamp($until)
    GROUP BY epoch_us(window_start) // $step ORDER BY window_start LIMIT $limit
"""

_SERIES = """
    WITH {who}
    scored AS (
        SELECT epoch_us(window_start) // $step AS slice, min(window_start) AS window_start,
               max(window_end) AS window_end, sum(rows_scored)::BIGINT AS "rows", {version} AS dictionary_version
        FROM {streams}
        WHERE stream_key = $stream AND window_start >= make_timestamp($since) AND window_start < make_timestamp($until)
              {cell}
        GROUP BY slice ORDER BY slice LIMIT $limit),
    firing AS (
        SELECT epoch_us(window_start) // $step AS slice, sum(fired)::BIGINT AS fired, sum(sum) AS total,
               {whole}
        FROM {features}
        WHERE stream_key = $stream AND {which} AND window_start >= make_timestamp($since)
          AND window_start < make_timestamp($until) {cell}
        GROUP BY slice),
    joined AS (
        SELECT window_start, window_end, "rows", dictionary_version, coalesce(fired, 0) AS fired, total, max,
               CASE WHEN fired IS NULL THEN 0 ELSE requests END AS requests
        FROM scored LEFT JOIN firing USING (slice))
    SELECT window_start, window_end, "rows", CASE WHEN "rows" > 0 THEN fired END AS fired,
           CASE WHEN "rows" > 0 THEN fired / "rows" END AS rate,
           CASE WHEN "rows" > 0 AND {told} THEN {low} END AS rate_low,
           CASE WHEN "rows" > 0 AND {told} THEN {high} END AS rate_high,
           CASE WHEN "rows" > 0 THEN requests END AS requests, total / nullif(fired, 0) AS mean, max,
           dictionary_version, {id} AS feature_id
    FROM joined ORDER BY window_start
"""
_WHOLE = """max(max)::DOUBLE AS max,
               CASE WHEN count(requests) = count(*) THEN sum(requests)::BIGINT END AS requests"""
_NOT_BY_CELL = "NULL::DOUBLE AS max, NULL::BIGINT AS requests"


def windows_sql(stream_key: int, covered: WindowRange) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.windows``."""
    return _WINDOWS, _range_values(stream_key, covered)


def series_sql(
    stream_key: int, feature: int, covered: WindowRange, split: SplitCell | None
) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.series``."""
    if split is None:
        parts = _BY_WINDOW | {"whole": _WHOLE, "cell": ""}
    else:
        cell = "AND attribute = $attribute AND value = $value"
        parts = {"streams": "stream_split", "features": "feature_split", "whole": _NOT_BY_CELL, "cell": cell}
        parts |= {"version": "NULL::INTEGER"}
    parts |= {"who": IDS, "which": "feature = $feature", "id": _ID_THEN}
    values = _range_values(stream_key, covered) | {"feature": feature}
    return _series(parts), values if split is None else values | split._asdict()


def series_of_id_sql(stream_key: int, feature_id: int, covered: WindowRange) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.series_of_id``."""
    alive = """EXISTS (
                  FROM lives WHERE state <> 'lost' AND dictionary_version >= first_version
                                   AND dictionary_version < next_version{place})"""
    parts = _BY_WINDOW | {"whole": _WHOLE, "cell": f"AND {alive.format(place='')}", "who": LIVES}
    parts |= {"which": alive.format(place=" AND lives.feature = feature_window.feature"), "id": "$id"}
    return _series(parts), _range_values(stream_key, covered) | {"id": feature_id}


_BY_WINDOW = {"streams": "stream_window", "features": "feature_window", "version": "max(dictionary_version)"}
_ID_THEN = """(
               SELECT arg_max(feature_id, first_version) FROM ids WHERE first_version <= joined.dictionary_version)"""


def _series(parts: dict[str, str]) -> str:
    low, high = wilson_sql("fired", '"rows"')
    return _SERIES.format(**parts, told=TOLD, low=low, high=high)


def _range_values(stream_key: int, covered: WindowRange) -> dict[str, Any]:
    return {
        "stream": stream_key,
        "since": covered.since,
        "until": covered.until,
        "step": covered.step or 1,
        "limit": covered.limit,
    }
