"""What questions about features are answered from: a learner's samples, and the store's labels of what is found."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hydrophoned.api.errors import Unavailable
from hydrophoned.learn.code_sample import CodedRows
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.runtime.streams import StreamRegistry
from hydrophoned.store.questions import QuestionReader

_ASK_SECONDS: Final = 20.0
T = TypeVar("T")


class Sampled(NamedTuple):
    """A uniform sample of a stream's rows as codes, the number F of features, and the dictionary's version."""

    rows: CodedRows
    features: int
    dictionary_version: int


class RawRows(NamedTuple):
    """A uniform sample of a stream's rows as captured, float32 [n, d], with what is known of them."""

    x: NDArray[np.float32]
    request: NDArray[np.int64]
    sequence: NDArray[np.int32]
    position: NDArray[np.int32]
    token: NDArray[np.int32]


def ask(streams: StreamRegistry, stream_id: str, question: Callable[[StreamLearner], T]) -> T:
    """What a stream's learner says to ``question``, in its thread; blocks. Raises Unavailable."""
    stream = streams.get(stream_id)
    if stream is None:
        raise Unavailable(f"stream {stream_id} is not open")
    try:
        return stream.worker.call(question, after_queued=False).result(_ASK_SECONDS)
    except (TimeoutError, RuntimeError) as error:
        raise Unavailable(f"the learner of {stream_id} did not answer: {error or 'it is busy'}") from error


def sampled(learner: StreamLearner) -> Sampled:
    """The learner's sample of codes, copied."""
    return Sampled(learner.sample.rows(), learner.features, learner.dictionary_version)


def raw_rows(learner: StreamLearner) -> RawRows:
    """The learner's sample of raw rows, copied."""
    held = learner.reservoir
    some: RowMetadata = held.metadata.take(slice(held.count))  # type: ignore[arg-type]  # a slice takes as well
    columns: list[Any] = [
        column.to("cpu", copy=True).numpy()
        for column in (held.rows[: held.count], some.request, some.sequence, some.position, some.token)
    ]
    return RawRows(*columns)


def at_places(rows: CodedRows | RawRows, places: Iterable[tuple[int, int, int]]) -> NDArray[np.bool_]:
    """Which rows are at one of ``places`` (request key, sequence, position): bool [n]."""
    known = set(places)
    return np.fromiter(
        (
            place in known
            for place in zip(rows.request.tolist(), rows.sequence.tolist(), rows.position.tolist(), strict=True)
        ),
        dtype=np.bool_,
        count=len(rows.request),
    )


def labels_of(
    reader: QuestionReader, stream_key: int, indices: Sequence[int] | NDArray[Any]
) -> dict[int, dict[str, Any]]:
    """``label``, ``label_source`` and ``label_score`` by index, of those features that have a label."""
    if not len(indices):
        return {}
    table = reader.best_labels(stream_key, [int(index) for index in indices])
    return {row.pop("index"): row for row in table.to_pylist()}


def known(number: float) -> float | None:
    """``number``, None where it is NaN."""
    return None if np.isnan(number) else float(number)
