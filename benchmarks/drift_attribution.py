"""What is named after a change: how much of it is true, and how well the time of the change is told.

    python benchmarks/drift.py --only attribution

Features: 4,608, rates log-uniform from 1e-4 to 0.1, 2,000 units before and 1,024 after. Five features, of rates from
0.04 to 0.1 (rarer ones fire too seldom in 1,024 units to be told from the best of 4,600 by chance), double their rates.
200 replications of each of

``independent``   features fire independently of each other
``correlated``    each unit has one of 32 topics, which multiply rates (log-normal, sigma 1)
``sessions``      units come in sessions of 8, each of one topic, which are given as blocks; they are before or after
``tenants``       each unit is of one of 32 tenants, given as blocks, which have a topic each, and whose shares in the
                  traffic change with the change of the features (Dirichlet, concentration 1)

``attribution_precision_SETTING``       share of the five among the first five that are named
``attribution_false_share_SETTING``     mean share of features that did not change among those of q at most 0.10
``attribution_found_SETTING``           share of the five that have such a q
``attribution_precision``               that of ``independent``
``attribution_false_share``             the worst of the four

Coordinates: units of the language model, 5% of them (29 of 576) shifted by a quarter of their standard deviation;
``rows`` as in drift_streams.py, ``stretches`` means of 16 tokens, 8 from each stretch of text, which is before or
after, and given as block. 100 replications; keys ``..._coordinates`` and ``..._coordinates_stretches``; precision at
29.

Time: streams and changes of drift_delay.py, 20 streams. Our detector's alarm (promise 2,000) ends the latest 1,024
units, from which the time of the change is told; streams without an alarm, or with one before the change, left out.

``change_time_error_CHANGE``    median error in units; those not told count as 1,024
``change_time_told``            share of the times that were told at all
``change_time_covered``         of these, share in the interval that is given
``change_time_error``           median over all streams and changes but contamination
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import drift_firings
import drift_streams
import numpy as np
import torch
from dictionary_report import Report
from drift_firings import TOPICS, Firings
from drift_own import BATCH, OURS, make
from drift_per_feature import add_mean
from drift_protocol import AFTER, BEFORE, each
from hydrophoned.detect.attribution import Side, attribute
from hydrophoned.detect.change_point import change_point
from numpy.typing import NDArray
from torch import Tensor

FEATURES, UNITS_BEFORE, UNITS_AFTER = 4608, 2000, 1024
PLANTED, SESSION = 5, 8
Q = 0.10
RING = 1024
FIRST_SEED = 30_000
SETTINGS = ("independent", "correlated", "sessions", "tenants")


class Named(NamedTuple):
    """Of one replication: precision at the number that changed, share of false ones, share of the true ones found."""

    precision: float
    false_share: float
    found: float


def run(report: Report, *, quick: bool, folder: Path, rows: int, processes: int) -> None:
    """Print the figures."""
    for setting in SETTINGS:
        _tell(report, setting, each(partial(_features, setting=setting), range(10 if quick else 200), processes))
    report.add("attribution_precision", report.ratios["attribution_precision_independent"])
    worst = max(SETTINGS, key=lambda setting: report.ratios[f"attribution_false_share_{setting}"])
    report.add("attribution_false_share", report.ratios[f"attribution_false_share_{worst}"])
    for stretches in (False, True):
        task = partial(_coordinates, stretches=stretches, folder=folder, rows=rows)
        found = each(task, range(4 if quick else 100), processes)
        _tell(report, "coordinates_stretches" if stretches else "coordinates", found)
    _times(report, quick=quick, folder=folder, rows=rows, processes=processes)


def _tell(report: Report, setting: str, found: list[Named]) -> None:
    for name in Named._fields:
        add_mean(report, f"attribution_{name}_{setting}", [getattr(one, name) for one in found])


# -- features ----------------------------------------------------------------------------------------------------------


def _features(number: int, *, setting: str) -> Named:
    generator = torch.Generator().manual_seed(FIRST_SEED + number)
    rate, factor = drift_firings.rates(FEATURES, generator), drift_firings.topics(FEATURES, generator)
    planted = torch.randperm(FEATURES, generator=generator)[:PLANTED]
    rate[planted] = 0.04 * (0.1 / 0.04) ** torch.rand(PLANTED, generator=generator)
    more = rate.clone()
    more[planted] *= 2
    sides = []
    for side, (n, rates) in enumerate(((UNITS_BEFORE, rate), (UNITS_AFTER, more))):
        topic, block = _topics(setting, side, n, generator)
        if topic is None:
            firings = drift_firings.draw(rates, n, generator)
        else:
            firings = drift_firings.draw_by_topic(rates, factor, topic, generator)
        sides.append(_side(firings, block, generator))
    found = attribute(sides[0], sides[1], features=FEATURES).features
    assert found is not None
    return _named(found.feature, found.feature[found.q <= Q], planted.numpy())


def _topics(
    setting: str, side: int, n: int, generator: torch.Generator
) -> tuple[Tensor | None, NDArray[np.int64] | None]:
    """Topic and block of each of n units, None where there is none."""
    if setting == "independent":
        return None, None
    if setting == "correlated":
        return torch.randint(TOPICS, (n,), generator=generator), None
    if setting == "sessions":
        session = torch.arange(n) // SESSION
        topic = torch.randint(TOPICS, (int(session[-1]) + 1,), generator=generator)[session]
        return topic, (session + side * UNITS_BEFORE).numpy()
    share = torch.rand(TOPICS, generator=generator).log().neg()  # exponential: Dirichlet once normalised
    tenant = torch.multinomial(share, n, replacement=True, generator=generator)
    return tenant, tenant.numpy()


def _side(firings: Firings, block: NDArray[np.int64] | None, generator: torch.Generator) -> Side:
    """The means of the units' rows, of which nothing is asked here, do not change."""
    return Side(torch.randn(firings.units, 8, generator=generator), firings.fired(), block=block)


def _named(order: NDArray[np.int64], told: NDArray[np.int64], truth: NDArray[np.int64]) -> Named:
    true = np.isin(told, truth).sum()
    return Named(
        float(np.isin(order[: len(truth)], truth).mean()),
        float((len(told) - true) / max(1, len(told))),
        float(true / len(truth)),
    )


# -- coordinates -------------------------------------------------------------------------------------------------------


def _coordinates(number: int, *, stretches: bool, folder: Path, rows: int) -> Named:
    model = drift_streams.language_model(folder, rows)
    generator = torch.Generator().manual_seed(FIRST_SEED + number)
    block = None
    if stretches:
        x, block = _of_stretches(model, generator)
    else:
        x = model.drawn_rows(UNITS_BEFORE + UNITS_AFTER, generator)
    some = torch.randperm(drift_streams.WIDTH, generator=generator)[: drift_streams.WIDTH // 20]
    x[UNITS_BEFORE:, some] += 0.25 * x[:, some].std(0)
    sides = [
        Side(part, None, block=None if block is None else block[place])
        for part, place in ((x[:UNITS_BEFORE], slice(UNITS_BEFORE)), (x[UNITS_BEFORE:], slice(UNITS_BEFORE, None)))
    ]
    found = attribute(sides[0], sides[1]).coordinates
    return _named(np.argsort(-np.abs(found.z)), (found.q <= Q).nonzero()[0], some.numpy())


def _of_stretches(model: drift_streams.LanguageModel, generator: torch.Generator) -> tuple[Tensor, NDArray[np.int64]]:
    """Means of 16 tokens, all 8 of each stretch of code that is drawn, none twice; and the stretch of each."""
    of_kind = model.of_kind["code"]
    count = (UNITS_BEFORE + UNITS_AFTER) // SESSION
    stretch = of_kind[torch.randperm(len(of_kind), generator=generator)[:count]].repeat_interleave(SESSION)
    start = torch.arange(len(stretch)) % SESSION * (drift_streams.LENGTH // SESSION)
    end = start + drift_streams.LENGTH // SESSION
    tokens = model.counts[stretch, end] - model.counts[stretch, start]
    total = model.sums[stretch, end] - model.sums[stretch, start]
    return total / tokens.clamp_min(1)[:, None], stretch.numpy()


# -- time --------------------------------------------------------------------------------------------------------------


def _times(report: Report, *, quick: bool, folder: Path, rows: int, processes: int) -> None:
    changes = ("mean_1", "swap") if quick else drift_streams.CHANGES
    task = partial(_time, changes=changes, folder=folder, rows=rows)
    found = each(task, range(3 if quick else 20), processes)
    told: list[tuple[float, bool] | None] = []
    errors: list[float] = []
    for change in changes:
        of_change = [one[change] for one in found if change in one]
        if not of_change:
            report.say(f"{change}: no alarm, no time")
            continue
        told += of_change
        apart = [RING if one is None else one[0] for one in of_change]
        report.add(f"change_time_error_{change}", statistics.median(apart))
        errors += [] if change == "contamination" else apart
    if errors:
        known = [one for one in told if one is not None]
        report.add("change_time_told", len(known) / len(told))
        report.add("change_time_covered", statistics.fmean(covered for _, covered in known))
        report.add("change_time_error", statistics.median(errors))


def _time(number: int, *, changes: tuple[str, ...], folder: Path, rows: int) -> dict[str, tuple[float, bool] | None]:
    """For each change that an alarm came after: error and whether the interval holds the time; None if not told."""
    model, seed = drift_streams.language_model(folder, rows), FIRST_SEED + number
    generator = torch.Generator().manual_seed(seed)
    reference, twin = model.drawn_rows(2000, generator), model.drawn_rows(BEFORE + AFTER, generator)
    found: dict[str, tuple[float, bool] | None] = {}
    of_seed: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = drift_streams.changes(model, seed)
    for change in changes:
        x = torch.cat([twin[:BEFORE], of_seed[change](twin[BEFORE:], 0, generator)])
        detector, alarm = make(OURS, reference, seed, 2000.0), None
        for batch in x.split(BATCH):
            alarm = next((one.unit for one in detector.update(batch)), None)
            if alarm is not None:
                break
        if alarm is None or alarm < BEFORE:
            continue
        first = max(0, alarm + 1 - RING)
        told = change_point(reference, x[first : alarm + 1], generator=torch.Generator().manual_seed(seed))
        if told is None:
            found[change] = None
            continue
        true = max(0, BEFORE - first)
        found[change] = abs(told.unit - true), told.low <= true <= told.high
    return found
