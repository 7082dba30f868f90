"""SQL of features over a range of windows: aggregated, filtered, sorted, one page at a time."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from hydrophoned.store.errors import BadQuery
from hydrophoned.store.quantiles import FEWEST_FIRED, FEWEST_REQUESTS, TOLD, quantile_tables_sql, wilson_sql

SORT_KEYS: Final = {
    "rate": "rate",
    "rate_low": "rate_low",
    "fired": "fired",
    "requests": "requests",
    "mean": "mean",
    "std": "std",
    "max": "max",
    "last_fired": "epoch_us(last_fired)",
    "stability": "stability",
    "index": "index",
}
"""What features may be sorted by, and the expression that is compared."""
QUANTILES: Final = {"q50": 0.5, "q90": 0.9, "q99": 0.99}
"""The quantiles of its activations that a feature is listed with."""


class SplitCell(NamedTuple):
    """The rows of a stream whose ``attribute`` has this ``value``; see the table ``stream_split``."""

    attribute: str
    value: str


class FeatureQuery(NamedTuple):
    """Which features, over which windows, in which order.

    Windows that start in [since, until), in us, are counted. ``features`` is the number F of the dictionary's
    features: those that did not fire are listed too; None lists only those that fired. ``only`` restricts to these
    indices. ``fired`` True keeps those that fired, False those that did not. ``after`` is (sort key, index) of the
    last feature of the page before; a key of None is the end, where unknown values are. Ties are in order of index.
    With ``split`` only rows of that cell are counted; what is not kept by cell is then null: requests, standard
    deviation, maximum and quantiles. To sort by stability takes ``stability``: by index the number that is compared,
    None where it is unknown; it comes back as a column.
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
    split: SplitCell | None = None
    stability: Sequence[float | None] | None = None


_RANGE: Final = """stream_key = $stream AND window_start >= make_timestamp($since)
          AND window_start < make_timestamp($until)"""
_ALL_ROWS: Final = """
    scored AS (SELECT coalesce(sum(rows_scored), 0)::BIGINT AS "rows" FROM stream_window WHERE {range}),
    firing AS (
        SELECT feature AS index, sum(fired)::BIGINT AS fired, sum(sum) AS total, sum(sum_squares) AS squares,
               max(max)::DOUBLE AS max, max(window_end) AS last_fired,
               arg_max(dictionary_version, window_end) AS dictionary_version,
               CASE WHEN count(requests) = count(*) THEN sum(requests)::BIGINT END AS requests
        FROM feature_window WHERE {range} {only} GROUP BY feature),"""
_ONE_CELL: Final = """
    scored AS (
        SELECT coalesce(sum(rows_scored), 0)::BIGINT AS "rows" FROM stream_split
        WHERE {range} AND attribute = $attribute AND value = $value),
    firing AS (
        SELECT feature AS index, sum(fired)::BIGINT AS fired, sum(sum) AS total, NULL::DOUBLE AS squares,
               NULL::DOUBLE AS max, max(window_end) AS last_fired,
               arg_max(dictionary_version, window_end) AS dictionary_version, NULL::BIGINT AS requests
        FROM feature_split
        WHERE {range} AND attribute = $attribute AND value = $value {only} GROUP BY feature),"""
_FEATURES: Final = """
    WITH {source}
    listed AS ({listed}),
    counted_rows AS (
        SELECT index, coalesce(fired, 0) AS fired, "rows", total, squares, max, last_fired, dictionary_version,
               CASE WHEN fired IS NULL THEN 0 ELSE requests END AS requests
        FROM listed LEFT JOIN firing USING (index), scored),
    figures AS (
        SELECT index, CASE WHEN "rows" > 0 THEN fired END AS fired, "rows",
               CASE WHEN "rows" > 0 THEN fired / "rows" END AS rate,
               CASE WHEN "rows" > 0 AND {told} THEN {low} END AS rate_low,
               CASE WHEN "rows" > 0 AND {told} THEN {high} END AS rate_high,
               CASE WHEN "rows" > 0 THEN requests END AS requests, total / nullif(fired, 0) AS mean,
               CASE WHEN squares IS NOT NULL THEN sqrt(greatest(squares / fired - (total / fired) ** 2, 0)) END AS std,
               max, last_fired, dictionary_version{stability}
        FROM counted_rows{asked}),
    page AS (SELECT * FROM figures WHERE {where} ORDER BY {key} {direction} NULLS LAST, index LIMIT $limit),
    thick AS (
        SELECT index FROM page
        WHERE {sketched} AND fired >= {fewest_fired} AND coalesce(requests, {fewest_requests}) >= {fewest_requests}),
    {quantile_tables}
    SELECT page.*, {quantiles} FROM page LEFT JOIN quantiles ON page.index = quantiles.feature
    ORDER BY {key} {direction} NULLS LAST, index
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
    if query.split is not None:
        values |= query.split._asdict()
    by_stability = query.sort == "stability"  # of a table ``asked``, by index
    source = _ALL_ROWS if query.split is None else _ONE_CELL
    low, high = wilson_sql("fired", '"rows"')
    statement = _FEATURES.format(
        source=source.format(range=_RANGE, only=only),
        listed=listed,
        told=TOLD,
        low=low,
        high=high,
        where=" AND ".join(_conditions(query, key, values)) or "true",
        key=key,
        stability=", stability" if by_stability else "",
        asked=" LEFT JOIN asked USING (index)" if by_stability else "",
        direction="DESC" if query.descending else "ASC",
        sketched="true" if query.split is None else "false",
        fewest_fired=FEWEST_FIRED,
        fewest_requests=FEWEST_REQUESTS,
        quantile_tables=quantile_tables_sql("thick", QUANTILES).lstrip(),
        quantiles=", ".join(f"CASE WHEN {name} > max THEN max ELSE {name} END AS {name}" for name in QUANTILES),
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
