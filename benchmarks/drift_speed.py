"""Rows per second of processor time, one process, one thread.

    python benchmarks/drift.py --only speed

Units are rows of code (d = 576), a reference has 2,000; ours promise so long a run that no alarm is raised, and are fed
512 rows at a time. Peers are given their own calls, one row after the other (evidently: a window of 256), whitening
included where they get whitened rows, and alibi-detect's on raw rows 1,000 rows of reference, as on whitened ones. Each
round gives each a turn; ratios are taken within a round, and the median over rounds is reported.

``speed_NAME``                  rows per second of processor time of each of our detectors
``speed_vs_alibi``              our betting detector over MMDDriftOnline on raw rows; ``_whitened``: on whitened ones
``speed_vs_PEER``               over each other one, by its name in drift_peers.py
``speed_NAME_vs_alibi``         our other detectors over MMDDriftOnline on raw rows
``speed_fit_NAME``, ``speed_fit_alibi``      seconds of processor time to take in a reference; that of alibi-detect with
                                the bootstrap for its thresholds (5,000)
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drift_peers
import drift_streams
import torch
from dictionary_report import Report
from drift_own import BATCH, DETECTORS, OURS, make
from torch import Tensor

REFERENCE = 2000
NEVER = 1e12
OWN_ROWS = 8192
PEER_ROWS = {
    "alibi_mmd": 512,
    "alibi_mmd_whitened": 512,
    "alibi_lsdd": 2048,
    "alibi_lsdd_whitened": 2048,
    "frouros_mmd_whitened": 64,
    "frouros_ks_norm": 2048,
    "river_adwin_norm": 8192,
    "river_page_hinkley_norm": 8192,
    "river_kswin_norm": 1024,
    "evidently_classifier_whitened": 512,
}
QUICK = ("alibi_mmd", "river_adwin_norm")
ALIBI = "alibi_mmd"


def run(report: Report, *, quick: bool, folder: Path, rows: int, processes: int) -> None:  # noqa: ARG001  only one
    """Print the figures."""
    torch.set_num_threads(1)
    model = drift_streams.language_model(folder, rows)
    generator = torch.Generator().manual_seed(0)
    reference, x = model.drawn_rows(REFERENCE, generator), model.drawn_rows(OWN_ROWS, generator)
    turns: dict[str, tuple[int, Callable[[Tensor], object]]] = {}
    for name in DETECTORS:
        seconds, detector = _seconds(lambda name=name: make(name, reference, 0, NEVER))
        report.add(f"speed_fit_{name}", seconds)
        turns[name] = OWN_ROWS, lambda x, detector=detector: [detector.update(part) for part in x.split(BATCH)]
    for name, make_peer in drift_peers.peers().items():
        if not quick or name in QUICK:
            given = reference[: REFERENCE // 2] if name in ("alibi_mmd", "alibi_lsdd") else reference
            turns[name] = PEER_ROWS[name], make_peer(given, 0).feed
    rates: dict[str, list[float]] = {name: [] for name in turns}
    rounds = 3 if quick else 15
    for number in range(-1, rounds):  # the first one, which allocates, is not counted
        names = list(turns)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            count, turn = turns[name]
            seconds, _ = _seconds(lambda turn=turn, count=count: turn(x[:count]))
            if number >= 0:
                rates[name].append(count / seconds)
    _tell(report, rates)
    if not quick and ALIBI in turns:
        seconds, _ = _seconds(lambda: drift_peers.AlibiMmd(reference[:1000], 0, whiten=False, run_length=2000.0))
        report.add("speed_fit_alibi", seconds)


def _tell(report: Report, rates: dict[str, list[float]]) -> None:
    report.run(part="speed", unit="rows/cpu-s", **{name: statistics.median(found) for name, found in rates.items()})

    def ratios(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(rates[one], rates[other], strict=True)]

    for name in DETECTORS:
        report.add(f"speed_{name}", statistics.median(rates[name]))
    for name in rates:
        if name not in DETECTORS:
            key = name.replace("alibi_mmd", "alibi")
            report.add_median(f"speed_vs_{key}", ratios(OURS, name))
    if ALIBI in rates:
        for name in DETECTORS:
            if name != OURS:
                report.add_median(f"speed_{name}_vs_alibi", ratios(name, ALIBI))


def _seconds(what: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = what()
    return time.process_time() - began, result
