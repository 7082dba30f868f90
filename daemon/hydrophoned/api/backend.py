"""What the API needs of the daemon behind it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from hydrophone_schemas.rest import (
    ContrastBody,
    DictionaryQuality,
    DriftStatus,
    FeatureSearchBody,
    FiringChoice,
    InspectBody,
    LabelRun,
    LabelRunBody,
    NeighbourOrder,
    NoveltyCluster,
    PartnerOrder,
    ProbeBody,
    RebaselineBody,
    RerankBody,
    RestModel,
    SelfReport,
    StabilityRun,
    StabilityRunBody,
    StreamStatus,
)
from numpy.typing import NDArray

from hydrophoned.store import DetectionReader, Label, StoreReader


class EncodedRows(NamedTuple):
    """Codes of n rows.

    ``index`` int32 [n, k] and ``value`` float32 [n, k], largest value first; ``sink`` and ``finite`` bool [n]. What
    stands in ``index`` and ``value`` of a row that is not finite does not matter: the API shows null.
    """

    index: NDArray[np.int32]  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    value: NDArray[np.float32]
    sink: NDArray[np.bool_]
    finite: NDArray[np.bool_]


class ReconstructedRows(NamedTuple):
    """n rows as a dictionary rebuilds them: ``row`` float32 [n, d], ``sink`` and ``finite`` bool [n]."""

    row: NDArray[np.float32]
    sink: NDArray[np.bool_]
    finite: NDArray[np.bool_]
    dictionary_version: int


class NumberedFeatures(NamedTuple):
    """The ids of a dictionary's features, int64 [F], and the version of it."""

    ids: NDArray[np.int64]
    dictionary_version: int


class Answered(NamedTuple):
    """The items of a list, and the fields of the list besides ``items`` and ``next``."""

    items: Sequence[RestModel]
    about: Mapping[str, Any]


class FoundStability(NamedTuple):
    """What a twin said of a stream's features: see ``rest.StabilityList``, whose figures ``about`` holds.

    Arrays are of F features by index: ``feature_id``, ``kind`` (a place in ``rest.StabilityKind``), ``correlation`` and
    ``rank``, by which they are sorted, NaN where unknown, and ``persisted``.
    """

    about: dict[str, Any]
    feature_id: NDArray[np.int64]
    kind: NDArray[np.int8]
    correlation: NDArray[np.float64]
    rank: NDArray[np.float64]
    persisted: NDArray[np.int64]


class FeatureQuestions(Protocol):
    """Questions about features. All methods block and are called in threads of the API's own."""

    def search(self, status: StreamStatus, body: FeatureSearchBody, rows: NDArray[np.float32] | None) -> Answered:
        """Features by what ``body`` says, or those of ``rows`` [n, d]: ``rest.FoundFeature``."""

    def inspect(self, status: StreamStatus, body: InspectBody, rows: NDArray[np.float32] | None) -> Answered:
        """What features do in a request, or in ``rows`` [n, d]: ``rest.InspectedFeature``; raises Refused (404)."""

    def neighbours(self, status: StreamStatus, feature: int, order: NeighbourOrder, limit: int) -> Answered:
        """Features near one: ``rest.Neighbour``."""

    def partners(self, status: StreamStatus, feature: int, order: PartnerOrder, limit: int) -> Answered:
        """What fires together with a feature: ``rest.Partner``."""

    def firings(self, status: StreamStatus, feature: int, choice: FiringChoice, limit: int, context: int) -> Answered:
        """Some rows on which a feature fired, with ``context`` token strings to either side: ``rest.Firing``."""

    def decode(
        self, status: StreamStatus, index: NDArray[np.int32], value: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], int]:
        """Rows [n, d] of codes [n, k], whose indices exist, and the dictionary's version."""


class TrafficQuestions(Protocol):
    """Questions about traffic. All methods block and are called in threads of the API's own."""

    def contrast(self, status: StreamStatus, body: ContrastBody) -> Answered:
        """Features that differ: ``rest.ContrastedFeature``; raises Refused (404, 409, 422)."""

    def rerank(self, status: StreamStatus, body: RerankBody) -> Answered:
        """Requests or features in order: ``rest.Reranked``; raises Refused (404, 409)."""

    def make_probes(self, status: StreamStatus, body: ProbeBody) -> Answered:
        """Fit and store probes: ``rest.Probe``; raises Refused (409)."""

    def probes(self, status: StreamStatus, name: str | None) -> Answered:
        """Stored probes: ``rest.Probe``."""


class DriftQuestions(Protocol):
    """The watches over streams. All methods are called on the event loop's thread and must not block it."""

    @property
    def reader(self) -> DetectionReader:
        """Reads drifts, references and novel requests; the API calls it in threads of its own."""

    def status(self, stream_id: str) -> DriftStatus:
        """The watch over a stream that exists, as it stands."""

    async def rebaseline(self, stream_id: str, body: RebaselineBody) -> DriftStatus:
        """Compare a stream that exists with another reference; those that are there at once are stored on return.

        Raises :class:`hydrophoned.api.errors.Refused` (409) where the stream is not watched, or the requests do not do
        for a reference, and Unavailable when the learner cannot answer now.
        """

    async def clusters(self, stream_id: str) -> Sequence[NoveltyCluster]:
        """Groups of the novel requests of a stream that exists; raises as :meth:`rebaseline` does."""


class ArtefactFiles(NamedTuple):
    """A version's files as one tar: ``digest`` is that of its weights, ``chunks`` reads ``nbytes`` from the disk."""

    digest: str
    nbytes: int
    name: str
    chunks: Callable[[], Iterator[bytes]]


class Backend(Protocol):
    """The daemon as the API sees it. All methods are called on the event loop's thread and must not block it."""

    @property
    def version(self) -> str:
        """Version of the daemon."""

    @property
    def reader(self) -> StoreReader:
        """Reads the store; the API calls it in threads of its own."""

    @property
    def questions(self) -> FeatureQuestions:
        """Answers questions about features."""

    @property
    def traffic(self) -> TrafficQuestions:
        """Answers questions about traffic."""

    @property
    def drift(self) -> DriftQuestions:
        """The watches over streams, for drift and novelty."""

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

    async def reconstruct(self, stream_id: str, x: NDArray[np.float32]) -> ReconstructedRows:
        """Rows x [n, d] rebuilt, under the conditions of :meth:`encode`; raises as it does.

        Sink rows and rows that are not finite come back as they were given.
        """

    async def quality(self, stream_id: str) -> DictionaryQuality:
        """How good the dictionary of a stream that exists is; raises as :meth:`encode` does."""

    async def feature_ids(self, stream_id: str) -> NumberedFeatures:
        """Which feature is at each index, of a stream that has a dictionary; raises as :meth:`encode` does."""

    async def publish(self, stream_id: str) -> dict[str, Any]:
        """Publish the dictionary of a stream that has one; the new version's row of the table ``dictionary``.

        Raises as :meth:`encode` does.
        """

    def versions_kept(self, stream_id: str) -> set[int]:
        """The versions whose weights are kept. Blocks on the disk: the API calls it in threads of its own."""

    def artefact(self, stream_id: str, version: int) -> ArtefactFiles | None:
        """A version's files, None where they are not kept. Blocks as :meth:`versions_kept` does."""

    async def put_labels(self, stream_key: int, labels: Sequence[Label]) -> None:
        """Store labels; they are read back once this returns. Raises Unavailable when the store does not take them."""

    def start_labelling(self, stream_id: str, body: LabelRunBody) -> LabelRun:
        """Begin automatic labelling of a stream that exists.

        Raises :class:`hydrophoned.api.errors.Refused` (409) where a run is in progress or the settings forbid it.
        """

    def labelling(self) -> LabelRun:
        """The run of automatic labelling in progress, or the last one."""

    def start_stability(self, stream_id: str, body: StabilityRunBody) -> StabilityRun:
        """Begin to learn a twin of the dictionary of a stream that exists.

        Raises :class:`hydrophoned.api.errors.Refused` (409) where one is being learned.
        """

    def stability(self, stream_id: str) -> tuple[StabilityRun, FoundStability | None]:
        """The latest run of a stream that exists, and the latest answer."""

    def put_outcome(self, request_id: str, model: str, labels: dict[str, Any], time: int, source: str) -> None:
        """Record what the user told of a request; ``time`` is UTC in us."""

    def ready(self) -> list[str]:
        """What stands in the way of taking rows and answering; empty when nothing does."""

    def self_report(self) -> SelfReport:
        """The daemon's own processor time, memory, lags and drops."""

    def counters(self) -> Mapping[str, int]:
        """Events counted since the start, by a bounded set of names."""
