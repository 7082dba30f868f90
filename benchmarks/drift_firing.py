"""How often features fire: whether the run length is kept, how soon a change is found, what it costs.

    python benchmarks/drift.py --only firing

4,608 features, rates log-uniform from 1e-4 to 0.1, drawn anew for each stream; a reference has 8,000 units, each stream
another one. Promised run length 2,000 and 20,000. In ``independent`` features fire independently of each other; in
``correlated`` each unit has one of 32 topics, in which each rate is multiplied by another factor (log-normal, sigma 1).

Changes of ``independent`` streams (drift_protocol.py: after 480 units, with an unshifted twin): one
feature of rate 0.08, or of 0.02, doubles its rate (``one_0.08``, ``one_0.02``); 1% of the features, at random, fire 1.5
times as often (``many``). 40 streams. The rival, ``windows``, looks at each feature in each window of 512 units (the
deviance of its binomial count, the highest over features), its threshold set to our measured run length afterwards.

``firing_delay_CHANGE``         median delay in units at a promise of 2,000, 4,000 where it does not count
``firing_earlier_CHANGE``       share of the alarms earlier than the twin's, which says whether it counts
``firing_delay_CHANGE_vs_windows``      over that of the windows, by chance where it does not count
``..._at_20000``                the three at a promise of 20,000: at 2,000 even a perfect detector that takes 1,300
                                units has a twin with an alarm before in every fifth stream
``arl_ratio_firing``            measured over promised run length by its lower 95% bound, the worst of four settings;
                                ``_least``, ``_most``, ``_STREAM_PROMISE`` as in drift_run_length.py
``firing_rows_per_second``      units per second of processor time, one thread, batches of 512
``firing_vs_encode_65536``      65,536 features: our time for a request, in 4 rows of which firings are told, over that
                                of encoding 16 rows of it; one thread. ``_of_4``: over that of encoding 4 rows
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import drift_firings
import torch
from dictionary_report import Report
from drift_firings import Firings
from drift_per_feature import ROWS
from drift_protocol import (
    AFTER,
    BEFORE,
    Alarms,
    Delays,
    RunLength,
    Trace,
    delays,
    each,
    level_for,
    ratio,
    scores,
)
from drift_run_length import add_run_length
from hydrophoned.detect.fired import Fired
from hydrophoned.detect.firing import FiringDetector
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from torch import Tensor

FEATURES, REFERENCE = 4608, 8000
CHANGES = ("one_0.08", "one_0.02", "many")
WINDOW, BATCH, CHUNK = 512, 512, 8192
FIRST_SEED = 6000


class Size(NamedTuple):
    """How much is watched: streams, units of their twins; of run lengths references and units at each promise."""

    streams: int
    twin: int
    watched: tuple[tuple[int, int, int], ...]


LONG = Size(40, 12_000, ((2000, 40, 10_000), (20_000, 20, 40_000)))
QUICK = Size(4, AFTER, ((2000, 4, 10_000),))


def run(report: Report, *, quick: bool, processes: int) -> None:
    """Print the figures."""
    size = QUICK if quick else LONG
    _run_lengths(report, size, processes)
    for promise in (2000,) if quick else (2000, 20_000):
        _delays(report, size, promise, processes)
    _costs(report, rounds=5 if quick else 15)


# -- run lengths -------------------------------------------------------------------------------------------------------


def _run_lengths(report: Report, size: Size, processes: int) -> None:
    wanted = [
        (stream, promise, units, number)
        for promise, references, units in reversed(size.watched)
        for stream in ("independent", "correlated")
        for number in range(references)
    ]
    counts: dict[tuple[str, int], RunLength] = {}
    for (stream, promise, *_), count in zip(wanted, each(_watched, wanted, processes), strict=True):
        counts[stream, promise] = counts.get((stream, promise), RunLength(0, 0)).plus(count)
    add_run_length(report, "firing", counts)


def _watched(wanted: tuple[str, int, int, int]) -> RunLength:
    stream, promise, units, number = wanted
    generator = torch.Generator().manual_seed(FIRST_SEED + 500 + number)
    rate, factor = drift_firings.rates(FEATURES, generator), drift_firings.topics(FEATURES, generator)

    def draw(n: int) -> Firings:
        if stream == "independent":
            return drift_firings.draw(rate, n, generator)
        topic = torch.randint(drift_firings.TOPICS, (n,), generator=generator)
        return drift_firings.draw_by_topic(rate, factor, topic, generator)

    detector = _detector(draw(REFERENCE).fired(), float(promise), number)
    alarms = 0
    for start in range(0, units, CHUNK):
        alarms += len(detector.update(draw(min(CHUNK, units - start)).fired()))
    return RunLength(units, alarms)


def _detector(reference: Fired, run_length: float, seed: int, features: int = FEATURES) -> FiringDetector:
    generator = torch.Generator().manual_seed(seed)
    return FiringDetector(reference, features=features, run_length=run_length, generator=generator)


# -- delays ------------------------------------------------------------------------------------------------------------


def _delays(report: Report, size: Size, promise: int, processes: int) -> None:
    of_stream = each(partial(_stream, twin=size.twin, promise=promise), range(size.streams), processes)
    units = size.streams * (BEFORE + size.twin)
    twins = [one["ours"]["none"] for one in of_stream]
    measured = RunLength(units, sum(len(trace.alarms(0)) for trace in twins))
    level = level_for([one["windows"]["none"] for one in of_stream], units, measured.point)
    found = {
        (name, change): delays(
            [one[name][change].alarms(at) for one in of_stream], [one[name]["none"].alarms(at) for one in of_stream]
        )
        for name, at in (("ours", 0.0), ("windows", level))
        for change in CHANGES
    }
    for (name, change), one in found.items():
        report.run(
            part="firing",
            promise=promise,
            detector=name,
            change=change,
            median=one.median if one.median < math.inf else None,
            earlier=one.earlier,
            streams=one.streams,
        )
    at = "" if promise == 2000 else f"_at_{promise}"
    for change in CHANGES:
        ours = found["ours", change]
        report.add(f"firing_earlier_{change}{at}", ours.earlier)
        ours = ours if ours.counts else Delays([float(AFTER)] * size.streams, 0.0)
        report.add(f"firing_delay_{change}{at}", ours.median)
        key = f"firing_delay_{change}_vs_windows{at}"
        value, *bounds = ratio(ours, found["windows", change])
        report.add(key, value)
        report.intervals[key] = bounds


def _stream(number: int, *, twin: int, promise: int) -> dict[str, dict[str, Trace]]:
    """One reference, one stream, all changes of it, both detectors."""
    generator = torch.Generator().manual_seed(FIRST_SEED + number)
    rate = drift_firings.rates(FEATURES, generator)
    rate[:2] = torch.tensor([0.08, 0.02])
    reference = drift_firings.draw(rate, REFERENCE, generator)
    unchanged = drift_firings.draw(rate, BEFORE + twin, generator)
    many = torch.randperm(FEATURES, generator=generator)[: FEATURES // 100]
    more = {"one_0.08": ([0], 2.0), "one_0.02": ([1], 2.0), "many": (many.tolist(), 1.5)}
    shorter = unchanged._replace(key=unchanged.key[unchanged.key < (BEFORE + AFTER) * FEATURES], units=BEFORE + AFTER)
    streams = {"none": unchanged}
    for change, (features, factor) in more.items():
        extra = torch.zeros(FEATURES)
        extra[features] = (factor - 1) * rate[features] / (1 - rate[features])  # so that both together have the rate
        streams[change] = shorter.plus(drift_firings.draw(extra, AFTER, generator).after(BEFORE))
    expected = reference.counts(REFERENCE)[0]
    traces: dict[str, dict[str, Trace]] = {"ours": {}, "windows": {}}
    for change, x in streams.items():
        detector = _detector(reference.fired(), float(promise), number)
        traces["ours"][change] = Alarms([[one.unit for one in detector.update(x.fired())]])
        traces["windows"][change] = scores(_deviance(x, expected), 0)
    return traces


def _deviance(x: Firings, of_reference: Tensor) -> Tensor:
    """At the end of each window the highest deviance of a feature's count, [n]; else minus infinity."""
    expected = (of_reference + 0.5) / (REFERENCE + 1)
    share = x.counts(WINDOW) / WINDOW
    deviance = torch.special.xlogy(share, share / expected) + torch.special.xlogy(
        1 - share, (1 - share) / (1 - expected)
    )
    found = torch.full((x.units,), -math.inf)
    found[WINDOW - 1 :: WINDOW] = deviance.amax(1)[: x.units // WINDOW]
    return found


# -- cost --------------------------------------------------------------------------------------------------------------


def _costs(report: Report, *, rounds: int) -> None:
    generator = torch.Generator().manual_seed(FIRST_SEED)
    rate = drift_firings.rates(FEATURES, generator)
    detector = _detector(drift_firings.draw(rate, REFERENCE, generator).fired(), 1e12, 0)
    x = drift_firings.draw(rate, 16 * BATCH, generator)
    batches = [x.fired(start, start + BATCH) for start in range(0, x.units, BATCH)]
    spent = [_seconds(lambda: [detector.update(batch) for batch in batches]) for _ in range(rounds + 1)][1:]
    report.add_median("firing_rows_per_second", [x.units / seconds for seconds in spent])
    _beside_encode(report, 65_536, rounds)


def _beside_encode(report: Report, features: int, rounds: int) -> None:
    """Rows are Gaussian, and the dictionary has learned nothing: all features fire about equally often."""
    config = DictionaryConfig(width=576, features=features, k=32)
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    rows, units, per_unit = torch.randn(8 * BATCH, 576, generator=generator), 2 * BATCH, 4
    codes = torch.cat([dictionary.encode(part).index for part in rows.split(BATCH)]).long()
    unit = (torch.arange(len(rows)) // per_unit)[:, None]
    key = (unit * features + codes).unique()
    told = Firings(key, features, units).fired()
    detector = _detector(told, 1e12, 0, features)
    ratios = []
    for number in range(rounds + 1):
        seconds = _seconds(lambda: detector.update(told)) / units
        encode = _seconds(lambda: dictionary.encode(rows[:BATCH])) / BATCH
        if number:
            ratios.append(seconds / encode)
    report.add_median(f"firing_vs_encode_{features}", [ratio / ROWS for ratio in ratios])
    report.add_median(f"firing_vs_encode_{features}_of_4", [ratio / per_unit for ratio in ratios])


def _seconds(what: Callable[[], object]) -> float:
    began = time.process_time()
    what()
    return time.process_time() - began
