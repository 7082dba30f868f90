"""Firings of features at known rates."""

import numpy as np
import torch
from hydrophoned.detect.fired import Fired


def rates(features, rng, low=-4.0, high=-1.0):
    """Log-uniform rates, 1e-4 to 0.1."""
    return 10 ** rng.uniform(low, high, features)


def units(rate, n, rng):
    """n units in which features fire at ``rate`` [F], whatever the others do."""
    return fired(distinct(rate, n, rng), n, len(rate))


def twins(before, after, n, rng):
    """n units at rates ``before``, and the same units at rates ``after``, which differ only where they must."""
    most = np.maximum(before, after)
    key = distinct(most, n, rng)
    chance = rng.random(len(key)) * most[key % len(most)]
    return tuple(fired(key[chance < rate[key % len(rate)]], n, len(rate)) for rate in (before, after))


def topical(rate, n, rng, topics=48, spread=1.0):
    """A function that draws units of one topic each, under which features are rarer or more frequent together."""
    share = rng.dirichlet(np.full(topics, 0.5))
    factor = np.exp(spread * rng.standard_normal((topics, len(rate))))
    of_topic = np.minimum(rate * factor / (share @ factor), 0.9)

    def draw(n):
        topic = rng.choice(topics, n, p=share)
        parts = []
        for t in np.unique(topic):
            (at,) = (topic == t).nonzero()
            key = distinct(of_topic[t], len(at), rng)
            parts.append(at[key // len(rate)] * len(rate) + key % len(rate))
        return fired(np.sort(np.concatenate(parts)), n, len(rate))

    return draw


def distinct(rate, n, rng):
    """Sorted keys unit * F + feature, where a feature fires in about rate n units."""
    features = len(rate)
    feature = np.repeat(np.arange(features), rng.poisson(-n * np.log1p(-rate)))
    return np.unique(rng.integers(0, n, len(feature)) * features + feature)


def fired(key, n, features):
    offsets = np.concatenate(([0], np.cumsum(np.bincount(key // features, minlength=n))))
    return Fired(torch.from_numpy(offsets), torch.from_numpy((key % features).astype(np.int32)))


def joined(*parts):
    offsets, start = [torch.zeros(1, dtype=torch.int64)], 0
    for part in parts:
        offsets.append(part.offsets[1:] + start)
        start += int(part.offsets[-1])
    return Fired(torch.cat(offsets), torch.cat([part.feature for part in parts]))


def split(x, sizes):
    """Consecutive parts of ``sizes`` units, over and over."""
    start, i = 0, 0
    while start < x.units:
        stop = min(start + sizes[i % len(sizes)], x.units)
        offsets = x.offsets[start : stop + 1]
        yield Fired(offsets - offsets[0], x.feature[int(offsets[0]) : int(offsets[-1])])
        start, i = stop, i + 1
