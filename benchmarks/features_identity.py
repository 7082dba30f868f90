"""Ids of features: whether they stay with what they name while the dictionary learns on and the stream changes.

    python benchmarks/features.py --only identity

Rows are those of dictionary_atoms.py: sparse sums of 2048 known directions, d = 256, F = 4096, k = 16; ours learns in
the hands of the daemon's own learner, at batch 256. After 200,704 rows, of which an eighth of the atoms has no part,
the mix changes at once: all probabilities are dealt out anew, the atoms that were left out come in, and another eighth
is seen no more. Then twenty versions are published, one each 10,240 rows. An atom is found where some decoder row has
cosine above 0.9 with it; its id is that of the nearest feature when the first of the versions was published. It has
kept its id where, in each of the twenty, the feature with that id has cosine above 0.8 with it.

``ids_kept``                    share of the atoms, found and still active after the change, that kept their id through
                                all twenty; the worst of three seeds
``ids_kept_even``               on the harder stream, where all coefficients are about as large
``ids_kept_sae_lens_generator`` on rows made by sae_lens.synthetic, where that is installed
``ids_kept_best``               the same where the nearest feature itself has to carry the id in each version
``ids_kept_index_relabelled``   floor: ids that stay with an index, where features are numbered anew in each version
``ids_kept_random``             floor: ids dealt out at random
``ids_ended``                   of features that named a found atom and whose latent now points elsewhere (cosine below
                                0.5): share whose id did not stay with the latent, as one that is an index would
``ids_born``                    of the atoms that came with the change and were found: share whose feature was born in
                                or after the first version that has them
``ids_relabelled``              of the features of the last version: share that get another id, or are told otherwise,
                                when they are numbered anew at random before they are matched
``split_told``, ``merged_told`` share of 64 planted cases that are told: in the codes of the last version a feature's
                                rows are dealt to two new ones that face its way, or those of two such to one
``split_false``, ``merged_false``  features told as such by mistake, over all, where the same was planted with the
                                parts' rows dealt out anew
``match_seconds_F``             processor seconds of matching two versions, one thread, d = 576, k = 32, 2048 probe
                                rows; ``_relabelled``: numbered anew; ``publish_seconds_F``: of all of a publication
``match_mib_F``                 memory that matching takes besides, in MiB
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from dictionary_atoms import ACTIVE, ATOMS, BATCH, FEATURES, FOUND, NOISE, PIECE, WIDTH, Stream, chances
from dictionary_memory import _forget_peak, _mib
from dictionary_report import Report
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.identity import KINDS, MERGED, SPLIT, Snapshot, match
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.rows import Rows
from torch import Tensor

VERSIONS, KEPT, GONE, EIGHTH = 20, 0.8, 0.5, ATOMS // 8
PLANTED = 64
SIZES = (4608, 65_536)


def run(report: Report, *, quick: bool) -> None:
    """Print ``ids_kept`` and what stands beside it."""
    torch.set_grad_enabled(False)
    rows, between, seeds = (49_152, 2560, 1) if quick else (200_704, 10_240, 3)
    for even, mark in ((False, ""), (True, "_even")):
        results = []
        for seed in range(1 if even else seeds):
            results.append(_Watched(Source(seed, even=even), seed).run(rows, between))
            report.run(part="identity", even=even, seed=seed, rows=rows, **results[-1])
        for key in results[0]:
            values = [result[key] for result in results]
            if (not even or key == "ids_kept") and not any(map(math.isnan, values)):
                report.add(f"{key}{mark}", (max if key in _WORST_IS_MOST else min)(values))
    outside = _sae_lens()
    if outside is not None:
        result = _Watched(outside, 0).run(rows, between)
        report.run(part="identity", generator="sae_lens", rows=rows, **result)
        report.add("ids_kept_sae_lens_generator", result["ids_kept"])
    _costs(report, quick=quick)


_WORST_IS_MOST = {
    "ids_kept_index_relabelled", "ids_kept_random", "ids_relabelled", "split_false", "merged_false",
}  # fmt: skip


class Source:
    """Rows of atoms, first without an eighth of them, then of another mix without another eighth."""

    def __init__(self, seed: int, *, even: bool) -> None:
        self.stream = Stream(seed, even=even)
        self.atoms = self.stream.atoms
        self.generator = self.stream.generator
        self.late = torch.randperm(ATOMS, generator=self.generator)[:EIGHTH]
        self.stream.chance = self.stream.chance.clone()
        self.stream.chance[self.late] = 0

    @property
    def chance(self) -> Tensor:
        """Probability of each atom now."""
        return self.stream.chance

    def change(self) -> None:
        """Another mix."""
        dealt = chances()[torch.randperm(ATOMS, generator=self.generator)]
        others = torch.ones(ATOMS, dtype=torch.bool)
        others[self.late] = False
        gone = others.nonzero().squeeze(1)
        dealt[gone[torch.randperm(len(gone), generator=self.generator)[:EIGHTH]]] = 0
        self.stream.chance = dealt

    def draw(self, count: int) -> Tensor:
        """Rows [count, WIDTH]."""
        return self.stream.draw(count)


class _SaeLens(Source):
    """The same of the atoms and the generator of sae_lens.synthetic."""

    def __init__(self) -> None:
        from sae_lens.synthetic import FeatureDictionary

        super().__init__(0, even=False)
        torch.manual_seed(0)
        self.directions = FeatureDictionary(ATOMS, WIDTH, initializer=None, seed=0)
        self.atoms = torch.nn.functional.normalize(self.directions.feature_vectors.detach(), dim=1)

    def draw(self, count: int) -> Tensor:
        from sae_lens.synthetic import ActivationGenerator

        activations = ActivationGenerator(ATOMS, self.chance, std_firing_magnitudes=1.0)
        return self.directions(activations.sample(count)).detach() + NOISE * torch.randn(count, WIDTH)


def _sae_lens() -> Source | None:
    try:
        return _SaeLens()
    except ImportError:
        return None


class _Watched:
    """One learner on one source, and what becomes of the ids of its features."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.time = source, 1_700_000_000_000_000
        config = LearnerConfig(features=FEATURES, k=ACTIVE, batch_rows=BATCH, publish_moved=0.0, seed=seed)
        self.learner = StreamLearner(1, WIDTH, config)

    def run(self, rows: int, between: int) -> dict[str, float]:
        source, learner = self.source, self.learner
        self._learn(rows)
        learner.publish(self.time)
        cosine, index = _nearest(source.atoms, learner.dictionary.W_dec)
        before, found = source.chance.clone(), cosine > FOUND
        source.change()
        chosen = (found & (before > 0) & (source.chance > 0)).nonzero().squeeze(1)
        first, first_ids = index[chosen], learner.identity.ids.clone()
        kept, best, relabelled, random = (torch.ones(len(chosen), dtype=torch.bool) for _ in range(4))
        for _ in range(VERSIONS):
            self._learn(between)
            learner.publish(self.time)
            W_dec, ids = learner.dictionary.W_dec, learner.identity.ids
            kept &= _cosine_of_id(source.atoms[chosen], W_dec, ids, first_ids[first]) > KEPT
            best &= ids[_nearest(source.atoms, W_dec)[1][chosen]] == first_ids[first]
            anew = torch.randperm(FEATURES, generator=source.generator)
            relabelled &= (source.atoms[chosen] * W_dec[anew[first]]).sum(1) > KEPT
            dealt = ids[torch.randperm(FEATURES, generator=source.generator)]
            random &= _cosine_of_id(source.atoms[chosen], W_dec, dealt, first_ids[first]) > KEPT
        named = found & (before > 0)
        return {
            "ids_kept": _share(kept),
            "ids_kept_best": _share(best),
            "ids_kept_index_relabelled": _share(relabelled),
            "ids_kept_random": _share(random),
            "ids_ended": self._ended(first_ids, source.atoms[named], index[named]),
            "ids_born": self._born(),
            "ids_relabelled": self._relabelled(),
            **self._planted(),
        }

    def _learn(self, rows: int) -> None:
        for start in range(0, rows, PIECE):
            count = min(PIECE, rows - start)
            number, zeros = np.arange(count), np.zeros(count)
            self.learner.observe(
                Rows(
                    self.source.draw(count).numpy(),
                    "float32",
                    number // 8,
                    zeros.astype(np.uint16),
                    (number % 8).astype(np.int32),
                    zeros.astype(np.uint8),
                    np.full(count, -1, np.int32),
                    self.time + number,
                )
            )
            self.time += 1_000_000
            self.learner.take_closed()
        self.learner.take_published()

    def _ended(self, ids: Tensor, atoms: Tensor, index: Tensor) -> float:
        """Of features that named ``atoms`` at ``index`` and no longer do."""
        gone = (atoms * self.learner.dictionary.W_dec[index]).sum(1) < GONE
        ended = ~torch.isin(ids[index[gone]], self.learner.identity.ids)
        elsewhere = _cosine_of_id(
            atoms[gone], self.learner.dictionary.W_dec, self.learner.identity.ids, ids[index[gone]]
        )
        return _share(ended | (elsewhere > KEPT))

    def _born(self) -> float:
        cosine, index = _nearest(self.source.atoms[self.source.late], self.learner.dictionary.W_dec)
        return _share(self.learner.identity.born[index[cosine > FOUND]] > 2)  # the first two are of the time before

    def _last(self) -> tuple[Snapshot, Snapshot]:
        """The last version, and what some more rows make of it."""
        before = self.learner.publication.last()
        self._learn(2 * PIECE)
        return before, self.learner.publication.now()

    def _relabelled(self) -> float:
        before, after = self._last()
        order = torch.randperm(FEATURES, generator=self.source.generator)
        plain, anew = match(before, after), match(before, _renumbered(after, order))
        place = np.append(order.numpy(), -1)
        told = [
            {(KINDS[kind], i, j) for kind, i, j in zip(found.kind, found.before, at, strict=True)}
            for found, at in ((plain, plain.after), (anew, place[anew.after]))
        ]
        differing = {j for _, _, j in told[0] ^ told[1]} | set(
            np.flatnonzero(plain.continues[order.numpy()] != anew.continues).tolist()
        )
        return len(differing) / FEATURES

    def _planted(self) -> dict[str, float]:
        whole = self.learner.publication.now()
        codes = whole.codes
        fired = torch.bincount(codes.index[codes.value > 0].long(), minlength=FEATURES)
        wholes = (fired >= 20).nonzero().squeeze(1)
        wholes = wholes[torch.randperm(len(wholes), generator=self.source.generator)[:PLANTED]]
        parts, pairs = _dealt(whole, wholes, self.source.generator)
        told = {}
        for name, kind, found in (
            ("split", SPLIT, match(whole, parts)),
            ("merged", MERGED, match(parts, whole)),
        ):
            of_kind = found.kind == kind
            sides = (found.before, found.after) if kind == SPLIT else (found.after, found.before)
            seen = set(zip(sides[0][of_kind].tolist(), sides[1][of_kind].tolist(), strict=True))
            told[f"{name}_told"] = sum(
                (int(one), int(a)) in seen and (int(one), int(b)) in seen
                for one, (a, b) in zip(wholes, pairs, strict=True)
            ) / len(wholes)
        elsewhere, _ = _dealt(whole, wholes, self.source.generator, anywhere=True)
        return told | {
            "split_false": float((match(whole, elsewhere).kind == SPLIT).mean()),
            "merged_false": float((match(elsewhere, whole).kind == MERGED).mean()),
        }


def _nearest(atoms: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """For each atom the largest cosine with a direction, and that direction's number."""
    found = (atoms @ directions.T).max(1)
    return found.values, found.indices


def _cosine_of_id(atoms: Tensor, W_dec: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
    """Cosine of each atom with the feature whose id is wanted; -1 where there is none."""
    order = ids.argsort()
    place = order[torch.searchsorted(ids[order], wanted).clamp_max(len(ids) - 1)]
    cosine = (atoms * W_dec[place]).sum(1)
    return torch.where(ids[place] == wanted, cosine, torch.full_like(cosine, -1.0))


def _renumbered(snapshot: Snapshot, order: Tensor) -> Snapshot:
    """The same features, that which was ``order[j]`` at j."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    codes = Codes(place[snapshot.codes.index.long()].int(), snapshot.codes.value)
    return Snapshot(snapshot.W_dec[order], codes, snapshot.alive[order])


def _dealt(
    whole: Snapshot, wholes: Tensor, generator: torch.Generator, *, anywhere: bool = False
) -> tuple[Snapshot, Tensor]:
    """``whole`` with the rows of each of ``wholes`` dealt to two features beyond the last; they themselves are new."""
    F, count = len(whole.W_dec), len(wholes)
    pairs = F + torch.arange(2 * count).view(count, 2)
    index, value = whole.codes.index.clone().long(), whole.codes.value
    number = torch.full((F,), -1)
    number[wholes] = torch.arange(count)
    owner = torch.where(value > 0, number[index], -1)
    side = (torch.rand(value.shape, generator=generator) < 0.5).long()
    index[owner >= 0] = pairs[owner[owner >= 0], side[owner >= 0]]
    if anywhere:  # rows of the parts in another order: each part fires as often, and with nothing
        rows = torch.randperm(len(index), generator=generator)
        apart = torch.where(owner >= 0, index, -1)[rows]
        kept = torch.where(owner >= 0, F + 2 * count, index)  # a feature that stands for none
        index, value = (
            torch.cat([kept, apart.clamp_min(0)], 1),
            torch.cat([torch.where(owner >= 0, 0.0, value), torch.where(apart >= 0, value[rows], 0.0)], 1),
        )
    towards = torch.nn.functional.normalize(
        torch.randn(2 * count + 1, whole.W_dec.shape[1], generator=generator), dim=1
    )
    faces = torch.cat([whole.W_dec[wholes].repeat_interleave(2, 0), torch.zeros(1, whole.W_dec.shape[1])])
    W_dec = torch.cat([whole.W_dec, torch.nn.functional.normalize(faces + towards, dim=1)])
    W_dec[wholes] = torch.nn.functional.normalize(torch.randn(count, W_dec.shape[1], generator=generator), dim=1)
    alive = torch.cat([whole.alive, torch.ones(2 * count + 1, dtype=torch.bool)])
    return Snapshot(W_dec, Codes(index.int(), value), alive), pairs


def _share(which: Tensor) -> float:
    return float(which.double().mean())


# -- what it costs ----------------------------------------------------------------------------------------------------


def _costs(report: Report, *, quick: bool) -> None:
    for features in SIZES[:1] if quick else SIZES:
        code = f"import features_identity; features_identity.child({features})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        for key, value in json.loads(done.stdout.splitlines()[-1]).items():
            report.add(f"{key}_{features}", value)


def child(features: int) -> None:
    """Measure at F = ``features``, one thread, and print the figures as JSON."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    d, k, probe = 576, 32, 2048
    generator = torch.Generator().manual_seed(0)
    learner = StreamLearner(1, d, LearnerConfig(features=features, k=k, publish_moved=0.0))
    number = np.arange(4096)
    x = torch.randn(4096, d, generator=generator).numpy()
    zeros = np.zeros(4096)
    learner.observe(
        Rows(x, "float32", number, zeros.astype(np.uint16), zeros.astype(np.int32), zeros.astype(np.uint8),
             np.full(4096, -1, np.int32), 1_700_000_000_000_000 + number)
    )  # fmt: skip
    begun = time.process_time()
    learner.on_version = lambda _: None  # with its content packed
    learner.publish(1_700_000_001_000_000)
    figures = {"publish_seconds": time.process_time() - begun}
    W_dec = torch.nn.functional.normalize(torch.randn(features, d, generator=generator), dim=1)
    index = torch.stack([torch.randperm(features, generator=generator)[:k] for _ in range(probe)]).int()
    value = torch.rand(probe, k, generator=generator) + 0.1
    alive = torch.ones(features, dtype=torch.bool)
    moved = torch.nn.functional.normalize(W_dec + 0.3 * torch.randn(features, d, generator=generator) / d**0.5, dim=1)
    # a tenth has turned into something else, and has to be searched for
    moved[: features // 10] = torch.nn.functional.normalize(torch.randn(features // 10, d, generator=generator), dim=1)
    before, after = Snapshot(W_dec.half(), Codes(index, value), alive), Snapshot(moved, Codes(index, value), alive)
    resident = _mib("VmRSS") if Path("/proc/self/clear_refs").exists() else None
    if resident is not None:
        _forget_peak()
    begun = time.process_time()
    match(before, after)
    figures["match_seconds"] = time.process_time() - begun
    if resident is not None:
        figures["match_mib"] = _mib("VmHWM") - resident
    if features == SIZES[0]:
        after = _renumbered(after, torch.randperm(features, generator=generator))
        begun = time.process_time()
        match(before, after)
        figures["match_seconds_relabelled"] = time.process_time() - begun
    print(json.dumps(figures))
