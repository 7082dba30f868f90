"""What is remembered of producers across their connections: sequences, requests, reports."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

_SAVED_REQUESTS: Final = 4096
"""Requests per producer that a checkpoint holds, those used last."""


class StreamReport(NamedTuple):
    """What one producer last reported of one stream; ``reported`` is UTC in us."""

    id: str
    name: str | None
    connected: bool
    reported: int | None
    report: dict[str, Any] | None


class Producer:
    """One producer: ``received`` is the highest sequence taken in; ``requests`` maps its numbers to daemon keys."""

    def __init__(self, producer_id: str, max_requests: int) -> None:
        self.id = producer_id
        self.name: str | None = None
        self.received = 0
        self.connection: object | None = None
        self.streams: set[str] = set()
        self.reports: dict[str, dict[str, Any]] = {}
        self.reported: int | None = None
        self._requests: OrderedDict[int, int] = OrderedDict()
        self._max_requests = max_requests

    def remember_request(self, number: int, key: int) -> None:
        """Map the producer's ``number`` to ``key``; the mapping used longest ago goes when there are too many."""
        self._requests[number] = key
        self._requests.move_to_end(number)
        if len(self._requests) > self._max_requests:
            self._requests.popitem(last=False)

    def request_key(self, number: int) -> int:
        """The daemon's key of a request, -1 if it is not known."""
        key = self._requests.get(number, -1)
        if key >= 0:
            self._requests.move_to_end(number)
        return key

    def state_dict(self) -> dict[str, Any]:
        """What a restarted daemon must know, as plain values."""
        recent = list(self._requests.items())[-_SAVED_REQUESTS:]
        return {"name": self.name, "received": self.received, "requests": [list(pair) for pair in recent]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.name = state["name"]
        self.received = int(state["received"])
        for number, key in state["requests"]:
            self.remember_request(int(number), int(key))


class ProducerRegistry:
    """All producers known; of those not connected only the ``max_away`` seen last are kept."""

    def __init__(self, *, max_requests: int = 100_000, max_away: int = 1024) -> None:
        self._max_requests, self._max_away = max_requests, max_away
        self._producers: OrderedDict[str, Producer] = OrderedDict()  # ordered by when they were last seen

    def __iter__(self) -> Iterator[Producer]:
        return iter(self._producers.values())

    def connect(self, producer_id: str, name: str | None, connection: object) -> tuple[Producer, object | None]:
        """The producer that connects, and its older connection which this one supersedes, if it has one."""
        producer = self._producers.get(producer_id)
        if producer is None:
            producer = self._producers[producer_id] = Producer(producer_id, self._max_requests)
        superseded, producer.connection, producer.name = producer.connection, connection, name
        self._producers.move_to_end(producer_id)
        return producer, superseded

    def disconnect(self, producer: Producer, connection: object) -> None:
        """``connection`` has ended, unless it was superseded before."""
        if producer.connection is connection:
            producer.connection = None
            self._producers.move_to_end(producer.id)
            self._forget_oldest()

    def of_stream(self, stream_id: str) -> list[StreamReport]:
        """What each producer of a stream last reported of it."""
        return [
            StreamReport(
                producer.id,
                producer.name,
                producer.connection is not None,
                producer.reported,
                producer.reports.get(stream_id),
            )
            for producer in self
            if stream_id in producer.streams
        ]

    def received(self) -> dict[str, int]:
        """Highest sequence taken in of each producer."""
        return {producer.id: producer.received for producer in self}

    def state_dict(self) -> dict[str, Any]:
        """State of all producers, as plain values."""
        return {producer.id: producer.state_dict() for producer in self}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        for producer_id, saved in state.items():
            self._producers[producer_id] = producer = Producer(producer_id, self._max_requests)
            producer.load_state(saved)
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        away = [known.id for known in self if known.connection is None]
        for producer_id in away[: max(0, len(away) - self._max_away)]:
            del self._producers[producer_id]
