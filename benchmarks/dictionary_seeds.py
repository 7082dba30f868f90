"""How far two dictionaries agree that differ in their seed alone, on the same real rows.

A seed decides which rows the latents start at, their noise, and the order of the rows in each pass. Features are
matched one to one such that the sum of decoder cosines is largest. ``matched_above_0.7_*`` is the share of all features
whose match has cosine above 0.7; ``matched_correlation_*`` the mean correlation of activations between matches on held-
out rows, over features that fire there in both; ``correlated_above_0.7_*`` the share of all features where it is above
0.7.
"""

import importlib.util

import dictionary_peers as peers
import torch
from dictionary_data import Rows, start_of
from dictionary_quality import K, fvu
from dictionary_report import Report
from torch import Tensor

BATCH = 256
PIECE = 2048
# features, k, passes over the rows
SETTINGS = [(4608, K, 1), (4608, K, 4), (1536, K, 4), (576, 16, 4), (576, 16, 12)]
QUICK = [(4608, K, 1), (576, 16, 2)]


def run(report: Report, data: Rows, *, quick: bool) -> None:
    if importlib.util.find_spec("scipy") is None:
        report.say("seeds: matching needs scipy, which the bench extra brings; nothing is measured")
        return
    for features, k, passes in QUICK if quick else SETTINGS:
        pair = [_train(data.train, features, k, passes, seed) for seed in (0, 1)]
        mark = f"{features}_k{k}_x{passes}"
        match, cosine = matches(*(trainer.directions() for trainer in pair))
        correlation = correlations(pair[0], pair[1], match, data.held_out)
        known = correlation.isfinite()
        report.add(f"matched_above_0.7_{mark}", float((cosine > 0.7).float().mean()))
        report.add(f"matched_cosine_{mark}", float(cosine.mean()))
        report.add(f"matched_correlation_{mark}", float(correlation[known].mean()))
        report.add(f"correlated_above_0.7_{mark}", float((correlation[known] > 0.7).sum() / features))
        scores = [fvu(trainer, data.held_out) for trainer in pair]
        report.run(part="seeds", features=features, k=k, passes=passes, fvu=scores[0], fvu_other=scores[1])


def matches(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of ``one`` its partner in ``other``, one to one, and their cosine."""
    from scipy.optimize import linear_sum_assignment

    cosine = one @ other.T
    _, partner = linear_sum_assignment(cosine.numpy(), maximize=True)
    match = torch.from_numpy(partner)
    return match, cosine[torch.arange(len(one)), match]


def correlations(one: peers.Ours, other: peers.Ours, match: Tensor, rows: Tensor) -> Tensor:
    """Correlation of the activations of each feature of ``one`` with its match's; NaN where either never fires."""
    sums = torch.zeros(5, len(match), dtype=torch.float64)
    for part in rows.split(PIECE):
        a, b = _dense(one, part), _dense(other, part)[:, match]
        sums += torch.stack([(a * b).sum(0), a.sum(0), b.sum(0), a.square().sum(0), b.square().sum(0)]).double()
    product, a, b, aa, bb = sums / len(rows)
    return (product - a * b) / ((aa - a.square()) * (bb - b.square())).sqrt()


def _dense(trainer: peers.Ours, x: Tensor) -> Tensor:
    codes = trainer.dictionary.encode(x)
    return torch.zeros(len(x), trainer.dictionary.features).scatter_(1, codes.index.long(), codes.value)


def _train(rows: Tensor, features: int, k: int, passes: int, seed: int) -> peers.Ours:
    generator = torch.Generator().manual_seed(100 + seed)
    trainer: peers.Ours | None = None
    for _ in range(passes):
        order = torch.randperm(len(rows), generator=generator)
        if trainer is None:
            setting = peers.Setting(rows.shape[1], features, k, 0, 0, BATCH, seed)
            trainer = peers.Ours(setting, rows[start_of(order)])
        for part in order[: len(rows) // BATCH * BATCH].split(BATCH):
            trainer.step(rows[part])
    assert trainer is not None
    return trainer
