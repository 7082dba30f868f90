"""Whether a label's features fall silent where another feature has absorbed it.

Chanin et al. 2024, "A is for Absorption: Studying Feature Splitting and Absorption in Sparse Autoencoders". A probe of
the rows says which direction v a label has, and of which rows it holds. The features that should fire on those are its
*main* ones: the best by AUROC. Of rows that the probe calls positive,

    silent     are those on which no main feature fires
    absorbed   are silent ones of which one active feature j has cos(w_j, v) > 0.1, and z_j w_j carries more than 0.4 of
               what all active features that point along v carry

w_j are decoder rows; they and v are compared in standardised rows, where the probe knows them. The paper decides by
ablation on spelling prompts, which needs the model; here everything is in the rows.

Two floors: the same with v *random*, and all of it with labels *permuted*. Permuted are rows or, where all rows of each
request have the same label, requests.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.analyse.active import Active
from hydrophoned.analyse.auroc import auroc, aurocs_of_columns, aurocs_of_features
from hydrophoned.analyse.errors import LabelsAlike, TooLittle
from hydrophoned.analyse.halves import halves, numbered
from hydrophoned.analyse.probe import Standard, fit_probe
from hydrophoned.analyse.splitting import Splitting, splitting
from hydrophoned.learn.dictionary import Codes

MAINS: Final = 3
"""Features that should fire on rows with the label."""
LEAST_COSINE: Final = 0.1
LEAST_SHARE: Final = 0.4
LEAST_ROWS: Final = 10
"""Rows with the label, and without, that there have to be in each half."""
_DRAWS: Final = 20
_SHOWN: Final = 5


class Main(NamedTuple):
    """A main feature, and its AUROC on the rows that it was chosen on and on the others."""

    feature: int
    auroc_chosen: float
    auroc: float


class Absorbed(NamedTuple):
    """Rows: ``called`` positive by the probe, of those ``silent``, of those ``absorbed``; the shares of the one before.

    Of random directions the mean of several, so that ``absorbed`` need not be whole. A share of nothing is None.
    """

    called: int
    silent: int
    absorbed: float
    silent_share: float | None
    absorbed_share: float | None


class Rivals(NamedTuple):
    """AUROC on the rows to score on: the probe, and what can be had without a dictionary."""

    probe: float
    mean_difference: float
    best_neuron: float


class Absorption(NamedTuple):
    """Of a label that ``positive`` of ``rows`` rows have; figures are of the ``rows_scored`` of other requests.

    ``absorbers`` is the number of features that absorb, ``largest`` has pairs (feature, rows) of the first few.
    """

    rows: int
    requests: int
    positive: int
    rows_scored: int
    positive_scored: int
    seed: int
    mains: tuple[Main, ...]
    aurocs: Rivals
    found: Absorbed
    random_direction: Absorbed
    permuted_labels: Absorbed
    absorbers: int
    largest: tuple[tuple[int, int], ...]
    splitting: Splitting
    splitting_permuted: Splitting


class _Half(NamedTuple):
    """Rows of a half, standardised [n, d], their codes, and which have the label."""

    x: Tensor
    codes: Codes
    active: Active
    label: Tensor


def absorption(x: Tensor, codes: Codes, W_dec: Tensor, label: Tensor, request: Tensor, *, seed: int = 0) -> Absorption:
    """Of rows x [n, d] with their ``codes`` and bool ``label`` [n], under decoder rows ``W_dec`` [F, d] of any norm.

    ``request`` int64 [n] is the number of the request of each row; half of the requests train the probe and choose, the
    others are scored. Raises LabelsAlike and TooLittle.
    """
    positive = int(label.sum())
    if not len(label):
        raise TooLittle("no row has the label, be it true or false")
    if positive in (0, len(label)):
        raise LabelsAlike(f"the label is {'true' if positive else 'false'} on all {len(label)} rows: nothing to tell")
    generator = torch.Generator().manual_seed(seed)
    first = halves(request, generator)
    _check(label, first)
    standard = Standard.of(x[first])
    one, other = (_half(x, codes, label, rows, standard, len(W_dec)) for rows in (first, ~first))
    W = W_dec / standard.deviation
    v, order, logits = _learned(one, other)
    called = logits > 0
    found, by = _judge(other, W, called, v, order[:MAINS])
    dealt = _permuted(label, request, first, generator)
    null_one, null_other = one._replace(label=dealt[first]), other._replace(label=dealt[~first])
    null_v, null_order, null_logits = _learned(null_one, null_other)
    most = torch.zeros_like(called)
    most[null_logits.argsort(descending=True)[: int(called.sum())]] = True
    return Absorption(
        rows=len(label),
        requests=len(numbered(request)[0]),
        positive=positive,
        rows_scored=len(other.label),
        positive_scored=int(other.label.sum()),
        seed=seed,
        mains=_mains(one, other, order[:MAINS]),
        aurocs=_rivals(one, other, logits),
        found=found,
        random_direction=_random(other, W, called, order[:MAINS], generator),
        permuted_labels=_judge(other, W, most, null_v, null_order[:MAINS])[0],
        absorbers=len(numbered(by)[0]),
        largest=_largest(by),
        splitting=splitting(one.active, other.active, (one.label, other.label)),
        splitting_permuted=splitting(one.active, other.active, (null_one.label, null_other.label)),
    )


def _check(label: Tensor, first: Tensor) -> None:
    for rows, purpose in ((first, "choose on"), (~first, "score on")):
        some = label[rows]
        for kind, count in (("true", int(some.sum())), ("false", int((~some).sum()))):
            if count < LEAST_ROWS:
                raise TooLittle(
                    f"the label is {kind} on {count} of the {len(some)} rows to {purpose}, half of the requests; at "
                    f"least {LEAST_ROWS} are needed. Give more rows, or more requests with the label."
                )


def _half(x: Tensor, codes: Codes, label: Tensor, rows: Tensor, standard: Standard, features: int) -> _Half:
    some = Codes(codes.index[rows], codes.value[rows])
    return _Half(standard.apply(x[rows]), some, Active.of(some, features), label[rows])


def _learned(one: _Half, other: _Half) -> tuple[Tensor, Tensor, Tensor]:
    """The probe's direction [d], features by AUROC [F], both of one half; the probe's logits of the other."""
    probe = fit_probe(one.x, one.label)
    order = aurocs_of_features(one.active, one.label).argsort(descending=True, stable=True)
    return probe.weight, order, probe.logits(other.x)


def _judge(half: _Half, W: Tensor, called: Tensor, v: Tensor, mains: Tensor) -> tuple[Absorbed, Tensor]:
    """What became of the rows ``called`` bool [n]; and which feature absorbed each of those that were, int64."""
    index, value = half.codes.index[called].long(), half.codes.value[called]
    fires = (torch.isin(index, mains) & (value > 0)).any(1)
    index, value = index[~fires], value[~fires]
    along = W @ (v / torch.linalg.vector_norm(v).clamp_min(1e-12))
    cosine = along / torch.linalg.vector_norm(W, dim=1).clamp_min(1e-12)
    carried = (value * along[index]).clamp_min(0)
    share = carried / carried.sum(1, keepdim=True).clamp_min(1e-12)
    taken = (share > LEAST_SHARE) & (cosine[index] > LEAST_COSINE)
    absorbed = taken.any(1)
    by = index.gather(1, (carried * taken).argmax(1, keepdim=True)).squeeze(1)[absorbed]
    return _absorbed(len(fires), len(index), int(absorbed.sum())), by


def _largest(by: Tensor) -> tuple[tuple[int, int], ...]:
    absorbers, place = numbered(by)
    rows = torch.bincount(place, minlength=len(absorbers)).tolist()
    largest = sorted(zip(absorbers.tolist(), rows, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return tuple(largest[:_SHOWN])


def _absorbed(called: int, silent: int, absorbed: float) -> Absorbed:
    return Absorbed(
        called, silent, absorbed, silent / called if called else None, absorbed / silent if silent else None
    )


def _random(half: _Half, W: Tensor, called: Tensor, mains: Tensor, generator: torch.Generator) -> Absorbed:
    """The same rows with directions drawn at random, the mean of several."""
    drawn = torch.randn(_DRAWS, W.shape[1], generator=generator).to(W)
    found = [_judge(half, W, called, v, mains)[0] for v in drawn]
    return _absorbed(found[0].called, found[0].silent, sum(one.absorbed for one in found) / _DRAWS)


def _permuted(label: Tensor, request: Tensor, first: Tensor, generator: torch.Generator) -> Tensor:
    """Labels dealt out anew within each half: to requests, where all rows of each have the same, else to rows."""
    _, place = numbered(request)
    size = torch.bincount(place)
    whole = bool(((torch.bincount(place, label.double()) / size) % 1 == 0).all())
    dealt = label.clone()
    for rows in (first, ~first):
        if whole:
            _, among = numbered(place[rows])
            own = label.new_zeros(int(among.max()) + 1)
            own[among] = label[rows]
            dealt[rows] = own[torch.randperm(len(own), generator=generator).to(label.device)][among]
        else:
            some = label[rows]
            dealt[rows] = some[torch.randperm(len(some), generator=generator).to(label.device)]
    return dealt


def _mains(one: _Half, other: _Half, mains: Tensor) -> tuple[Main, ...]:
    chosen = aurocs_of_features(one.active.of_features(mains), one.label)
    scored = aurocs_of_features(other.active.of_features(mains), other.label)
    return tuple(Main(*figures) for figures in zip(mains.tolist(), chosen.tolist(), scored.tolist(), strict=True))


def _rivals(one: _Half, other: _Half, logits: Tensor) -> Rivals:
    difference = one.x[one.label].mean(0) - one.x[~one.label].mean(0)
    own = aurocs_of_columns(one.x, one.label)
    neuron = int((own - 0.5).abs().argmax())
    scored = auroc(other.x[:, neuron], other.label)
    return Rivals(
        auroc(logits, other.label),
        auroc(other.x @ difference, other.label),
        scored if own[neuron] >= 0.5 else 1 - scored,
    )
