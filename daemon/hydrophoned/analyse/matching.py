"""Which features of one dictionary come back in another: of another seed, version, layer or model.

Features are matched by what they do: the correlation of their values on the same rows, on half of the requests, one to
one, each other's best (as in Lan et al. 2024, "Sparse autoencoders reveal universal feature spaces across large
language models", but one to one: a partner that many may share raises means), and scored on the other half. Beside it
the same matching by cosine of decoder rows, which answers another question: whether the same direction was learned.

Two floors are beside each figure. *Shuffled*: the same matching where nothing can be found, since the other
dictionary's rows are dealt out anew (of cosines: its decoder rows are drawn at random with the same second moment).
*Random pairs* keeps rows and features as they are and breaks who is matched with whom.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.analyse.active import Active
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.halves import halves, numbered
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.errors import WidthMismatch

STRONG: Final = 0.7
"""Score above which a feature counts as found again."""
WEAK: Final = 0.4
"""Score above which it is similar."""
LEAST_FIRED: Final = 20
"""Rows on which a feature has to fire in each half before its correlation says anything."""
_BLOCK: Final = 1 << 23  # correlations held at a time: 32 MB
_EXPANDED: Final = 1 << 20  # products of values held at a time

Blocks = Iterator[tuple[int, Tensor]]


class Scores(NamedTuple):
    """Of ``pairs`` matched features: mean score, and shares above STRONG and WEAK of the first one's compared features.

    ``chosen`` is the mean on the rows that the pairs were chosen on, where there are such rows. None of nothing.
    """

    pairs: int
    mean: float | None
    strong: float | None
    weak: float | None
    chosen: float | None = None


class Matching(NamedTuple):
    """A matching, its figures, and its floors (see the module).

    ``partner`` is int64 [F] of the first dictionary, -1 where a feature has none; ``score`` float32 [F], NaN there.
    """

    partner: Tensor
    score: Tensor
    scores: Scores
    shuffled: Scores
    random_pairs: Scores


class Comparison(NamedTuple):
    """Two dictionaries on ``rows`` rows of ``requests`` requests, ``rows_scored`` of which are scored on.

    ``compared`` is int64 [c] for each dictionary: its features that fire on LEAST_FIRED rows of each half. Of the
    others nothing is known. ``same_partner`` is the share of features with a partner both ways for whom it is the same.
    """

    rows: int
    rows_scored: int
    requests: int
    seed: int
    features: tuple[int, int]
    compared: tuple[Tensor, Tensor]
    activation: Matching
    decoder: Matching
    same_partner: float | None


def compare(
    codes: tuple[Codes, Codes],
    directions: tuple[Tensor, Tensor],
    request: Tensor,
    *,
    first: Tensor | None = None,
    seed: int = 0,
) -> Comparison:
    """Match the features of two dictionaries by their ``codes`` of the same rows and by their decoder rows.

    ``directions`` are [F, d] of any norm, ``request`` is int64 [n], the number of the request of each row. Correlations
    are held in blocks, never F x F. ``first``, bool [n], says which rows partners are chosen on, by default those of
    half the requests; the others are scored on. Raises TooLittle, WidthMismatch.
    """
    (one, other), (W, V) = codes, directions
    n = len(request)
    if len(one.value) != n or len(other.value) != n:
        raise TooLittle(f"codes of {len(one.value)} and of {len(other.value)} rows are not of the same {n} rows")
    if n < 2 * LEAST_FIRED:
        raise TooLittle(f"{n} rows are too few: features are compared that fire on {LEAST_FIRED} rows of each half")
    if W.shape[1] != V.shape[1]:
        raise WidthMismatch(f"dictionaries of rows of width {W.shape[1]} and {V.shape[1]} cannot be compared")
    generator = torch.Generator().manual_seed(seed)
    if first is None:
        first = halves(request, generator)
    compared, choosing, scoring = _parts(one, len(W), first)
    others, its_choosing, its_scoring = _parts(other, len(V), first)
    found = _by_activation((choosing, its_choosing), (scoring, its_scoring), generator)
    alike = _by_decoder(W[compared], V[others], generator)
    both = (found.partner >= 0) & (alike.partner >= 0)
    same = float((found.partner == alike.partner)[both].double().mean()) if bool(both.any()) else None
    return Comparison(
        n,
        int((~first).sum()),
        len(numbered(request)[0]),
        seed,
        (len(W), len(V)),
        (compared, others),
        _widened(found, len(W), compared, others),
        _widened(alike, len(W), compared, others),
        same,
    )


# -- the two ways -----------------------------------------------------------------------------------------------------


def _by_activation(
    choosing: tuple[Active, Active], scoring: tuple[Active, Active], generator: torch.Generator
) -> Matching:
    def matched(its_choosing: Active, its_scoring: Active) -> tuple[Tensor, Tensor, Scores]:
        one = choosing[0]
        partner = each_others_best(_correlations(one, its_choosing), one.features, its_choosing.features)
        score = pair_correlations(scoring[0], its_scoring, partner)
        return partner, score, _scores(partner, score, pair_correlations(one, its_choosing, partner))

    partner, score, scores = matched(choosing[1], scoring[1])
    _, _, shuffled = matched(choosing[1].shuffled(generator), scoring[1].shuffled(generator))
    drawn = _random_pairs(choosing[0].features, choosing[1].features, generator).to(partner.device)
    return Matching(partner, score, scores, shuffled, _scores(drawn, pair_correlations(*scoring, drawn)))


def _by_decoder(W: Tensor, V: Tensor, generator: torch.Generator) -> Matching:
    W, V = unit(W.float()), unit(V.float())

    def matched(other: Tensor) -> tuple[Tensor, Tensor]:
        partner = each_others_best(_cosines(W, other), len(W), len(other))
        return partner, _pair_cosines(W, other, partner)

    partner, score = matched(V)
    drawn = _random_pairs(len(W), len(V), generator).to(partner.device)
    return Matching(
        partner,
        score,
        _scores(partner, score),
        _scores(*matched(_alike(V, generator))),
        _scores(drawn, _pair_cosines(W, V, drawn)),
    )


def _parts(codes: Codes, features: int, first: Tensor) -> tuple[Tensor, Active, Active]:
    """Features that fire often enough, and not always alike, in both halves; what they do in each."""
    all_ = Active.of(codes, features)
    parts = all_.of_rows(first), all_.of_rows(~first)
    good = torch.ones(features, dtype=torch.bool, device=first.device)
    for half in parts:
        good &= (half.fired() >= LEAST_FIRED) & (half.moments()[1] > 0)
    some = good.nonzero().squeeze(1)
    return some, parts[0].of_features(some), parts[1].of_features(some)


def _random_pairs(one: int, other: int, generator: torch.Generator) -> Tensor:
    """A partner [one] for each of as many features as there can be pairs of, -1 for the rest."""
    partner = torch.full((one,), -1)
    count = min(one, other)
    chosen = torch.randperm(one, generator=generator)[:count]
    partner[chosen] = torch.randperm(other, generator=generator)[:count]
    return partner


def _alike(V: Tensor, generator: torch.Generator) -> Tensor:
    """Unit rows drawn at random with the second moment of V: as many, in the same directions on the whole."""
    values, vectors = torch.linalg.eigh(V.T @ V)
    drawn = torch.randn(V.shape, generator=generator).to(V)
    return unit((drawn * values.clamp_min(0).sqrt()) @ vectors.T)


def _widened(found: Matching, features: int, compared: Tensor, others: Tensor) -> Matching:
    """``found`` in the numbers of all features."""
    partner = compared.new_full((features,), -1)
    score = found.score.new_full((features,), torch.nan)
    has = found.partner >= 0
    partner[compared[has]] = others[found.partner[has]]
    score[compared] = found.score
    return found._replace(partner=partner, score=score)


def _scores(partner: Tensor, score: Tensor, chosen: Tensor | None = None) -> Scores:
    has = partner >= 0
    pairs, known = int(has.sum()), score[has].double()
    if not len(partner):
        return Scores(0, None, None, None)
    return Scores(
        pairs,
        float(known.mean()) if pairs else None,
        float((known > STRONG).sum()) / len(partner),
        float((known > WEAK).sum()) / len(partner),
        float(chosen[has].double().mean()) if pairs and chosen is not None else None,
    )


# -- numbers ----------------------------------------------------------------------------------------------------------


def each_others_best(blocks: Blocks, one: int, other: int) -> Tensor:
    """int64 [one]: the partner of each, where both are each other's best and alike at all, else -1.

    ``blocks`` gives (number of its first row, scores [some, other]) and goes over all ``one`` rows.
    """
    partner: Tensor | None = None
    for start, block in blocks:
        if partner is None:
            partner = torch.full((one,), -1, device=block.device)
            best = block.new_full((other,), -torch.inf)
            back = torch.full((other,), -1, device=block.device)
        value, place = block.max(1)
        partner[start : start + len(block)] = torch.where(value > 0, place, -1)
        value, place = block.max(0)
        better = value > best
        best = torch.where(better, value, best)
        back = torch.where(better, place + start, back)
    if partner is None:
        return torch.full((one,), -1)
    mutual = (partner >= 0) & (back[partner] == torch.arange(one, device=partner.device))
    return torch.where(mutual, partner, -1)


def _correlations(one: Active, other: Active) -> Blocks:
    """Correlations of all features of ``one`` with all of ``other``, float32, in blocks: through active pairs only."""
    if not one.features or not other.features:
        return
    (mean, deviation), (its_mean, its_deviation) = one.moments(), other.moments()
    order = one.feature.argsort(stable=True)
    row, feature, value = one.row[order], one.feature[order], one.value[order] / deviation.float()[one.feature[order]]
    scaled = other._replace(value=other.value / its_deviation.float()[other.feature])
    offsets = torch.searchsorted(other.row, torch.arange(other.rows + 1, device=row.device))
    size = max(1, _BLOCK // other.features)
    shift, its_shift = (mean / deviation).float(), (its_mean / its_deviation).float()
    for start in range(0, one.features, size):
        stop = min(start + size, one.features)
        low, high = torch.searchsorted(feature, feature.new_tensor([start, stop])).tolist()
        some = slice(low, high)
        block = _products((row[some], feature[some] - start, value[some]), scaled, offsets, stop - start)
        yield start, block.div_(one.rows).addr_(shift[start:stop], its_shift, alpha=-1)


def _products(pairs: tuple[Tensor, Tensor, Tensor], other: Active, offsets: Tensor, size: int) -> Tensor:
    """Sums over rows of the products of ``pairs`` (row, feature, value) with ``other``, [size, other.features]."""
    row, feature, value = pairs
    sums = value.new_zeros(size * other.features)
    count = offsets[row + 1] - offsets[row]
    ends = count.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    cuts = torch.searchsorted(ends, torch.arange(_EXPANDED, total + _EXPANDED, _EXPANDED, device=row.device))
    for low, high in zip([0, *cuts.tolist()], [*cuts.tolist(), len(row)], strict=True):
        some = slice(low, high)
        if not len(row[some]):
            continue
        # each pair once for every active feature of its row
        times = count[some]
        own = torch.arange(high - low, device=row.device).repeat_interleave(times)
        within = torch.arange(len(own), device=row.device) - (times.cumsum(0) - times)[own]
        place = offsets[row[some]][own] + within
        target = feature[some][own] * other.features + other.feature[place]
        sums.index_add_(0, target, value[some][own] * other.value[place])
    return sums.view(size, other.features)


def pair_correlations(one: Active, other: Active, partner: Tensor) -> Tensor:
    """Correlation of each feature of ``one`` with its partner in ``other``, float32 [F]; NaN without, or of a constant.

    No two have the same partner.
    """
    has = (partner >= 0).nonzero().squeeze(1)
    count = len(has)
    score = torch.full((len(partner),), torch.nan, device=partner.device)
    if not count:
        return score
    left, right = one.of_features(has), other.of_features(partner[has])
    own, its = left.row * count + left.feature, right.row * count + right.feature
    its, order = its.sort()
    product = torch.zeros(count, dtype=torch.float64, device=partner.device)
    if len(its):
        place = torch.searchsorted(its, own).clamp_max(len(its) - 1)
        hit = its[place] == own
        weight = left.value[hit].double() * right.value[order[place[hit]]].double()
        product = torch.bincount(left.feature[hit], weight, minlength=count)
    (mean, deviation), (its_mean, its_deviation) = left.moments(), right.moments()
    score[has] = ((product / one.rows - mean * its_mean) / (deviation * its_deviation)).float()
    return torch.where(score.isfinite(), score, torch.nan)


def _cosines(W: Tensor, V: Tensor) -> Blocks:
    if not len(V):
        return
    size = max(1, _BLOCK // len(V))
    for start in range(0, len(W), size):
        yield start, W[start : start + size] @ V.T


def _pair_cosines(W: Tensor, V: Tensor, partner: Tensor) -> Tensor:
    has = partner >= 0
    score = W.new_full((len(W),), torch.nan)
    score[has] = (W[has] * V[partner[has]]).sum(1)
    return score


def unit(rows: Tensor) -> Tensor:
    """``rows`` with norm 1."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms.clamp_min(1e-12)
