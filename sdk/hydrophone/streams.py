"""A stream as the SDK sees it: its id, the form of its rows, and what became of them."""

import threading
from collections import Counter
from typing import Any

import pyarrow as pa
from hydrophone_schemas.activations import activation_schema
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.wire import BatchEncoder


class Stream:
    """One (model, version, site) of a producer.

    Width and dtype are those of its first rows and do not change afterwards. ``forwards`` is the number of times its
    model ran, ``fires`` how often the hook was called; other counts are rows.
    """

    def __init__(self, stream_id: StreamId, fingerprint: str, channel: int) -> None:
        self.id = stream_id
        self.name = str(stream_id)
        self.fingerprint = fingerprint
        self.channel = channel
        self.width: int | None = None
        self.dtype: str | None = None
        self.schema: pa.Schema | None = None
        self.encoder: BatchEncoder | None = None
        self.restart()

    def restart(self) -> None:
        """Count from nothing, as a forked child does."""
        self._lock = threading.Lock()
        self.refused: str | None = None
        """Error code with which the daemon refused the stream on this connection."""
        self.fires = 0
        self.forwards = 0
        self.captured = 0
        self.sampled_out = 0
        self.padding = 0
        self.sent = 0
        self.acked = 0
        self.dropped: Counter[str] = Counter()

    def shape(self, width: int, dtype: str) -> None:
        """Fix width and dtype; raises :class:`hydrophone_schemas.errors.SchemaError` if no schema has them."""
        self.schema = activation_schema(width, dtype)
        self.encoder = BatchEncoder(self.schema)
        self.width, self.dtype = width, dtype

    def fire(self, rows: int, *, taken: bool) -> None:
        """Count a hook call that saw ``rows`` rows."""
        with self._lock:
            self.fires += 1
            if taken:
                self.captured += rows
            else:
                self.sampled_out += rows

    def drop(self, reason: str, rows: int) -> None:
        """Count rows that were captured and will not be sent."""
        with self._lock:
            self.dropped[reason] += rows

    def completed(self) -> None:
        """Count a forward pass of the model that has ended."""
        with self._lock:
            self.forwards += 1

    def report(self) -> dict[str, Any]:
        """Counts as carried by a REPORT frame."""
        with self._lock:
            return {
                "stream": self.name,
                "fires": self.fires,
                "forwards": self.forwards,
                "captured": self.captured,
                "sampled_out": self.sampled_out,
                "padding": self.padding,
                "sent": self.sent,
                "acked": self.acked,
                "dropped": dict(self.dropped),
            }
