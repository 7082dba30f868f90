"""The demo's own stream, in process: the real learner and watch on a language model's rows, with the demo's settings.

    python benchmarks/drift.py --only demo

Requests of up to 64 tokens, each from a random place of another document, as in ``hydrophone demo``: of the reference
documentation (prose), and from two thirds of 60,000 tokens on of the standard library (code). Rows are layer 15 of
SmolLM2, captured once into the cache folder: for each run documents are shuffled and one of the captured places of each
is taken, so that runs share places, not orders. A dictionary (F = 4608, k = 32) is learnt from nothing meanwhile; the
reference are the first requests, 60% of those before the turn, at most 400.

``demo_false_alarms``           drifts told in 20 runs of prose alone, 60,000 tokens each, in all
``demo_alarms_before``          drifts told before the turn, in 10 runs with it, in all
``demo_delay_rows``             median rows from the turn to the first drift told after it; ``_most``: the longest
``demo_told``                   share of the runs in which one was told after the turn
``demo_code_first``             of the first five features named, the share that fires at least twice as often in
                                requests of code as in those of prose, by 200 places of each; ``demo_code_any``: of all
                                features that fire in any of these
"""

import platform
import random
import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import drift_novelty_data as data
import numpy as np
import torch
from dictionary_report import Report
from drift_protocol import each
from hydrophoned.detect.config import WatchConfig
from hydrophoned.detect.watch import StreamWatch
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.rows import Rows
from hydrophoned.runtime.watching import Watching

LENGTH, AT_ONCE = 64, 64
TOKENS, TURN = 60_000, 40_000
REFERENCE = 375
FEATURES, K, FIRST = 4608, 32, 5
PLACES = {"prose": 16, "code": 6}
HELD_OUT = 200
REQUESTS_PER_SECOND = 10
IDLE_SECONDS, PERIOD_SECONDS = 0.5, 3600.0


class Text(NamedTuple):
    """Rows float16 [n, 64, d] of n places, how many tokens each has, whose document each is, whether that is code."""

    rows: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    document: np.ndarray[Any, Any]
    code: np.ndarray[Any, Any]


class Outcome(NamedTuple):
    """Rows from the turn (negative: before it) at which each drift was told; shares of code among features named."""

    told: list[int]
    code_first: float | None
    code_any: float | None


def run(report: Report, *, quick: bool, folder: Path, processes: int) -> None:
    """Print the figures."""
    _text(folder, report.say)  # captured before processes are made
    nulls, turns = (2, 2) if quick else (20, 10)
    task = partial(_outcome, folder=folder)
    found = each(task, [(seed, seed < nulls) for seed in range(nulls + turns)], processes)
    of_prose, of_both = found[:nulls], found[nulls:]
    report.add("demo_false_alarms", sum(len(one.told) for one in of_prose))
    report.add("demo_alarms_before", sum(rows < 0 for one in of_both for rows in one.told))
    first = [min((rows for rows in one.told if rows >= 0), default=None) for one in of_both]
    delays = [rows for rows in first if rows is not None]
    report.add("demo_told", len(delays) / turns)
    if delays:
        report.add("demo_delay_rows", statistics.median(delays))
        report.add("demo_delay_rows_most", max(delays))
    for key in ("code_first", "code_any"):
        shares = [share for one in of_both if (share := getattr(one, key)) is not None]
        if shares:
            report.add(f"demo_{key}", statistics.mean(shares))


def _outcome(run: tuple[int, bool], *, folder: Path) -> Outcome:
    seed, only_prose = run
    text = _text(folder, print)
    learner = StreamLearner(1, text.rows.shape[2], LearnerConfig(features=FEATURES, k=K, seed=seed))
    watching = Watching(
        "demo",
        learner,
        WatchConfig(reference_units=REFERENCE, idle_seconds=IDLE_SECONDS, period_seconds=PERIOD_SECONDS, seed=seed),
    )
    told: list[int] = []
    drifts = given = turned = 0
    named: list[int] = []
    for number, (place, is_code) in enumerate(_order(text, seed, TOKENS if only_prose else TURN)):
        turned = turned or (given if is_code else 0)
        rows = _request(text, place, number)
        learner.observe(rows)
        learner.advance(int(rows.time[-1]))
        watching.advance(int(rows.time[-1]))
        given += rows.count
        if watching.watch.drifts > drifts:
            drifts = watching.watch.drifts
            told.append(given - turned if turned else given - TURN)
        named = _named(learner, drifts) or named
        learner.take_closed()
    if watching.problem is not None:
        raise RuntimeError(f"the watch failed: {watching.problem}")
    shares = _shares(watching.watch, text, named, seed) if named and not only_prose else (None, None)
    return Outcome(told, *shares)


def _named(learner: StreamLearner, drift: int) -> list[int]:
    """The first features named of a drift, if any were just now; the surest first."""
    found: list[int] = []
    for tables in learner.take_published():
        if "detection_feature" in tables:
            rows = tables["detection_feature"].to_pylist()
            ours = sorted((one["rank"], one["feature"]) for one in rows if one["number"] == drift)
            found = [feature for _, feature in ours[:FIRST]] or found
    return found


def _shares(watch: StreamWatch, text: Text, named: list[int], seed: int) -> tuple[float, float]:
    """The shares of code-like features among those named and among some at random."""
    encoder = watch.encoder
    assert encoder is not None
    generator = np.random.default_rng(seed)
    rate = {}
    for code in (True, False):
        places = generator.choice((text.code == code).nonzero()[0], HELD_OUT, replace=False)
        fired = torch.zeros(FEATURES)
        for place in places:
            codes = encoder.encode(torch.from_numpy(text.rows[place, 1 : text.tokens[place]].astype(np.float32)))
            fired[torch.unique(codes.index[codes.value > 0].long())] += 1
        rate[code] = fired / HELD_OUT
    like_code = rate[True] > torch.maximum(2 * rate[False], torch.tensor(1 / HELD_OUT))
    fires = (rate[True] + rate[False] > 0).nonzero()[:, 0]
    return float(like_code[named].float().mean()), float(like_code[fires].float().mean())


# -- text --------------------------------------------------------------------------------------------------------------


def _request(text: Text, place: int, number: int) -> Rows:
    count = int(text.tokens[place])
    position = np.arange(count, dtype=np.int32)
    start = number * 1_000_000 // REQUESTS_PER_SECOND
    return Rows(
        text.rows[place, :count],
        "float16",
        np.full(count, number, dtype=np.int64),
        np.zeros(count, np.uint16),
        position,
        np.zeros(count, np.uint8),
        np.full(count, -1, dtype=np.int32),
        start + position.astype(np.int64) * 1_000,
    )


def _order(text: Text, seed: int, turn: int) -> list[tuple[int, bool]]:
    """Places of requests until there are 60,000 tokens, and whether each is code: those from ``turn`` tokens on."""
    order = random.Random(seed)  # noqa: S311  an order, not a secret
    found: list[tuple[int, bool]] = []
    given, waiting, was_code = 0, [], False
    while given < TOKENS:
        is_code = given >= turn
        if not waiting or is_code != was_code:
            waiting = sorted(set(text.document[text.code == is_code].tolist()))
            order.shuffle(waiting)
        was_code = is_code
        place = order.choice((text.document == waiting.pop()).nonzero()[0].tolist())
        found.append((place, is_code))
        given += int(text.tokens[place])
    return found


def _text(folder: Path, say: Any) -> Text:
    path = folder / f"smollm2-demo-py{platform.python_version()}-layer{data.LAYER}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"capturing requests of model.layers.{data.LAYER} into {folder}")
        np.savez(path, **_captured()._asdict())
    with np.load(path) as found:
        return Text(**{name: found[name] for name in Text._fields})


def _captured() -> Text:
    from hydrophone.demo.corpus import builtin_documents

    order, layer = random.Random(0), data.Layer()  # noqa: S311  an order, not a secret
    ids, document, code = [], [], []
    for number, one in enumerate(builtin_documents()):
        for _ in range(PLACES[one.kind]):
            start = order.randrange(max(1, len(one.text) - LENGTH * 8))
            found = layer.tokens(one.text[start : start + LENGTH * 8])[:LENGTH]
            if len(found) >= LENGTH // 4:
                ids.append(found)
                document.append(number)
                code.append(one.kind == "code")
    padded = [one + [0] * (LENGTH - len(one)) for one in ids]  # no token sees those after it
    rows = [layer.rows(padded[at : at + AT_ONCE]).half().numpy() for at in range(0, len(padded), AT_ONCE)]
    tokens = np.array([len(one) for one in ids], dtype=np.int32)
    return Text(np.concatenate(rows), tokens, np.array(document, dtype=np.int32), np.array(code))
