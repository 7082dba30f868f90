"""The token strings around an example."""

from typing import Any

import pyarrow as pa


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
