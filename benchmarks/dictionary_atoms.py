"""Atoms that are known: rows are sparse sums of 2048 directions, and the dictionary should find just these.

d = 256, F = 4096, k = 16. Atom r fires with probability proportional to r^-0.7 such that 16 do on average. Its
coefficient is the absolute value of a standard normal number, or, in the harder ``even`` stream, uniform between 0.5
and 1.5: how even the coefficients are decides more than anything else how many atoms are found. Noise of standard
deviation 0.02 is added to each element. After 200,704 rows half of the atoms, drawn at random, are replaced by new
directions at once, and as many rows follow. Ours learns in the hands of the daemon's own trainer, at batch 256. An atom
is found when some decoder row has cosine above 0.9 with it.

With SAELens installed, its generator makes a stream too (unit directions, the same probabilities, coefficients of mean
1 and standard deviation 1, cut at 0), a check on ours; and SAELens and sparsify are run on our first stream.
"""

import dictionary_peers as peers
import torch
from dictionary_report import Report
from hydrophoned.learn.buffers import Reservoir
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.normaliser import Normaliser
from hydrophoned.learn.trainer import Trainer
from torch import Tensor

ATOMS, WIDTH, FEATURES, ACTIVE = 2048, 256, 4096, 16
EXPONENT, NOISE, FOUND = 0.7, 0.02, 0.9
BATCH = 256
CPU = torch.device("cpu")
PIECE = 4096
PEERS = {"sparsify": [(256, 0.0), (1024, 0.0)], "sae_lens": [(512, 3e-3), (256, 1.5e-3)]}


class Stream:
    """Rows made of atoms [ATOMS, WIDTH]."""

    def __init__(self, seed: int, *, even: bool = False) -> None:
        self.even = even
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.atoms = _unit(torch.randn(ATOMS, WIDTH, generator=self.generator))
        self.chance = chances()

    def replace_half(self) -> Tensor:
        """New directions for half of the atoms; bool [ATOMS], which."""
        replaced = torch.zeros(ATOMS, dtype=torch.bool)
        replaced[torch.randperm(ATOMS, generator=self.generator)[: ATOMS // 2]] = True
        fresh = _unit(torch.randn(ATOMS, WIDTH, generator=self.generator))
        self.atoms = torch.where(replaced[:, None], fresh, self.atoms)
        return replaced

    def draw(self, count: int) -> Tensor:
        """Rows [count, WIDTH]."""
        fires = torch.rand(count, ATOMS, generator=self.generator) < self.chance
        if self.even:
            size = 0.5 + torch.rand(count, ATOMS, generator=self.generator)
        else:
            size = torch.randn(count, ATOMS, generator=self.generator).abs()
        noise = torch.randn(count, WIDTH, generator=self.generator)
        return torch.addmm(noise, size * fires, self.atoms, beta=NOISE)


class Watched:
    """Ours over a stream, by the daemon's own trainer: shuffled, partly replayed, quickened after a change."""

    def __init__(self, seed: int) -> None:
        config = LearnerConfig(features=FEATURES, k=ACTIVE, batch_rows=BATCH)
        generator = torch.Generator().manual_seed(seed)
        self.reservoir = Reservoir(WIDTH, config.reservoir_rows, generator, CPU)
        self.trainer = Trainer(WIDTH, config, self.reservoir, generator, CPU)

    def learn(self, rows: Tensor) -> None:
        """Score and train on rows as they come."""
        for x in rows.split(BATCH):
            y = self.trainer.apply(x)
            if self.trainer.version:
                error = self.trainer.dictionary.decode(self.trainer.dictionary.encode(y)).sub_(y)
                self.trainer.observe(float(error.square().sum() / (y - y.mean(0)).square().sum()), len(y))
            self.reservoir.update(x, RowMetadata.empty(len(x), CPU))
            self.trainer.take(x, y, 0)

    def directions(self) -> Tensor:
        """Decoder rows of norm 1."""
        return self.trainer.dictionary.W_dec


def run(report: Report, *, quick: bool) -> None:
    rows, seeds = (49_152, 1) if quick else (200_704, 3)
    for even, mark in ((False, ""), (True, "_even")):
        results = [_ours(report, seed, rows, even=even) for seed in range(seeds)]
        for key in results[0]:
            values = [result[key] for result in results]
            report.add(f"{key}{mark}", max(values) if key == "rows_to_0.8_of_new" else min(values))
            report.intervals[f"{key}{mark}"] = [min(values), max(values)]
    installed = peers.installed()
    if "sae_lens" in installed:
        cosine = _sae_lens_stream(rows)
        report.add("atoms_mmcs_sae_lens_generator", float(cosine.mean()))
        report.add("atoms_above_0.9_sae_lens_generator", float((cosine > FOUND).float().mean()))
    if not quick:
        for name, settings in PEERS.items():
            if name in installed:
                _peer(report, name, settings, rows)


def chances() -> Tensor:
    """Probability of each atom to fire [ATOMS]."""
    falling = torch.arange(1, ATOMS + 1, dtype=torch.float32).pow(-EXPONENT)
    return falling * (ACTIVE / falling.sum())


def setting(batch: int, rate: float, steps: int, seed: int) -> peers.Setting:
    return peers.Setting(WIDTH, FEATURES, ACTIVE, rate, steps, batch, seed)


def nearest(trainer: Watched | peers.Trainer, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """For each atom the largest cosine with a decoder row, and that row's number."""
    best = (atoms @ trainer.directions().T).max(1)
    return best.values, best.indices


def _ours(report: Report, seed: int, rows: int, *, even: bool) -> dict[str, float]:
    stream, ours = Stream(seed, even=even), Watched(seed)
    for _ in range(0, rows, PIECE):
        ours.learn(stream.draw(PIECE))
    cosine, index = nearest(ours, stream.atoms)
    result = {"atoms_mmcs": float(cosine.mean()), "atoms_above_0.9": _share(cosine)}
    replaced = stream.replace_half()
    stayed = ~replaced & (cosine > FOUND)
    reached = float("inf")
    for taken in range(PIECE, rows + 1, PIECE):
        ours.learn(stream.draw(PIECE))
        if reached == float("inf") and _share(nearest(ours, stream.atoms[replaced])[0]) >= 0.8:
            reached = float(taken)
    after, index_after = nearest(ours, stream.atoms)
    kept = stayed & (after > FOUND)
    # when it was not reached: the rows that it was given, doubled, so that the figure stays a number
    result["rows_to_0.8_of_new"] = reached if reached < float("inf") else 2.0 * rows
    result["old_kept"] = float(kept.sum() / stayed.sum())
    result["old_same_index"] = float((kept & (index == index_after)).sum() / stayed.sum())
    result["new_above_0.9"] = _share(after[replaced])
    report.run(
        part="atoms", trainer="ours", even=even, seed=seed, rows=rows, changes=ours.trainer.change.calls, **result
    )
    return result


def _sae_lens_stream(rows: int) -> Tensor:
    from sae_lens.synthetic import ActivationGenerator, FeatureDictionary

    torch.manual_seed(0)
    directions = FeatureDictionary(ATOMS, WIDTH, initializer=None, seed=0)
    activations = ActivationGenerator(ATOMS, chances(), std_firing_magnitudes=1.0)
    ours = Watched(0)
    for _ in range(0, rows, PIECE):
        with torch.no_grad():
            drawn = directions(activations.sample(PIECE))
        ours.learn(drawn + NOISE * torch.randn(PIECE, WIDTH))
    return nearest(ours, directions.feature_vectors.detach())[0]


def _peer(report: Report, name: str, settings: list[tuple[int, float]], rows: int) -> None:
    found = []
    for batch, rate in settings:
        stream = Stream(0)
        normaliser: Normaliser | None = None
        trainer = peers.make(name, setting(batch, rate, rows // batch, 0), torch.empty(0))
        for _ in range(0, rows, PIECE):
            drawn = stream.draw(PIECE)
            if not normaliser.frozen:
                normaliser.update(drawn)
                normaliser.freeze()
            for part in normaliser.apply(drawn).split(batch):
                trainer.step(part)
        cosine, _ = nearest(trainer, stream.atoms)
        found.append((float(cosine.mean()), _share(cosine)))
        report.run(part="atoms", trainer=name, batch=batch, rate=rate, atoms_mmcs=found[-1][0], share=found[-1][1])
    mmcs, share = max(found)
    report.add(f"atoms_mmcs_{name}", mmcs)
    report.add(f"atoms_above_0.9_{name}", share)


def _share(cosine: Tensor) -> float:
    return float((cosine > FOUND).float().mean())


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
