"""Drift and novelty: whether alarms keep their promise, how soon they come, what they name, and what it costs.

    python benchmarks/drift.py [--quick] [--only PART ...] [--json FILE] [--cache FOLDER] [--processes N]

Parts, each in a file that says at its top what its keys mean: run_length, delay, speed, firing, attribution, novelty
and demo (drift_NAME.py; firing also in drift_per_feature.py). Peers are those of the ``bench-drift`` extra that are
installed: alibi-detect, river, frouros and evidently; what is not like for like is said at the top of drift_peers.py.
Rows are layer 15 of SmolLM2 (d = 576), captured once into the cache folder. How run lengths and delays are counted says
drift_protocol.py. All settings of ours are the defaults. The figures that sum it up:

``arl_ratio``                   measured over promised run length, the worst of ten settings by its lower 95% bound
``arl_ratio_most``              the greatest measured one
``delay_CHANGE_vs_best_peer``   median delay over the best peer's, at equal measured run length; ``_vs_alibi``: over
                                alibi-detect's MMDDriftOnline on rows whitened by us
``delay_wins``, ``delay_worst`` changes of ten where that is at most 1; the largest of the ten
``speed_vs_alibi``              rows per second of processor time over MMDDriftOnline's
``firing_delay_...``            rows until changes of firing rates are found; ``firing_rows_per_second``
``per_feature_false_share``     of what is told of each feature by itself, while nothing changes
``attribution_precision``, ``attribution_false_share``, ``change_time_error``     of what is named after a detection
``novelty_...``                 areas under the curve of the fused score
``demo_...``                    alarms, delay and features named in the stream of ``hydrophone demo``
"""

import argparse
import os
from pathlib import Path

PARTS = ("run_length", "delay", "speed", "firing", "attribution", "novelty", "demo")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydrophone-bench"
ROWS, QUICK_ROWS = 212_992, 45_056


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer streams, units, changes and peers")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for captured rows (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="processes, of one thread each (default: one per processor)")
    options = parser.parse_args()
    # read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _measure(options)


def _measure(options: argparse.Namespace) -> None:
    import drift_attribution
    import drift_delay
    import drift_firing
    import drift_peers
    import drift_per_feature
    import drift_protocol
    import drift_run_length
    import drift_speed
    import torch
    from dictionary_report import Report

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    report = Report()
    processes = options.processes or drift_protocol.processors()
    peers = drift_peers.installed()
    report.say(f"{processes} processes; peers: {peers or 'none, install the bench-drift extra for them'}")
    place = {
        "folder": options.cache,
        "rows": QUICK_ROWS if options.quick else ROWS,
        "processes": processes,
    }
    of_rows = {
        "run_length": drift_run_length.run,
        "delay": drift_delay.run,
        "speed": drift_speed.run,
        "attribution": drift_attribution.run,
    }
    for part in [part for part in of_rows if part in options.only]:
        of_rows[part](report, quick=options.quick, **place)
    if "firing" in options.only:
        drift_firing.run(report, quick=options.quick, processes=processes)
        drift_per_feature.run(report, quick=options.quick, processes=processes)
    if "novelty" in options.only:
        import drift_novelty

        drift_novelty.run(report, folder=options.cache, quick=options.quick)
    if "demo" in options.only:
        import drift_demo

        drift_demo.run(report, quick=options.quick, folder=options.cache, processes=processes)
    print()
    for key, value in report.ratios.items():
        print(f"{key:52} {value:.4f}")
    if options.json:
        settings = {"quick": options.quick, "parts": options.only, "rows": place["rows"], "processes": processes}
        report.write(options.json, threads=1, peers=peers, settings=settings)


if __name__ == "__main__":
    main()
