"""Questions about features: does contrast find nothing in nothing and what is planted, and do sparse probes.

    python benchmarks/features.py --only questions

Rows are those of the dictionary benchmark, model.layers.15 of SmolLM2 over reference documentation (prose) and the
standard library (code); the unit is the document. A dictionary (F = 1536, k = 32) learns 65,536 of the rows and codes
all of them. Planted features are added to the codes: they fire at random, in each document at a rate of its own around
the set's.

``contrast_null_share``         share of 200 random halves of the documents between which any feature has q < 0.05
``contrast_null_share_fifth``   the same of a random fifth against the rest
``..._bh``                      the same p-values with Benjamini & Hochberg's q
``..._rank_normal``, ``..._welch``  rivals with that q: Mann-Whitney's and Welch's tests, by the normal distribution
``..._rows``                    the same with rows as units: what is told of a difference that is none
``contrast_planted_first``      share of 10 features planted in one of two random halves that take the first 10 places
``contrast_planted_found``      share of them with q < 0.05; ``..._others_found``: other features found, per split
``..._by_difference``, ``..._rows``, ``..._welch``  first places by difference of rates, and by the rivals
``contrast_code_confirmed``     prose against code on half of the documents: of the first 50 features, share that have
                                the same sign and q < 0.05 among them on the other half; ``_chance``: of 50 at random
``contrast_code_planted_place`` place of a feature planted at 8% of the rows of code and 0.8% of prose
``probe_null_auroc``            mean held-out AUROC of 8 features for permuted labels of documents, 100 times
``probe_null_auroc_error``      its standard error; ``probe_null_covered``: share of the intervals that hold 1/2
``probe_null_f1_over_chance``   mean of held-out F1 less that of as many calls at random; ``..._error``
``probe_null_auroc_chosen_outside``  8 features chosen once, on all documents, before the folds
``probe_planted_recovered``     labels of rows that hold where one of 4 features fires, but for a fifth of these rows,
                                and on 2% of the others: share of the 4 that are chosen, mean of 20 labels, 32,768 rows
``probe_planted_recovered_documents``  labels of documents drawn from a logistic model of 4 features' means
``..._mean_difference``         the same of the 4 with the largest difference of standardised means
``probe_code_auroc_K``          prose or code, of K features; ``probe_code_auroc_neuron``: of the best raw element
"""

import math
import os
import random
from pathlib import Path
from typing import Any

LAYER, F, K = 15, 1536, 32
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydrophone-bench"
PLANTED = 10
Q = 0.05


def run(report: Any, *, quick: bool, folder: Path = CACHE) -> None:
    """All figures."""
    import numpy as np

    codes, is_code, means, rows = _documents(report, quick=quick, folder=folder)
    rng = np.random.default_rng(0)
    _nothing(report, codes, rng, splits=20 if quick else 200)
    _planted(report, codes, rng, splits=4 if quick else 20)
    _prose_against_code(report, codes, is_code, rng)
    _probes_of_nothing(report, codes, is_code, rng, times=10 if quick else 100)
    _probes_of_planted(report, codes, rng, times=4 if quick else 20)
    _probes_of_planted_rows(report, rows, rng, times=4 if quick else 20)
    _probes_of_code(report, codes, is_code, means)


# -- rows -------------------------------------------------------------------------------------------------------------


def _documents(report: Any, *, quick: bool, folder: Path) -> tuple[Any, Any, Any, Any]:
    """Traffic of the documents, whether each is code: bool [R], the mean of their raw rows [R, d], and coded rows."""
    import dictionary_data
    import numpy as np
    import torch
    from hydrophone.demo.corpus import builtin_documents
    from hydrophoned.analyse.traffic import Traffic
    from hydrophoned.learn.code_sample import CodedRows
    from hydrophoned.learn.config import LearnerConfig
    from hydrophoned.learn.offline import OfflineTrainer

    count = 45_056 if quick else 212_992  # what the dictionary benchmark captures
    raw, document = dictionary_data.cached(LAYER, "builtin", count, folder, report.say)
    kinds = builtin_documents()
    random.Random(0).shuffle(kinds)  # noqa: S311  the order that cached numbers them in
    trainer = OfflineTrainer(raw.shape[1], LearnerConfig(features=F, k=K))
    order = np.random.default_rng(0).permutation(len(raw))[: 16_384 if quick else 65_536]
    batches = (
        (start / 2048, np.asarray(raw[np.sort(order[start : start + 2048])], dtype=np.float32))
        for start in range(0, len(order), 2048)
    )
    for progress in trainer.train(batches):
        last = progress
    most = trainer.sinks.factor * (trainer.sinks.median or math.inf)
    index, value, kept = [], [], []
    for start in range(0, len(raw), 4096):
        x = torch.from_numpy(np.asarray(raw[start : start + 4096], dtype=np.float32))
        kept.append((x.norm(dim=1) <= most).numpy())
        found = trainer.dictionary.encode(trainer.normaliser.apply(x[kept[-1]]))
        index.append(found.index.numpy())
        value.append(found.value.numpy())
    own = document[np.concatenate(kept)].astype(np.int64)
    nothing = np.zeros(len(own), dtype=np.int32)
    coded = CodedRows(np.concatenate(index), np.concatenate(value), own, *[nothing] * 4, own)
    traffic, numbers = Traffic.of_codes(coded, F)
    means = np.zeros((len(numbers), raw.shape[1]), dtype=np.float32)
    for place, number in enumerate(numbers):
        means[place] = np.asarray(raw[document == number], dtype=np.float32)[1:].mean(0)
    is_code = np.array([kinds[number].kind == "code" for number in numbers])
    report.run(
        documents=traffic.requests,
        code=int(is_code.sum()),
        rows=int(traffic.rows.sum()),
        median_rows=float(np.median(traffic.rows)),
        fvu=last.fvu,
    )
    return traffic, is_code, means, coded


# -- contrast ---------------------------------------------------------------------------------------------------------


def _nothing(report: Any, traffic: Any, rng: Any, *, splits: int) -> None:
    from hydrophoned.analyse.contrast import contrast

    for name, share in (("", 0.5), ("_fifth", 0.2)):
        found: dict[str, int] = {}
        for _ in range(splits):
            in_a = _part(traffic.requests, share, rng)
            result = contrast(traffic, in_a)
            told = {"": result.q, "_bh": _benjamini_hochberg(result.p)}
            told |= {f"_{rival}": _benjamini_hochberg(p) for rival, p in _rivals(traffic, in_a).items()}
            for rival, q in told.items():
                found[rival] = found.get(rival, 0) + bool((q < Q).any())
        for rival, count in found.items():
            report.add(f"contrast_null_share{name}{rival}", count / splits)


def _planted(report: Any, traffic: Any, rng: Any, *, splits: int) -> None:
    import numpy as np
    from hydrophoned.analyse.contrast import contrast

    figures: dict[str, list[float]] = {}
    for _ in range(splits):
        in_a = _part(traffic.requests, 0.5, rng)
        rates = np.exp(rng.uniform(np.log(0.002), np.log(0.02), PLANTED))
        higher = rng.random(PLANTED) < 0.5
        both = traffic
        for number in range(PLANTED):
            in_higher = in_a == higher[number]
            both = _with_feature(both, rates[number] * np.where(in_higher, 2.0, 1.0), rng)
        planted = np.arange(traffic.features, traffic.features + PLANTED)
        result = contrast(both, in_a)
        is_planted = np.isin(result.feature, planted)
        first = {"planted_first": result.p}
        first |= {f"planted_first_{rival}": p for rival, p in _rivals(both, in_a).items() if rival != "rank_normal"}
        tested = np.sort(result.feature)
        difference = np.abs(result.difference)[np.argsort(result.feature)]
        first["planted_first_by_difference"] = -difference
        for name, score in first.items():
            features = result.feature if name == "planted_first" else tested
            order = features[np.lexsort((features, score))][:PLANTED]
            figures.setdefault(name, []).append(float(np.isin(order, planted).mean()))
        figures.setdefault("planted_found", []).append(float((result.q[is_planted] < Q).mean()))
        figures.setdefault("planted_others_found", []).append(float((result.q[~is_planted] < Q).sum()))
    for name, values in figures.items():
        report.add(f"contrast_{name}", float(np.mean(values)))


def _prose_against_code(report: Any, traffic: Any, is_code: Any, rng: Any) -> None:
    import numpy as np
    from hydrophoned.analyse.contrast import contrast

    both = _with_feature(traffic, np.where(is_code, 0.08, 0.008), rng)
    result = contrast(both, is_code)
    report.add("contrast_code_planted_place", float(np.flatnonzero(result.feature == traffic.features)[0] + 1))
    half = _part(traffic.requests, 0.5, rng)
    one, other = (contrast(traffic.take(part), is_code[part]) for part in (half, ~half))
    again = dict(zip(other.feature.tolist(), zip(other.effect, other.p, strict=True), strict=True))
    for name, order in (("", np.arange(50)), ("_chance", rng.permutation(len(one.feature))[:50])):
        pairs = [(one.effect[at], *again.get(int(one.feature[at]), (0.0, 1.0))) for at in order]
        confirmed = [first * second > 0 and p * 50 < Q for first, second, p in pairs]
        report.add(f"contrast_code_confirmed{name}", float(np.mean(confirmed)))


def _with_feature(traffic: Any, rate: Any, rng: Any) -> Any:
    """``traffic`` with one feature more, that fires at about ``rate`` [R], in each document at a rate of its own."""
    import numpy as np

    own = np.minimum(rate * rng.gamma(4.0, 1 / 4.0, len(rate)), 1.0)
    fired = rng.binomial(traffic.rows, own)
    (request,) = fired.nonzero()
    count = fired[request].astype(np.float64)
    return traffic._replace(
        features=traffic.features + 1,
        request=np.concatenate((traffic.request, request)),
        feature=np.concatenate((traffic.feature, np.full(len(request), traffic.features))),
        fired=np.concatenate((traffic.fired, count)),
        sum=np.concatenate((traffic.sum, count)),
    )


def _rivals(traffic: Any, in_a: Any) -> dict[str, Any]:
    """P-values of other tests of the features that contrast tests, in order of feature."""
    import numpy as np

    (tested,) = (traffic.per_feature() >= 5).nonzero()
    dense = np.zeros((traffic.requests, traffic.features))
    dense[traffic.request, traffic.feature] = traffic.fired / traffic.rows[traffic.request]
    x = dense[:, tested]
    a, b = x[in_a], x[~in_a]
    n, m = len(a), len(b)
    welch = (a.mean(0) - b.mean(0)) / np.sqrt(np.maximum(a.var(0, ddof=1) / n + b.var(0, ddof=1) / m, 1e-300))
    order = np.argsort(x, axis=0, kind="stable")
    rank = np.empty_like(x)
    for column in range(x.shape[1]):
        ordered = x[order[:, column], column]
        low, high = np.searchsorted(ordered, ordered), np.searchsorted(ordered, ordered, side="right")
        rank[order[:, column], column] = (low + high + 1) / 2
    spread = n * m / (n + m) * rank.var(0, ddof=1)
    ranked = (rank[in_a].sum(0) - n * (n + m + 1) / 2) / np.sqrt(np.maximum(spread, 1e-300))
    inside = in_a[traffic.request]
    fired = [traffic.per_feature(traffic.fired * side)[tested] for side in (inside, ~inside)]
    rows = [traffic.rows[side].sum() for side in (in_a, ~in_a)]
    share = (fired[0] + fired[1]) / sum(rows)
    by_rows = (fired[0] / rows[0] - fired[1] / rows[1]) / np.sqrt(share * (1 - share) * (1 / rows[0] + 1 / rows[1]))
    scores = {"rank_normal": ranked, "welch": welch, "rows": by_rows}
    return {name: np.array([math.erfc(abs(z) / math.sqrt(2)) for z in score]) for name, score in scores.items()}


def _benjamini_hochberg(p: Any) -> Any:
    import numpy as np

    order = np.argsort(p)
    stepped = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(stepped[::-1])[::-1]
    return q


def _part(count: int, share: float, rng: Any) -> Any:
    import numpy as np

    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: round(share * count)]] = True
    return chosen


# -- sparse probes ----------------------------------------------------------------------------------------------------


def _probes_of_nothing(report: Any, traffic: Any, label: Any, rng: Any, *, times: int) -> None:
    import numpy as np
    from hydrophoned.analyse.sparse_probe import sparse_probes
    from hydrophoned.analyse.traffic import Measure

    columns, units = traffic.columns(Measure.MEAN), np.arange(traffic.requests)
    found, outside = [], []
    for seed in range(times):
        permuted = rng.permutation(label)
        (probe,) = sparse_probes(columns, permuted, units, sizes=(8,), seed=seed)
        found.append(probe.held)
        kept = np.isin(columns.feature, probe.features)  # chosen on all documents
        few = columns._replace(unit=columns.unit[kept], feature=columns.feature[kept], value=columns.value[kept])
        (cheat,) = sparse_probes(few, permuted, units, sizes=(8,), seed=seed)
        outside.append(cheat.held.auroc)
    auroc = np.array([held.auroc for held in found])
    over = np.array([held.f1 - held.f1_chance for held in found])
    report.add("probe_null_auroc", float(auroc.mean()))
    report.add("probe_null_auroc_error", float(auroc.std(ddof=1) / math.sqrt(times)))
    report.add("probe_null_covered", float(np.mean([held.auroc_low <= 0.5 <= held.auroc_high for held in found])))
    report.add("probe_null_f1_over_chance", float(over.mean()))
    report.add("probe_null_f1_over_chance_error", float(over.std(ddof=1) / math.sqrt(times)))
    report.add("probe_null_auroc_chosen_outside", float(np.mean(outside)))


def _probes_of_planted(report: Any, traffic: Any, rng: Any, *, times: int) -> None:
    import numpy as np
    from hydrophoned.analyse.sparse_probe import sparse_probes
    from hydrophoned.analyse.traffic import Measure

    columns = traffic.columns(Measure.MEAN)
    dense = columns.dense(np.arange(traffic.features))
    often = np.flatnonzero((dense > 0).mean(0) > 0.2)
    standard = (dense - dense.mean(0)) / np.maximum(dense.std(0), 1e-9)
    ours, simple = [], []
    for seed in range(times):
        planted = rng.choice(often, 4, replace=False)
        logit = standard[:, planted] @ (2.0 * rng.choice((-1.0, 1.0), 4))
        label = logit + rng.logistic(size=len(logit)) > np.median(logit)
        (probe,) = sparse_probes(columns, label, np.arange(len(label)), sizes=(4,), seed=seed)
        ours.append(len(set(probe.features.tolist()) & set(planted.tolist())) / 4)
        difference = np.abs(standard[label].mean(0) - standard[~label].mean(0))
        simple.append(np.isin(np.argsort(-difference)[:4], planted).mean())
    report.add("probe_planted_recovered_documents", float(np.mean(ours)))
    report.add("probe_planted_recovered_documents_mean_difference", float(np.mean(simple)))


def _probes_of_planted_rows(report: Any, coded: Any, rng: Any, *, times: int) -> None:
    import numpy as np
    from hydrophoned.analyse.columns import Columns
    from hydrophoned.analyse.sparse_probe import sparse_probes

    some = coded.take(rng.permutation(coded.rows)[:32_768])
    columns = Columns.of_codes(some.index, some.value, F)
    _, _, fired = columns.sums(np.ones(some.rows, dtype=bool))
    (often,) = ((fired > 0.005 * some.rows) & (fired < 0.1 * some.rows)).nonzero()
    ours, simple = [], []
    for seed in range(times):
        planted = rng.choice(often, 4, replace=False)
        fires = (columns.dense(planted) > 0).any(1)
        label = rng.random(some.rows) < np.where(fires, 0.8, 0.02)
        (probe,) = sparse_probes(columns, label, some.request, sizes=(4,), seed=seed)
        ours.append(np.isin(probe.features, planted).mean())
        total, squares, _ = columns.sums(np.ones(some.rows, dtype=bool))
        inside, _, _ = columns.sums(label)
        deviation = np.sqrt(np.maximum(squares / some.rows - (total / some.rows) ** 2, 1e-12))
        difference = np.abs(inside / label.sum() - (total - inside) / (~label).sum()) / deviation
        simple.append(np.isin(np.argsort(-difference)[:4], planted).mean())
    report.add("probe_planted_recovered", float(np.mean(ours)))
    report.add("probe_planted_recovered_mean_difference", float(np.mean(simple)))


def _probes_of_code(report: Any, traffic: Any, is_code: Any, means: Any) -> None:
    import numpy as np
    from hydrophoned.analyse.columns import DenseColumns
    from hydrophoned.analyse.sparse_probe import sparse_probes
    from hydrophoned.analyse.traffic import Measure

    units = np.arange(traffic.requests)
    for probe in sparse_probes(traffic.columns(Measure.MEAN), is_code, units):
        report.add(f"probe_code_auroc_{probe.k}", probe.held.auroc)
    (neuron,) = sparse_probes(DenseColumns(means), is_code, units, sizes=(1,))
    report.add("probe_code_auroc_neuron", neuron.held.auroc)
