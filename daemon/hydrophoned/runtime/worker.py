"""The thread of one stream's learner: takes rows from its queue, learns, and hands on closed windows."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, TypeVar

import pyarrow as pa
import torch

from hydrophoned.ingest.queue import RowQueue
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.placement import MAIN_MEMORY
from hydrophoned.rows import Rows
from hydrophoned.runtime.checkpoint import State
from hydrophoned.runtime.placement import Rest, own_queue
from hydrophoned.runtime.watching import Watching

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.25
T = TypeVar("T")


class LearnerWorker:
    """Owns a learner and the only thread that touches it; ingestion never waits for it.

    ``make_learner`` runs in the thread (making a dictionary takes tens of milliseconds); ``publish`` is called there
    with the record batches, by table name, of each closed window and each published version; ``now`` gives UTC
    microseconds. A learner on a GPU leaves it when nothing has needed it for ``idle_seconds`` (0: never).
    ``make_watching`` makes the stream's watch, which only the thread touches too; without it there is none.
    """

    def __init__(
        self,
        name: str,
        queue: RowQueue,
        make_learner: Callable[[], StreamLearner],
        publish: Callable[[dict[str, pa.RecordBatch]], None],
        now: Callable[[], int],
        *,
        niceness: int = 0,
        device: torch.device = MAIN_MEMORY,
        idle_seconds: float = 0.0,
        make_watching: Callable[[StreamLearner], Watching | None] | None = None,
    ) -> None:
        self.name = name
        self.queue = queue
        self.watching: Watching | None = None
        self.rows_in = 0
        self.rows_failed = 0
        self.rows_per_second = 0.0
        self.lag_seconds: float | None = None
        self.cpu_seconds = 0.0
        self.status: dict[str, Any] = {}
        self._rows_out = 0
        self._last_error = 0.0
        self._make_learner, self._publish, self._now, self._niceness = make_learner, publish, now, niceness
        self._device, self._make_watching = device, make_watching
        self._rest = Rest(name, idle_seconds, time.monotonic())
        self._tasks: deque[tuple[int, Callable[[StreamLearner], Any], Future[Any], bool]] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"learn {name}"[:60], daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, rows: Rows) -> None:
        """Queue rows; never blocks. What the queue has to drop it counts."""
        self.rows_in += rows.count
        self.queue.put(rows)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def dropped(self) -> dict[str, int]:
        """Rows received and not learned from, by reason."""
        reasons = {"queue_full": self.queue.dropped_rows, "learner_error": self.rows_failed}
        return {reason: rows for reason, rows in reasons.items() if rows}

    def call(
        self, function: Callable[[StreamLearner], T], *, after_queued: bool = True, on_device: bool = True
    ) -> Future[T]:
        """Run ``function(learner)`` in the thread, after the rows queued so far; its result comes as a future.

        Without ``on_device`` a learner that has left its device stays where it is: it works there too, more slowly.
        """
        future: Future[T] = Future()
        if not self._thread.is_alive():
            future.set_exception(RuntimeError(f"the learner of {self.name} has ended"))
            return future
        self._tasks.append((self.rows_in if after_queued else 0, function, future, on_device))
        return future

    def stop(self) -> None:
        """Ask the thread to end after the tasks it was given; rows still queued are left."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread; True when it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._niceness:
            # per thread on Linux: the model's process and our own ingestion go before learning
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        torch.set_grad_enabled(False)
        with ExitStack() as stack:
            try:
                stack.enter_context(own_queue(self._device))
                learner = self._make_learner()
                if self._make_watching is not None:
                    self.watching = self._make_watching(learner)
            except Exception:  # noqa: BLE001  logged; the other streams go on
                _log.exception(
                    "the learner of %s cannot start; its rows are dropped until the daemon is restarted", self.name
                )
                self.queue.close()
            else:
                self._live(learner)
        self._fail_remaining()

    def _live(self, learner: StreamLearner) -> None:
        self.status = self._status(learner)
        next_tick = time.monotonic() + _TICK_SECONDS
        seen, since = learner.rows_seen, time.monotonic()
        while not (self._stopping.is_set() and not self._tasks):
            rows = self.queue.get(timeout=max(0.0, min(_TICK_SECONDS, next_tick - time.monotonic())))
            if rows is not None:
                self._observe(learner, rows)
            self._run_tasks(learner)
            now = time.monotonic()
            if now >= next_tick:
                self._guard(lambda: learner.advance(self._now()), 0)
                if self.watching is not None:
                    self.watching.advance(self._now())
                self._guard(lambda: self._rest.tick(learner, time.monotonic()), 0)
                rate = (learner.rows_seen - seen) / (now - since)
                self.rows_per_second += (rate - self.rows_per_second) * 0.25
                seen, since, next_tick = learner.rows_seen, now, now + _TICK_SECONDS
                self.status = self._status(learner)
                self.cpu_seconds = time.thread_time()
                if rows is None:
                    self.lag_seconds = 0.0 if self.lag_seconds is not None else None
            self._hand_on(learner)

    def state_dict(self, learner: StreamLearner) -> State:
        """State of the learner and of the watch, to go on exactly; in the thread."""
        state = learner.state_dict()
        return state if self.watching is None else state | self.watching.state_dict()

    def _status(self, learner: StreamLearner) -> dict[str, Any]:
        return learner.status() | {"drift": None if self.watching is None else self.watching.status()}

    def _observe(self, learner: StreamLearner, rows: Rows) -> None:
        self._guard(lambda: self._rest.observing(learner, lambda: learner.observe(rows), time.monotonic()), rows.count)
        self._rows_out += rows.count
        self.lag_seconds = max(0.0, (self._now() - int(rows.time[-1])) / 1e6)

    def _run_tasks(self, learner: StreamLearner) -> None:
        while self._tasks:
            target, function, future, on_device = self._tasks[0]
            if self._rows_out + self.queue.dropped_rows < target and not self._stopping.is_set():
                return
            self._tasks.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if on_device:
                    self._rest.needed(learner, time.monotonic())
                result = function(learner)
            except Exception as error:  # noqa: BLE001  the caller gets it, whatever it is
                future.set_exception(error)
            else:
                self.status = self._status(learner)
                self._hand_on(learner)
                future.set_result(result)

    def _hand_on(self, learner: StreamLearner) -> None:
        for tables in (*learner.take_closed(), *learner.take_published()):
            self._publish(tables)

    def _guard(self, action: Callable[[], None], count: int) -> None:
        """Run ``action``; an error costs its rows, is counted and logged (at most once a second), never the thread."""
        try:
            action()
        except Exception:  # noqa: BLE001  counted and logged; the thread must live
            self.rows_failed += count
            if time.monotonic() - self._last_error > 1:
                self._last_error = time.monotonic()
                _log.exception("learner of %s failed on %d rows; it goes on with the next", self.name, count)

    def _fail_remaining(self) -> None:
        while self._tasks:
            _, _, future, _ = self._tasks.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(RuntimeError(f"the learner of {self.name} has ended"))
