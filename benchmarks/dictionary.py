"""The dictionary: how fast a training step is and how good what it learns, beside four other trainers.

    python benchmarks/dictionary.py [--quick] [--only PART ...] [--json FILE] [--cache FOLDER] [--threads N]

Peers are those of the ``bench`` extra that are installed: sparsify, dictionary_learning, SAELens, overcomplete; without
them their figures are left out. What is not like for like is said at the top of dictionary_peers.py. Real rows are
model.layers.15 of SmolLM2 (d = 576), captured once into the cache folder; k = 32 unless said. Sink rows (norm above 5
times the median) are left out of all figures but those named after them. fvu is of rows of documents that none was
trained on. All settings of ours are the defaults.

speed (dictionary_speed.py; batch 2048, F = 4608 and 16384; medians of paired ratios, all threads)

``step_vs_gemm_F``              our step over the product [2048, 576] x [576, F] in float32, written to given memory
``step_vs_gemm_bf16_F``         our step over that product in bfloat16
``step_vs_gemm_fp32_F``         our step with low_precision off over the product in float32
``step_512_vs_gemm_F``          four steps at batch 512 over the same product
``vs_NAME_F``                   our rows/s over those of one step of NAME, in float32
``vs_NAME_fp32_F``              the same, ours in float32 too
``vs_fastest_peer_F``, ``vs_fastest_peer_fp32_F``      of the peer whose median time is least
``vs_fastest_peer_512_F``       ours at batch 512, the peer at 2048
``whole_stream_vs_step_F``      encode, decode, fvu and statistics of all rows over the steps on them, batch 512

quality, wide, wall, sinks (dictionary_quality.py; one pass over 160,000 shuffled rows, F = 4608; wide: 16384)

``fvu_256``, ``fvu_512``        ours by batch, mean of three seeds
``fvu_NAME``                    a peer's best over its learning rates and batches
``fvu_vs_best_peer``            ours at batch 256 over the best peer's, three seeds each; ``_512``: ours at batch 512
``fvu_vs_NAME``                 ours at batch 256 over that peer's
``fvu_at_equal_wall_vs_sparsify``  ours after its pass at batch 512, over sparsify's in as much time beside it
``dead_F``                      share of latents that fire on none of the last 20,000 rows, the worst of all our runs
``fvu_with_sinks``              fvu of ordinary rows after a stream with its sink rows (first positions among them),
                                through our filter, over that after the same stream without them
``fvu_sinks_not_filtered``      after the stream with its sink rows: filter off over on

atoms (dictionary_atoms.py; 2048 known directions, the worst of three seeds)

``atoms_mmcs``                  mean over atoms of the largest cosine with a decoder row, after 200,704 rows
``atoms_above_0.9``             share of atoms where that is above 0.9
``..._sae_lens_generator``      on rows made by sae_lens.synthetic; ``..._NAME``: of a peer on our first stream
``..._even``                    on the harder stream, where all coefficients are about as large
``rows_to_0.8_of_new``          rows after half of the atoms were replaced until 0.8 of the new ones are found; twice
                                the rows given if they were not
``new_above_0.9``               share of the new ones found in the end
``old_kept``, ``old_same_index``  of the atoms found before that stayed: share still found; found at the same latent

seeds (dictionary_seeds.py)

``matched_above_0.7_...``       share of features that match one to one at decoder cosine above 0.7 between two seeds,
                                for some F, k and numbers of passes; ``correlated_above_0.7_...`` and
                                ``matched_correlation_...``: by activation on held-out rows

memory (dictionary_memory.py; F = 65536, in a process of its own, from /proc/self/status)

``memory_ratio``                highest resident size beyond what was there before the dictionary was made, over
                                parameters and moments; ``_steps``: after initialisation; ``_2048``: at batch 2048,
                                else 512

generalisation (dictionary_quality.py)

``..._elsewhere``               quality once more on model.layers.8 over other documents, on which nothing was chosen
"""

import argparse
import os
from pathlib import Path

PARTS = ("speed", "quality", "wide", "wall", "sinks", "atoms", "seeds", "memory", "generalisation")
LAYER, OTHER_LAYER = 15, 8
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydrophone-bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, rounds, seeds and settings")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for captured rows (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: all)")
    options = parser.parse_args()
    # read when torch, or tqdm, is imported. A second OpenMP runtime, which scikit-learn brings, would else spin against
    # torch's while that works
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")
    _measure(options)


def _measure(options: argparse.Namespace) -> None:
    import dictionary_atoms
    import dictionary_data
    import dictionary_memory
    import dictionary_peers
    import dictionary_quality
    import dictionary_seeds
    import dictionary_speed
    import torch
    from dictionary_report import Report

    if options.threads:
        torch.set_num_threads(options.threads)
    report = Report()
    peers = dictionary_peers.installed()
    report.say(f"{torch.get_num_threads()} threads; peers: {peers or 'none, install the bench extra for them'}")
    size = {"train": 32_768, "held_out": 4096} if options.quick else {"train": 160_000, "held_out": 16_384}
    place = {"folder": options.cache, "say": report.say}
    quick = options.quick
    of_rows = {
        "speed": dictionary_speed.run,
        "quality": dictionary_quality.run,
        "wide": dictionary_quality.wide,
        "wall": dictionary_quality.equal_wall,
        "sinks": dictionary_quality.with_sinks,
        "seeds": dictionary_seeds.run,
    }
    of_none = {"atoms": dictionary_atoms.run, "memory": dictionary_memory.run}
    if of_rows.keys() & set(options.only):
        data = dictionary_data.rows(LAYER, corpus="builtin", **size, **place)
        for part in [part for part in of_rows if part in options.only]:
            of_rows[part](report, data, quick=quick)
    for part in [part for part in of_none if part in options.only]:
        of_none[part](report, quick=quick)
    if "generalisation" in options.only:
        data = dictionary_data.rows(OTHER_LAYER, corpus="packages", **size, **place)
        dictionary_quality.generalise(report, data, quick=quick)
    print()
    for key, value in report.ratios.items():
        print(f"{key:44} {value:.4f}")
    if options.json:
        settings = {"layer": LAYER, "other_layer": OTHER_LAYER, **size, "quick": quick, "parts": options.only}
        report.write(options.json, threads=torch.get_num_threads(), peers=peers, settings=settings)


if __name__ == "__main__":
    main()
