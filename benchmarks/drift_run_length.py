"""Whether the promised run length is kept while nothing changes.

    python benchmarks/drift.py --only run_length

Five streams on which nothing changes (drift_streams.py), promises of 2,000 and 20,000 units, references of 2,000 and
4,000. For each stream 40 references at the promise of 2,000, with each of which 10,000 units are watched (200 times the
promise in all), and 20 at that of 20,000, 40,000 units with each (40 times). Run length is units watched over alarms;
bounds are those of drift_protocol.py.

``arl_ratio``                   measured over promised run length of our betting detector by its lower 95% bound, the
                                worst of five streams and two promises
``arl_ratio_least``, ``arl_ratio_most``      the least and the greatest of the ten measured ones, without bounds; units
                                over one where there was no alarm
``arl_ratio_STREAM_PROMISE``    measured over promised, with its bounds
``arl_ratio_tokens_as_rows``    at 2,000, of rows that follow each other in a request, taken for units: why they are not
``arl_ratio_NAME``, ...         the same of our other detectors: scan and classifier
``arl_ratio_alibi_mmd``, ``arl_ratio_alibi_mmd_whitened``      of alibi-detect's MMDDriftOnline (window 32, 5,000
                                bootstraps) at its own promise of 2,000 on ``rows``: 6 references, 20,000 rows with
                                each; ``arl_ratio_alibi_mmd_tokens_as_rows`` as above
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import drift_peers
import drift_streams
import torch
from dictionary_report import Report
from drift_own import DETECTORS, OURS, make
from drift_protocol import RunLength, each

FIRST_SEED = 5000
CHUNK = 4096
NEIGHBOURS = "tokens_as_rows"


class Size(NamedTuple):
    """How much is watched at a promise."""

    promise: int
    reference: int
    references: int
    units: int


LONG = (Size(2000, 2000, 40, 10_000), Size(20_000, 4000, 20, 40_000))
QUICK = (Size(2000, 2000, 2, 10_000),)
ALIBI = Size(2000, 2000, 6, 20_000)


class Watched(NamedTuple):
    """One reference of one stream."""

    stream: str
    size: Size
    number: int


def run(report: Report, *, quick: bool, folder: Path, rows: int, processes: int) -> None:
    """Print the figures of all streams and promises."""
    model = drift_streams.language_model(folder, rows)
    sizes = QUICK if quick else LONG
    streams = [*drift_streams.null_streams(model)]
    if quick:
        streams = ["gauss", "rows", "requests"]
    wanted = [Watched(stream, size, i) for size in sizes for stream in streams for i in range(size.references)]
    wanted += [Watched(NEIGHBOURS, sizes[0]._replace(units=2000), i) for i in range(sizes[0].references)]
    # the longest first, so that the processes end together
    wanted.sort(key=lambda one: -one.size.units)
    found = each(partial(_own, folder=folder, rows=rows), wanted, processes)
    for name in DETECTORS:
        counts: dict[tuple[str, int], RunLength] = {}
        for one, of_detectors in zip(wanted, found, strict=True):
            key = one.stream, one.size.promise
            counts[key] = counts.get(key, RunLength(0, 0)).plus(of_detectors[name])
        add_run_length(report, "" if name == OURS else name, counts)
    if not quick and "alibi_mmd" in drift_peers.peers():
        _alibi(report, folder=folder, rows=rows, processes=processes)


def _own(one: Watched, *, folder: Path, rows: int) -> dict[str, RunLength]:
    """All of our detectors over the same units."""
    model = drift_streams.language_model(folder, rows)
    draw = (drift_streams.null_streams(model) | {NEIGHBOURS: drift_streams.neighbours(model)})[one.stream]
    generator = torch.Generator().manual_seed(FIRST_SEED + one.number)
    reference = draw(one.size.reference, generator)
    detectors = {name: make(name, reference, one.number, float(one.size.promise)) for name in DETECTORS}
    alarms = dict.fromkeys(DETECTORS, 0)
    for start in range(0, one.size.units, CHUNK):
        x = draw(min(CHUNK, one.size.units - start), generator)
        for name, detector in detectors.items():
            alarms[name] += len(detector.update(x))
    return {name: RunLength(one.size.units, count) for name, count in alarms.items()}


def add_run_length(report: Report, name: str, counts: dict[tuple[str, int], RunLength]) -> None:
    """Report what a detector's run lengths were, by stream and promise; ``name`` is empty for the one that is ours."""
    prefix = f"arl_ratio_{name}" if name else "arl_ratio"
    lower, points = [], []
    for (stream, promise), count in counts.items():
        key = f"{prefix}_{stream}" if stream == NEIGHBOURS else f"{prefix}_{stream}_{promise}"
        _add(report, key, count, promise)
        report.runs.append(
            {"part": "run_length", "detector": name or OURS, "stream": stream, "promise": promise} | count._asdict()
        )
        if stream != NEIGHBOURS:
            lower.append(count.bounds[0] / promise)
            points.append(count.point / promise)
    report.add(prefix, min(lower))
    report.add(f"{prefix}_least", min(points))
    report.add(f"{prefix}_most", max(points))


def _add(report: Report, key: str, count: RunLength, promise: float) -> None:
    low, high = count.bounds
    report.add(key, count.point / promise)
    report.intervals[key] = [low / promise, min(high, 10.0 * count.units) / promise]
    report.say(f"{count.alarms} alarms in {count.units} units; bounds {low / promise:.3g} and {high / promise:.3g}")


def _alibi(report: Report, *, folder: Path, rows: int, processes: int) -> None:
    """Of the peer's own promise."""
    settings = [("alibi_mmd", "rows"), ("alibi_mmd_whitened", "rows"), ("alibi_mmd", NEIGHBOURS)]
    wanted = [(name, stream, number) for name, stream in settings for number in range(ALIBI.references)]
    found = each(partial(_of_alibi, folder=folder, rows=rows), wanted, processes)
    for name, stream in settings:
        count = RunLength(0, 0)
        for one, part in zip(wanted, found, strict=True):
            count = count.plus(part) if one[:2] == (name, stream) else count
        _add(report, f"arl_ratio_{name}{'' if stream == 'rows' else f'_{stream}'}", count, ALIBI.promise)


def _of_alibi(one: tuple[str, str, int], *, folder: Path, rows: int) -> RunLength:
    name, stream, number = one
    model = drift_streams.language_model(folder, rows)
    draw = model.drawn_rows if stream == "rows" else drift_streams.neighbours(model)
    generator = torch.Generator().manual_seed(FIRST_SEED + number)
    reference = draw(ALIBI.reference, generator)
    if name == "alibi_mmd":
        reference = reference[: len(reference) // 2]  # its bootstrap over 2,000 rows takes a minute
    peer = drift_peers.AlibiMmd(reference, number, whiten=name == "alibi_mmd_whitened", run_length=float(ALIBI.promise))
    alarms = peer.trace(draw(ALIBI.units, generator)).alarms(peer.threshold)
    return RunLength(ALIBI.units, len(alarms))
