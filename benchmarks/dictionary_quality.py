"""Quality at equal rows and at equal time: one pass over the same shuffled rows, scored on documents never seen.

Ours knows no horizon and is run with three seeds at batch 256 and 512. Each peer is run at the batches and learning
rates of ``SWEEP`` (the short form: the first only), and its best is taken by the held-out score itself, which favours
it; the best peer is run with two more seeds. A latent counts as dead when the finished dictionary lets it fire on none
of the last 20,000 training rows.
"""

import statistics
import time
from typing import NamedTuple

import dictionary_peers as peers
import torch
from dictionary_data import SINK_FACTOR, Rows, normaliser_of, start_of
from dictionary_report import Report
from hydrophoned.learn.normaliser import SinkFilter
from torch import Tensor

K = 32
DEAD_ROWS = 20_000
PIECE = 2048
BATCHES = (256, 512)
# (batch, learning rate); the best that an earlier sweep on the same layer had found comes first
SWEEP = {
    "sparsify": [(512, 5e-3), (512, 2.5e-3), (512, 9.4e-3), (256, 2.5e-3), (256, 5e-3), (2048, 5e-3), (2048, 9.4e-3)],
    "dictionary_learning": [(2048, 6e-3), (2048, 3e-3), (512, 1.5e-3), (512, 3e-3), (256, 1e-3), (256, 2e-3)],
    "sae_lens": [(512, 2e-3), (256, 1.5e-3), (512, 1.5e-3), (512, 3e-3), (256, 1e-3), (256, 2e-3)],
    "sae_lens_auxk": [(512, 2e-3), (256, 1.5e-3)],
    "overcomplete": [(2048, 5e-3), (2048, 2.5e-3), (512, 1.5e-3), (512, 3e-3), (256, 1e-3)],
}
# three and a half times the latents: only what can win, at about half the rate
SWEEP_WIDE = {"sparsify": [(512, 2.5e-3), (512, 5e-3)], "sae_lens": [(512, 1e-3), (512, 2e-3)]}
EQUAL_WALL = [(512, 5e-3), (2048, 9.4e-3), (2048, 2e-2)]


class Score(NamedTuple):
    """Held-out fvu, share of dead latents, and rows trained on per second."""

    fvu: float
    dead: float
    rows_per_second: float


def run(report: Report, data: Rows, *, quick: bool) -> None:
    compare(report, data, 4608, _shorter(SWEEP) if quick else SWEEP, seeds=1 if quick else 3)


def wide(report: Report, data: Rows, *, quick: bool) -> None:
    """The same at F = 16384."""
    compare(report, data, 16384, _shorter(SWEEP_WIDE) if quick else SWEEP_WIDE, seeds=1 if quick else 3, mark="_16384")


def generalise(report: Report, data: Rows, *, quick: bool) -> None:
    """The same comparison on rows that no setting was chosen on, with each peer's best setting of the other layer."""
    compare(report, data, 4608, _shorter(SWEEP), seeds=1 if quick else 3, mark="_elsewhere")


def compare(
    report: Report, data: Rows, features: int, sweep: dict[str, list[tuple[int, float]]], *, seeds: int, mark: str = ""
) -> None:
    ours: dict[int, list[Score]] = {}
    for batch in BATCHES:
        ours[batch] = [_score(report, data, "ours", features, batch, 0, seed) for seed in range(seeds)]
    dead = [score.dead for scores in ours.values() for score in scores]
    report.add(f"dead{mark or f'_{features}'}", max(dead))
    for batch in BATCHES:
        report.add(f"fvu_{batch}{mark}", statistics.mean(score.fvu for score in ours[batch]))
    best: dict[str, tuple[float, int, float]] = {}
    for name, settings in sweep.items():
        if name.removesuffix("_auxk") in peers.installed():
            found = [(_score(report, data, name, features, *setting, 0).fvu, *setting) for setting in settings]
            best[name] = min(found)
            report.add(f"fvu_{name}{mark}", best[name][0])
    if not best:
        return
    name = min(best, key=best.__getitem__)
    first, batch, rate = best[name]
    more = [_score(report, data, name, features, batch, rate, seed).fvu for seed in range(1, seeds)]
    peer = statistics.mean([first, *more])
    report.say(f"best peer{mark}: {name} at batch {batch}, learning rate {rate:g}: {peer:.4f} over {seeds} seeds")
    for size, ending in ((256, ""), (512, "_512")):
        key = f"fvu_vs_best_peer{ending}{mark}"
        report.add(key, statistics.mean(score.fvu for score in ours[size]) / peer)
        report.intervals[key] = [pick(score.fvu for score in ours[size]) / peer for pick in (min, max)]
    for other, (fvu, _, _) in best.items():
        report.add(f"fvu_vs_{other}{mark}", statistics.mean(score.fvu for score in ours[256]) / fvu)


def fvu(trainer: peers.Trainer, rows: Tensor) -> float:
    """Squared error over the variance around the rows' own mean."""
    error = sum(float((trainer.rebuild(part).rows - part).square().sum()) for part in rows.split(PIECE))
    return error / float((rows - rows.mean(0)).square().sum())


def dead(trainer: peers.Trainer, rows: Tensor) -> float:
    """Share of features that fire on none of the rows."""
    fired = torch.stack([trainer.rebuild(part).fired for part in rows.split(PIECE)]).any(0)
    return 1 - float(fired.float().mean())


def _score(report: Report, data: Rows, name: str, features: int, batch: int, rate: float, seed: int) -> Score:
    rows = data.train
    steps = len(rows) // batch
    setting = peers.Setting(rows.shape[1], features, K, rate, steps, batch, seed)
    trainer = peers.make(name, setting, start_of(rows))
    began = time.perf_counter()
    for step in range(steps):
        trainer.step(rows[step * batch : (step + 1) * batch])
    seconds = time.perf_counter() - began
    score = Score(fvu(trainer, data.held_out), dead(trainer, rows[-DEAD_ROWS:]), steps * batch / seconds)
    columns = {"features": features, "batch": batch, "learning_rate": rate, "seed": seed}
    report.run(part="quality", trainer=name, **columns, **score._asdict())
    return score


def _shorter(sweep: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: settings[:1] for name, settings in sweep.items()}


def equal_wall(report: Report, data: Rows, *, quick: bool) -> None:
    """Ours takes its pass at batch 512; sparsify takes steps beside it until as much time is spent."""
    if "sparsify" not in peers.installed():
        return
    rows, found = data.train, []
    for batch, rate in EQUAL_WALL[:1] if quick else EQUAL_WALL:
        setting = peers.Setting(rows.shape[1], 4608, K, rate, 0, batch, 0)
        ours = peers.make("ours", setting._replace(learning_rate=0, batch=512), start_of(rows))
        other = peers.make("sparsify", setting, rows)
        spent = theirs = 0.0
        taken = 0
        for part in rows[: len(rows) // 512 * 512].split(512):
            began = time.perf_counter()
            ours.step(part)
            spent += time.perf_counter() - began
            while theirs < spent and (taken + 1) * batch <= len(rows):
                began = time.perf_counter()
                other.step(rows[taken * batch : (taken + 1) * batch])
                theirs += time.perf_counter() - began
                taken += 1
        own, peer = fvu(ours, data.held_out), fvu(other, data.held_out)
        report.run(
            part="equal_wall",
            batch=batch,
            rate=rate,
            seconds=spent,
            fvu=own,
            sparsify_fvu=peer,
            sparsify_rows=taken * batch,
        )
        found.append((peer, own))
    peer, own = min(found)
    report.add("fvu_at_equal_wall_vs_sparsify", own / peer)


def with_sinks(report: Report, data: Rows, *, quick: bool) -> None:  # noqa: ARG001  called as the other parts are
    """The stream with its sink rows, through our filter and not; scored on held-out rows, which are no sinks."""
    held_out = data.normaliser.invert(data.held_out)
    found = {}
    for name, factor in (("filtered", SINK_FACTOR), ("not filtered", float("inf"))):
        sinks = SinkFilter(factor, torch.device("cpu"))
        kept = torch.cat([part[~sinks.split(part.norm(dim=1))] for part in data.raw.split(512)])
        normaliser = normaliser_of(kept)
        trainer = _one_pass(normaliser.apply(kept))
        found[name] = fvu(trainer, normaliser.apply(held_out))
        report.run(part="sinks", stream=name, set_apart=len(data.raw) - len(kept), rows=len(data.raw), fvu=found[name])
    clean = _one_pass(data.train)
    report.add("fvu_with_sinks", found["filtered"] / fvu(clean, data.held_out))
    report.add("fvu_sinks_not_filtered", found["not filtered"] / found["filtered"])


def _one_pass(rows: Tensor) -> peers.Ours:
    """Ours at batch 512."""
    trainer = peers.Ours(peers.Setting(rows.shape[1], 4608, K, 0, 0, 512, 0), start_of(rows))
    for part in rows[: len(rows) // 512 * 512].split(512):
        trainer.step(part)
    return trainer
