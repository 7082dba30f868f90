"""Automatic labels: one run at a time, in a thread outside the learners, within a bounded time."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from hydrophone_schemas.rest import LabelMethod, LabelRun, LabelRunBody, LabelRunState

from hydrophoned.analyse.errors import AnalysisError
from hydrophoned.analyse.firing import Firing
from hydrophoned.analyse.labels import Labeller, Score
from hydrophoned.analyse.rules import Rule
from hydrophoned.api.errors import EndpointFailed, Refused
from hydrophoned.api.times import to_datetime
from hydrophoned.runtime.label_evidence import Evidence, Sampled, gather, sampled
from hydrophoned.runtime.label_model import ModelLabels
from hydrophoned.runtime.label_prompts import Answer
from hydrophoned.runtime.settings import LabelsConfig
from hydrophoned.runtime.streams import Stream
from hydrophoned.store import Label, LabelQuery, StoreError, StoreReader, StoreWriter, label_table
from hydrophoned.store.labels import RULE

_log = logging.getLogger(__name__)
_ASK_SECONDS: Final = 20.0
_FLUSH_SECONDS: Final = 20.0
_AT_ONCE: Final = 64  # labels that are stored together
T = TypeVar("T")


class LabelsLost(StoreError):  # noqa: N818  named after its cause
    """Labels were found and could not be stored."""


class _Work(NamedTuple):
    """One run: of which stream, what of it, until when (monotonic seconds)."""

    stream: Stream
    sample: Sampled
    evidence: Evidence
    firing: Firing
    labeller: Labeller
    features: list[int]
    deadline: float


class Labelling:
    """Runs automatic labelling of a stream's features and stores what it finds.

    ``start`` and ``run`` are called on the event loop's thread. The numerics run in a thread of their own, at
    ``niceness``.
    """

    def __init__(
        self,
        reader: StoreReader,
        writer: StoreWriter,
        config: LabelsConfig,
        now: Callable[[], int],
        *,
        niceness: int = 0,
    ) -> None:
        self._reader, self._writer, self._config, self._now = reader, writer, config, now
        self._pool = ThreadPoolExecutor(1, "labels", initializer=_be_nice, initargs=(niceness,))
        self._stopping = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._found: list[Label] = []
        self.run = LabelRun(state=LabelRunState.IDLE)

    def start(self, stream: Stream, body: LabelRunBody) -> LabelRun:
        """Begin a run; raises Refused where one is in progress, or the endpoint may not be asked."""
        if self._task is not None and not self._task.done():
            raise Refused(
                HTTPStatus.CONFLICT,
                "labelling-in-progress",
                f"features of {self.run.stream} are being labelled: {self.run.done} of {self.run.features} are done",
            )
        if body.method is LabelMethod.MODEL:
            self._check_endpoint()
        self.run = LabelRun(
            state=LabelRunState.RUNNING, stream=stream.id, method=body.method, started=to_datetime(self._now())
        )
        self._task = asyncio.create_task(self._label(stream, body, time.monotonic() + body.seconds))
        return self.run

    async def close(self) -> None:
        """End a run in progress and the thread."""
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)

    # -- one run ------------------------------------------------------------------------------------------------

    async def _label(self, stream: Stream, body: LabelRunBody, deadline: float) -> None:
        state, problem = LabelRunState.FAILED, "the daemon is shutting down"
        self._found = []
        try:
            asked = asyncio.wrap_future(stream.worker.call(sampled, after_queued=False))
            sample = await asyncio.wait_for(asked, _ASK_SECONDS)
            work = await self._in_thread(partial(self._prepare, stream, sample, body, deadline))
            if body.method is LabelMethod.MODEL:
                complete = await self._by_model(work)
            else:
                complete = await self._in_thread(partial(self._by_rule, work))
            await self._in_thread(partial(self._store, stream.key, all_of_them=True))
            state, problem = LabelRunState.DONE, ""
            if not complete:
                state, problem = LabelRunState.STOPPED, f"the {body.seconds:g} s it was given are over"
        except (AnalysisError, StoreError, EndpointFailed) as error:
            problem = str(error)
        except (TimeoutError, RuntimeError) as error:
            problem = f"the learner of {stream.id} did not answer: {error or 'it is busy'}"
        except Exception as error:  # noqa: BLE001  nobody waits for this task: what went wrong is logged and shown
            _log.exception("labelling of %s failed", stream.id)
            problem = f"{type(error).__name__}: {error}; the daemon's log has the cause"
        finally:
            self._tell(state=state, problem=problem or None, ended=to_datetime(self._now()))

    def _prepare(self, stream: Stream, sample: Sampled, body: LabelRunBody, deadline: float) -> _Work:
        """Read and count; raises AnalysisError where there is too little to learn from."""
        evidence = gather(self._reader, sample.rows)
        firing = Firing.of(evidence.rows, sample.features)
        labeller = Labeller(evidence.facts, firing)
        if body.features is None:
            fired = firing.fired()
            features = np.argsort(-fired, kind="stable")[: body.count]
            chosen = features[fired[features] > 0].tolist()
        else:
            chosen = [feature for feature in dict.fromkeys(body.features) if feature < sample.features]
        self._tell(features=len(chosen), rows=evidence.rows.rows, requests=evidence.facts.requests)
        return _Work(stream, sample, evidence, firing, labeller, chosen, deadline)

    def _by_rule(self, work: _Work) -> bool:
        """Label feature by feature with the built-in labeller; False when it ended before the last."""
        former = self._reader.labels(work.stream.key, LabelQuery(limit=1 << 20, source=RULE))
        had = set(former["feature_id"].to_pylist())
        for feature in work.features:
            if self._stopping.is_set() or time.monotonic() > work.deadline:
                return False
            label = work.labeller.label(feature)
            if label is not None:
                self._add(work, feature, RULE, label.rule.text(work.evidence.strings), label.rule, label.score)
            elif int(work.sample.ids[feature]) in had:
                self._add(work, feature, RULE, "", None, None)  # what was once found no longer holds
            self._tell(done=self.run.done + 1)
            self._store(work.stream.key)
        return True

    async def _by_model(self, work: _Work) -> bool:
        """Label features by asking the endpoint; False when time ran out before the last."""
        config = self._config
        asking = ModelLabels(config, self._reader, work.evidence, work.firing, work.labeller, self._in_thread)

        async def keep(feature: int, answer: Answer | None, score: Score | None) -> None:
            if answer is not None:
                self._add(work, feature, config.model or "", answer.text, answer.rule, score)
            self._tell(done=self.run.done + 1)
            await self._in_thread(partial(self._store, work.stream.key))

        try:
            async with asyncio.timeout(work.deadline - time.monotonic()):
                await asking.run(work.features, keep)
        except TimeoutError:
            return False
        return True

    def _check_endpoint(self) -> None:
        config = self._config
        if config.url is None:
            missing = "no endpoint is set: give labels.url and labels.model"
        elif not config.text_egress:
            missing = "labels.text_egress is false: no text may be sent to an endpoint"
        elif config.api_key_env is not None and config.api_key_env not in os.environ:
            missing = f"the environment has no variable {config.api_key_env}, which labels.api_key_env names"
        else:
            return
        raise Refused(HTTPStatus.CONFLICT, "label-endpoint-off", f"{missing}. The method 'rule' needs none of this.")

    # -- what is found ------------------------------------------------------------------------------------------

    def _add(self, work: _Work, feature: int, source: str, text: str, rule: Rule | None, score: Score | None) -> None:
        self._found.append(
            Label(
                feature_id=int(work.sample.ids[feature]),
                feature=feature,
                dictionary_version=work.sample.dictionary_version,
                created=self._now(),
                source=source,
                text=text,
                rule=None if rule is None else rule.to_json(),
                score=score and score.f1,
                precision=score and score.precision,
                recall=score and score.recall,
                rows=score and score.rows,
                fired=score and score.fired,
            )
        )
        self._tell(labelled=self.run.labelled + bool(text))

    def _store(self, stream_key: int, *, all_of_them: bool = False) -> None:
        """Hand labels to the writer, some at a time, and wait at the end until they are stored; raises LabelsLost."""
        if len(self._found) < (1 if all_of_them else _AT_ONCE):
            return
        taken, self._found = self._found, []
        stored = self._writer.put({"label": label_table(stream_key, taken)})
        if not stored or (all_of_them and not self._writer.flush(_FLUSH_SECONDS)):
            raise LabelsLost(f"the store did not take {len(taken)} labels: {self._writer.problem or 'it is behind'}")

    def _tell(self, **figures: Any) -> None:
        self.run = self.run.model_copy(update=figures)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)


def _be_nice(niceness: int) -> None:
    if niceness:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
