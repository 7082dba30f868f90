"""The built-in labeller: what predicts best that a feature fires, with how well it predicts on rows it has not seen.

No language model takes part. Half of the requests are set apart; a rule is learned on the other half (``rule_search``)
and scored on them: precision, recall, and F1 as the label's score, so that a label is trusted as far as it predicts
(RecSAE, Wang et al. 2024). A rule counts only if it is better than chance there. With h_r hits on p_r predicted rows of
request r, and q the share of all held-out rows that fire, z = sum (h_r - q p_r) / sqrt(sum (h_r - q p_r)^2) has to
exceed the normal distribution's 0.975 quantile: requests are the units, since rows of one request are alike. Rules of
few requests cannot pass (four at least), and such a feature has no label.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hydrophoned.analyse.facts import Facts
from hydrophoned.analyse.firing import Firing
from hydrophoned.analyse.halves import halves
from hydrophoned.analyse.intervals import Z95
from hydrophoned.analyse.rule_search import RuleSearch
from hydrophoned.analyse.rules import Rule

Bools = NDArray[np.bool_]


class Score(NamedTuple):
    """How well a rule predicts on ``rows`` of ``requests``, of which ``fired`` fire.

    It says that ``predicted`` of them do, and is right on ``hits``; ``better`` says whether that is better than chance
    (see the module).
    """

    rows: int
    requests: int
    fired: int
    predicted: int
    hits: int
    better: bool

    @property
    def precision(self) -> float | None:
        """Share of the rows it says that fire; None where it says none."""
        return self.hits / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the rows that fire that it says; None where none fires."""
        return self.hits / self.fired if self.fired else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two; None where there is nothing to say."""
        both = self.predicted + self.fired
        return 2 * self.hits / both if both else None


class FeatureLabel(NamedTuple):
    """A feature's rule, how it does on held-out rows, and on the rows it was learned on."""

    feature: int
    rule: Rule
    score: Score
    learned: Score


class Labeller:
    """Labels features of the rows behind ``facts``; ``firing`` is of the same rows. Raises TooLittle.

    ``seed`` draws the requests that are held out.
    """

    def __init__(self, facts: Facts, firing: Firing, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        request = torch.from_numpy(facts.request)
        self.learning: Bools = halves(request, generator).numpy()
        first: Bools = halves(request[self.learning], generator).numpy()
        self._firing = firing
        self._learn_on, self._held_out = facts.take(self.learning), facts.take(~self.learning)
        self._search = RuleSearch(self._learn_on, first)

    def label(self, feature: int) -> FeatureLabel | None:
        """The label of ``feature``; None where no rule says better than chance when it fires."""
        return self.label_rows(feature, self._firing.of_feature(feature))

    def label_rows(self, feature: int, fires: Bools) -> FeatureLabel | None:
        """The label of a feature that fires on the rows ``fires`` bool [n]."""
        rule = self._search.rule(fires[self.learning])
        if rule is None:
            return None
        score = self.score(rule, fires)
        if not score.better:
            return None
        return FeatureLabel(feature, rule, score, score_of(rule, self._learn_on, fires[self.learning]))

    def score(self, rule: Rule, fires: Bools) -> Score:
        """How well ``rule`` says on the held-out rows when a feature fires, bool [n] over all rows."""
        return score_of(rule, self._held_out, fires[~self.learning])


def score_of(rule: Rule, facts: Facts, fires: Bools) -> Score:
    """How well ``rule`` says on the rows of ``facts`` when a feature fires, bool [n]."""
    says = rule.apply(facts)
    requests = np.count_nonzero(np.bincount(facts.request, minlength=facts.requests))
    fired, predicted, hits = int(fires.sum()), int(says.sum()), int((says & fires).sum())
    share = fired / max(len(fires), 1)
    excess = np.bincount(facts.request[says], fires[says] - share, minlength=facts.requests)
    better = bool(excess.sum() > Z95 * np.sqrt(np.square(excess).sum()))
    return Score(len(fires), int(requests), fired, predicted, hits, better)


class Floors(NamedTuple):
    """What means nothing reaches: mean precision of other features' rules, and of the rules on permuted firing.

    ``false_rules`` is the share of features with permuted firing that get a label all the same. None of nothing.
    """

    other_rule: float | None
    permuted: float | None
    false_rules: float | None


def floors(labeller: Labeller, firing: Firing, labels: Sequence[FeatureLabel], *, seed: int = 0) -> Floors:
    """The floors of ``labels``: each rule on the firing of the next one's feature, and on its own dealt out anew."""
    random = np.random.default_rng(seed)
    other, permuted, false = [], [], 0
    for label, following in zip(labels, [*labels[1:], *labels[:1]], strict=True):
        other.append(labeller.score(label.rule, firing.of_feature(following.feature)).precision)
        dealt = random.permutation(firing.of_feature(label.feature))
        permuted.append(labeller.score(label.rule, dealt).precision)
        false += labeller.label_rows(label.feature, dealt) is not None
    return Floors(_mean(other), _mean(permuted), false / len(labels) if labels else None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
