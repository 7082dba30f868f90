"""What ingestion hands on, and to whom."""

from typing import Any, NamedTuple, Protocol

from hydrophone_schemas.names import StreamId

from hydrophoned.rows import Rows

AttributeValue = str | int | float | bool


class StreamSpec(NamedTuple):
    """A stream as a producer opens it."""

    id: StreamId
    fingerprint: str
    width: int
    dtype: str


class RequestSpec(NamedTuple):
    """A request as a producer announces it; ``started`` is UTC in us, ``sample`` its probability of being taken."""

    id: str
    model: str
    version: str
    producer: str
    started: int
    sample: float
    attributes: dict[str, AttributeValue]


class Sink(Protocol):
    """Where rows go. All methods are called on the event loop's thread, and none may block it."""

    def open_stream(self, spec: StreamSpec, producer: str) -> int:
        """Key of the stream; raises StreamConflict or WidthMismatch."""

    def open_request(self, spec: RequestSpec) -> int:
        """Key of a new request."""

    def put_rows(self, stream_key: int, rows: Rows) -> None:
        """Take rows whose ``request`` column holds the daemon's keys; count what is dropped."""

    def put_tokens(self, request_key: int, sequence: int, position: int, pieces: list[str | None]) -> None:
        """Token strings of a request's sequence, from ``position`` on."""

    def put_outcome(self, request_id: str, model: str, labels: dict[str, Any], time: int, source: str) -> None:
        """What the user told of a request; ``model`` is empty where the producer did not say."""

    def put_report(self, producer: str, report: dict[str, Any]) -> None:
        """A producer's own counters."""

    def count(self, event: str, amount: int = 1) -> None:
        """Count an event."""

    async def flush(self) -> None:
        """Return when everything put so far is learned, its windows closed and stored."""

    def durable(self, producer: str) -> int:
        """Highest sequence of ``producer`` that a checkpoint covers; 0 if none."""
