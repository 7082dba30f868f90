"""What the API sees of the watches over streams: how they stand, and what they are asked to do."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar

from hydrophone_schemas.rest import (
    DriftBudget,
    DriftState,
    DriftStatus,
    DriftStratum,
    NoveltyCluster,
    NoveltyStatus,
    RebaselineBody,
    Reference,
    WatchingDetector,
)

from hydrophoned.api.errors import Refused, Unavailable
from hydrophoned.api.times import to_datetime
from hydrophoned.detect.errors import InsufficientReference
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.runtime.streams import StreamRegistry
from hydrophoned.store import DetectionReader, StoreWriter
from hydrophoned.store.questions import QuestionReader

T = TypeVar("T")
_FLUSH_SECONDS: Final = 20.0
_OFF: Final[dict[str, Any]] = dict.fromkeys(DriftStatus.model_fields) | {"state": DriftState.OFF, "strata": []}
_FAILED: Final = "the stream's learner has ended; the daemon's log says why"
_SHOWN: Final = 10
"""Requests of a group that are named."""


class Ask(Protocol):
    """Asks a stream's learner, in its thread; raises Unavailable when it does not answer in time."""

    def __call__(self, stream_id: str, question: Callable[[StreamLearner], T], /) -> Awaitable[T]:
        """The answer to ``question``."""


class DriftView:
    """Implements :class:`hydrophoned.api.backend.DriftQuestions` over the streams of a daemon."""

    def __init__(
        self,
        streams: StreamRegistry,
        reader: DetectionReader,
        requests: QuestionReader,
        writer: StoreWriter,
        ask: Ask,
    ) -> None:
        self.reader = reader
        self._streams, self._requests, self._writer, self._ask = streams, requests, writer, ask

    def status(self, stream_id: str) -> DriftStatus:
        """The watch over a stream, as it stood a moment ago."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.worker.status:
            return drift_status(stream_id, None if stream is None else stream.worker.status["drift"])
        if not stream.worker.alive:
            return DriftStatus(**_OFF | {"stream": stream_id, "problem": _FAILED})
        return DriftStatus(**_OFF | {"stream": stream_id, "state": DriftState.STARTING})

    async def rebaseline(self, stream_id: str, body: RebaselineBody) -> DriftStatus:
        """Compare the stream with another reference; raises Refused (409) or Unavailable."""
        watching = self._watching(stream_id)

        def ask(_: StreamLearner) -> dict[str, Any]:
            watching.rebaseline(body.name, body.source.value, body.units)
            told: dict[str, Any] = watching.status()
            return told

        try:
            told = await self._ask(stream_id, ask)
        except InsufficientReference as error:
            raise Refused(HTTPStatus.CONFLICT, "insufficient-reference", str(error)) from None
        await asyncio.to_thread(self._writer.flush, _FLUSH_SECONDS)
        return drift_status(stream_id, told)

    async def clusters(self, stream_id: str) -> Sequence[NoveltyCluster]:
        """Groups of novel requests, the largest first; raises Refused (409) or Unavailable."""
        watching = self._watching(stream_id)
        found: list[dict[str, Any]] = await self._ask(stream_id, lambda _: watching.clusters())
        keys = sorted({key for cluster in found for key in cluster["requests"][:_SHOWN]})
        ids = await asyncio.to_thread(self._requests.request_ids, keys) if keys else {}
        clusters = [
            NoveltyCluster(
                size=cluster["size"],
                requests=[ids.get(key) for key in cluster["requests"][:_SHOWN]],
                request_keys=cluster["requests"][:_SHOWN],
                cohesion=_finite(cluster["cohesion"]),
                first=_time(cluster["first"]),
                last=_time(cluster["last"]),
            )
            for cluster in found
        ]
        return sorted(clusters, key=lambda cluster: -cluster.size)

    def _watching(self, stream_id: str) -> Any:
        """The watch, for use in the learner's thread; raises Refused (409) where there is none, Unavailable before."""
        stream = self._streams.get(stream_id)
        watching = None if stream is None else stream.worker.watching
        if watching is None and stream is not None and not stream.worker.status:
            starting = f"the learner of {stream_id} is starting; ask again in a moment"
            raise Unavailable(starting if stream.worker.alive else _FAILED)
        if watching is None:
            raise Refused(
                HTTPStatus.CONFLICT,
                "not-watched",
                f"{stream_id} is not watched for drift: the daemon was started with drift.enabled = false",
            )
        return watching


def drift_status(stream_id: str, told: dict[str, Any] | None) -> DriftStatus:
    """``told`` by a watch (times in us), None where there is none, as the API shows it."""
    if told is None:
        return DriftStatus(**_OFF | {"stream": stream_id})
    novelty = told["novelty"]
    return DriftStatus(
        stream=stream_id,
        state=DriftState(told["state"]),
        problem=told["problem"],
        units_per_second=_finite(told["units_per_second"]),
        budget=DriftBudget(**told["budget"]),
        drifts=told["drifts"],
        drift_since=_time(told["drift_since"]),
        strata=[_stratum(one) for one in told["strata"]],
        novelty=novelty and NoveltyStatus(**novelty),
    )


def _stratum(told: dict[str, Any]) -> DriftStratum:
    reference = told["reference"]
    shown = {
        "state": DriftState(told["state"]),
        "reference": reference and _reference(told["stratum"], reference),
        "detectors": [
            WatchingDetector(**one | {name: _finite(one[name]) for name in ("statistic", "threshold", "seconds")})
            for one in told["detectors"]
        ],
    }
    return DriftStratum(**told | shown)


def _reference(stratum: str, told: dict[str, Any]) -> Reference:
    return Reference(stratum=stratum, **told | {name: to_datetime(told[name]) for name in ("made", "since", "until")})


def _time(us: int | None) -> Any:
    return None if us is None else to_datetime(us)


def _finite(value: float | None) -> float | None:
    """``value`` where it is a number that JSON has."""
    return value if value is not None and math.isfinite(value) else None
