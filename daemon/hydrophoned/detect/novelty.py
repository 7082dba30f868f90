"""How new a unit is, compared with a reference: one score, fused of many, as a p-value."""

from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.detect.blocks import representable
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.novelty_head import Head
from hydrophoned.detect.novelty_parts import TWO_SIDED, WEIGHTS, NoveltyParts, Reference
from hydrophoned.detect.surprise import Surprise

LEAST_UNITS: Final = 100
"""Units of a reference, at least: p-values below 1 / (n + 1) cannot be had."""
_FOLDS: Final = 8
_WIDE: Final = 1024  # directions of a fold's whitening, above which there are half as many folds
_AT_ONCE: Final = 512


class Novelty(NamedTuple):
    """Of n units: ``score`` float64 [n], larger for what is newer, and ``p`` float64 [n], its p-value on the reference.

    ``surprise`` float64 [n, K] is the -log p of each of the K parts, named in :attr:`NoveltyScorer.names`: what the
    score is made of. All are NaN for a unit that is not finite.
    """

    score: Tensor
    p: Tensor
    surprise: Tensor


class NoveltyScorer:
    """Scores how new units are, by distances, reconstruction and a head together, with a p-value.

    No single score is best everywhere, and some are at times worse than a coin (Mahalanobis distance of new classes
    near the mean of the known ones, energy of what a model is surer of). Each part therefore becomes a surprise, -log
    of its p-value among those of the reference (:mod:`~hydrophoned.detect.surprise`), and the score is their weighted
    sum, as in Fisher's method:

        score = sum_c w_c (-log p_c),        p = (1 + #{reference scores >= score}) / (n + 1)

    The parts depend on each other and the sum has no known distribution: p is its rank among the scores of the n
    reference units. Each of these is scored by parts that were fitted without its eighth of the reference
    (cross-conformal; Vovk 2015, "Cross-conformal predictors"), and what comes later by those without the first: all
    parts know as many units, so that p is uniform over units exchangeable with the reference's, up to how much scores
    of the reference depend on each other.

    ``head`` is the model's last linear layer where units are what goes into it; ``labels`` are classes of the
    reference's units. ``fvu`` is that of a frozen dictionary, in the mean over each unit's rows, which should be rows
    that it was not fitted to; where the reference has it, so must what is scored. Results do not depend on batches.
    """

    parts: ClassVar[dict[str, float]] = WEIGHTS
    """Weights of all parts there are."""

    units: int
    """Units scored, those left out not counted."""
    left_out: int
    """Units that were not finite."""

    def __init__(
        self,
        reference: Tensor,
        *,
        generator: torch.Generator,
        labels: Tensor | None = None,
        fvu: Tensor | None = None,
        head: Head | None = None,
    ) -> None:
        """For units like ``reference`` [n, d], with ``labels`` int64 [n] (negative: not known) and ``fvu`` [n].

        ``generator`` orders the reference. Raises InsufficientReference for fewer than ``LEAST_UNITS`` finite units or
        for units that are all the same, ReferenceMismatch for columns or a head that do not fit.
        """
        known = _known(reference, labels, fvu)
        order = torch.randperm(len(known.x), generator=generator).to(known.x.device)
        known = known.take(order)
        self.units = self.left_out = 0
        self.width = known.x.shape[1]
        self.reference_units = len(known.x)
        self._has_fvu = known.fvu is not None
        self._parts, scores = _cross_fitted(known, head)
        self._surprises = [
            Surprise.of(column, two_sided=name in TWO_SIDED)
            for name, column in zip(self.names, scores.unbind(1), strict=True)
        ]
        weights = torch.tensor([WEIGHTS[name] for name in self.names], dtype=torch.float64, device=known.x.device)
        self._weights = weights
        fused = self._surprise(scores) @ weights
        self._ordered = fused.sort().values
        self.reference_p = torch.empty_like(fused)
        """p-values float64 [n] of the finite units of the reference, in their order."""
        self.reference_p[order] = self._rank(fused) - 1 / (len(fused) + 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts that the score is fused of."""
        return self._parts.names

    def update(self, x: Tensor, fvu: Tensor | None = None) -> Novelty:
        """Novelty of units x [n, d], with their ``fvu`` [n] where the reference has it; they are counted.

        Raises ReferenceMismatch for another width, or without ``fvu`` where it is needed.
        """
        x, fvu = self._fitting(x, fvu)
        finite = _finite(x, fvu)
        found = torch.full((len(x), 2 + len(self.names)), float("nan"), dtype=torch.float64, device=x.device)
        kept = x[finite]
        kept_fvu = None if fvu is None else fvu[finite]
        for start in range(0, len(kept), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            surprise = self._surprise(self._parts.scores(kept[part], None if kept_fvu is None else kept_fvu[part]))
            score = surprise @ self._weights
            place = finite.nonzero().squeeze(1)[part]
            found[place] = torch.cat((score[:, None], self._rank(score)[:, None], surprise), dim=1)
        self.units += len(kept)
        self.left_out += len(x) - len(kept)
        return Novelty(found[:, 0], found[:, 1], found[:, 2:])

    def whiten(self, x: Tensor) -> Tensor:
        """Units x [n, d] in coordinates in which those of the reference vary equally: float32 [n, d]."""
        return self._parts.whitening.apply(self._fitting(x, None, scored=False)[0])

    def state_dict(self) -> dict[str, Any]:
        """What has changed since the reference was taken: the counts. The rest is made of the reference again."""
        return {"units": self.units, "left_out": self.left_out, "reference_units": self.reference_units}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of a scorer with the same reference. Raises ReferenceMismatch for another's."""
        if state["reference_units"] != self.reference_units:
            raise ReferenceMismatch(
                f"the state is of a reference of {state['reference_units']} units, not of {self.reference_units}"
            )
        self.units, self.left_out = int(state["units"]), int(state["left_out"])

    def _surprise(self, scores: Tensor) -> Tensor:
        return torch.stack([of(score) for of, score in zip(self._surprises, scores.unbind(1), strict=True)], dim=1)

    def _rank(self, fused: Tensor) -> Tensor:
        n = len(self._ordered)
        return (1 + n - torch.searchsorted(self._ordered, fused.contiguous())).double() / (n + 1)

    def _fitting(self, x: Tensor, fvu: Tensor | None, *, scored: bool = True) -> tuple[Tensor, Tensor | None]:
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ReferenceMismatch(
                f"units of shape {list(x.shape)} were given; the reference has width {self.width}: [n, {self.width}]"
            )
        if not scored or not self._has_fvu:
            return x.float(), None
        if fvu is None or fvu.shape != (len(x),):
            given = "none" if fvu is None else f"shape {list(fvu.shape)}"
            raise ReferenceMismatch(f"the reference has a FVU for each unit: [{len(x)}] is needed, {given} was given")
        return x.float(), fvu.float()


def _known(reference: Tensor, labels: Tensor | None, fvu: Tensor | None) -> Reference:
    """The finite units, checked."""
    if reference.ndim != 2:
        raise ReferenceMismatch(f"the reference has shape {list(reference.shape)}: units [n, d] are needed")
    for name, column in (("labels", labels), ("fvu", fvu)):
        if column is not None and column.shape != (len(reference),):
            raise ReferenceMismatch(
                f"{name} has shape {list(column.shape)}, the reference {len(reference)} units: [{len(reference)}]"
            )
    x = reference.float()
    fvu = None if fvu is None else fvu.float()
    finite = _finite(x, fvu)
    known = Reference(x, None if labels is None else labels.long(), fvu).take(finite)
    if len(known.x) < LEAST_UNITS:
        raise InsufficientReference(
            f"the reference has {len(known.x)} finite units of {len(reference)}: novelty needs {LEAST_UNITS} at least"
        )
    if not bool((known.x != known.x[0]).any()):
        raise InsufficientReference(
            f"all {len(known.x)} units of the reference are the same: nothing is nearer than other"
        )
    return known


def _finite(x: Tensor, fvu: Tensor | None) -> Tensor:
    finite = representable(x)
    return finite if fvu is None else finite & fvu.isfinite()


def _cross_fitted(known: Reference, head: Head | None) -> tuple[NoveltyParts, Tensor]:
    """Parts fitted to all folds but one, and scores float64 [n, K] of each unit by parts that have not seen it.

    All parts are fitted to as many units, so that what is new to them scores alike by any of them. Those fitted to all
    n would know the next unit better than the parts knew the reference that it is ranked among.
    """
    n = len(known.x)
    folds = _FOLDS if min(known.x.shape) <= _WIDE else _FOLDS // 2
    fold = torch.arange(n, device=known.x.device) % folds
    first = NoveltyParts.of(known.take(fold != 0), head)
    scores = torch.empty(n, len(first.names), dtype=torch.float64, device=known.x.device)
    for number in range(folds):
        parts = first if number == 0 else NoveltyParts.of(known.take(fold != number), head)
        if parts.names != first.names:
            raise InsufficientReference(
                "classes are too rare in the reference to be told from each other: label more of it"
            )
        (of_fold,) = (fold == number).nonzero(as_tuple=True)
        for start in range(0, len(of_fold), _AT_ONCE):
            places = of_fold[start : start + _AT_ONCE]
            held = known.take(places)
            scores[places] = parts.scores(held.x, held.fvu)
    return first, scores
