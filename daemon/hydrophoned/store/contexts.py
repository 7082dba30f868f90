"""The examples of a feature, and the token strings around them."""

from typing import Any, Final

import pyarrow as pa

TOP_EXAMPLES: Final = """
    WITH best AS (
        SELECT * FROM example WHERE stream_key = $stream AND feature = $feature AND dictionary_version >= (
            -- rows seen before are of the feature that stood at this index then
            SELECT coalesce(max(dictionary_version), 0) FROM feature AS here
            WHERE here.stream_key = example.stream_key AND here.feature = example.feature AND state <> 'lost')
        QUALIFY row_number() OVER (PARTITION BY request_key, sequence ORDER BY score DESC, time) = 1
        ORDER BY score DESC, request_key, sequence LIMIT $limit),
    named AS (
        SELECT request_key, any_value(id) AS request FROM request
        WHERE request_key IN (SELECT request_key FROM best) GROUP BY request_key)
    SELECT value::DOUBLE AS value, score, request, best.request_key, sequence, position, token, time,
           dictionary_version
    FROM best LEFT JOIN named USING (request_key)
    ORDER BY score DESC, best.request_key, sequence
"""
"""Statement of ``StoreReader.examples`` without context."""


def with_contexts(top: pa.Table, runs: pa.Table | None, reach: int) -> pa.Table:
    """``top`` with the columns ``context`` and ``context_index``, null where no token strings are kept.

    ``runs`` holds for each row of ``top`` (column ``place``) runs of token strings from a ``position`` on, already cut
    to ``reach`` pieces around the row; they may be many and may overlap.
    """
    known: dict[int, dict[int, str | None]] = {}
    for run in runs.to_pylist() if runs is not None else []:
        pieces = known.setdefault(run["place"], {})
        pieces.update(enumerate(run["pieces"], run["position"]))
    contexts: list[Any] = []
    indices: list[int | None] = []
    for place, position in enumerate(top["position"].to_pylist()):
        pieces = known.get(place, {})
        if not pieces:
            contexts.append(None)
            indices.append(None)
            continue
        first, last = min(position, *pieces), max(position, *pieces)
        contexts.append([pieces.get(at) for at in range(max(first, position - reach), last + 1)])
        indices.append(position - max(first, position - reach))
    return top.append_column("context", pa.array(contexts, pa.list_(pa.string()))).append_column(
        "context_index", pa.array(indices, pa.int32())
    )
