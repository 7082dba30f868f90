"""Speed of a training step: every contender in turn, both threads, in one process.

In each round each contender has one turn, in an order that rotates: one call untimed, so that its own memory is warm,
then one timed. Ratios are taken within a round; the median over the rounds is reported.
"""

import statistics
import time
from collections.abc import Callable

import dictionary_peers as peers
import torch
from dictionary_data import Rows
from dictionary_report import Report
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.statistics import FeatureStatistics
from hydrophoned.learn.window import Scores
from torch import Tensor

K = 32
BATCH = 2048
QUALITY_BATCH = 512
Turn = Callable[[Tensor], object]


def run(report: Report, data: Rows, *, quick: bool) -> None:
    for features in (4608, 16384):
        rounds = (4 if quick else 15) if features < 10_000 else (2 if quick else 9)
        _one_size(report, data, features, rounds)


def _one_size(report: Report, data: Rows, features: int, rounds: int) -> None:
    width = data.train.shape[1]
    setting = peers.Setting(width, features, K, 0, 10_000, BATCH, 0)
    start = data.train[:BATCH]
    ours, ours_fp32 = peers.Ours(setting, start), peers.Ours(setting, start, low_precision=False)
    small = peers.Ours(setting, start)
    others = {name: peers.make(name, setting, start) for name in peers.installed()}
    turns: dict[str, Turn] = {
        "gemm_fp32": _product(ours.dictionary.W_enc.clone()),
        "gemm_bf16": _product(ours.dictionary.W_enc.bfloat16()),
        "ours": ours.step,
        "ours_fp32": ours_fp32.step,
        "ours_512": lambda x: [small.step(part) for part in x.split(QUALITY_BATCH)],
        "stream_512": _stream(small),
        **{name: other.step for name, other in others.items()},
    }
    report.say(f"speed, F = {features}: {rounds} rounds of {', '.join(turns)}")
    times = _rounds(turns, data.train, rounds)
    rates = {name: BATCH / statistics.median(seconds) for name, seconds in times.items()}
    report.run(part="speed", unit="rows/s", features=features, **rates)

    def ratios(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(times[one], times[other], strict=True)]

    report.add_median(f"step_vs_gemm_{features}", ratios("ours", "gemm_fp32"))
    report.add_median(f"step_vs_gemm_bf16_{features}", ratios("ours", "gemm_bf16"))
    report.add_median(f"step_vs_gemm_fp32_{features}", ratios("ours_fp32", "gemm_fp32"))
    report.add_median(f"step_512_vs_gemm_{features}", ratios("ours_512", "gemm_fp32"))
    report.add_median(f"whole_stream_vs_step_{features}", ratios("stream_512", "ours_512"))
    for name in others:
        report.add_median(f"vs_{name}_{features}", ratios(name, "ours"))
        report.add_median(f"vs_{name}_fp32_{features}", ratios(name, "ours_fp32"))
    if others:
        fastest = max(others, key=rates.__getitem__)
        report.say(f"fastest peer at F = {features}: {fastest}")
        report.add_median(f"vs_fastest_peer_{features}", ratios(fastest, "ours"))
        report.add_median(f"vs_fastest_peer_fp32_{features}", ratios(fastest, "ours_fp32"))
        report.add_median(f"vs_fastest_peer_512_{features}", ratios(fastest, "ours_512"))


def _rounds(turns: dict[str, Turn], rows: Tensor, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    batches = rows.split(BATCH)[: len(rows) // BATCH]
    for number in range(-1, rounds):  # the first one, which allocates and compiles, is not counted
        order = names[number % len(names) :] + names[: number % len(names)]
        warm, timed = batches[(2 * number + 3) % len(batches)], batches[(2 * number + 4) % len(batches)]
        for name in order:
            turns[name](warm)
            began = time.perf_counter()
            turns[name](timed)
            if number >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def _product(weights: Tensor) -> Turn:
    """The encoder's product alone: [n, d] x [d, F] into memory that is already there."""
    out = torch.empty(BATCH, len(weights), dtype=weights.dtype)
    cast: dict[int, Tensor] = {}

    def product(x: Tensor) -> None:
        rows = x
        if x.dtype is not weights.dtype:  # cast in the untimed call, kept for the timed one
            rows = cast.get(x.data_ptr(), x)
            if rows is x:
                rows = x.to(weights.dtype)
                cast[x.data_ptr()] = rows
        torch.mm(rows, weights.T, out=out)

    return product


def _stream(trainer: peers.Ours) -> Turn:
    """What is done for every row of a stream besides training: encode, decode, fvu, statistics of the features."""
    dictionary = trainer.dictionary
    device = torch.device("cpu")
    statistics = FeatureStatistics(dictionary.features, device)
    metadata = RowMetadata.empty(QUALITY_BATCH, device)
    norms = torch.ones(QUALITY_BATCH)

    def stream(x: Tensor) -> None:
        for part in x.split(QUALITY_BATCH):
            codes = dictionary.encode(part)
            Scores.of(dictionary.misfit(codes, part), norms, codes.value)
            statistics.update(codes, metadata)

    return stream
