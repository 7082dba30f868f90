"""Labels of features: rows to write, and the SQL of what is read back.

``label`` is appended to. The latest of a feature's id and a source counts, and an empty text takes it back. A label
stays with the id: where the feature has gone to another index, its label is found there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa
from hydrophone_schemas.tables import LABEL

MANUAL: Final = "manual"
IMPORTED: Final = "imported"
RULE: Final = "rule"
"""Sources of labels besides the names of label providers."""


class Label(NamedTuple):
    """One row of the table ``label`` but for the stream: ``created`` is in us, an empty ``text`` takes a label back."""

    feature_id: int
    feature: int
    dictionary_version: int
    created: int
    source: str
    text: str
    author: str | None = None
    rule: str | None = None
    score: float | None = None
    precision: float | None = None
    recall: float | None = None
    rows: int | None = None
    fired: int | None = None


class LabelQuery(NamedTuple):
    """Which labels: of ``source``, with at least ``min_score``, with ``text`` in them, of the feature at ``place``.

    ``after`` is (index, id, source) of the last label of the page before; an index of None is the end, where features
    are that no longer exist.
    """

    limit: int
    source: str | None = None
    min_score: float | None = None
    text: str | None = None
    place: int | None = None
    after: tuple[int | None, int, str] | None = None


def label_table(stream_key: int, labels: Sequence[Label]) -> pa.Table:
    """``labels`` of one stream as rows of the table ``label``."""
    rows: list[Mapping[str, Any]] = [{"stream_key": stream_key, **label._asdict()} for label in labels]
    return pa.Table.from_pylist(rows, schema=LABEL)


_NOWHERE: Final = 1 << 40
_NOW: Final = """
    WITH latest AS (
        SELECT * FROM label WHERE stream_key = $stream
        QUALIFY row_number() OVER (PARTITION BY feature_id, source ORDER BY created DESC, rowid DESC) = 1),
    place AS (
        SELECT feature_id, feature AS index, state FROM feature WHERE stream_key = $stream
        QUALIFY row_number() OVER (PARTITION BY feature_id ORDER BY dictionary_version DESC, rowid DESC) = 1),
    now AS (
        SELECT CASE WHEN NOT EXISTS (FROM place) THEN latest.feature WHEN state <> 'lost' THEN index END AS index,
               feature_id, source, text, author, rule, score, precision, recall, "rows", fired, created,
               dictionary_version
        FROM latest LEFT JOIN place USING (feature_id) WHERE text <> '')
"""


def labels_sql(stream_key: int, query: LabelQuery) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.labels``."""
    values: dict[str, Any] = {"stream": stream_key, "limit": query.limit}
    where = ["true"]
    for name, condition in (("source", "source ="), ("min_score", "score >="), ("place", "index =")):
        if getattr(query, name) is not None:
            values[name] = getattr(query, name)
            where.append(f"{condition} ${name}")
    if query.text is not None:
        values["text"] = query.text
        where.append("contains(lower(text), lower($text))")
    if query.after is not None:
        index, values["after_id"], values["after_source"] = query.after
        values["after_index"] = _NOWHERE if index is None else index
        where.append(f"(coalesce(index, {_NOWHERE}), feature_id, source) > ($after_index, $after_id, $after_source)")
    statement = f"{_NOW} SELECT * FROM now WHERE {' AND '.join(where)} ORDER BY coalesce(index, {_NOWHERE}), "  # noqa: S608  our own text
    return f"{statement} feature_id, source LIMIT $limit", values


_BEST: Final = f"""list_position(['{IMPORTED}', '{MANUAL}'], source) DESC NULLS LAST, score DESC NULLS LAST,
                 created DESC, source"""
BEST_LABELS: Final = f"""
    {_NOW}
    SELECT index, text AS label, source AS label_source, score AS label_score FROM now
    WHERE index IN (SELECT index FROM asked)
    QUALIFY row_number() OVER (
        PARTITION BY index
        ORDER BY {_BEST}) = 1
"""  # noqa: S608  our own text
"""Statement of ``StoreReader.best_labels``."""
BEST_BY_ID: Final = f"""
    {_NOW}
    SELECT feature_id, text AS label, source AS label_source FROM now
    QUALIFY row_number() OVER (PARTITION BY feature_id ORDER BY {_BEST}) = 1
"""  # noqa: S608  our own text
"""The best label of each feature by its id, of those that have one."""


_PLACE: Final = pa.schema([("request_key", pa.int64()), ("sequence", pa.int32()), ("position", pa.int32())])


def places(rows: pa.Table) -> pa.Table:
    """request_key, sequence and position of ``rows``, and ``place``, the number of each from 0."""
    numbers = pa.array(range(rows.num_rows), pa.int32())
    return rows.select(_PLACE.names).cast(_PLACE).append_column("place", numbers)


PIECES: Final = """
    WITH piece AS MATERIALIZED (
        SELECT request_key, sequence, position + generate_subscripts(pieces, 1) - 1 AS position, unnest(pieces) AS piece
        FROM request_tokens WHERE request_key IN (SELECT request_key FROM asked)),
    here AS (
        SELECT place, max(piece) AS piece FROM asked JOIN piece USING (request_key, sequence, position) GROUP BY place),
    before AS (
        SELECT place, max(piece) AS previous FROM asked JOIN piece
            ON piece.request_key = asked.request_key AND piece.sequence = asked.sequence
            AND piece.position = asked.position - 1
        GROUP BY place)
    SELECT place, piece, previous FROM here FULL JOIN before USING (place)
"""
"""Statement of ``StoreReader.pieces``."""
