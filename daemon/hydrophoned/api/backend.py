"""What the API needs of the daemon behind it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from hydrophone_schemas.rest import DictionaryQuality, SelfReport, StreamStatus
from numpy.typing import NDArray

from hydrophoned.store import StoreReader


class EncodedRows(NamedTuple):
    """Codes of n rows.

    ``index`` int32 [n, k] and ``value`` float32 [n, k], largest value first; ``sink`` and ``finite`` bool [n]. What
    stands in ``index`` and ``value`` of a row that is not finite does not matter: the API shows null.
    """

    index: NDArray[np.int32]  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    value: NDArray[np.float32]
    sink: NDArray[np.bool_]
    finite: NDArray[np.bool_]


class Backend(Protocol):
    """The daemon as the API sees it. All methods are called on the event loop's thread and must not block it."""

    @property
    def version(self) -> str:
        """Version of the daemon."""

    @property
    def reader(self) -> StoreReader:
        """Reads the store; the API calls it in threads of its own."""

    def now(self) -> int:
        """UTC time in microseconds."""

    def streams(self) -> list[StreamStatus]:
        """Live figures of every stream."""

    def stream(self, stream_id: str) -> StreamStatus | None:
        """Live figures of one stream; None if there is none of that id."""

    async def encode(self, stream_id: str, x: NDArray[np.float32]) -> EncodedRows:
        """Codes of rows x [n, d] of a stream that exists, has a dictionary, and has width d.

        Raises :class:`hydrophoned.api.errors.Unavailable` when the learner cannot answer now.
        """

    async def quality(self, stream_id: str) -> DictionaryQuality:
        """How good the dictionary of a stream that exists is; raises as :meth:`encode` does."""

    def put_outcome(self, request_id: str, model: str, labels: dict[str, Any], time: int, source: str) -> None:
        """Record what the user told of a request; ``time`` is UTC in us."""

    def ready(self) -> list[str]:
        """What stands in the way of taking rows and answering; empty when nothing does."""

    def self_report(self) -> SelfReport:
        """The daemon's own processor time, memory, lags and drops."""

    def counters(self) -> Mapping[str, int]:
        """Events counted since the start, by a bounded set of names."""
