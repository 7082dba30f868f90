"""Automatic labels of features learned from a language model: how well they predict on documents they have not seen.

    python benchmarks/features.py --only labels

A dictionary (F = 4608, k = 32) learns from 160,000 rows of model.layers.15 of SmolLM2 over prose and code. The labeller
is given the codes of 32,768 rows that the dictionary was not trained on, as many as the daemon keeps, with their tokens
and the strings of these. A document counts as a request: half of the documents are held out, and all figures are of
them, means over the 200 most frequent features whose firing depends on the token, that is, whose token tells at least a
tenth of the entropy of their firing (cross-fitted on the other half, where frequency is counted, too; see
``analyse/token_share.py``).

``label_precision``             precision of the labels' rules, ``label_recall`` and ``label_f1`` beside it
``label_share``                 share of the 200 features that got a label; the others have no figures
``label_base_rate``             share of rows on which such a feature fires: the precision of guessing
``label_precision_other_rule``  of each rule on the firing of another of the features: a floor
``label_precision_permuted``    of each rule on its feature's firing dealt out anew over the rows: a floor
``label_false_rules``           share of features with permuted firing that got a label all the same
``label_precision_eight``       of the trivial rival: the eight tokens on which it fires most often, ``_recall_eight``
``label_precision_ids``         of labels made from token ids alone, as where no text is kept
``label_precision_share_S``     where the token has to tell a share S of the entropy
``label_precision_all``         of all features that got a label, frequent or not, and whatever their token tells; left
                                out of the short form; ``label_share_all``: how many of all features these are
``label_planted``               share of planted features (digits, line ends, one word; on the same rows) labelled right
``label_seconds_per_feature``   processor time to label a feature
"""

import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dictionary_report import Report
from numpy.typing import NDArray

LAYER, FEATURES, K, BATCH = 15, 4608, 32, 512
MOST = 200
SHARES = (0.05, 0.1, 0.2)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydrophone-bench"


class Rows(NamedTuple):
    """Rows to train on, and rows to label features by, normalised, with what is known of the latter."""

    train: Any  # Tensor [n, d]
    label: Any  # Tensor [m, d]
    document: NDArray[np.int64]
    position: NDArray[np.int32]
    token: NDArray[np.int32]
    previous: list[str | None]
    strings: dict[int, str]


def run(report: Report, *, quick: bool, folder: Path = CACHE) -> None:
    from hydrophoned.analyse.facts import facts
    from hydrophoned.analyse.firing import Firing
    from hydrophoned.analyse.labels import Labeller, floors
    from hydrophoned.analyse.token_share import DEPENDENT, token_share

    rows = _rows(*((32_768, 8192) if quick else (160_000, 32_768)), folder, report.say)
    coded = _coded(rows, report)
    firing = Firing.of(coded, FEATURES)
    known = facts(coded, strings=rows.strings, previous=rows.previous)
    labeller = Labeller(known, firing)
    learned = Firing.of(coded.take(labeller.learning), FEATURES)
    share = token_share(known.take(labeller.learning), learned)
    order = np.argsort(-learned.fired(), kind="stable")
    report.say(
        f"{coded.rows} rows of {known.requests} documents; the token tells a tenth of the entropy of "
        f"{int((share >= DEPENDENT).sum())} of {int((learned.fired() > 0).sum())} features that fire"
    )
    for least in SHARES:
        chosen = order[share[order] >= least][:MOST]
        began = time.process_time()
        labels = [label for label in map(labeller.label, chosen.tolist()) if label is not None]
        seconds = (time.process_time() - began) / len(chosen)
        mark = "" if least == DEPENDENT else f"_share_{least:g}"
        _mean(report, f"label_precision{mark}", [label.score.precision for label in labels])
        if mark:
            continue
        _mean(report, "label_recall", [label.score.recall for label in labels])
        _mean(report, "label_f1", [label.score.f1 for label in labels])
        _mean(report, "label_base_rate", [label.score.fired / label.score.rows for label in labels])
        report.add("label_share", len(labels) / len(chosen))
        report.add("label_seconds_per_feature", seconds)
        found = floors(labeller, firing, labels)
        for name, value in zip(("precision_other_rule", "precision_permuted", "false_rules"), found, strict=True):
            if value is not None:
                report.add(f"label_{name}", value)
        _rival(report, labeller, firing, chosen.tolist(), coded.token)
        bare = Labeller(facts(coded), firing)
        of_ids = [label for label in map(bare.label, chosen.tolist()) if label is not None]
        _mean(report, "label_precision_ids", [label.score.precision for label in of_ids])
        for label in labels[:: max(1, len(labels) // 10)]:
            report.run(
                feature=label.feature,
                precision=label.score.precision,
                recall=label.score.recall,
                fired=label.score.fired,
                label=label.rule.text(rows.strings),
            )
    _planted(report, known, coded, rows.strings)
    if not quick:
        every = [label for label in map(labeller.label, range(FEATURES)) if label is not None]
        _mean(report, "label_precision_all", [label.score.precision for label in every])
        report.add("label_share_all", len(every) / FEATURES)


def _mean(report: Report, key: str, values: Sequence[float | None]) -> None:
    """The mean over features, with its 95% interval as of independent features."""
    known = np.array([value for value in values if value is not None])
    report.add(key, float(known.mean()))
    reach = 1.96 * float(known.std()) / len(known) ** 0.5
    report.intervals[key] = [report.ratios[key] - reach, report.ratios[key] + reach]


def _rival(report: Report, labeller: Any, firing: Any, features: Sequence[int], token: NDArray[np.int32]) -> None:
    """The eight tokens on which each feature fires most often, among the rows that rules are learned on."""
    from hydrophoned.analyse.rules import Predicate, Rule

    scores = []
    for feature in features:
        fires = firing.of_feature(feature)
        values, count = np.unique(token[fires & labeller.learning], return_counts=True)
        best = values[np.argsort(-count, kind="stable")[:8]]
        scores.append(labeller.score(Rule(((Predicate("token", tuple(map(int, best))),),)), fires))
    _mean(report, "label_precision_eight", [score.precision for score in scores])
    _mean(report, "label_recall_eight", [score.recall for score in scores])


def _planted(report: Report, known: Any, coded: Any, strings: dict[int, str]) -> None:
    """Features that fire on 95% of certain tokens' rows, and on 0.2% of the others."""
    from hydrophoned.analyse.firing import Firing
    from hydrophoned.analyse.labels import Labeller
    from hydrophoned.analyse.pieces import classes, word

    wanted = {
        "token is digits": lambda piece: "digits" in classes(piece),
        "token is line end": lambda piece: "line end" in classes(piece),
        'word is "return"': lambda piece: word(piece) == "return",
    }
    random = np.random.default_rng(0)
    right = 0
    for text, holds in wanted.items():
        on = np.array([holds(strings[token]) for token in coded.token.tolist()])
        fires = random.random(len(on)) < np.where(on, 0.95, 0.002)
        planted = coded._replace(index=np.zeros((len(on), 1), np.int32), value=fires[:, None].astype(np.float32))
        label = Labeller(known, Firing.of(planted, 1)).label(0)
        right += label is not None and label.rule.text(strings) == text
        report.say(f"planted {text}: {label and label.rule.text(strings)}")
    report.add("label_planted", right / len(wanted))


def _coded(rows: Rows, report: Report) -> Any:
    """The label rows as a dictionary encodes them that has learned from the others."""
    import torch
    from hydrophoned.learn.code_sample import CodedRows
    from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder

    config = DictionaryConfig(width=rows.train.shape[1], features=FEATURES, k=K)
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(0))
    dictionary.initialise(rows.train[:2048])
    for part in rows.train[: len(rows.train) // BATCH * BATCH].split(BATCH):
        dictionary.partial_fit(part)
    codes = [dictionary.encode(part) for part in rows.label.split(4096)]
    value = torch.cat([code.value for code in codes])
    error = sum(
        float((dictionary.decode(code) - part).square().sum())
        for code, part in zip(codes, rows.label.split(4096), strict=True)
    )
    fvu = error / float((rows.label - rows.label.mean(0)).square().sum())
    report.run(part="labels", train=len(rows.train), label=len(rows.label), fvu=fvu)
    nothing = np.zeros(len(value))
    return CodedRows(
        torch.cat([code.index for code in codes]).int().numpy(),
        value.numpy(),
        rows.document,
        nothing.astype(np.int32),
        rows.position,
        nothing.astype(np.int32),
        rows.token,
        nothing.astype(np.int64),
    )


def _rows(train: int, label: int, folder: Path, say: Callable[[str], None]) -> Rows:
    """Captured rows without sinks, in a random order: the first to train on, the next to label by."""
    import torch
    from dictionary_data import AT_ONCE, LENGTH, SINK_FACTOR, cached
    from hydrophoned.learn.config import LearnerConfig
    from hydrophoned.learn.normaliser import Normaliser

    count = -(-int((train + label) * 1.1) // (LENGTH * AT_ONCE)) * LENGTH * AT_ONCE
    found, documents = cached(LAYER, "builtin", count, folder, say)
    token, strings = _tokens(documents, folder, say)
    everything = torch.from_numpy(np.asarray(found)).float()
    norms = everything.norm(dim=1)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
    order = order[norms[order] <= SINK_FACTOR * norms.median()][: train + label]
    normaliser = Normaliser(everything.shape[1], LearnerConfig().normaliser_rows, torch.device("cpu"))
    normaliser.update(everything[order[: normaliser.check_rows]])
    normaliser.freeze()
    chosen = order[train:].numpy()
    previous = [strings[int(token[row - 1])] if row % LENGTH else None for row in chosen]
    return Rows(
        normaliser.apply(everything[order[:train]]),
        normaliser.apply(everything[order[train:]]),
        documents[chosen].astype(np.int64),
        (chosen % LENGTH).astype(np.int32),
        token[chosen],
        previous,
        strings,
    )


def _tokens(
    documents: NDArray[np.int32], folder: Path, say: Callable[[str], None]
) -> tuple[NDArray[np.int32], dict[int, str]]:
    """Token ids of captured rows, int32 [count], and their strings: cut from the same text in the same order."""
    import platform

    from dictionary_data import LENGTH, stretches_of
    from hydrophone.demo.corpus import builtin_documents
    from hydrophone.demo.model import load_model

    path = folder / f"smollm2-builtin-py{platform.python_version()}-{len(documents)}-tokens.npz"
    if not path.exists():
        say(f"cutting the text of {len(documents)} rows into tokens once more, into {path.name}")
        tokenizer = load_model(None).tokenizer
        cut = list(islice(stretches_of(builtin_documents(), tokenizer), len(documents) // LENGTH))
        if not np.array_equal(np.repeat([number for number, _ in cut], LENGTH), documents):
            raise SystemExit(f"{folder} holds rows of another text; empty it")
        token = np.array([ids for _, ids in cut], dtype=np.int32).reshape(-1)
        known = np.unique(token)
        np.savez(path, token=token, known=known, piece=np.array([tokenizer.decode([int(one)]) for one in known]))
    kept = np.load(path)
    strings = dict(zip(kept["known"].tolist(), kept["piece"].tolist(), strict=True))
    return kept["token"], strings
