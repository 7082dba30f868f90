"""The few features that tell a label best: k-sparse probing (Gurnee et al. 2023, "Finding Neurons in a Haystack").

Features are chosen by sums alone (class sums and sums of squares): some with the largest correlation with the label;
then, among these, one after the other the one that leaves least of the label unexplained beside those
chosen before (forward selection by least squares). On the first k of them a logistic regression is fitted.

Every score is of requests that neither the choice of features, nor the fit, nor the threshold has seen: requests are
dealt into folds, and all three are made anew without each fold. Units are compared only with units of their own fold.
Pooled over folds, AUROC would be biased below 1/2 where there is nothing to find, as a fold with more of the label
leaves fewer to train on.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hydrophoned.analyse.columns import Bools, Floats, Ints, Values
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.intervals import Z95
from hydrophoned.analyse.probe import best_threshold, fit_probe

SIZES: Final = (1, 2, 4, 8, 16)
FOLDS: Final = 5
LEAST: Final = 5
"""Requests with the label, and requests without it, that a probe needs."""
LEAST_UNITS: Final = 5
"""Units in which a feature has to be above 0 to be chosen."""
_CANDIDATES: Final = (64, 1024)  # at least, and at most
_CELLS: Final = 1 << 21  # values of candidates that are held beyond those of the fewest


class Held(NamedTuple):
    """How well units that were held out are told, over all folds.

    ``auroc`` is the chance that a unit with the label has a higher score than one without it of the same fold, with 95%
    bounds that take requests as independent. ``f1`` is at the threshold that was best where the probe was fitted.
    ``f1_chance`` is what as many calls made at random within folds would have reached, ``f1_always`` what calling every
    unit would.
    """

    auroc: float
    auroc_low: float
    auroc_high: float
    f1: float
    precision: float | None
    recall: float
    f1_chance: float
    f1_always: float


class SparseProbe(NamedTuple):
    """Logit ``values[features] @ weights + bias`` of a unit, fitted to all of them, and how well the recipe does.

    ``chosen_again`` [k] is the share of folds in which the feature was among the k, too. ``units`` are those behind
    ``held``, of ``requests`` requests; ``positives`` of them have the label.
    """

    k: int
    features: Ints
    weights: Floats
    bias: float
    threshold: float
    chosen_again: Floats
    held: Held
    units: int
    requests: int
    positives: int


class _Fit(NamedTuple):
    weights: Floats
    bias: float
    threshold: float


def sparse_probes(
    values: Values, label: Bools, request: NDArray[Any], *, sizes: tuple[int, ...] = SIZES, seed: int = 0
) -> list[SparseProbe]:
    """A probe of bool ``label`` [n] for each k of ``sizes`` for which there are features.

    Units of one ``request``, int [n], are held out together. Raises TooLittle when fewer than ``LEAST`` requests have a
    unit with the label, or one without, or no feature can be chosen.
    """
    known, group = np.unique(request, return_inverse=True)
    folds = _folds(group, len(known), label, np.random.default_rng(seed))
    orders, scores = [], {k: np.full(len(label), np.nan) for k in sizes}
    calls = {k: np.zeros(len(label), dtype=np.bool_) for k in sizes}
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        order = _choose(values, label, ~held, max(sizes))
        orders.append(order)
        columns = values.dense(order)
        for k in sizes:
            some = min(k, len(order))
            fit = _fit(columns[~held, :some], label[~held])
            scores[k][held] = columns[held, :some] @ fit.weights + fit.bias
            calls[k][held] = scores[k][held] >= fit.threshold
    order = _choose(values, label, np.ones_like(label), max(sizes))
    if not len(order):
        raise TooLittle(
            f"no feature is above 0 in at least {LEAST_UNITS} of {len(label)} units: there is nothing to choose from"
        )
    columns = values.dense(order)
    probes = []
    for k in sizes:
        if k > len(order):
            break
        fit = _fit(columns[:, :k], label)
        again = np.array([sum(feature in chosen[:k] for chosen in orders) for feature in order[:k]]) / len(orders)
        held_out = _held(scores[k], calls[k], label, folds, group)
        counts = (len(label), len(known), int(label.sum()))
        probes.append(SparseProbe(k, order[:k], fit.weights, fit.bias, fit.threshold, again, held_out, *counts))
    return probes


# -- choosing and fitting ---------------------------------------------------------------------------------------------


def _folds(group: Ints, groups: int, label: Bools, generator: np.random.Generator) -> Ints:
    """The fold [n] of each unit: whole requests, those with the label dealt out evenly, then the others."""
    has = np.zeros(groups, dtype=np.bool_)
    has[group[label]] = True
    lacks = np.zeros(groups, dtype=np.bool_)
    lacks[group[~label]] = True
    if has.sum() < LEAST or lacks.sum() < LEAST:
        raise TooLittle(
            f"{int(has.sum())} requests have the label and {int(lacks.sum())} are without it somewhere; a probe needs "
            f"at least {LEAST} of each. Report more outcomes, or take more requests."
        )
    fold = np.zeros(groups, dtype=np.int64)
    for some in (has, ~has):
        (members,) = some.nonzero()
        fold[generator.permutation(members)] = np.arange(len(members)) % FOLDS
    return fold[group]


def _choose(values: Values, label: Bools, used: Bools, most: int) -> Ints:
    """Up to ``most`` features in the order in which they help to tell the label, from the units ``used`` alone."""
    n, positives = int(used.sum()), int((label & used).sum())
    total, squares, above = values.sums(used)
    with_label, _, _ = values.sums(used & label)
    # n^2 times covariance and variances
    covariance = n * with_label - positives * total
    variance = n * squares - total**2
    spread = variance > 1e-9 * n * squares
    relation = np.where(spread, covariance**2 / np.where(spread, variance, 1.0), 0.0)
    relation[above < LEAST_UNITS] = 0.0
    fewest, largest = _CANDIDATES
    count = max(fewest, most, min(largest, _CELLS // max(n, 1)))
    candidates = np.argsort(-relation, kind="stable")[:count]
    candidates = candidates[relation[candidates] > 0]
    if not len(candidates):
        return candidates
    x = values.dense(candidates)[used]
    x -= x.mean(0)
    x /= np.linalg.norm(x, axis=0)
    return candidates[_forward(x, label[used].astype(np.float64) - positives / n, most)]


def _forward(x: Floats, y: Floats, most: int) -> Ints:
    """Columns of unit columns x [n, c] in order of how much of y [n] each explains beside those before it."""
    order: list[int] = []
    left = x.copy()
    for _ in range(min(most, x.shape[1])):
        norms = np.linalg.norm(left, axis=0)
        norms[norms < 1e-6] = np.inf  # what those chosen tell already
        gain = np.abs(left.T @ y) / norms
        gain[order] = -1.0
        best = int(gain.argmax())
        if gain[best] <= 0 or not np.isfinite(norms[best]):
            break
        order.append(best)
        direction = left[:, best] / norms[best]
        left -= np.outer(direction, direction @ left)
    return np.array(order, dtype=np.int64)


def _fit(x: Floats, label: Bools) -> _Fit:
    """Logistic regression on columns x [n, k] in their own scale."""
    if not x.shape[1]:
        share = label.mean()
        return _Fit(np.zeros(0), float(np.log(share / (1 - share))), 0.0)
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation == 0] = 1.0
    target = torch.from_numpy(label)
    standard = torch.from_numpy((x - mean) / deviation).float()
    found = fit_probe(standard, target)
    threshold = best_threshold(found.logits(standard), target)
    weights = found.weight.double().numpy() / deviation
    return _Fit(weights, float(found.bias) - float(weights @ mean), threshold - 1e-6 * max(1.0, abs(threshold)))


# -- scoring ----------------------------------------------------------------------------------------------------------


def _held(score: Floats, called: Bools, label: Bools, folds: Ints, group: Ints) -> Held:
    wins = pairs = chance = 0.0
    above = np.zeros(len(label))  # for a unit with the label the units below it, else those above it: of its fold
    against = np.zeros(len(label))
    for fold in range(int(folds.max()) + 1):
        here = folds == fold
        one, other = here & label, here & ~label
        above[one] = _below(score[other], score[one])
        above[other] = one.sum() - _below(score[one], score[other])
        against[one], against[other] = other.sum(), one.sum()
        wins += above[one].sum()
        pairs += float(one.sum()) * float(other.sum())
        chance += float(called[here].sum()) * float(one.sum()) / max(int(here.sum()), 1)
    auroc = float(wins / pairs)
    low, high = _bounds(auroc, (above - against * auroc) / pairs, label, group)
    right, calls, positives = int((called & label).sum()), int(called.sum()), int(label.sum())
    share = positives / len(label)
    return Held(
        auroc,
        low,
        high,
        2 * right / (calls + positives),
        right / calls if calls else None,
        right / positives,
        2 * chance / (calls + positives),
        2 * share / (1 + share),
    )


def _below(ordered: Floats, score: Floats) -> Floats:
    """For each score, how many of ``ordered`` are below it; equal ones count a half."""
    ordered = np.sort(ordered)
    found: Any = np.searchsorted(ordered, score, side="left") + np.searchsorted(ordered, score, side="right")
    return np.asarray(found / 2, dtype=np.float64)


def _bounds(auroc: float, influence: Floats, label: Bools, group: Ints) -> tuple[float, float]:
    """95% bounds from the influence of each request (DeLong et al. 1988, for clusters as in Obuchowski 1997).

    The folds' probes are fitted to much the same units, so that their scores vary together, of which influences know
    nothing: the variance is that of Nadeau & Bengio (2003), times 1 + FOLDS / (FOLDS - 1). On the logit scale; where
    nothing is told wrongly (or rightly), the bounds of as many independent successes as there are requests of the rarer
    kind.
    """
    parts = np.bincount(group, influence)
    together = 1 + FOLDS / (FOLDS - 1)
    error = float(np.sqrt(together * np.square(parts).sum() * len(parts) / max(len(parts) - 1, 1)))
    rarer = min(len(np.unique(group[label])), len(np.unique(group[~label])))
    if auroc in {0.0, 1.0} or error == 0.0:
        reach = 0.025 ** (1 / rarer)
        return (reach, 1.0) if auroc > 0.5 else (0.0, 1 - reach)
    logit, width = np.log(auroc / (1 - auroc)), Z95 * error / (auroc * (1 - auroc))
    low, high = 1 / (1 + np.exp(-(logit - width))), 1 / (1 + np.exp(-(logit + width)))
    return float(low), float(high)
