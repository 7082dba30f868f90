"""Which of many features drift, each by itself: false discoveries beside the promise, what is found, what it costs.

    python benchmarks/drift.py --only firing

4,608 features, rates log-uniform from 1e-4 to 0.1 and values (gamma, shape 2), drawn anew in each replication; 2,000
units of reference, 1,024 of now. Each unit has one of 32 topics, in which each rate and the mean of the values are
multiplied by other factors (log-normal, sigma 1 and 0.3), so that features fire together. Level 0.05.

``per_feature_false_share``     mean share of false ones among what is told, over 1,000 replications in which nothing
                                changed: the share of replications in which anything was told
``per_feature_false_share_planted``     the same over 200 replications in which 1% of the features double their rates
``per_feature_power_RATE``      share of features of that rate that are told when it doubles, over the same 200
``per_feature_vs_encode_65536`` 65,536 features: a look after 1,024 requests, in 4 rows of each of which firings are
                                told, over encoding 16 rows of each; one thread. ``_of_4``: over encoding 4 rows
"""

import time
from functools import partial

import drift_firings
import numpy as np
import torch
from dictionary_report import Report
from drift_firings import Firings
from drift_protocol import each
from hydrophoned.detect.feature_drift import feature_drift, summarise
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder
from torch import Tensor

FEATURES, REFERENCE, NOW = 4608, 2000, 1024
ROWS = 16
"""Of a request, which are encoded in any case."""
RATES = (0.02, 0.05, 0.08)
FIRST_SEED = 20_000


def run(report: Report, *, quick: bool, processes: int) -> None:
    """Print the figures."""
    nothing, planted = (40, 10) if quick else (1000, 200)
    false = [share for share, _ in each(partial(_replication, planted=False), range(nothing), processes)]
    add_mean(report, "per_feature_false_share", false)
    found = each(partial(_replication, planted=True), range(planted), processes)
    add_mean(report, "per_feature_false_share_planted", [share for share, _ in found])
    for place, rate in enumerate(RATES):
        add_mean(report, f"per_feature_power_{rate}", [told[place] for _, told in found])
    _cost(report, 65_536, rounds=3 if quick else 9)


def add_mean(report: Report, key: str, values: list[float]) -> None:
    """A mean, with its 95% interval by its standard error."""
    mean, error = float(np.mean(values)), float(np.std(values)) / len(values) ** 0.5
    report.add(key, mean)
    report.intervals[key] = [mean - 1.96 * error, mean + 1.96 * error]


def _replication(number: int, *, planted: bool) -> tuple[float, list[float]]:
    """Share of false ones among what is told, 0 of none; whether each of the features of known rates is told."""
    generator = torch.Generator().manual_seed(FIRST_SEED + number)
    rate, factor = drift_firings.rates(FEATURES, generator), drift_firings.topics(FEATURES, generator)
    rate[: len(RATES)] = torch.tensor(RATES)
    scale = (0.3 * torch.randn(factor.shape, generator=generator)).exp()
    changed = torch.zeros(FEATURES, dtype=torch.bool)
    if planted:
        changed[torch.randperm(FEATURES, generator=generator)[: FEATURES // 100]] = True
        changed[: len(RATES)] = True

    def units(n: int, rate: Tensor) -> tuple[Firings, Tensor]:
        topic = torch.randint(drift_firings.TOPICS, (n,), generator=generator)
        firings = drift_firings.draw_by_topic(rate, factor, topic, generator)
        unit, feature = firings.key // FEATURES, firings.key % FEATURES
        uniform = torch.rand(2, len(firings.key), generator=generator).clamp_min(1e-9)
        return firings, -uniform.log().sum(0) * scale[topic[unit], feature]

    before, values = units(REFERENCE, rate)
    now, values_now = units(NOW, torch.where(changed, 2 * rate, rate))
    reference = summarise(before.fired(), values, FEATURES)
    found = feature_drift(reference, summarise(now.fired(), values_now, FEATURES, reference=reference)).found()
    false = int((~changed.numpy()[found]).sum())
    return false / max(1, len(found)), [float(place in found) for place in range(len(RATES))]


def _cost(report: Report, features: int, rounds: int) -> None:
    """Rows are Gaussian, and the dictionary has learned nothing: all features fire about equally often."""
    dictionary = SparseAutoencoder(
        DictionaryConfig(width=576, features=features, k=32), generator=torch.Generator().manual_seed(0)
    )
    per_unit, chunk = 4, 512
    rows = torch.randn(per_unit * (REFERENCE + NOW), 576, generator=torch.Generator().manual_seed(1))
    codes = torch.cat([dictionary.encode(part).index for part in rows.split(chunk)]).long()
    unit = (torch.arange(len(rows)) // per_unit)[:, None]
    firings = Firings((unit * features + codes).unique(), features, REFERENCE + NOW)
    before, now = firings.fired(0, REFERENCE), firings.fired(REFERENCE)
    values = torch.rand(len(firings.key), generator=torch.Generator().manual_seed(2))
    reference = summarise(before, values[: len(before.feature)], features)
    ratios = []
    for number in range(rounds + 1):
        began = time.process_time()
        feature_drift(reference, summarise(now, values[len(before.feature) :], features, reference=reference))
        look = (time.process_time() - began) / NOW
        began = time.process_time()
        dictionary.encode(rows[:chunk])
        encode = (time.process_time() - began) / chunk
        if number:
            ratios.append(look / encode)
    report.add_median(f"per_feature_vs_encode_{features}", [ratio / ROWS for ratio in ratios])
    report.add_median(f"per_feature_vs_encode_{features}_of_4", [ratio / per_unit for ratio in ratios])
