"""Made-up traffic: features with skewed rates that go together by topic, requests of very unequal length."""

import numpy as np
from hydrophoned.analyse.columns import Columns
from hydrophoned.analyse.traffic import Traffic


def made(requests=200, features=300, *, seed=0, rows=None, lift=None):
    """Traffic of ``requests``; ``lift`` [R, F] multiplies rates."""
    rng = np.random.default_rng(seed)
    rows = np.maximum(rng.lognormal(4, 1, requests).astype(int), 1) if rows is None else rows
    base = np.exp(rng.normal(-4.5, 1.7, features))
    topic = rng.normal(size=(requests, 6)) @ rng.normal(size=(6, features)) * 0.5
    rate = base * np.exp(topic) * (1 if lift is None else lift)
    fired = rng.binomial(rows[:, None], rate.clip(0, 0.9))
    request, feature = fired.nonzero()
    count = fired[request, feature]
    return Traffic.of(features, rows, request, feature, count, count * rng.exponential(1, len(count)))


def columns_of(dense):
    """The columns of dense values [n, F]."""
    feature, unit = dense.T.nonzero()
    return Columns(*dense.shape, unit, feature, dense[unit, feature])


def half(count, rng, share=0.5):
    """Bool [count]: a random ``share`` of them."""
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: round(share * count)]] = True
    return chosen
