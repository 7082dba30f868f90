"""Twins of dictionaries: one is learned at a time, in a thread outside the learners; the latest answer is kept."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from hydrophone_schemas.rest import StabilityRun, StabilityRunBody, StabilityState
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.analyse.errors import AnalysisError, TooLittle
from hydrophoned.analyse.stability import Stability, see, stability
from hydrophoned.api.backend import FoundStability
from hydrophoned.api.errors import Refused, Unavailable
from hydrophoned.api.times import to_datetime
from hydrophoned.learn.errors import CheckpointError
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from hydrophoned.runtime.checkpoint import load_json, write_json_atomically
from hydrophoned.runtime.streams import Stream, StreamRegistry

_log = logging.getLogger(__name__)
_ASK_SECONDS: Final = 20.0
_FILE: Final = "stability.json"
_MOMENTS: Final = ("m_", "v_")
_FIGURES: Final = ("compared", "requests", "rows_trained", "rows_scored", "passes", "fvu", "fvu_twin")


class Copied(NamedTuple):
    """A learner's sample of raw rows, normalised, float32 [n, d], their requests, and its dictionary as it stood.

    ``weights`` are the dictionary's tensors without the optimiser's; ``ids`` and ``persisted`` are int64 [F].
    """

    y: Tensor
    request: Tensor
    config: DictionaryConfig
    weights: dict[str, Tensor]
    batch_rows: int
    ids: NDArray[np.int64]
    persisted: NDArray[np.int64]
    dictionary_version: int


class _Ending(Exception):  # noqa: N818  no error: the daemon shuts down
    """Stops a twin in the middle."""


class StabilityRuns:
    """Learns twins and keeps what they said, in memory and in the stream's folder.

    ``start`` and ``of`` are called on the event loop's thread. The numerics run in a thread of their own, at
    ``niceness``.
    """

    def __init__(self, streams: StreamRegistry, now: Callable[[], int], *, niceness: int = 0) -> None:
        self._streams, self._now = streams, now
        self._pool = ThreadPoolExecutor(1, "stability", initializer=_be_nice, initargs=(niceness,))
        self._stopping = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._runs: dict[str, StabilityRun] = {}
        self._found: dict[str, FoundStability] = {}

    def restore(self) -> None:
        """Take up the answers of a former run; one that cannot be read is left where it is, and logged."""
        for stream in self._streams:
            path = self._file(stream.id)
            try:
                document = load_json(path)
                if document is not None:
                    self._found[stream.id] = _read(document)
                    self._runs[stream.id] = StabilityRun(state=StabilityState.DONE, stream=stream.id)
            except (CheckpointError, KeyError, TypeError, ValueError) as error:
                _log.warning("%s holds no answer that can be read: %r", path, error)

    def of(self, stream_id: str) -> tuple[StabilityRun, FoundStability | None]:
        """The latest run of a stream, and the latest answer."""
        none = StabilityRun(state=StabilityState.NONE, stream=stream_id)
        return self._runs.get(stream_id, none), self._found.get(stream_id)

    def start(self, stream: Stream, body: StabilityRunBody) -> StabilityRun:
        """Begin a run; raises Refused where one is in progress, of whichever stream."""
        if self._task is not None and not self._task.done():
            of = next(run.stream for run in self._runs.values() if run.state is StabilityState.RUNNING)
            raise Refused(
                HTTPStatus.CONFLICT,
                "stability-in-progress",
                f"a twin of {of}'s dictionary is being learned; one is at a time. Ask again when it is done.",
            )
        run = StabilityRun(state=StabilityState.RUNNING, stream=stream.id, started=to_datetime(self._now()))
        self._runs[stream.id] = run
        self._task = asyncio.create_task(self._run(stream, body))
        return run

    async def close(self) -> None:
        """End a run in progress and the thread."""
        self._stopping.set()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)

    # -- one run ------------------------------------------------------------------------------------------------

    async def _run(self, stream: Stream, body: StabilityRunBody) -> None:
        state, problem = StabilityState.FAILED, "the daemon is shutting down"
        try:
            taken = await _copy(stream)
            work = partial(self._answer, stream.id, taken, body)
            del taken  # the thread lets go of what it no longer needs
            self._found[stream.id] = await asyncio.get_running_loop().run_in_executor(self._pool, work)
            state, problem = StabilityState.DONE, ""
        except _Ending:
            pass
        except (AnalysisError, Unavailable) as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  nobody waits for this task: what went wrong is logged and shown
            _log.exception("the stability of %s could not be found", stream.id)
            problem = f"{type(error).__name__}: {error}; the daemon's log has the cause"
        finally:
            run = self._runs[stream.id]
            self._runs[stream.id] = run.model_copy(update={"state": state, "problem": problem or None})

    def _answer(self, stream_id: str, taken: Copied, body: StabilityRunBody) -> FoundStability:
        deadline = time.monotonic() + body.seconds

        def stop() -> bool:
            if self._stopping.is_set():
                raise _Ending
            return time.monotonic() > deadline

        with torch.no_grad():
            seen = see(_dictionary(taken), taken.y, taken.batch_rows)
            found = stability(
                seen,
                taken.y,
                taken.request,
                taken.config,
                passes=body.passes,
                batch_rows=taken.batch_rows,
                seed=body.seed,
                stop=stop,
            )
        answer = _told(found, taken, body.seed, to_datetime(self._now()))
        write_json_atomically(self._file(stream_id), _document(answer))
        return answer

    def _file(self, stream_id: str) -> Path:
        return self._streams.versions(stream_id).with_name(_FILE)


async def _copy(stream: Stream) -> Copied:
    """What the twin needs; raises Unavailable where the learner does not answer in time, and as :func:`copied` does."""
    asked = asyncio.wrap_future(stream.worker.call(copied, after_queued=False))
    try:
        return await asyncio.wait_for(asked, _ASK_SECONDS)
    except (TimeoutError, RuntimeError) as error:
        raise Unavailable(f"the learner of {stream.id} did not answer: {error or 'it is busy'}") from error


def copied(learner: StreamLearner) -> Copied:
    """What the learner's thread is asked for; raises TooLittle before there is a dictionary."""
    held, dictionary, version = learner.reservoir, learner.dictionary, learner.dictionary_version
    if not version:
        raise TooLittle(f"there is no dictionary yet: {learner.rows_seen} rows have been seen")
    return Copied(
        learner.normaliser.apply(held.rows[: held.count]).to("cpu", copy=True),
        held.metadata.request[: held.count].to("cpu", copy=True),
        dictionary.config,
        {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in dictionary.tensors().items()
            if not name.startswith(_MOMENTS)
        },
        learner.config.batch_rows,
        learner.identity.ids.numpy().copy(),
        version + 1 - learner.identity.born.numpy().astype(np.int64),
        version,
    )


def _dictionary(taken: Copied) -> SparseAutoencoder:
    """The dictionary that was copied, to encode with."""
    dictionary = SparseAutoencoder(taken.config, generator=torch.Generator())
    own = dictionary.tensors()
    for name, tensor in taken.weights.items():
        own[name].copy_(tensor)
    dictionary.latents.refresh()
    return dictionary


def _told(found: Stability, taken: Copied, seed: int, now: datetime) -> FoundStability:
    about: dict[str, Any] = {name: getattr(found, name) for name in _FIGURES}
    about |= {
        "time": now,
        "dictionary_version": taken.dictionary_version,
        "seed": seed,
        "rows": len(taken.y),
        "features": len(found.kind),
        "pairs": found.scores.pairs,
    }
    for suffix, scores in (("", found.scores), ("_shuffled", found.shuffled), ("_random", found.random_pairs)):
        about |= {f"strong{suffix}": scores.strong, f"weak{suffix}": scores.weak}
    return FoundStability(about, taken.ids, found.kind, found.correlation, found.rank, taken.persisted)


def _document(answer: FoundStability) -> dict[str, Any]:
    """``answer`` as JSON has it; what is not a number is null."""
    columns = {name: getattr(answer, name).tolist() for name in ("feature_id", "kind", "persisted")}
    for name in ("correlation", "rank"):
        columns[name] = [None if value != value else value for value in getattr(answer, name).tolist()]  # noqa: PLR0124  NaN is what is not itself
    return {"about": answer.about | {"time": answer.about["time"].isoformat()}, **columns}


def _read(document: dict[str, Any]) -> FoundStability:
    """The answer that :func:`_document` wrote; raises KeyError, TypeError or ValueError."""
    about = document["about"] | {"time": datetime.fromisoformat(document["about"]["time"])}
    answer = FoundStability(
        about,
        np.array(document["feature_id"], dtype=np.int64),
        np.array(document["kind"], dtype=np.int8),
        np.array(document["correlation"], dtype=np.float64),
        np.array(document["rank"], dtype=np.float64),
        np.array(document["persisted"], dtype=np.int64),
    )
    if any(column.shape != (about["features"],) for column in answer[1:]):
        raise ValueError(f"its columns are not all of {about['features']} features")
    return answer


def _be_nice(niceness: int) -> None:
    if niceness:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
