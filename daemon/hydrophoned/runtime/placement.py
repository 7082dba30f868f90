"""On which device a stream's learner works, and when it leaves it: used by the learner's own thread."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.placement import MAIN_MEMORY

_log = logging.getLogger(__name__)
T = TypeVar("T")


def own_queue(device: torch.device) -> AbstractContextManager[object]:
    """Inside, this thread's work for a GPU has a queue (CUDA stream) of its own: it waits for no other thread's."""
    if device.type != "cuda":
        return nullcontext()
    queue = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types for it
    return torch.cuda.stream(queue)


def step_clock(device: torch.device) -> Callable[[], float]:
    """Seconds that only rise, for :class:`~hydrophoned.learn.budget.Budget`.

    On a GPU a reading waits until all that this thread gave it is done, since that is where steps take their time. A
    learner reads it only where its share of time is limited.
    """
    if device.type != "cuda":
        return time.monotonic

    def done() -> float:
        torch.cuda.current_stream(device).synchronize()
        return time.monotonic()

    return done


def settle(name: str, device: torch.device, need: int, make: Callable[[torch.device], T]) -> T:
    """What ``make`` makes on ``device``; in main memory, with an error in the log, where there is no room.

    ``need`` is how many bytes it holds once it is made.
    """
    try:
        return make(device)
    except torch.OutOfMemoryError as error:
        _report_no_room(name, device, error, f" for {need / 1e6:,.0f} MB and what a step takes besides")
    _give_back(device)  # the error, which holds on to what was made, is gone by now
    return make(MAIN_MEMORY)


class Rest:
    """Sends an idle learner from its device to main memory, and back when the device is needed.

    ``now`` is in seconds that only rise. It rests once nothing has needed the device for ``idle_seconds``; 0: never.
    """

    def __init__(self, name: str, idle_seconds: float, now: float) -> None:
        self.name, self.idle_seconds = name, idle_seconds
        self._needed = now

    def needed(self, learner: StreamLearner, now: float) -> None:
        """The device is needed now. Where it has no room any more, the learner stays in main memory for good."""
        self._needed = now
        if not learner.parked:
            return
        device = learner.home
        try:
            learner.wake()
        except torch.OutOfMemoryError as error:
            _report_no_room(self.name, device, error)
            self.leave(learner)
        else:
            _log.info("the learner of %s is back on %s", self.name, device)

    def tick(self, learner: StreamLearner, now: float) -> None:
        """Let time pass: it rests when it is due."""
        due = self.idle_seconds and now - self._needed >= self.idle_seconds
        if due and learner.device != MAIN_MEMORY:
            device = learner.device
            learner.park()
            _give_back(device)
            _log.info("the learner of %s has left %s: idle for %.0f s", self.name, device, now - self._needed)

    def leave(self, learner: StreamLearner) -> None:
        """Go on in main memory for good."""
        device = learner.home
        learner.to(MAIN_MEMORY)
        _give_back(device)

    def observing(self, learner: StreamLearner, action: Callable[[], None], now: float) -> None:
        """Do ``action`` on the device; where that runs out of memory, the error is raised and the learner leaves it."""
        self.needed(learner, now)
        try:
            action()
        except torch.OutOfMemoryError as error:
            if learner.device != MAIN_MEMORY:
                _report_no_room(self.name, learner.device, error)
                self.leave(learner)
            raise


def _report_no_room(name: str, device: torch.device, error: Exception, what: str = "") -> None:
    _log.error(
        "%s has no room%s: the learner of %s works on the processor, more slowly, until the daemon is restarted. Give "
        "it fewer features (learn.features), or other streams another device. %s",
        *(device, what, name, str(error).partition("\n")[0]),
    )


def _give_back(device: torch.device) -> None:
    """Give memory that torch holds back for this thread's queue to the other ones."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
