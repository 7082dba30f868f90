"""Requests and features in order of an outcome: by a stored probe's score, or by how they go with it."""

from typing import NamedTuple

import numpy as np

from hydrophoned.analyse.columns import Bools, Floats, Ints
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.permutation import rank_test
from hydrophoned.analyse.traffic import Measure, Traffic


class Associated(NamedTuple):
    """How each of F features goes with an outcome: rank-biserial ``effect``, two-sided ``p``, requests ``firing``.

    ``effect`` and ``p`` are NaN for features that fire in no request.
    """

    effect: Floats
    p: Floats
    firing: Ints


def probe_scores(traffic: Traffic, features: Ints, weights: Floats, bias: float, measure: Measure) -> Floats:
    """The probability that a probe gives each request [R]: logistic of its values at ``features`` times ``weights``.

    NaN for a request without scored rows.
    """
    some = traffic.take(traffic.rows > 0)
    logit = some.columns(measure).dense(features) @ weights + bias
    score = np.full(traffic.requests, np.nan)
    score[traffic.rows > 0] = np.where(logit >= 0, 1.0, np.exp(-np.abs(logit))) / (1 + np.exp(-np.abs(logit)))
    return score


def association(traffic: Traffic, label: Bools, measure: Measure) -> Associated:
    """Of every feature with bool ``label`` [R] of the requests; raises TooLittle when they all have one."""
    scored = traffic.rows > 0
    some, label = traffic.take(scored), label[scored]
    if not label.any() or label.all():
        raise TooLittle(
            f"{int(label.sum())} of {len(label)} requests have the outcome; requests with it and without it are needed"
        )
    ranked = rank_test(some.columns(measure), label, np.zeros(some.requests, dtype=np.int64))
    firing = some.per_feature().astype(np.int64)
    silent = firing == 0
    return Associated(np.where(silent, np.nan, ranked.effect), np.where(silent, np.nan, ranked.p), firing)


def falling(score: Floats) -> Ints:
    """Places of ``score`` [n], highest first, unknown (NaN) last, ties in their order.

    >>> falling(np.array([0.1, np.nan, 0.9])).tolist()
    [2, 0, 1]
    """
    return np.lexsort((np.arange(len(score)), -score))
