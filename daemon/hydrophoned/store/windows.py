"""SQL of what happened window by window: of a stream, and of one feature."""

from typing import Any, NamedTuple


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
    WHERE stream_key = ? AND window_start >= make_timestamp(?) AND window_start < make_timestamp(?)
    GROUP BY epoch_us(window_start) // ? ORDER BY window_start LIMIT ?
"""

_SERIES = """
    WITH scored AS (
        SELECT epoch_us(window_start) // $step AS slice, min(window_start) AS window_start,
               max(window_end) AS window_end, sum(rows_scored)::BIGINT AS "rows"
        FROM stream_window
        WHERE stream_key = $stream AND window_start >= make_timestamp($since) AND window_start < make_timestamp($until)
        GROUP BY slice ORDER BY slice LIMIT $limit),
    firing AS (
        SELECT epoch_us(window_start) // $step AS slice, sum(fired)::BIGINT AS fired, sum(sum) AS total,
               max(max)::DOUBLE AS max
        FROM feature_window
        WHERE stream_key = $stream AND feature = $feature AND window_start >= make_timestamp($since)
          AND window_start < make_timestamp($until)
        GROUP BY slice)
    SELECT window_start, window_end, "rows", CASE WHEN "rows" > 0 THEN coalesce(fired, 0) END AS fired,
           CASE WHEN "rows" > 0 THEN coalesce(fired, 0) / "rows" END AS rate, total / nullif(fired, 0) AS mean, max
    FROM scored LEFT JOIN firing USING (slice) ORDER BY window_start
"""


def windows_sql(stream_key: int, covered: WindowRange) -> tuple[str, list[Any]]:
    """Statement and parameters of ``StoreReader.windows``."""
    return _WINDOWS, [stream_key, covered.since, covered.until, covered.step or 1, covered.limit]


def series_sql(stream_key: int, feature: int, covered: WindowRange) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.series``."""
    return _SERIES, {
        "stream": stream_key,
        "feature": feature,
        "since": covered.since,
        "until": covered.until,
        "step": covered.step or 1,
        "limit": covered.limit,
    }
