"""Hydrophone's detectors of dense units, behind the interface that the peers have."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from drift_protocol import BEFORE, Alarms, Trace
from hydrophoned.detect.classifier import ClassifierDetector
from hydrophoned.detect.detector import Detector
from hydrophoned.detect.e_detector import EDetector
from hydrophoned.detect.scan import ScanDetector
from torch import Tensor

BATCH = 512
DETECTORS: dict[str, Callable[..., Detector]] = {
    "e_detector": EDetector,
    "scan": ScanDetector,
    "classifier": ClassifierDetector,
}
OURS = "e_detector"
"""The one whose figures stand for ours: it has the guarantee."""


def make(name: str, reference: Tensor, seed: int, run_length: float) -> Detector:
    """A detector with its defaults."""
    return DETECTORS[name](reference, run_length=run_length, generator=torch.Generator().manual_seed(seed))


class Own:
    """One of our detectors with its reference, at the run length that it promises."""

    def __init__(self, name: str, reference: Tensor, seed: int, run_length: float) -> None:
        self.detector = make(name, reference, seed, run_length)
        self._new = copy.deepcopy(self.detector.state_dict())
        self._before: tuple[dict[str, Any], list[int]] | None = None

    def trace(self, x: Tensor) -> Trace:
        """Alarms over a stream that does not change."""
        self.detector.load_state(copy.deepcopy(self._new))
        return Alarms([self.feed(x)])

    def changed(self, x: Tensor) -> Trace:
        """Alarms over a stream up to the first after the change; before that, all streams must be the same."""
        if self._before is None:
            self.detector.load_state(copy.deepcopy(self._new))
            found = self.feed(x[:BEFORE])
            self._before = copy.deepcopy(self.detector.state_dict()), found
        state, found = self._before
        self.detector.load_state(copy.deepcopy(state))
        for batch in x[BEFORE:].split(BATCH):
            after = [one.unit for one in self.detector.update(batch)]
            if after:
                return Alarms([found + after[:1]])
        return Alarms([found])

    def feed(self, x: Tensor) -> list[int]:
        """Alarms over more units."""
        return [one.unit for batch in x.split(BATCH) for one in self.detector.update(batch)]
