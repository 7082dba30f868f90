"""Features: whether their ids last, their statistics are cheap, their labels predict, and answers about them hold.

    python benchmarks/features.py [--quick] [--only PART ...] [--json FILE] [--cache FOLDER] [--threads N]

identity (features_identity.py), statistics (features_statistics.py), labels (features_labels.py) and questions
(features_questions.py) say at their top what their keys mean; beside each figure stand floors and rivals. The three
that sum it up are ``ids_kept``, ``stats_vs_encode_F`` and ``label_precision``. Rows of a language model are captured
once into the cache folder.
"""

import argparse
import os
from pathlib import Path

PARTS = ("identity", "statistics", "labels", "questions")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydrophone-bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, rounds, seeds and splits")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for captured rows (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: all)")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    _measure(options)


def _measure(options: argparse.Namespace) -> None:
    import features_identity
    import features_labels
    import features_questions
    import features_statistics
    import torch
    from dictionary_report import Report

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    report = Report()
    if "identity" in options.only:
        features_identity.run(report, quick=options.quick)
    if "statistics" in options.only:
        features_statistics.run(report, quick=options.quick)
    if "labels" in options.only:
        features_labels.run(report, quick=options.quick, folder=options.cache)
    if "questions" in options.only:
        features_questions.run(report, quick=options.quick, folder=options.cache)
    print()
    for key, value in report.ratios.items():
        print(f"{key:44} {value:.4f}")
    if options.json:
        settings = {"quick": options.quick, "parts": options.only}
        report.write(options.json, threads=torch.get_num_threads(), peers={}, settings=settings)


if __name__ == "__main__":
    main()
