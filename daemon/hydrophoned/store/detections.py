"""What is read of drifts, references and novel requests."""

import pyarrow as pa

from hydrophoned.store.drift_sql import (
    ATTRIBUTES,
    LAST_REFERENCES,
    REQUESTS,
    DetectionQuery,
    NovelQuery,
    detected_features_sql,
    detections_sql,
    novel_sql,
    references_sql,
)
from hydrophoned.store.reader import StoreReader


class DetectionReader(StoreReader):
    """Reads drifts, references and novel requests; raises as :class:`StoreReader` does."""

    def detections(self, query: DetectionQuery) -> pa.Table:
        """Drifts, the latest first: the columns of ``rest.Detection``, and ``stream_key``."""
        return self._query(*detections_sql(query))

    def detected_features(self, stream_key: int, number: int) -> pa.Table:
        """The features that changed most in a drift: the columns of ``rest.DetectedFeature``."""
        return self._query(*detected_features_sql(stream_key, number))

    def detected_requests(self, stream_key: int, number: int) -> pa.Table:
        """The requests that carry a drift: the columns of ``rest.DetectedRequest``."""
        return self._query(REQUESTS, {"stream": stream_key, "number": number})

    def detected_attributes(self, stream_key: int, number: int) -> pa.Table:
        """The attributes in which a drift is concentrated: the columns of ``rest.DetectedAttribute``."""
        return self._query(ATTRIBUTES, {"stream": stream_key, "number": number})

    def references(self, stream_key: int, *, limit: int, after: tuple[int, str, int] | None = None) -> pa.Table:
        """Samples that the stream was compared with, the latest first: the columns of ``rest.Reference``.

        ``after`` is made (us), stratum and version of the last one of the page before.
        """
        return self._query(*references_sql(stream_key, limit, after))

    def novel(self, stream_key: int, query: NovelQuery) -> pa.Table:
        """Novel requests, the latest first: the columns of ``rest.NovelRequest``."""
        return self._query(*novel_sql(stream_key, query))

    def last_told(self, stream_key: int) -> tuple[int, dict[str, int]]:
        """:meth:`last_drift` and :meth:`last_references`."""
        return self.last_drift(stream_key), self.last_references(stream_key)

    def last_drift(self, stream_key: int) -> int:
        """The highest number of the stream's drifts; 0 where there is none."""
        table = self._query(
            "SELECT coalesce(max(number), 0) AS number FROM detection WHERE stream_key = ?", [stream_key]
        )
        number: int = table["number"][0].as_py()
        return number

    def last_references(self, stream_key: int) -> dict[str, int]:
        """The highest version of the references of each stratum that has had one."""
        table = self._query(LAST_REFERENCES, {"stream": stream_key})
        return dict(zip(table["stratum"].to_pylist(), table["version"].to_pylist(), strict=True))
