"""SQL of quantiles of features' activations, from the buckets of the windows in a range added up."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hydrophone_schemas.buckets import BUCKETS, LOWEST_EXPONENT, PER_OCTAVE

from hydrophoned.store.errors import BadQuery

FEWEST_FIRED: Final = 5
FEWEST_REQUESTS: Final = 2
"""Rows and requests that a feature has to have fired in for its quantiles to be told."""

TOLD: Final = f"(fired = 0 OR coalesce(requests, {FEWEST_REQUESTS}) >= {FEWEST_REQUESTS})"
"""Whether the interval of a rate is told: not where all that fired came of one request."""

_Z: Final = 1.959963984540054  # of a 95% interval

_REACHED: Final = """
    counted AS (
        SELECT feature, bucket, sum(count)::BIGINT AS count FROM (
            SELECT feature, unnest(buckets) AS bucket, unnest(counts) AS count FROM feature_window
            WHERE stream_key = $stream AND window_start >= make_timestamp($since)
              AND window_start < make_timestamp($until) AND feature IN (SELECT index FROM {listed}))
        GROUP BY feature, bucket),
    reached AS (
        SELECT feature, bucket, sum(count) OVER (PARTITION BY feature ORDER BY bucket) AS reached,
               sum(count) OVER (PARTITION BY feature) AS counted
        FROM counted)"""


def quantile_tables_sql(listed: str, quantiles: Mapping[str, float | str]) -> str:
    """Common table expressions, the last of them ``quantiles``: ``feature`` and a column for each of ``quantiles``.

    ``listed`` names a table whose column ``index`` says which features; a quantile is a number in 0..1, or an SQL
    expression of one. Parameters are ``$stream``, ``$since`` and
    ``$until``. A value is null where it lies in the first or the last bucket; else it is off by at most 1/17 of itself.
    """
    columns = ", ".join(f"{_value(q)} AS {name}" for name, q in quantiles.items())
    return (
        f"{_REACHED.format(listed=listed)},\n    quantiles AS (SELECT feature, {columns} FROM reached GROUP BY feature)"  # noqa: S608  our own text and numbers
    )


def _value(q: float | str) -> str:
    """A quantile of the table ``reached`` as an expression; ``q`` is a number or an SQL expression of one."""
    if not isinstance(q, str) and not 0 <= q <= 1:
        raise BadQuery(f"there is no {q}-quantile: a quantile is asked for by a number in 0..1")
    bucket = f"(min(bucket) FILTER (reached > floor({q} * (counted - 1))))"
    width = f"pow(2.0, {bucket} // {PER_OCTAVE} + {LOWEST_EXPONENT}) / {PER_OCTAVE}"
    low = f"({bucket} % {PER_OCTAVE} + {PER_OCTAVE})"
    # 2 a b / (a + b) of the bucket's ends a and b = a + width
    middle = f"2 * {width} * {low} * ({low} + 1) / (2 * {low} + 1)"
    return f"CASE WHEN {bucket} BETWEEN 1 AND {BUCKETS - 2} THEN {middle} END"


def quantiles_sql(
    stream_key: int, feature: int, quantiles: Sequence[float], since: int, until: int
) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.quantiles``; raises :class:`BadQuery` for a q outside 0..1."""
    names = {f"q{place}": float(q) for place, q in enumerate(quantiles)}
    values = ", ".join(names)
    statement = (
        f"WITH asked AS (SELECT $feature::INTEGER AS index), {quantile_tables_sql('asked', names)} "  # noqa: S608  as above
        f"SELECT [{values}]::DOUBLE[] AS quantiles FROM quantiles"
    )
    return statement, {"stream": stream_key, "feature": feature, "since": since, "until": until}


def wilson_sql(fired: str, rows: str) -> tuple[str, str]:
    """Ends of the 95% interval of the rate fired / rows, as expressions; ``rows`` must be above 0.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference": of independent rows.
    """
    half = f"{_Z} * sqrt({fired}::DOUBLE * ({rows} - {fired}) / {rows} + {_Z**2 / 4})"
    middle, total = f"{fired} + {_Z**2 / 2}", f"({rows} + {_Z**2})"
    return f"greatest(0, ({middle} - {half}) / {total})", f"least(1, ({middle} + {half}) / {total})"
