"""What the statistics of features cost beside the encoding of the same rows, and what memory they take.

    python benchmarks/features.py --only statistics

One stream at width 576, k = 32, in chunks of 512 rows, all settings the defaults; F = 4608 and 65536. Rows are Gaussian
and the dictionary has learned nothing, so that all features fire about equally often: the most work there can be for
what follows the features that fired. Half of a chunk are prompts, 4 new requests of 64 rows; the other half are 256
rows of 64 requests that go on side by side, each for 16 chunks. A window has 16 chunks, fewer than 10 seconds hold,
and there are 1,000 windows: 8 million rows.

In each window one chunk is encoded anew and timed, then the statistics of 16 chunks, the new one among them, and of the
window's closing: one ratio per window, the time per chunk of the one over that of the other.

``stats_vs_encode_F``           everything: sums, sketch, requests, phases, per-request features, top examples, the
                                sample of codes, and the window's closing, all tables made; median over the windows
``stats_vs_encode_all_F``       the same of the sums over all windows, the first ones, when examples are new, included
``..._PART_F``                  what a part has in it: sums (with the telling apart of requests), sketch, requests,
                                phases, request_features, examples, sample, closing; median over the windows
``stats_vs_encode_by_4_F``      the statistics without examples and sample, split by 4 attributes of 33 values too
``bytes_per_feature_F``         memory of the statistics after the last window, over F; ``_examples``, ``_sample``
                                of those, ``_by_4`` with the 4 attributes
``sketch_vs_loops_F``           one sketch per feature, updated in a loop in numpy, over ours, the same chunks;
                                ``sketch_vs_datasketches_F``: a ``kll_floats_sketch`` per feature of the package
                                datasketches where it is installed
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from dictionary_report import Report
from hydrophoned.attributes import RequestAttributes
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.placement import tensors
from hydrophoned.learn.sketch import QuantileSketch
from hydrophoned.learn.statistics import FeatureStatistics, WindowOf

WIDTH, CHUNK, CHUNKS = 576, 512, 16
SIZES = (4608, 65_536)
ATTRIBUTES = ("tenant", "route", "model", "region")
Chunk = tuple[Codes, RowMetadata]


def run(report: Report, *, quick: bool) -> None:
    """Print the figures of both sizes."""
    torch.set_grad_enabled(False)
    for features in SIZES:
        learner = StreamLearner(1, WIDTH, LearnerConfig(features=features))
        report.say(f"F = {features}: {torch.get_num_threads()} threads")
        chunks = _Chunks(learner)
        _against_encode(report, learner, chunks, windows=40 if quick else 1000)
        _by_attributes(report, learner, chunks, windows=10 if quick else 40)
        _sketches(report, chunks, rounds=4 if quick else 15)


class _Chunks:
    """Codes of chunks with metadata: in each window one encoded for it, and timed; the others made of former ones."""

    def __init__(self, learner: StreamLearner) -> None:
        self.learner = learner
        self._generator = torch.Generator().manual_seed(0)
        self._held = [self._encoded()[0] for _ in range(CHUNKS)]
        self._number = 0

    def window(self) -> tuple[list[Chunk], float]:
        """The chunks of a window, one of them encoded anew, and how long that took in seconds."""
        fresh, seconds = self._encoded()
        self._held[self._number // CHUNKS % len(self._held)] = fresh
        codes = [fresh, *(self._anew(one) for one in self._held[1:])]
        return [(one, self._metadata()) for one in codes], seconds

    def _anew(self, codes: Codes) -> Codes:
        """Codes as of other rows: other features, and the values dealt out anew and a little changed.

        The very same ones, with rows seen meanwhile, would all be new examples.
        """
        features, (n, k) = self.learner.features, codes.value.shape
        shift = int(torch.randint(features, (), generator=self._generator))
        change = torch.randn(n * k, generator=self._generator).mul_(0.05).exp_()
        value = codes.value.reshape(-1)[torch.randperm(n * k, generator=self._generator)].mul_(change)
        return Codes((codes.index + shift) % features, value.reshape(n, k))

    def _encoded(self) -> tuple[Codes, float]:
        y = torch.randn(CHUNK, WIDTH, generator=self._generator)
        began = time.perf_counter()
        codes = self.learner.dictionary.encode(y)
        return codes, time.perf_counter() - began

    def _metadata(self) -> RowMetadata:
        number, half = self._number, CHUNK // 2
        self._number += 1
        row = torch.arange(half)
        prompt = 4 * number + row // 64
        decode = 4 * number - 64 + row % 64  # 4 of the 64 end with each chunk, and the 4 of its prompts follow
        phase = torch.arange(CHUNK, dtype=torch.int32) // half
        empty = RowMetadata.empty(CHUNK, torch.device("cpu"))
        request = torch.cat([prompt, decode.clamp(min=0)])
        time_us = torch.full((CHUNK,), 1_700_000_000_000_000 + number * 1_000_000)
        return empty._replace(request=request, phase=phase, time=time_us, position=phase)


class _Timer:
    """Adds up the time that a method takes, call by call."""

    def __init__(self, holder: Any, name: str) -> None:
        self.seconds = 0.0
        self._method: Callable[..., Any] = getattr(holder, name)
        setattr(holder, name, self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = self._method(*arguments, **options)
        self.seconds += time.perf_counter() - began
        return result

    def taken(self) -> float:
        """Seconds since the last call of this."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def _against_encode(report: Report, learner: StreamLearner, chunks: _Chunks, *, windows: int) -> None:
    features, statistics = learner.features, learner.statistics
    inside = {
        "sketch": _Timer(statistics.sketch, "update"),
        "requests": _Timer(statistics.request_counts, "update"),
        "phases": _Timer(statistics.splits, "update"),
        "request_features": _Timer(statistics.request_features, "update"),
    }
    whole = {
        "sums": _Timer(statistics, "update"),
        "examples": _Timer(learner.examples, "update"),
        "sample": _Timer(learner.sample, "update"),
        "closing": _Timer(_Closing(learner), "close"),
    }
    shares: dict[str, list[float]] = {name: [] for name in (*inside, *whole)}
    ratios, encoding, spent, rows = [], 0.0, 0.0, 0
    for number in range(windows + 1):
        window, seconds = chunks.window()
        learner.window.open(int(window[0][1].time[0]))
        for codes, metadata in window:
            learner.window.add_rows(metadata, rows_sink=0, rows_quarantined=0, rows_late=0)
            learner.window.rows_scored += CHUNK
            whole["sums"](codes, metadata)
            whole["examples"](codes, metadata, rows)
            whole["sample"](codes, metadata)
            rows += CHUNK
        whole["closing"]()
        taken = {name: timer.taken() / CHUNKS for name, timer in (inside | whole).items()}
        taken["sums"] -= sum(taken[name] for name in inside)
        if not number:  # the first window, which allocates, is not counted
            continue
        ratios.append(sum(taken.values()) / seconds)
        encoding, spent = encoding + seconds, spent + sum(taken.values())
        for name, share in taken.items():
            shares[name].append(share / seconds)
        if windows >= 10 and number % (windows // 10) == 0:
            report.say(f"F = {features}, {number} windows: the last 10 at {median(ratios[-10:]):.4f} of encoding")
    report.add_median(f"stats_vs_encode_{features}", ratios)
    report.add(f"stats_vs_encode_all_{features}", spent / encoding)
    for name, share in shares.items():
        report.add(f"stats_vs_encode_{name}_{features}", median(share))
    report.add(f"encode_ms_{features}", 1000 * encoding / windows)
    report.add(f"bytes_per_feature_{features}", _nbytes(statistics) / features)
    report.add(f"bytes_per_feature_examples_{features}", _nbytes(learner.examples) / features)
    report.add(f"bytes_per_feature_sample_{features}", _nbytes(learner.sample) / features)


class _Closing:
    """The closing of a learner's window, and the beginning of the next."""

    def __init__(self, learner: StreamLearner) -> None:
        self._learner = learner

    def close(self) -> None:
        learner = self._learner
        learner.window.close(
            learner.statistics, learner.examples, dead_fraction=None, median_norm=None, dictionary_version=1
        )
        learner.statistics.reset_window()


def _by_attributes(report: Report, learner: StreamLearner, chunks: _Chunks, *, windows: int) -> None:
    features = learner.features
    known = RequestAttributes(ATTRIBUTES)
    for key in range(8 * CHUNKS * windows + 100_000):
        known.add(key, dict.fromkeys(ATTRIBUTES, f"value {key % 33}"))
    statistics = FeatureStatistics(features, torch.device("cpu"), split_by=ATTRIBUTES, attributes=known)
    ratios = []
    for number in range(windows + 1):
        window, seconds = chunks.window()
        began = time.perf_counter()
        for codes, metadata in window:
            statistics.update(codes, metadata)
        statistics.close(WindowOf(1, number, number + 1), 1)
        statistics.reset_window()
        if number:
            ratios.append((time.perf_counter() - began) / CHUNKS / seconds)
    report.add_median(f"stats_vs_encode_by_4_{features}", ratios)
    report.add(f"bytes_per_feature_by_4_{features}", _nbytes(statistics) / features)


def _sketches(report: Report, chunks: _Chunks, *, rounds: int) -> None:
    features = chunks.learner.features
    ours = QuantileSketch(features, torch.device("cpu"))
    rivals = {"loops": _Loops(features).update} | dict(_datasketches(features))
    times: dict[str, list[float]] = {name: [] for name in ("ours", *rivals)}
    for _ in range(rounds):
        (codes, _), *_ = chunks.window()[0]
        feature, value = codes.index.reshape(-1).long(), codes.value.reshape(-1)
        began = time.perf_counter()
        ours.update(feature, value)
        times["ours"].append(time.perf_counter() - began)
        for name, update in rivals.items():
            began = time.perf_counter()
            update(feature.numpy(), value.numpy())
            times[name].append(time.perf_counter() - began)
    for name in rivals:
        ratios = [other / own for other, own in zip(times[name], times["ours"], strict=True)]
        report.add_median(f"sketch_vs_{name}_{features}", ratios[1:])  # the first one allocates


def _by_feature(feature: Any, value: Any) -> Iterator[tuple[int, Any]]:
    order = np.argsort(feature, kind="stable")
    distinct, starts = np.unique(feature[order], return_index=True)
    yield from zip(distinct.tolist(), np.split(value[order], starts[1:]), strict=True)


class _Loops:
    """DDSketch's own buckets, the powers of one base, of every feature: one after the other in numpy."""

    def __init__(self, features: int) -> None:
        self.counts = np.zeros((features, 256), dtype=np.int64)

    def update(self, feature: Any, value: Any) -> None:
        for one, values in _by_feature(feature, value):
            bucket = np.clip(np.ceil(np.log(values) / np.log(9 / 8)) + 64, 0, 255).astype(np.int64)
            np.add.at(self.counts[one], bucket, 1)


def _datasketches(features: int) -> Iterator[tuple[str, Callable[[Any, Any], None]]]:
    try:
        from datasketches import kll_floats_sketch
    except ImportError:
        return
    sketches = [kll_floats_sketch(200) for _ in range(features)]

    def update(feature: Any, value: Any) -> None:
        for one, values in _by_feature(feature, value):
            sketches[one].update(values)

    yield "datasketches", update


def _nbytes(holder: object) -> int:
    return sum(tensor.nbytes for tensor in tensors(holder))
