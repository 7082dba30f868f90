"""What questions about traffic read of the store: requests with what they were given and what became of them."""

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from hydrophone_schemas.tables import PROBE

from hydrophoned.store.reader import StoreReader

MAX_REQUESTS: Final = 4096
"""Requests of a set whose features are read, a sample by a hash of their key where there are more."""
MAX_KNOWN: Final = 200_000
"""Requests, the latest, that sets are made of."""

_REQUEST_FEATURES: Final = """
    WITH covered AS (
        SELECT * FROM request_feature WHERE stream_key = $stream AND window_start >= make_timestamp($since)
        AND window_start < make_timestamp($until) AND request_key IN (SELECT request_key FROM asked)),
    wanted AS (SELECT DISTINCT request_key FROM covered ORDER BY hash(request_key) LIMIT $limit)
    SELECT request_key, rows_scored, sample, features, fired, sum, max, dictionary_version
    FROM covered SEMI JOIN wanted USING (request_key) ORDER BY request_key, window_start
"""
_PROBES: Final = """
    SELECT * EXCLUDE (stream_key) FROM probe WHERE stream_key = $stream AND ($name IS NULL OR name = $name)
    QUALIFY row_number() OVER (PARTITION BY name, k ORDER BY created DESC, rowid DESC) = 1 ORDER BY name, k
"""
_TEXTS: Final = """
    SELECT request_key, sequence FROM (
        SELECT request_key, sequence, string_agg(array_to_string(pieces, ''), '' ORDER BY position) AS text
        FROM request_tokens GROUP BY request_key, sequence)
    WHERE contains(lower(text), lower(?)) ORDER BY request_key DESC, sequence LIMIT ?
"""


class QuestionReader(StoreReader):
    """Reads for questions about requests; raises as :class:`StoreReader` does."""

    def known_requests(self, model: str, version: str) -> pa.Table:
        """request_key, id, attributes (JSON) of the latest requests of a model, latest first."""
        return self._query(
            """
            SELECT request_key, id, attributes FROM request WHERE model = ? AND version = ?
            ORDER BY request_key DESC LIMIT ?
            """,
            [model, version, MAX_KNOWN],
        )

    def request_ids(self, request_keys: Sequence[int]) -> dict[int, str]:
        """Ids of requests by key, of those that are known."""
        table = self._query(
            """
            SELECT request_key, any_value(id) AS id FROM request
            WHERE request_key IN (SELECT request_key FROM asked) GROUP BY request_key
            """,
            asked=_keys(request_keys),
        )
        return dict(zip(table["request_key"].to_pylist(), table["id"].to_pylist(), strict=True))

    def model_outcomes(self, model: str) -> pa.Table:
        """request_id and labels (JSON) of the latest outcomes of a model's requests, earliest told first."""
        return self._query(
            """
            SELECT request_id, labels FROM (
                SELECT request_id, labels, received, time, rowid AS number FROM outcome WHERE model = ?
                ORDER BY received DESC, time DESC, number DESC LIMIT ?)
            ORDER BY received, time, number
            """,
            [model, MAX_KNOWN],
        )

    def request_features(
        self, stream_key: int, request_keys: Sequence[int], *, since: int = 0, until: int = 1 << 60
    ) -> pa.Table:
        """Rows of the table ``request_feature`` of requests, over windows that start in [since, until), in us.

        Of more than ``MAX_REQUESTS`` requests a sample, uniform by a hash of the key.
        """
        return self._query(
            _REQUEST_FEATURES,
            {"stream": stream_key, "since": since, "until": until, "limit": MAX_REQUESTS},
            asked=_keys(request_keys),
        )

    def sampled_requests(self, stream_key: int) -> pa.Table:
        """request_key of every request that has features in the store."""
        return self._query("SELECT DISTINCT request_key FROM request_feature WHERE stream_key = ?", [stream_key])

    def feature_births(self, stream_key: int) -> pa.Table:
        """feature, version: since which version of the dictionary the feature of today stands at its index."""
        return self._query(
            """
            SELECT feature, max(dictionary_version) AS version FROM feature
            WHERE stream_key = ? AND state <> 'lost' GROUP BY feature ORDER BY feature
            """,
            [stream_key],
        )

    def request_examples(self, stream_key: int, request_key: int) -> pa.Table:
        """feature, sequence, position, token and value of a request's rows among the examples of features."""
        return self._query(
            """
            SELECT feature, sequence, position, token, max(value)::DOUBLE AS value FROM example
            WHERE stream_key = ? AND request_key = ? GROUP BY ALL ORDER BY feature, sequence, position
            """,
            [stream_key, request_key],
        )

    def places_of_piece(self, pieces: Sequence[str], *, limit: int) -> pa.Table:
        """request_key, sequence and position of tokens whose string is one of ``pieces``, of the latest requests."""
        return self._query(
            """
            SELECT request_key, sequence, (position + place)::INTEGER AS position FROM (
                SELECT request_key, sequence, position, unnest(range(len(pieces))) AS place, unnest(pieces) AS piece
                FROM request_tokens WHERE list_has_any(pieces, $pieces::VARCHAR[]))
            WHERE list_contains($pieces::VARCHAR[], piece) ORDER BY request_key DESC, sequence, position LIMIT $limit
            """,
            {"pieces": list(pieces), "limit": limit},
        )

    def texts(self, part: str, *, limit: int) -> pa.Table:
        """request_key and sequence of texts that hold ``part``, whatever its case, of the latest requests."""
        return self._query(_TEXTS, [part, limit])

    def probes(self, stream_key: int, name: str | None = None) -> pa.Table:
        """The latest probes of each name and k, by name and k: the table ``probe`` without the stream."""
        return self._query(_PROBES, {"stream": stream_key, "name": name})


def _keys(request_keys: Sequence[int]) -> pa.Table:
    return pa.table({"request_key": pa.array(request_keys, pa.int64())})


def probe_table(stream_key: int, probes: Sequence[dict[str, Any]]) -> pa.Table:
    """``probes`` of one stream as rows of the table ``probe``."""
    return pa.Table.from_pylist([{"stream_key": stream_key, **probe} for probe in probes], schema=PROBE)
