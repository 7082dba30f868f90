"""Learning the rule that says best when a feature fires, on given rows and no others.

A value raises firing where k of its n rows fire and, with p the share over all rows, k/n > p at a p-value of at most
exp(-n KL(k/n || p)): Chernoff's bound of the binomial tail, which holds at any count; n KL is the information, in nats,
that the value gives. Of the m values of a field that could have been chosen, those below the false discovery rate
``ALPHA`` are kept (Benjamini & Hochberg 1995), if they fire in at least two requests. They are ranked by their shrunk
share q = (k + s p) / (n + s) and taken in this order up to where the expected F_beta is largest,

    F_beta = (1 + beta^2) TP / (beta^2 P + TP + FP),   TP the sum of n q, P the rows that fire.

beta = 1/2 weighs precision twice as much as recall (van Rijsbergen 1979): a label that says too much misleads, one that
says too little is found out by its recall. Where the rule found so is wrong more often than right, a narrower one is
looked for with beta = 1/4. Which fields and classes make up a rule is chosen by F_beta on the other
half of the requests, both ways round, as is whether a rule is right more often than wrong; the rule itself is then
learned on all rows.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrophoned.analyse.facts import Facts
from hydrophoned.analyse.pieces import CLASSES
from hydrophoned.analyse.rules import Predicate, Rule

ALPHA: Final = 0.05
BETAS: Final = (0.5, 0.25)
"""How much recall weighs against precision: as it is at first, and where that gives too little precision."""
PRECISE: Final = 0.5
"""Share of what a rule says that has to be right for its first beta to be kept."""
SHRINK: Final = 2.0
"""Rows of the mean share that every value is given besides its own."""
LEAST_FIRED: Final = 8
"""Rows on which a feature has to fire before a rule is looked for."""
MAX_VALUES: Final = 64
"""Values of one predicate at most."""
_MAX_CLASSES: Final = 2
_GAIN: Final = 0.02
"""F_beta by which a longer rule has to be better than a shorter one."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class _Step(NamedTuple):
    """One predicate to be fitted: of ``values`` of a field, of ``classes`` of them, or of both."""

    field: str
    values: bool
    classes: bool


class _Part:
    """Rows that something is fitted or tested on."""

    def __init__(self, facts: Facts, rows: Bools) -> None:
        self.rows = rows
        self.code = {name: field.code[rows] for name, field in facts.fields.items()}
        self.count = {name: _count(self.code[name], len(field.values)) for name, field in facts.fields.items()}
        self.request, self.requests = facts.request[rows], facts.requests


class _Chosen(NamedTuple):
    """A predicate as it was fitted: value places in order of what they add, class numbers; ``holds`` bool [V]."""

    field: str
    values: Ints
    classes: tuple[int, ...]
    holds: Bools


Clauses = list[list[_Chosen]]


class _Target(NamedTuple):
    """What is to be said on a part: bool [m], where it holds, how often, and the beta by which that is judged."""

    fires: Bools
    places: Ints
    fired: float
    beta: float


class _Tested(NamedTuple):
    """How rules do on rows that they were not fitted on: mean F_beta, and the share of what they say that is right."""

    score: float
    precision: float


def f_beta(hits: float, predicted: float, fired: float, beta: float) -> float:
    """F_beta of ``hits`` right ones of ``predicted`` rows, where ``fired`` rows fire; 0 of nothing."""
    over = beta**2 * fired + predicted
    return (1 + beta**2) * hits / over if over > 0 else 0.0


class RuleSearch:
    """Learns rules on the rows of ``facts``; ``first`` bool [n] is the half of their requests that is set apart."""

    def __init__(self, facts: Facts, first: Bools) -> None:
        self._facts = facts
        self._parts = (_Part(facts, first), _Part(facts, ~first))
        self._whole = _Part(facts, np.ones(facts.rows, dtype=np.bool_))
        self._member = {
            name: field.classes.astype(np.float64) for name, field in facts.fields.items() if field.classes is not None
        }
        self._steps = [
            _Step(name, values=values, classes=classes)
            for name in facts.fields
            for values, classes in ((True, False), (False, True), (True, True))
            if name in self._member or not classes
        ]

    def rule(self, fires: Bools) -> Rule | None:
        """The rule for a feature that fires on the rows ``fires`` bool [n]; None where nothing raises its firing."""
        if min(fires.sum(), (~fires).sum()) < LEAST_FIRED:
            return None
        best: tuple[float, Clauses] = (0.0, [])
        for beta in BETAS:
            precision, clauses = self._best(fires, beta)
            if precision > best[0]:
                best = (precision, clauses)
            if best[0] >= PRECISE:
                break
        return self._written(best[1])

    # -- which fields ---------------------------------------------------------------------------------------------

    def _best(self, fires: Bools, beta: float) -> tuple[float, Clauses]:
        """The precision to be expected of the best rule, and the rule."""
        targets = [_target(fires[part.rows], beta) for part in self._parts]
        whole = _target(fires, beta)
        first = self._best_first(targets, whole)
        if first is None:
            return 0.0, []
        tested, step = first
        longer = self._best_second(targets, step, tested)
        if longer is not None:
            precision, op, second = longer
            begun = self._fit_first(step, self._whole, whole, op)
            clauses = self._fit_second(begun, second, self._whole, whole, op)
            if clauses is not begun:
                return precision, clauses
        return tested.precision, self._fit_first(step, self._whole, whole, "")

    def _best_first(self, targets: list[_Target], whole: _Target) -> tuple[_Tested, _Step] | None:
        """The field that says most by itself; of those nearly as good, the one with the fewest alternatives."""
        tested = [self._tested(targets, self._begun(step, targets, "")) for step in self._steps]
        best = max(one.score for one in tested)
        good = []
        for number, step in enumerate(self._steps):
            near = 0 < best <= tested[number].score + _GAIN
            fitted = self._fit_first(step, self._whole, whole, "") if near else []
            if fitted:
                (chosen,) = fitted[0]
                good.append((len(chosen.values) + len(chosen.classes), -tested[number].score, number))
        if not good:
            return None
        _, _, number = min(good)
        return tested[number], self._steps[number]

    def _best_second(self, targets: list[_Target], first: _Step, least: _Tested) -> tuple[float, str, _Step] | None:
        """What to narrow (``and``) or widen (``or``) the first predicate by, and the precision to be expected then."""
        best, found = least.score + _GAIN, None
        others = [
            step
            for step in self._steps
            if _about(step.field) != _about(first.field) and not (step.values and step.classes)
        ]
        for op in ("and", "or"):
            begun = self._begun(first, targets, op)
            for step in others:
                fits = [
                    self._fit_second(clauses, step, part, target, op)
                    for clauses, part, target in zip(begun, self._parts, targets, strict=True)
                ]
                tested = self._tested(targets, fits)
                if tested.score > best:
                    best, found = tested.score, (tested.precision, op, step)
        return found

    def _begun(self, step: _Step, targets: list[_Target], op: str) -> list[Clauses]:
        """The first predicate fitted on each half."""
        return [self._fit_first(step, part, target, op) for part, target in zip(self._parts, targets, strict=True)]

    def _tested(self, targets: list[_Target], fits: list[Clauses]) -> _Tested:
        """The rules fitted on each half on the other one."""
        score = right = said = 0.0
        for clauses, part, target in zip(fits, self._parts[::-1], targets[::-1], strict=True):
            says = self._says(clauses, part)
            hits, predicted = float(np.count_nonzero(says & target.fires)), float(np.count_nonzero(says))
            score += f_beta(hits, predicted, target.fired, target.beta) / len(fits)
            right, said = right + hits, said + predicted
        return _Tested(score, right / said if said else 0.0)

    # -- one rule -------------------------------------------------------------------------------------------------

    def _fit_first(self, step: _Step, part: _Part, target: _Target, op: str) -> Clauses:
        """A rule of one predicate; empty where there is none. What is to be narrowed may be wider."""
        beta = (2 if op == "and" else 1) * target.beta
        chosen = self._choose(step, part, target, target.places, part.count[step.field], (0.0, 0.0), beta)
        return [] if chosen is None else [[chosen]]

    def _fit_second(self, clauses: Clauses, step: _Step, part: _Part, target: _Target, op: str) -> Clauses:
        """``clauses`` narrowed or widened by another predicate, as far as one is found."""
        if not clauses:
            return clauses
        said = self._says(clauses, part)
        right = said[target.places]
        rest, had = (said, (0.0, 0.0)) if op == "and" else (~said, (float(right.sum()), float(said.sum())))
        places = target.places[right if op == "and" else ~right]
        count = _count(part.code[step.field][rest], len(self._facts.fields[step.field].values))
        chosen = self._choose(step, part, target, places, count, had, target.beta)
        if chosen is None:
            return clauses
        return [[*clauses[0], chosen]] if op == "and" else [*clauses, [chosen]]

    def _choose(
        self,
        step: _Step,
        part: _Part,
        target: _Target,
        places: Ints,
        count: Ints,
        had: tuple[float, float],
        beta: float,
    ) -> _Chosen | None:
        """Values and classes of a field that raise firing.

        ``places`` are the rows left that fire, ``count`` int64 [V] all rows left by value; ``had`` is (hits, rows) of
        the clauses before.
        """
        code = part.code[step.field][places]
        hits = _count(code, len(count))
        base = len(places) / max(int(count.sum()), 1)
        classes: tuple[int, ...] = ()
        holds: Bools = np.zeros(len(count), dtype=np.bool_)
        if not 0 < base < 1:
            return None
        if step.classes:
            member = self._member[step.field]
            classes = _best_classes(hits, count, member, base, target.fired, had, beta)
            if not classes:
                return None
            holds |= member[:, classes].any(1)
            had = (had[0] + float(hits[holds].sum()), had[1] + float(count[holds].sum()))
        values = np.zeros(0, dtype=np.int64)
        if step.values:
            left = np.where(holds, 0, hits)
            several = left >= 2
            several[0] = False
            kept = several[code]
            pairs = np.unique(code[kept].astype(np.int64) * part.requests + part.request[places[kept]])
            spread = _count(pairs // part.requests, len(count))
            values = _best_values(left, count, spread, base, target.fired, had, beta)
            holds[values] = True
        return _Chosen(step.field, values, classes, holds) if holds.any() else None

    def _says(self, clauses: Clauses, part: _Part) -> Bools:
        says = np.zeros(len(part.request), dtype=np.bool_)
        for clause in clauses:
            both = [chosen.holds[part.code[chosen.field]] for chosen in clause]
            says |= both[0] if len(both) == 1 else both[0] & both[1]
        return says

    def _written(self, clauses: Clauses) -> Rule | None:
        if not clauses:
            return None
        names = list(CLASSES)
        return Rule(
            tuple(
                tuple(
                    Predicate(
                        chosen.field,
                        tuple(self._facts.fields[chosen.field].values[place] for place in chosen.values),
                        tuple(names[number] for number in chosen.classes),
                    )
                    for chosen in clause
                )
                for clause in clauses
            )
        )


def _target(fires: Bools, beta: float) -> _Target:
    places = np.flatnonzero(fires)
    return _Target(fires, places, float(len(places)), beta)


def _count(code: NDArray[Any], size: int) -> Ints:
    return np.bincount(code, minlength=size)


def _about(field: str) -> str:
    """Fields that say the same in two ways have one name."""
    return {"word": "token", "previous word": "previous"}.get(field, field)


def information(hits: NDArray[Any], count: NDArray[Any], base: float) -> Floats:
    """Nats n KL(k/n || base) of values whose share is above ``base``, 0 of the others; float64 [V]."""
    n = np.maximum(count, 1).astype(np.float64)
    share = hits / n
    off = n - hits
    with np.errstate(divide="ignore", invalid="ignore"):
        gained = np.where(hits > 0, hits * np.log(share / base), 0.0)
        gained += np.where(off > 0, off * np.log((1 - share) / (1 - base)), 0.0)
    return np.where(share > base, gained, 0.0)


def _best_values(
    hits: Ints, count: Ints, spread: Ints, base: float, fired: float, had: tuple[float, float], beta: float
) -> Ints:
    """Places of the values to take, those that add most first."""
    candidates = np.flatnonzero(spread >= 2)
    if not len(candidates):
        return candidates
    k, n = hits[candidates], count[candidates]
    p = np.exp(-information(k, n, base))
    order = np.argsort(p, kind="stable")
    looks = max(int(np.count_nonzero(count[1:] >= 2)), 1)
    low = np.flatnonzero(p[order] <= ALPHA * np.arange(1, len(p) + 1) / looks)
    if not len(low):
        return candidates[:0]
    kept = order[: low[-1] + 1]
    share = (k[kept] + SHRINK * base) / (n[kept] + SHRINK)
    best = np.argsort(-share, kind="stable")[:MAX_VALUES]
    kept, share = kept[best], share[best]
    right, rows = had[0] + np.cumsum(share * n[kept]), had[1] + np.cumsum(n[kept])
    score = (1 + beta**2) * right / (beta**2 * fired + rows)
    last = int(np.argmax(score))
    if score[last] <= f_beta(*had, fired, beta):
        return candidates[:0]
    taken = candidates[kept[: last + 1]]
    return taken[np.argsort(-hits[taken], kind="stable")]


def _best_classes(
    hits: Ints, count: Ints, member: Floats, base: float, fired: float, had: tuple[float, float], beta: float
) -> tuple[int, ...]:
    """Numbers of up to two classes, each the best addition to those before."""
    present, firing = np.flatnonzero(count), np.flatnonzero(hits)
    inside, inside_firing = member[present], member[firing]
    left, left_firing = count[present].astype(np.float64), hits[firing].astype(np.float64)
    chosen: tuple[int, ...] = ()
    while len(chosen) < _MAX_CLASSES:
        right, rows = left_firing @ inside_firing, left @ inside
        raised = np.exp(-information(right, rows, base)) <= ALPHA / member.shape[1]
        score = np.where(raised, (1 + beta**2) * (had[0] + right) / (beta**2 * fired + had[1] + rows), 0.0)
        best = int(np.argmax(score))
        if score[best] <= f_beta(*had, fired, beta) + (_GAIN if chosen else 0.0):
            break
        chosen = (*chosen, best)
        had = (had[0] + float(right[best]), had[1] + float(rows[best]))
        left, left_firing = left * (1 - inside[:, best]), left_firing * (1 - inside_firing[:, best])
    return chosen
