"""Novelty: does one fused score tell what is new, are its p-values uniform, and what do shares and clusters say.

    python benchmarks/drift.py --only novelty

Figures named by what is new are areas under the curve, of what is new against units like the reference's that were not
used. There is one score with its default weights throughout. ``..._RIVAL`` is the same of a rival by itself:
``mahalanobis`` (shrunk), ``knn10``, ``knn10_cosine`` (centred), ``knn10_whitened``, ``residual`` (outside of the
directions of 90% of the variance), ``fvu``, and for a classifier ``msp`` and ``energy``.

``novelty_lm_request``          requests of 48 tokens to SmolLM2, layer 15: the reference and what is usual are of the
                                standard library (code), new are the first two of each topic of the reference
                                documentation (prose); mean rows, and the mean FVU of a dictionary (F = 4608, k = 32)
                                that learnt other requests of code; mean of 3 splits
``..._no_fvu``                  without the dictionary; ``..._token_fvu``: rival, the FVU of one token
``novelty_lm_request_all``      all requests of the documentation are new, which quotes much code
``novelty_lm_request_files``    as novelty_lm_request, where usual requests are of files that the reference has not
``novelty_digits_TASK``         last hidden layer of a classifier of the digits 0 to 7, mean of 5: ``new_classes`` (8
                                and 9), ``noise`` (sigma 0.3), ``inverted``, ``contrast`` (times 0.4); needs
                                scikit-learn
``..._with_head``               the same with the classifier's head and labels given
``novelty_digits_worst``        the least of the four
``novelty_topic``               sentences, mean rows of SmolLM2: each of the topics left out is new in turn, mean;
                                ``novelty_topic_worst``: the least; needs HYDROPHONE_BENCH_STATEMENTS
``novelty_ks_share``            share of 200 splits in which the p-values of 200 units not used are told from uniform at
                                0.01 (Kolmogorov & Smirnov), requests of code; ``_gauss``: of a power-law Gaussian;
                                ``_in_sample``: rival, ranks of Mahalanobis distances among the units it was fitted to
``novelty_reject_share``        share of all these units with p <= 0.01; ``..._gauss``, ``..._in_sample``
``novelty_share_run_length``    of the share of novel units: measured over promised run length, references of 200;
                                ``..._known``: rival, the same bets with the share taken to be 0.01
``novelty_share_delay_S``       median units until a share of 0.01 that became S is told, promised run length 20,000
``novelty_clusters_of_noise``   clusters found per buffer of 512 units of noise
``novelty_clusters_purity``     share of prose in the largest cluster of novel requests of code and prose;
                                ``novelty_clusters_found``: share of the novel prose that is in it
``novelty_units_per_second``    of processor time, d = 576; ``novelty_fit_seconds``: to make the scorer
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drift_novelty_data as data
import torch
from torch import Tensor

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydrophone-bench"
F, K, EPOCHS = 4608, 32, 4
DICTIONARY, REFERENCE = 0.45, 0.4


def run(report: Any, *, quick: bool, folder: Path = CACHE) -> None:
    """All figures."""
    _language_model(report, quick=quick, folder=folder)
    _digits(report, seeds=range(100, 101 if quick else 105))
    _topics(report, quick=quick)
    _gaussian(report, splits=10 if quick else 200)
    _share(report, quick=quick)
    _noise(report, times=2 if quick else 40)


def auroc(usual: Tensor, new: Tensor) -> float:
    """Probability that a new one scores higher."""
    ordered, new = usual.double().sort().values, new.double().contiguous()
    below = torch.searchsorted(ordered, new) + torch.searchsorted(ordered, new, right=True)
    return float(below.double().mean()) / 2 / len(usual)


def _scorer(reference: Tensor, seed: int, **known: Any) -> Any:
    from hydrophoned.detect.novelty import NoveltyScorer

    return NoveltyScorer(reference, generator=torch.Generator().manual_seed(seed), **known)


# -- rivals -----------------------------------------------------------------------------------------------------------


def _rivals(reference: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Scores by themselves, fitted to ``reference`` [n, d]."""
    from hydrophoned.detect.covariance import Whitening

    whitening, mean = Whitening.fit(reference), reference.mean(0)
    white = whitening.apply(reference)
    _, s, v = torch.linalg.svd((reference - mean).double(), full_matrices=False)
    first = v[: int((s.square().cumsum(0) < 0.9 * s.square().sum()).sum()) + 1].float()

    def tenth(x: Tensor, among: Tensor) -> Tensor:
        return torch.cdist(x, among).topk(10, largest=False).values[:, -1]

    unit = torch.nn.functional.normalize
    return {
        "mahalanobis": lambda x: whitening.apply(x).norm(dim=1),
        "knn10": lambda x: tenth(x, reference),
        "knn10_cosine": lambda x: tenth(unit(x - mean), unit(reference - mean)),
        "knn10_whitened": lambda x: tenth(whitening.apply(x), white),
        "residual": lambda x: (x - mean - (x - mean) @ first.T @ first).norm(dim=1),
    }


class _Figures:
    """Areas by key, of which the means are reported."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, key: str, usual: Tensor, new: Tensor) -> None:
        self.values.setdefault(key, []).append(auroc(usual, new))

    def means(self) -> dict[str, float]:
        return {key: sum(values) / len(values) for key, values in self.values.items()}

    def report(self, report: Any) -> None:
        for key, value in self.means().items():
            report.add(key, value)


# -- requests of a language model -------------------------------------------------------------------------------------


def _language_model(report: Any, *, quick: bool, folder: Path) -> None:
    import numpy as np

    requests = data.requests(folder, quick=quick, say=report.say)
    kept = torch.from_numpy(requests.kept())
    unit = torch.stack(
        [
            torch.from_numpy(rows.astype(np.float32))[good].mean(0)
            for rows, good in zip(requests.rows, kept, strict=True)
        ]
    )
    code = torch.from_numpy(requests.code)
    prose = ~code & (torch.from_numpy(requests.place) < data.OF_TOPIC)
    report.run(requests=len(unit), code=int(code.sum()), new=int(prose.sum()), all_new=int((~code).sum()))
    figures = _Figures()
    for seed in range(1 if quick else 3):
        drawn = torch.rand(len(unit), generator=torch.Generator().manual_seed(seed))
        of_dictionary = code & (drawn < DICTIONARY)
        reference = code & (drawn >= DICTIONARY) & (drawn < DICTIONARY + REFERENCE)
        usual = code & (drawn >= DICTIONARY + REFERENCE)
        token_fvu = _token_fvu(requests, kept, of_dictionary, epochs=1 if quick else EPOCHS)
        fvu = (token_fvu * kept).sum(1) / kept.sum(1)
        parts = {"": prose, "_all": ~code} if seed else {"": prose, "_all": ~code, "_files": prose}
        for name, new in parts.items():
            chosen = _of_other_files(requests, reference, usual) if name == "_files" else (reference, usual)
            _requests_told(figures, f"novelty_lm_request{name}", unit, fvu, (*chosen, new), rivals=name == "")
        picked = [(token_fvu[which][kept[which]]) for which in (usual, prose)]
        figures.add("novelty_lm_request_token_fvu", *picked)
        if not seed:
            _clusters(report, unit, fvu, (reference, usual, ~code))
            _cost(report, unit, fvu, reference)
    figures.report(report)
    _uniform(report, unit[code & ~of_dictionary], fvu[code & ~of_dictionary], "", splits=10 if quick else 200)


def _of_other_files(requests: Any, reference: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
    """Reference and usual requests, of files apart."""
    document = torch.from_numpy(requests.document).long()
    count = int(document.max()) + 1
    apart = torch.rand(count, generator=torch.Generator().manual_seed(0)) < 0.3
    return reference & ~apart[document], (reference | usual) & apart[document]


def _requests_told(figures: _Figures, key: str, unit: Tensor, fvu: Tensor, which: Any, *, rivals: bool) -> None:
    reference, usual, new = which
    scorer = _scorer(unit[reference], 0, fvu=fvu[reference])
    figures.add(key, *(scorer.update(unit[one], fvu[one]).score for one in (usual, new)))
    if not rivals:
        return
    plain = _scorer(unit[reference], 0)
    figures.add(f"{key}_no_fvu", *(plain.update(unit[one]).score for one in (usual, new)))
    for name, score in _rivals(unit[reference]).items():
        figures.add(f"{key}_{name}", score(unit[usual]), score(unit[new]))
    figures.add(f"{key}_fvu", fvu[usual], fvu[new])


def _token_fvu(requests: Any, kept: Tensor, chosen: Tensor, *, epochs: int) -> Tensor:
    """FVU [n, 48] of all tokens, by a dictionary that learnt those of the ``chosen`` requests."""
    import numpy as np
    from hydrophoned.learn.config import LearnerConfig
    from hydrophoned.learn.offline import OfflineTrainer

    places = chosen.nonzero().squeeze(1).numpy()
    rows = np.asarray(requests.rows[places])[kept[chosen].numpy()]
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(epochs)])
    trainer = OfflineTrainer(rows.shape[1], LearnerConfig(features=F, k=K))
    starts = range(0, len(order), 2048)
    batches = ((start / 2048, rows[np.sort(order[start : start + 2048])].astype(np.float32)) for start in starts)
    for _ in trainer.train(batches):
        pass
    found = torch.zeros(kept.shape)
    for start in range(0, len(found), 64):
        x = torch.from_numpy(np.asarray(requests.rows[start : start + 64], dtype=np.float32))
        y = trainer.normaliser.apply(x.flatten(0, 1))
        error = (y - trainer.dictionary.decode(trainer.dictionary.encode(y))).square().sum(1)
        found[start : start + 64] = (error / y.square().sum(1)).reshape(-1, kept.shape[1])
    return found


def _clusters(report: Any, unit: Tensor, fvu: Tensor, which: Any) -> None:
    from hydrophoned.detect.clusters import MOST_UNITS, clusters

    reference, usual, new = which
    scorer = _scorer(unit[reference], 0, fvu=fvu[reference])
    watched = usual | new
    novel = watched.nonzero().squeeze(1)[scorer.update(unit[watched], fvu[watched]).p <= 0.05]
    novel = novel[torch.randperm(len(novel), generator=torch.Generator().manual_seed(0))][:MOST_UNITS]
    x = unit[novel]
    found = clusters(x, scorer.whiten(x), generator=torch.Generator().manual_seed(0))
    report.run(novel=len(novel), of_prose=int(new[novel].sum()), clusters=len(found))
    in_largest = new[novel[found[0].members]] if found else torch.zeros(0, dtype=torch.bool)
    report.add("novelty_clusters_purity", float(in_largest.double().mean()) if found else 0.0)
    report.add("novelty_clusters_found", float(in_largest.sum() / new[novel].sum()))


def _cost(report: Any, unit: Tensor, fvu: Tensor, reference: Tensor) -> None:
    began = time.process_time()
    scorer = _scorer(unit[reference], 0, fvu=fvu[reference])
    report.add("novelty_fit_seconds", time.process_time() - began)
    x, of_x = unit[:1024], fvu[:1024]
    began, times = time.process_time(), 8
    for _ in range(times):
        scorer.update(x, of_x)
    report.add("novelty_units_per_second", times * len(x) / (time.process_time() - began))


# -- p-values ---------------------------------------------------------------------------------------------------------


def _gaussian(report: Any, *, splits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 128, generator=generator) * torch.arange(1, 129) ** -0.5
    _uniform(report, x, None, "_gauss", splits=splits, reference=1000)


def _uniform(
    report: Any, x: Tensor, fvu: Tensor | None, name: str, *, splits: int, reference: int | None = None
) -> None:
    """p-values of 200 units, of references of all others of x [n, d] or of ``reference`` of them."""
    from hydrophoned.detect.novelty_parts import NoveltyParts, Reference

    used = reference or len(x) - 200
    told, small = {"": 0, "_in_sample": 0}, {"": 0.0, "_in_sample": 0.0}
    for seed in range(splits):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        known, held = order[:used], order[used : used + 200]
        known_fvu, held_fvu = (None if fvu is None else fvu[which] for which in (known, held))
        scorer = _scorer(x[known], seed, fvu=known_fvu)
        parts = NoveltyParts.of(Reference(x[known], None, known_fvu), None)
        mahalanobis = [parts.scores(x[w], f)[:, 0] for w, f in ((known, known_fvu), (held, held_fvu))]
        ordered = mahalanobis[0].sort().values
        ranks = (1 + used - torch.searchsorted(ordered, mahalanobis[1].contiguous())).double() / (used + 1)
        for rival, p in (("", scorer.update(x[held], held_fvu).p), ("_in_sample", ranks)):
            told[rival] += _ks_p(p) < 0.01
            small[rival] += float((p <= 0.01).double().mean())
    for rival, count in told.items():
        report.add(f"novelty_ks_share{name}{rival}", count / splits)
        report.add(f"novelty_reject_share{name}{rival}", small[rival] / splits)


def _ks_p(p: Tensor) -> float:
    """Of Kolmogorov and Smirnov's test that p is uniform, by the limiting distribution (Stephens 1970)."""
    ordered, n = p.double().sort().values, len(p)
    step = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum(step - ordered, ordered - step + 1 / n).max())
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101)))


# -- a classifier, and sentences --------------------------------------------------------------------------------------


def _digits(report: Any, *, seeds: range) -> None:
    from hydrophoned.detect.novelty_head import Head

    figures = _Figures()
    for seed, of in zip(seeds, data.digits(seeds), strict=False):
        plain = _scorer(of.reference, seed)
        full = _scorer(of.reference, seed, labels=of.labels, head=Head(of.W, of.b))
        rivals: dict[str, Callable[[Tensor], Tensor]] = {
            f"_{name}": score for name, score in _rivals(of.reference).items()
        }
        rivals["_msp"] = lambda x, of=of: -(x @ of.W.T + of.b).softmax(1).amax(1)
        rivals["_energy"] = lambda x, of=of: -(x @ of.W.T + of.b).logsumexp(1)
        rivals[""] = lambda x, plain=plain: plain.update(x).score
        rivals["_with_head"] = lambda x, full=full: full.update(x).score
        for name, score in rivals.items():
            usual = score(of.usual)
            for task, new in of.new.items():
                figures.add(f"novelty_digits_{task}{name}", usual, score(new))
    if not figures.values:
        report.say("digits: left out, scikit-learn is not installed")
        return
    figures.report(report)
    tasks = ("new_classes", "noise", "inverted", "contrast")
    for name in ("", "_with_head", "_knn10", "_knn10_cosine", "_mahalanobis", "_energy"):
        report.add(
            f"novelty_digits_worst{name}", min(figures.means()[f"novelty_digits_{task}{name}"] for task in tasks)
        )


def _topics(report: Any, *, quick: bool) -> None:
    import numpy as np

    sentences = data.sentences()
    if sentences is None:
        report.say(f"topics: left out, {data.STATEMENTS} names no file")
        return
    figures = _Figures()
    for topic in np.unique(sentences.topic)[: 2 if quick else None]:
        rng = np.random.default_rng(0)
        known = np.flatnonzero(sentences.topic != topic)
        groups = rng.permutation(np.unique(sentences.group[known]))
        in_reference = np.isin(sentences.group[known], groups[: len(groups) * 2 // 3])
        reference, usual = (sentences.unit[torch.from_numpy(known[which])] for which in (in_reference, ~in_reference))
        new = sentences.unit[torch.from_numpy(np.flatnonzero(sentences.topic == topic))]
        reference = reference[torch.from_numpy(rng.permutation(len(reference))[:1500])]
        scorer = _scorer(reference, 0)
        scores: dict[str, Callable[[Tensor], Tensor]] = {"": lambda x, scorer=scorer: scorer.update(x).score}
        for name, score in (scores | {f"_{name}": score for name, score in _rivals(reference).items()}).items():
            figures.add(f"novelty_topic{name}", score(usual), score(new))
    figures.report(report)
    for name in ("", "_mahalanobis", "_knn10", "_knn10_cosine"):
        report.add(f"novelty_topic_worst{name}", min(figures.values[f"novelty_topic{name}"]))


# -- shares and clusters ----------------------------------------------------------------------------------------------


def _share(report: Any, *, quick: bool) -> None:
    from hydrophoned.detect.novel_share import NovelShare

    level = 0.01
    streams, watched, promised = (10 if quick else 60), 40_000, 2000.0
    alarms, known = 0, 0
    for seed in range(streams):
        p = _p_values(200, watched, seed)
        alarms += len(NovelShare(_ranks(200), run_length=promised, level=level).update(p[:, None]))
        known += _alarms_of_known(p <= level, level, promised)
    report.add("novelty_share_run_length", streams * watched / max(alarms, 1) / promised)
    report.add("novelty_share_run_length_known", streams * watched / max(known, 1) / promised)
    for share in (0.03, 0.1, 0.3):
        delays = []
        for seed in range(10 if quick else 40):
            p = _p_values(1000, 6000, seed, share=(share - level) / (1 - level), since=1000)
            found = NovelShare(_ranks(1000), run_length=20_000.0, level=level).update(p[:, None])
            delays.append(next((one.unit - 999 for one in found if one.unit >= 1000), 5000))
        report.add(f"novelty_share_delay_{share:g}", float(sorted(delays)[len(delays) // 2]))


def _ranks(reference: int) -> Tensor:
    """p-values of the units of a reference, [n, 1]."""
    return (torch.arange(1, reference + 1, dtype=torch.float64) / (reference + 1))[:, None]


def _p_values(reference: int, units: int, seed: int, *, share: float = 0.0, since: int = 0) -> Tensor:
    """Ranks among a reference's scores of scores from the same distribution, of which ``share`` are above all."""
    generator = torch.Generator().manual_seed(seed)
    ordered = torch.rand(reference, generator=generator, dtype=torch.float64).sort().values
    scores = torch.rand(units, generator=generator, dtype=torch.float64)
    above = torch.rand(units, generator=generator) < share
    above[:since] = False
    return (1 + reference - torch.searchsorted(ordered, scores.masked_fill(above, 2.0))).double() / (reference + 1)


def _alarms_of_known(novel: Tensor, level: float, promised: float) -> int:
    from hydrophoned.detect.novel_share import ODDS

    restarted, alarms = [0.0] * len(ODDS), 0
    for one in novel.tolist():
        restarted = [
            (value + 1) * (odds if one else 1.0) / (1 - level + odds * level)
            for value, odds in zip(restarted, ODDS, strict=True)
        ]
        if one and sum(restarted) / len(ODDS) >= promised:
            restarted, alarms = [0.0] * len(ODDS), alarms + 1
    return alarms


def _noise(report: Any, *, times: int) -> None:
    from hydrophoned.detect.clusters import MOST_UNITS, clusters

    found = 0
    for seed in range(times):
        generator = torch.Generator().manual_seed(seed)
        width = (4, 32, 128, 576)[seed % 4]
        x = torch.randn(MOST_UNITS, width, generator=generator)
        if seed % 8 >= 4:
            x = x**3 / torch.rand(MOST_UNITS, 1, generator=generator).clamp_min(0.02)
        found += len(clusters(x, x, generator=generator))
    report.add("novelty_clusters_of_noise", found / times)
