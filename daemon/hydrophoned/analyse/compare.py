"""Two samples compared: whether they are alike, how far apart they are, and in which coordinates.

Units are whitened by the covariance of both samples together, which exchanging them leaves as it is. Four distances
are tested by exchanging units between the samples: of the means (Mahalanobis); of the means of the squares; the maximum
mean discrepancy (Gretton et al. 2012, "A kernel two-sample test") with the mean of Gaussian kernels of half, once and
twice the median distance; and the energy distance (Szekely & Rizzo 2004, "Testing for equal distributions in high
dimension"). The same exchanges serve for all, so that the smallest of their p-values has a p-value of its own (Westfall
& Young 1993, "Resampling-based multiple testing").

Beside that a classifier, a logistic regression on whitened coordinates and their squares, is learned on four fifths of
the groups and asked about the others; its AUROC is the mean over the fifths. Its bounds are those of Newcombe (2006,
"Confidence intervals for an effect size measure based on the Mann-Whitney statistic", part 2, method 5). The groups
count for 4 / 9 observations each, because the five classifiers have learned from much the same groups (Nadeau & Bengio
2003, "Inference for the generalization error").

Units of a group (a request, a tenant) resemble each other: groups are exchanged as wholes, and pairs of units of one
group count for no distance. A group is exchanged with one of about its size, or where few have such a one in the other
sample, with any.
"""

from typing import Any, Final

import numpy as np
import torch
from hydrophone_schemas.comparison import Comparison, CoordinateChanges, Distance, Separation
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.analyse.auroc import auroc
from hydrophoned.analyse.contrast import q_values
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.intervals import Z95
from hydrophoned.analyse.probe import Standard, fit_probe
from hydrophoned.detect.covariance import Whitening
from hydrophoned.detect.exchange import Exchange, mean_test

LEAST_GROUPS: Final = 20
"""Groups of each sample, at least; units, where no groups are given."""
MOST_PAIRED: Final = 4096
"""Units, of both samples together, whose distances from each other are looked at; of more that many are drawn."""
MOST_CLASSIFIED: Final = 16_384
"""Units that the classifier is learned on and asked about; of more that many are drawn."""
_FOLDS: Final = 5
_INDEPENDENT: Final = 1 / (1 + _FOLDS / (_FOLDS - 1))
_RIDGE: Final = 0.1
_COMPARABLE: Final = 0.9
_CLIP: Final = 6.0
_KERNELS: Final = (0.5, 1.0, 2.0)
_AT_ONCE: Final = 256  # permutations
_BISECTIONS: Final = 60


def compare_arrays(
    reference: NDArray[np.float32],
    current: NDArray[np.float32],
    *,
    groups: tuple[NDArray[Any], NDArray[Any]] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> Comparison:
    """:func:`compare` of arrays; entry point ``compare`` of ``hydrophone.daemon``."""
    generator = torch.Generator().manual_seed(seed)
    own = [torch.from_numpy(np.array(x, dtype=np.float32)) for x in (reference, current)]
    return compare(own[0], own[1], groups=groups, permutations=permutations, generator=generator)


def compare(
    reference: Tensor,
    current: Tensor,
    *,
    groups: tuple[NDArray[Any], NDArray[Any]] | None = None,
    permutations: int = 999,
    generator: torch.Generator,
) -> Comparison:
    """Compare units ``reference`` [n, d] with ``current`` [m, d]; those that are not finite are left out.

    ``groups`` are the ids of each unit's group, [n] and [m]; an id of both samples names a group of each, since groups
    are exchanged as wholes. Raises TooLittle for fewer than ``LEAST_GROUPS`` groups of a sample, ValueError for shapes
    that do not fit.
    """
    _check(reference, current, groups, permutations)
    samples = [reference.float(), current.float()]
    kept = [sample.isfinite().all(1) for sample in samples]
    finite = [sample[good] for sample, good in zip(samples, kept, strict=True)]
    block = _blocks(groups, [good.cpu().numpy() for good in kept])
    n, m = (len(sample) for sample in finite)
    exchange = _exchange(n, m, block)
    is_after = exchange.after
    counts = int((~is_after).sum()), int(is_after.sum())
    if min(counts) < LEAST_GROUPS:
        what = "units" if block is None else "groups"
        raise TooLittle(
            f"{counts[0]} {what} of the reference and {counts[1]} of the current sample are finite: {LEAST_GROUPS} of "
            "each are needed at least, to tell a difference from chance"
        )
    sides = np.arange(n + m) >= n
    y = _whitened(finite)
    after = _exchanged(exchange, permutations, generator)
    statistics, paired = _distances(y, exchange, after, generator)
    p = _p_values(statistics)
    effects = *_without_chance(statistics[:2]), *statistics[2:, 0].clip(0, 1)
    mahalanobis, spread, mmd, energy = (
        Distance(float(effect), float(one)) for effect, one in zip(effects, p, strict=True)
    )
    return Comparison(
        units_reference=n,
        units_current=m,
        left_out_reference=len(reference) - n,
        left_out_current=len(current) - m,
        groups_reference=counts[0],
        groups_current=counts[1],
        permutations=permutations,
        p=_joint_p(statistics),
        mahalanobis=mahalanobis,
        spread=spread,
        mmd=mmd,
        energy=energy,
        paired_units=paired,
        classifier=_separation(y, sides, np.arange(n + m) if block is None else block, generator),
        coordinates=_coordinates(finite, exchange),
    )


def _check(
    reference: Tensor, current: Tensor, groups: tuple[NDArray[Any], NDArray[Any]] | None, permutations: int
) -> None:
    shapes = list(reference.shape), list(current.shape)
    if reference.ndim != 2 or current.ndim != 2 or shapes[0][1] != shapes[1][1] or not shapes[0][1]:
        raise ValueError(f"samples of shape {shapes[0]} and {shapes[1]}: expected [n, d] and [m, d], of one width")
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}: at least 1 is needed, 999 for p-values down to 0.001")
    if groups is not None and [len(one) for one in groups] != [shapes[0][0], shapes[1][0]]:
        raise ValueError(
            f"groups of {len(groups[0])} and {len(groups[1])} units were given with {shapes[0][0]} and {shapes[1][0]}"
        )


def _blocks(
    groups: tuple[NDArray[Any], NDArray[Any]] | None, kept: list[NDArray[np.bool_]]
) -> NDArray[np.int64] | None:
    """Number of each kept unit's group, those of the reference first; None without groups."""
    if groups is None:
        return None
    numbers = [_numbers(np.asarray(one)[good]) for one, good in zip(groups, kept, strict=True)]
    return np.concatenate([numbers[0], numbers[1] + numbers[0].max(initial=-1) + 1]).astype(np.int64)


def _numbers(ids: NDArray[Any]) -> NDArray[np.int64]:
    """Number of each id, in the order in which they come, so that their names make no difference."""
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[place]


def _exchange(n: int, m: int, block: NDArray[np.int64] | None) -> Exchange:
    """Of units, or of groups: within strata of sizes, if most units are of strata that have groups of both samples."""
    exchange = Exchange.between(n, m, block)
    size = np.bincount(exchange.stratum, exchange.size)
    after = np.bincount(exchange.stratum, exchange.size * exchange.after)
    mixed = (after > 0) & (after < size)
    if size[mixed].sum() >= _COMPARABLE * size.sum():
        return exchange
    return exchange._replace(stratum=np.zeros_like(exchange.stratum))


def _whitened(samples: list[Tensor]) -> Tensor:
    both = torch.cat(samples)
    return Whitening.fit(both).apply(both).clamp_(-_CLIP, _CLIP)


# -- distances --------------------------------------------------------------------------------------------------------


def _exchanged(exchange: Exchange, permutations: int, generator: torch.Generator) -> Tensor:
    """Which groups are of the current sample: as they came, and in ``permutations`` exchanges; bool [1 + P, g]."""
    stratum, own = torch.from_numpy(exchange.stratum), torch.from_numpy(exchange.after)
    by_stratum = torch.argsort(stratum, stable=True)
    found = own.repeat(1 + permutations, 1)
    for row in found[1:]:
        drawn = torch.rand(len(own), generator=generator, dtype=torch.float64) + stratum
        row[torch.argsort(drawn)] = own[by_stratum]
    return found


def _distances(
    y: Tensor, exchange: Exchange, after: Tensor, generator: torch.Generator
) -> tuple[NDArray[np.float64], int]:
    """Of each exchange, [4, 1 + P], and how many units make up the last two.

    Squared distances of the means, and of the means of squares in their standard deviations; discrepancy; energy.
    """
    unit, group = torch.from_numpy(exchange.unit).to(y.device), torch.from_numpy(exchange.group).to(y.device)
    size = torch.from_numpy(exchange.size).to(y)
    squares = y.square()
    squares /= squares.std(0).clamp_min(1e-6)
    sums = [y.new_zeros(exchange.groups, y.shape[1]).index_add_(0, group, one[unit]) for one in (y, squares)]
    chosen = _few(exchange, generator).to(y.device)
    inside = torch.isin(group, chosen)
    place = torch.searchsorted(chosen, group[inside])
    kernel, distance = _pairs(y[unit[inside]], place, len(chosen))
    paired = size[chosen]
    found = []
    for some in torch.split(after.to(y.device), _AT_ONCE):
        here = some.to(y)
        between_means = [_between_means(one, size, here) for one in sums]
        between_means[0] = _within(between_means[0], here @ size / size.sum())
        between_pairs = _between_pairs(kernel, distance, paired, here[:, chosen].double())
        found.append(torch.stack([*between_means, *between_pairs]))
    return torch.cat(found, 1).cpu().numpy(), int(inside.sum())


def _few(exchange: Exchange, generator: torch.Generator) -> Tensor:
    """Groups, rising, of at most ``MOST_PAIRED`` units in all: as large a share of one sample's as of the other's."""
    total = int(exchange.size.sum())
    if total <= MOST_PAIRED:
        return torch.arange(exchange.groups)
    kept = []
    for side in (~exchange.after, exchange.after):
        (mine,) = np.nonzero(side)
        order = torch.from_numpy(mine)[torch.randperm(len(mine), generator=generator)]
        size = torch.from_numpy(exchange.size)[order]
        most = MOST_PAIRED * int(size.sum()) / total
        kept.append(order[: max(2, int((size.cumsum(0) <= most).sum()))])
    return torch.cat(kept).sort().values


def _pairs(y: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Kernel and distance of units y [m, d], summed over pairs of ``groups`` groups, 0 of one and itself; float64."""
    squares = y.square().sum(1)
    squared = (squares[:, None] + squares - 2 * (y @ y.T)).clamp_min_(0)
    middle = squared[torch.triu_indices(len(y), len(y), 1, device=y.device).unbind()].median().clamp_min(1e-12)
    kernel = torch.zeros_like(squared)
    for factor in _KERNELS:
        kernel += torch.exp(squared / (-2 * factor**2 * middle))
    return _of_groups(kernel.div_(len(_KERNELS)), group, groups), _of_groups(squared.sqrt_(), group, groups)


def _of_groups(pairs: Tensor, group: Tensor, groups: int) -> Tensor:
    rows = pairs.new_zeros(groups, len(pairs)).index_add_(0, group, pairs)
    found = pairs.new_zeros(groups, groups).index_add_(0, group, rows.T.contiguous())
    return found.fill_diagonal_(0.0).double()


def _between_means(sums: Tensor, size: Tensor, after: Tensor) -> Tensor:
    """Squared distance of the means of values with ``sums`` [g, d] over groups, of each exchange ``after`` [P, g]."""
    count, total = after @ size, after @ sums
    return (total / count[:, None] - (sums.sum(0) - total) / (size.sum() - count)[:, None]).square().sum(1).double()


def _within(squared: Tensor, share: Tensor) -> Tensor:
    """Squared distance by the covariance within samples, of that by the covariance of both together, ``squared``.

    Together they vary by the distance of their means, too (Sherman & Morrison 1950); ``share`` of the units is of one.
    """
    return squared / (1 - share * (1 - share) * squared).clamp_min(1e-3)


def _between_pairs(kernel: Tensor, distance: Tensor, size: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Discrepancy and energy distance, each over what it can be at most, of each exchange ``after`` [P, g]."""
    size = size.double()
    before = 1 - after
    count = after @ size, before @ size
    within = [total.square() - side @ size.square() for total, side in zip(count, (after, before), strict=True)]
    across = count[0] * count[1]
    means = []
    for pairs in (kernel, distance):
        of_after, of_before = after @ pairs, before @ pairs
        inside = (of_after * after).sum(1) / within[0], (of_before * before).sum(1) / within[1]
        means.append((inside[0] + inside[1], 2 * (of_after * before).sum(1) / across))
    (alike, unlike), (near, far) = means
    return (alike - unlike) / alike.clamp_min(1e-300), (far - near) / far.clamp_min(1e-300)


def _without_chance(squared: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances whose squares are [k, 1 + P], without the mean square of the exchanges; 0 where that is larger."""
    found: NDArray[np.float64] = np.maximum(squared[:, 0] - squared[:, 1:].mean(1), 0.0) ** 0.5
    return found


def _p_values(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each statistic [k, 1 + P]: how many of all exchanges, that as it came included, are as large."""
    least = statistics[:, :1] - 1e-9 * np.abs(statistics[:, :1])
    found: NDArray[np.float64] = (statistics >= least).mean(1)
    return found


def _joint_p(statistics: NDArray[np.float64]) -> float:
    """How many of all exchanges have as small a least p-value as that as it came."""
    count = statistics.shape[1]
    ranks = [count - np.searchsorted(np.sort(one), one * (1 - 1e-9 * np.sign(one))) for one in statistics]
    least = np.min(ranks, axis=0)
    return float((least <= least[0]).mean())


# -- classifier -------------------------------------------------------------------------------------------------------


def _separation(
    y: Tensor, sides: NDArray[np.bool_], block: NDArray[np.int64], generator: torch.Generator
) -> Separation:
    """AUROC on groups that were not learned from. y [N, d] is whitened, ``sides`` and ``block`` [N]."""
    fold = np.full(int(block.max()) + 1, -1)
    for side in (False, True):
        known = np.unique(block[sides == side])
        known = known[torch.randperm(len(known), generator=generator).numpy()]
        share = min(1.0, MOST_CLASSIFIED / len(block))
        known = known[: max(_FOLDS, round(share * len(known)))]
        fold[known] = np.arange(len(known)) % _FOLDS
    used = np.flatnonzero(fold[block] >= 0)
    of, label = torch.from_numpy(fold[block][used]), torch.from_numpy(sides[used])
    some = y[torch.from_numpy(used).to(y.device)].clamp(-_CLIP / 2, _CLIP / 2)
    x, label, of = torch.cat([some, some.square()], 1), label.to(y.device), of.to(y.device)
    scores, weights = [], []
    for number in range(_FOLDS):
        learned = of != number
        standard = Standard.of(x[learned])
        probe = fit_probe(standard.apply(x[learned]), label[learned], ridge=_RIDGE)
        scores.append(auroc(probe.logits(standard.apply(x[~learned])), label[~learned]))
        weights.append(float(label[~learned].sum()) * float((~label[~learned]).sum()))
    found = float(np.average(scores, weights=weights))
    observations = [len(np.unique(block[used][sides[used] == side])) for side in (False, True)]
    low, high = _auroc_bounds(found, *(_INDEPENDENT * count for count in observations))
    return Separation(found, low, high, len(used))


def _auroc_bounds(found: float, n: float, m: float) -> tuple[float, float]:
    """Newcombe's bounds: those at which ``found`` is 1.96 of Hanley & McNeil's (1982) standard errors away.

    >>> [round(one, 3) for one in _auroc_bounds(0.5, 1000, 1000)], [round(one, 2) for one in _auroc_bounds(1.0, 20, 20)]
    ([0.475, 0.525], [0.9, 1.0])
    """

    def within(at: float) -> bool:
        more = ((n + m) / 2 - 1) * ((1 - at) / (2 - at) + at / (1 + at))
        return bool(abs(found - at) <= Z95 * (at * (1 - at) * (1 + more) / (n * m)) ** 0.5)

    bounds = []
    for end in (0.0, 1.0):
        outside, inside = end, found
        if found == end:
            bounds.append(end)
            continue
        for _ in range(_BISECTIONS):
            middle = (outside + inside) / 2
            outside, inside = (outside, middle) if within(middle) else (middle, inside)
        bounds.append(inside)
    return bounds[0], bounds[1]


# -- coordinates ------------------------------------------------------------------------------------------------------


def _coordinates(samples: list[Tensor], exchange: Exchange) -> CoordinateChanges:
    deviations, means = zip(*(torch.std_mean(sample, dim=0) for sample in samples), strict=True)
    scale = torch.where(deviations[0] > 0, deviations[0], 1.0)
    shifted = torch.cat([(sample - means[0]) / scale for sample in samples])
    # each about its own mean, so that a shift is no spread
    about = torch.cat([(sample - mean) / scale for sample, mean in zip(samples, means, strict=True)])
    shift = mean_test(exchange.means(shifted), exchange)
    spread = mean_test(exchange.means(about.square().log1p()), exchange)
    known = deviations[0] > 0
    away = means[1] - means[0]
    return CoordinateChanges(
        shift=_float64(torch.where(known | (away == 0), away / scale, torch.nan)),
        shift_p=shift.p,
        shift_q=q_values(shift.p),
        spread=_float64(torch.where(known, deviations[1] / scale, torch.nan)),
        spread_p=spread.p,
        spread_q=q_values(spread.p),
    )


def _float64(values: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.double().cpu().numpy()
    return found
