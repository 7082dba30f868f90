"""Collects requests, tokens and outcomes between writes to the store."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from hydrophone_schemas import tables

from hydrophoned.ingest.sink import RequestSpec

_MAX_HELD = 20_000


class Recorder:
    """Holds at most ``_MAX_HELD`` entries per table, then writes through ``put`` (which takes tables by name)."""

    def __init__(self, put: Callable[[dict[str, pa.RecordBatch]], None]) -> None:
        self._put = put
        self._held: dict[str, list[dict[str, Any]]] = {"request": [], "request_tokens": [], "outcome": []}

    def request(self, key: int, spec: RequestSpec) -> None:
        """A request was opened under ``key``."""
        self._add(
            "request",
            {
                "request_key": key,
                "id": spec.id,
                "model": spec.model,
                "version": spec.version,
                "producer": spec.producer,
                "started": spec.started,
                "sample": spec.sample,
                "attributes": json.dumps(spec.attributes, ensure_ascii=False),
            },
        )

    def tokens(self, key: int, sequence: int, position: int, pieces: list[str | None]) -> None:
        """Token strings of a sequence, from ``position`` on."""
        self._add("request_tokens", {"request_key": key, "sequence": sequence, "position": position, "pieces": pieces})

    def outcome(
        self, request_id: str, model: str, labels: dict[str, Any], time: int, received: int, source: str
    ) -> None:
        """What the user told of a request."""
        self._add(
            "outcome",
            {
                "request_id": request_id,
                "model": model,
                "time": time,
                "received": received,
                "source": source,
                "labels": json.dumps(labels, ensure_ascii=False),
            },
        )

    def flush(self) -> None:
        """Hand everything held to the store's writer."""
        ready = {
            name: pa.RecordBatch.from_pylist(entries, schema=tables.TABLES[name])
            for name, entries in self._held.items()
            if entries
        }
        if ready:
            self._held = {name: [] for name in self._held}
            self._put(ready)

    def _add(self, table: str, entry: dict[str, Any]) -> None:
        held = self._held[table]
        held.append(entry)
        if len(held) >= _MAX_HELD:
            self.flush()
