"""SQL of features over a range of windows: aggregated, filtered, sorted, one page at a time."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from hydrophoned.store.errors import BadQuery

SORT_KEYS: Final = {
    "rate": "rate",
    "fired": "fired",
    "mean": "mean",
    "std": "std",
    "max": "max",
    "last_fired": "epoch_us(last_fired)",
    "index": "index",
}
"""What features may be sorted by, and the expression that is compared."""


class FeatureQuery(NamedTuple):
    """Which features, over which windows, in which order.

    Windows that start in [since, until), in us, are counted. ``features`` is the number F of the dictionary's
    features: those that did not fire are listed too; None lists only those that fired. ``only`` restricts to these
    indices. ``fired`` True keeps those that fired, False those that did not. ``after`` is (sort key, index) of the
    last feature of the page before; a key of None is the end, where unknown values are. Ties are in order of index.
    """

    since: int
    until: int
    limit: int
    features: int | None = None
    sort: str = "rate"
    descending: bool = True
    after: tuple[float | int | None, int] | None = None
    only: Sequence[int] | None = None
    fired: bool | None = None
    min_rate: float | None = None
    max_rate: float | None = None
    min_max: float | None = None


_FEATURES: Final = """
    WITH scored AS (
        SELECT coalesce(sum(rows_scored), 0)::BIGINT AS "rows" FROM stream_window
        WHERE stream_key = $stream AND window_start >= make_timestamp($since)
          AND window_start < make_timestamp($until)),
    firing AS (
        SELECT feature AS index, sum(fired)::BIGINT AS fired, sum(sum) AS total, sum(sum_squares) AS squares,
               max(max)::DOUBLE AS max, max(window_end) AS last_fired,
               arg_max(dictionary_version, window_end) AS dictionary_version
        FROM feature_window
        WHERE stream_key = $stream AND window_start >= make_timestamp($since) AND window_start < make_timestamp($until)
              {only}
        GROUP BY feature),
    listed AS ({listed}),
    figures AS (
        SELECT index, CASE WHEN "rows" > 0 THEN coalesce(fired, 0) END AS fired, "rows",
               CASE WHEN "rows" > 0 THEN coalesce(fired, 0) / "rows" END AS rate, total / fired AS mean,
               CASE WHEN fired > 0 THEN sqrt(greatest(squares / fired - (total / fired) ** 2, 0)) END AS std, max,
               last_fired, dictionary_version
        FROM listed LEFT JOIN firing USING (index), scored)
    SELECT * FROM figures WHERE {where}
    ORDER BY {key} {direction} NULLS LAST, index LIMIT $limit
"""


def features_sql(stream_key: int, query: FeatureQuery) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.features``; raises :class:`BadQuery` for an unknown sort key."""
    key = SORT_KEYS.get(query.sort)
    if key is None:
        raise BadQuery(f"features cannot be sorted by {query.sort!r}; sort keys are {', '.join(SORT_KEYS)}")
    values: dict[str, Any] = {
        "stream": stream_key,
        "since": query.since,
        "until": query.until,
        "limit": query.limit,
    }
    only, listed = "", "SELECT index FROM firing"
    if query.features is not None:
        values["features"] = query.features
        listed = "SELECT range::INTEGER AS index FROM range($features)"
    if query.only is not None:
        values["only"] = list(query.only)
        only = "AND list_contains($only::INTEGER[], feature)"
        listed = f"SELECT index FROM ({listed}) WHERE list_contains($only::INTEGER[], index)"  # noqa: S608  constant text
    where = _conditions(query, key, values)
    statement = _FEATURES.format(
        only=only,
        listed=listed,
        where=" AND ".join(where) or "true",
        key=key,
        direction="DESC" if query.descending else "ASC",
    )
    return statement, values


def _conditions(query: FeatureQuery, key: str, values: dict[str, Any]) -> list[str]:
    where = []
    if query.fired is not None:
        where.append("fired > 0" if query.fired else "fired = 0")
    for name, condition in (("min_rate", "rate >="), ("max_rate", "rate <="), ("min_max", "max >=")):
        bound = getattr(query, name)
        if bound is not None:
            values[name] = bound
            where.append(f"{condition} ${name}")
    if query.after is not None:
        last, values["after_index"] = query.after
        if last is None:
            where.append(f"{key} IS NULL AND index > $after_index")
        else:
            values["after"] = last
            beyond = "<" if query.descending else ">"
            where.append(f"({key} {beyond} $after OR ({key} = $after AND index > $after_index) OR {key} IS NULL)")
    return where
