"""How soon a change is found, beside four libraries, at equal measured run length.

    python benchmarks/drift.py --only delay

What a delay is, and when it counts, says drift_protocol.py; the ten changes are in drift_streams.py. Units are rows of
code drawn one by one (``rows``); a reference has 2,000, each stream another one. Our betting detector (``e_detector``)
promises a run length of 2,000; what it has is measured on the unshifted twins, 480 + 12,000 units each, and every peer
is set to the same on the same twins. 40 streams; 8 for those of the peers that are slow (``drift_peers.SLOW``).

``delay_CHANGE``                median delay of ours in rows, 4,000 where it does not count
``delay_CHANGE_vs_best_peer``   over the least of the peers' that count; where none counts, over the least median of
                                their alarms by chance
``delay_CHANGE_vs_alibi``       over that of MMDDriftOnline on whitened rows, by chance where it does not count
``delay_wins``                  changes, of ten, that ours finds at least as soon as the best peer
``delay_worst``                 the largest of the ten ratios to the best peer
``delay_run_length``            measured run length of ours and of the peers, in rows

Each ratio has the 95% interval of a bootstrap over streams. The table of all detectors, among them a dummy that raises
alarms at fixed intervals, is in ``runs``: median delay, the share of alarms earlier than the twin's, streams.
"""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import drift_peers
import drift_streams
import torch
from dictionary_report import Report
from drift_own import DETECTORS, OURS, Own
from drift_protocol import AFTER, BEFORE, Alarms, Delays, RunLength, Trace, delays, each, level_for, ratio

REFERENCE, RUN_LENGTH = 2000, 2000.0
ALIBI = "alibi_mmd_whitened"
FIRST_SEED = 9000


class Size(NamedTuple):
    """How much is watched."""

    streams: int
    slow_streams: int
    twin: int
    changes: tuple[str, ...]
    peers: tuple[str, ...]


LONG = Size(40, 8, 12_000, drift_streams.CHANGES, tuple(drift_peers.MAKES))
QUICK = Size(4, 0, AFTER, ("mean_1", "coordinates_0.25", "swap"), (ALIBI, "river_adwin_norm"))
Traces = dict[str, dict[str, Trace]]
"""By detector, and then by change; the twin's is that of the change ``none``."""


def run(report: Report, *, quick: bool, folder: Path, rows: int, processes: int) -> None:
    """Print the figures of all changes."""
    size = QUICK if quick else LONG
    model = drift_streams.language_model(folder, rows)
    peers = [name for name in drift_peers.peers() if name in size.peers]
    if peers and not quick:
        generator = torch.Generator().manual_seed(0)
        drift_peers.check(model.drawn_rows(REFERENCE, generator), model.drawn_rows(100, generator))
    report.say(f"delay: {size.streams} streams, {len(size.changes)} changes, peers {', '.join(peers) or 'none'}")
    task = partial(_stream, folder=folder, rows=rows, size=size, peers=peers)
    of_stream: list[Traces] = each(task, range(size.streams), processes)
    units = BEFORE + size.twin
    levels = dict.fromkeys(DETECTORS, 0.0)
    twins = {name: [one[name]["none"] for one in of_stream if name in one] for name in (*DETECTORS, *peers)}
    wanted = _measured(twins[OURS], 0.0, units).point
    levels |= {name: level_for(twins[name], units * len(twins[name]), wanted) for name in peers if twins[name]}
    table: dict[str, dict[str, Delays]] = {}
    for name, level in levels.items():
        others = [trace.alarms(level) for trace in twins[name]]
        table[name] = {
            change: delays([one[name][change].alarms(level) for one in of_stream if name in one], others)
            for change in size.changes
        }
        _tell(report, name, _measured(twins[name], level, units), table[name])
    table["fixed_intervals"] = _dummy(report, wanted, size, units)
    report.add("delay_run_length", wanted)
    _compare(report, table, [name for name in peers if name in table])


def _stream(number: int, *, folder: Path, rows: int, size: Size, peers: list[str]) -> Traces:
    """One reference, one stream, all changes of it, all detectors."""
    model, seed = drift_streams.language_model(folder, rows), FIRST_SEED + number
    generator = torch.Generator().manual_seed(seed)
    reference = model.drawn_rows(REFERENCE, generator)
    twin = model.drawn_rows(BEFORE + size.twin, generator)
    changes = drift_streams.changes(model, seed)
    streams = {
        change: torch.cat([twin[:BEFORE], changes[change](twin[BEFORE : BEFORE + AFTER], 0, generator)])
        for change in size.changes
    }
    traces: Traces = {}
    for name in DETECTORS:
        own = Own(name, reference, seed, RUN_LENGTH)
        traces[name] = {"none": own.trace(twin)} | {change: own.changed(x) for change, x in streams.items()}
    for name in peers:
        if number < (size.slow_streams if name in drift_peers.SLOW else size.streams):
            peer = drift_peers.MAKES[name](reference, seed)
            traces[name] = {change: peer.trace(x) for change, x in ({"none": twin} | streams).items()}
    return traces


def _measured(twins: list[Trace], level: float, units: int) -> RunLength:
    return RunLength(units * len(twins), sum(len(trace.alarms(level)) for trace in twins))


def _dummy(report: Report, wanted: float, size: Size, units: int) -> dict[str, Delays]:
    """Alarms at fixed intervals, beginning at another place in each stream: delays without any detection."""
    interval = max(1, round(wanted))
    at = [list(range(interval * number // size.streams, units, interval)) for number in range(size.streams)]
    found = {change: delays(at, at) for change in size.changes}
    _tell(report, "fixed_intervals", _measured([Alarms([one]) for one in at], 0.0, units), found)
    return found


def _tell(report: Report, name: str, measured: RunLength, found: dict[str, Delays]) -> None:
    """One line for a detector; a delay that does not count stands in brackets."""
    cells = []
    for change, one in found.items():
        median = "none" if one.median == math.inf else f"{one.median:g}"
        cells.append(f"{change} {median if one.counts else f'({median})'}")
    report.say(f"{name}: {measured.alarms} alarms in {measured.units}; {', '.join(cells)}")
    report.runs.append(
        {"part": "delay", "detector": name, "units": measured.units, "alarms": measured.alarms}
        | {
            change: {
                "median": None if one.median == math.inf else one.median,
                "earlier": one.earlier,
                "streams": one.streams,
            }
            for change, one in found.items()
        }
    )


def _compare(report: Report, table: dict[str, dict[str, Delays]], peers: list[str]) -> None:
    worst, wins = 0.0, 0
    for change, ours in table[OURS].items():
        ours = ours if ours.counts else Delays([float(AFTER)] * len(ours.of_stream), 0.0)  # noqa: PLW2901  as told above
        report.add(f"delay_{change}", min(ours.median, AFTER))
        if not peers:
            continue
        theirs = {name: table[name][change] for name in peers}
        best = min(theirs, key=lambda name: (not theirs[name].counts, theirs[name].median))
        over = _ratio(report, f"delay_{change}_vs_best_peer", ours, theirs[best])
        report.say(f"best peer for {change}: {best}{'' if theirs[best].counts else ', by chance'}")
        if ALIBI in theirs:
            _ratio(report, f"delay_{change}_vs_alibi", ours, theirs[ALIBI])
        worst, wins = max(worst, over), wins + (over <= 1 and table[OURS][change].counts)
    if peers:
        report.add("delay_wins", wins)
        report.add("delay_worst", worst)


def _ratio(report: Report, key: str, ours: Delays, theirs: Delays) -> float:
    value, low, high = ratio(ours, theirs)
    report.add(key, value)
    report.intervals[key] = [low, high]
    return value
