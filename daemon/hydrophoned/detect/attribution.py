"""What changed: features, coordinates and directions, the units that carry it, and the attributes they have.

Everything is told from the units before and after a change, and tested by exchanging them (:mod:`.exchange`). A change
point was chosen for the difference it makes, so that after a false alarm some of what is told here is chance as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.analyse.columns import Floats, Ints
from hydrophoned.detect.along import Along, along
from hydrophoned.detect.concentration import Concentration, concentrations
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.exchange import Exchange, discovery_q, mean_test, share_test
from hydrophoned.detect.fired import Fired
from hydrophoned.detect.unit_features import UnitDirections

LEAST_UNITS: Final = 8
"""Units on each side, at least."""
LEAST_FIRING: Final = 5
"""Units, or blocks of them, in which a feature has to fire to be tested, of both sides together."""
LEAST_BLOCKS: Final = 4
"""Blocks on each side, at least, for units to be placed along a change, where blocks are exchanged."""
DISCOVERED: Final = 0.1
"""Features with at most this q-value place units along the change."""
_SEEN: Final = 4.0  # standard errors; a length below that is as likely none
_CLIP: Final = 6.0
_ROUNDING: Final = 1e-6  # of a coordinate's size: what varies less does not vary


class Side(NamedTuple):
    """n units before or after a change: their ``mean`` [n, d], and the features that ``fired`` in each, if known.

    ``attributes`` of each unit may be given, and int [n] ``block`` if units of a block (a tenant, a session) resemble
    each other. Blocks and features have the same numbers on both sides.
    """

    mean: Tensor
    fired: Fired | None = None
    attributes: Sequence[Mapping[str, str]] | None = None
    block: NDArray[Any] | None = None


class FeatureChanges(NamedTuple):
    """The tested features, arrays [c], those that changed most surely first.

    ``fired_before`` and ``fired_after`` are the units in which the feature fired, of ``units_before`` and
    ``units_after``; the rates are their shares. ``effect`` is Cohen's h, 2 asin sqrt(after) - 2 asin sqrt(before): 0.2
    is small, 0.8 large. ``z`` is in standard errors; ``q`` bounds the share of false discoveries (Benjamini & Hochberg
    1995). What was exchanged are ``groups_before`` and ``groups_after`` ``of``: "units", "units of a block" or
    "blocks" (:class:`.exchange.Exchange`).
    """

    feature: Ints
    fired_before: Ints
    fired_after: Ints
    rate_before: Floats
    rate_after: Floats
    effect: Floats
    z: Floats
    p: Floats
    q: Floats
    units_before: int
    units_after: int
    groups_before: int
    groups_after: int
    of: str


class CoordinateChanges(NamedTuple):
    """Of each of d coordinates of the units' means, float64 [d].

    ``shift`` is the difference of means in standard deviations before, ``z`` that in standard errors. ``spread`` is the
    ratio of the standard deviations after and before, NaN where there was none before; ``spread_z`` is of the mean of
    log(1 + y^2), y the distance from the mean of the unit's side in standard deviations before. Q-values are of both
    kinds apart.
    """

    shift: Floats
    z: Floats
    q: Floats
    spread: Floats
    spread_z: Floats
    spread_q: Floats


class Direction(NamedTuple):
    """``direction`` float32 [d] of length 1 is that of the shift of the mean; None where there is none.

    ``length`` is that of the shift in whitened coordinates of units brought to equal length (:mod:`.unit_features`),
    about in standard deviations before, without what is in it by chance, and ``z`` its square in standard errors; None
    where units before do not vary.
    """

    direction: Tensor | None
    length: float | None
    z: float | None


class Attribution(NamedTuple):
    """What changed between ``units_before`` and ``units_after`` units; those that are not finite are not counted.

    ``features`` is None where their firings are not known. ``before`` and ``after`` float64 [n], [m] place the units
    along the change, in standard deviations of those before, NaN of one that is not finite: they are None where there
    is no change that units could be placed along. ``concentrated`` is empty then, too.
    """

    units_before: int
    units_after: int
    features: FeatureChanges | None
    coordinates: CoordinateChanges
    direction: Direction
    before: Floats | None
    after: Floats | None
    concentrated: list[Concentration]

    def carriers(self, limit: int = 20) -> Ints:
        """Up to ``limit`` units after the change, as places among them: those farthest along it, the farthest first."""
        if self.after is None:
            return np.zeros(0, dtype=np.int64)
        order = np.argsort(-self.after, kind="stable")  # NaN last
        return order[np.isfinite(self.after[order])][:limit].astype(np.int64)


def attribute(
    before: Side, after: Side, *, features: int = 0, directions: tuple[Tensor, Tensor] | None = None
) -> Attribution:
    """What changed from ``before`` to ``after``, with firings of a dictionary of ``features`` features.

    ``directions`` [n, d] and [m, d] of these units (:mod:`.unit_features`) may be given where they are known.

    Raises InsufficientReference for fewer than ``LEAST_UNITS`` finite units on a side, ReferenceMismatch for sides of
    other widths or with features that the dictionary has not.
    """
    sides, kept = _finite(before, after)
    n, m = (len(side.mean) for side in sides)
    if min(n, m) < LEAST_UNITS:
        raise InsufficientReference(
            f"{n} finite units before and {m} after: each side needs {LEAST_UNITS} at least to tell what changed"
        )
    if before.mean.shape[1] != after.mean.shape[1]:
        raise ReferenceMismatch(
            f"units before have width {before.mean.shape[1]}, those after {after.mean.shape[1]}: compare like with like"
        )
    blocks = [side.block for side in sides]
    block = None if blocks[0] is None or blocks[1] is None else np.concatenate([blocks[0], blocks[1]])
    exchange = Exchange.between(n, m, block)
    fired = _fired(sides, features)
    changed = None if fired is None else _feature_changes(fired, features, exchange, n, m)
    y, spread = _standard(sides)
    if directions is not None:
        directions = directions[0][torch.from_numpy(kept[0])], directions[1][torch.from_numpy(kept[1])]
    places, direction = _along(sides, y, exchange, fired, changed, directions)
    found: list[Concentration] = []
    if places is not None and before.attributes is not None and after.attributes is not None:
        named = [side.attributes or () for side in sides]
        found = concentrations([*named[0], *named[1]], np.concatenate(places), n, block, exchange)
    return Attribution(
        n,
        m,
        changed,
        _coordinate_changes(y, spread, exchange),
        direction,
        None if places is None else _placed(places[0], kept[0]),
        None if places is None else _placed(places[1], kept[1]),
        found,
    )


def firing_units(fired: Fired, features: Ints, limit: int) -> list[Ints]:
    """Of each of ``features`` the last ``limit`` units in which it fired, the last first."""
    unit, feature = _pairs(fired)
    kept = np.isin(feature, features)
    unit, feature = unit[kept], feature[kept]
    return [unit[feature == one][::-1][:limit] for one in features.tolist()]


# -- units ------------------------------------------------------------------------------------------------------------


def _finite(before: Side, after: Side) -> tuple[list[Side], list[NDArray[np.bool_]]]:
    """Both sides without the units that are not finite, and which were kept."""
    sides, masks = [], []
    for side in (before, after):
        if side.attributes is not None and len(side.attributes) != len(side.mean):
            raise ReferenceMismatch(
                f"attributes of {len(side.attributes)} units were given with {len(side.mean)} units"
            )
        finite = side.mean.isfinite().all(1)
        kept = finite.cpu().numpy()
        masks.append(kept)
        if kept.all():
            sides.append(side)
            continue
        named = (
            None if side.attributes is None else [one for one, good in zip(side.attributes, kept, strict=True) if good]
        )
        fired = None if side.fired is None else _taken(side.fired, kept)
        sides.append(Side(side.mean[finite], fired, named, None if side.block is None else side.block[kept]))
    return sides, masks


def _taken(fired: Fired, kept: NDArray[np.bool_]) -> Fired:
    count = fired.offsets.diff()
    good = torch.from_numpy(kept).to(count.device)
    offsets = torch.cat([fired.offsets[:1] * 0, count[good].cumsum(0)])
    return Fired(offsets, fired.feature[good.repeat_interleave(count)])


def _placed(places: Floats, kept: NDArray[np.bool_]) -> Floats:
    found = np.full(len(kept), np.nan)
    found[kept] = places
    return found


def _pairs(fired: Fired) -> tuple[Ints, Ints]:
    """Unit and feature of each firing."""
    count = fired.offsets.diff().cpu().numpy()
    return np.repeat(np.arange(len(count)), count), fired.feature.cpu().numpy().astype(np.int64)


# -- features ---------------------------------------------------------------------------------------------------------


def _fired(sides: list[Side], features: int) -> list[tuple[Ints, Ints]] | None:
    """Pairs of unit and feature of each side; None where those of one are not known."""
    found = []
    for side in sides:
        if side.fired is None:
            return None
        if side.fired.units != len(side.mean):
            raise ReferenceMismatch(f"firings of {side.fired.units} units were given with {len(side.mean)} units")
        unit, feature = _pairs(side.fired)
        if len(feature) and not 0 <= int(feature.min()) <= int(feature.max()) < features:
            raise ReferenceMismatch(
                f"feature {int(feature.max())} fired, of a dictionary of {features}: encode both sides with one"
            )
        found.append((unit, feature))
    return found


def _feature_changes(
    fired: list[tuple[Ints, Ints]], features: int, exchange: Exchange, n: int, m: int
) -> FeatureChanges:
    (unit, feature), (unit_after, feature_after) = fired
    columns = exchange.shares(
        np.concatenate([unit, unit_after + n]), np.concatenate([feature, feature_after]), features
    )
    wanted = np.bincount(columns.feature, minlength=features) >= LEAST_FIRING
    z, p = share_test(columns, exchange)
    q = discovery_q(p, wanted)
    (feature_of,) = wanted.nonzero()
    counts = [np.bincount(one, minlength=features) for one in (feature, feature_after)]
    rates = counts[0] / n, counts[1] / m
    effect = 2 * (np.arcsin(np.sqrt(rates[1])) - np.arcsin(np.sqrt(rates[0])))
    order = feature_of[np.lexsort((feature_of, -np.abs(effect[feature_of]), p[feature_of]))]
    after = int(exchange.after.sum())
    return FeatureChanges(
        order,
        counts[0][order],
        counts[1][order],
        rates[0][order],
        rates[1][order],
        effect[order],
        z[order],
        p[order],
        q[order],
        n,
        m,
        exchange.groups - after,
        after,
        exchange.of,
    )


# -- coordinates ------------------------------------------------------------------------------------------------------


def _standard(sides: list[Side]) -> tuple[list[Tensor], Tensor]:
    """Coordinates in standard deviations before, clipped, and the ratio of standard deviations [d]."""
    mean, spread = sides[0].mean.mean(0), sides[0].mean.std(0)
    varies = spread > _ROUNDING * mean.abs()
    scale = torch.where(varies, spread, mean.abs().clamp_min(1.0))
    y = [((side.mean - mean) / scale).clamp_(-_CLIP, _CLIP) for side in sides]
    y = [torch.where(varies | (one.abs() > _ROUNDING), one, 0.0) for one in y]
    return y, torch.where(varies, sides[1].mean.std(0) / scale, torch.nan)


def _spread(y: Tensor) -> Tensor:
    """How far coordinates [n, d] of one side are from its mean; a shift of all is none of spread."""
    return (y - y.mean(0)).square().log1p()


def _coordinate_changes(y: list[Tensor], spread: Tensor, exchange: Exchange) -> CoordinateChanges:
    both = torch.cat(y)
    means = mean_test(exchange.means(both), exchange)
    spreads = mean_test(exchange.means(torch.cat([_spread(one) for one in y])), exchange)
    return CoordinateChanges(
        (y[1].mean(0) - y[0].mean(0)).double().cpu().numpy(),
        means.z,
        discovery_q(means.p),
        spread.double().cpu().numpy(),
        spreads.z,
        discovery_q(spreads.p),
    )


# -- along ------------------------------------------------------------------------------------------------------------


def _along(
    sides: list[Side],
    y: list[Tensor],
    exchange: Exchange,
    fired: list[tuple[Ints, Ints]] | None,
    changed: FeatureChanges | None,
    directions: tuple[Tensor, Tensor] | None,
) -> tuple[tuple[Floats, Floats] | None, Direction]:
    """Places of the units by shift, spread and firings together, each as far as it tells the sides apart."""
    raw = (sides[1].mean.mean(0) - sides[0].mean.mean(0)).float()
    size = float(raw.norm())
    direction = Direction(raw / size if size > 0 else None, None, None)
    parts = []
    if bool((y[0] != 0).any()):
        if directions is None:
            known = UnitDirections(sides[0].mean)
            directions = known.directions(sides[0].mean)[0], known.directions(sides[1].mean)[0]
        z = [one.clamp(-_CLIP, _CLIP) for one in directions]
        shift = along(z[0], z[1])
        direction = direction._replace(length=max(shift.squared, 0.0) ** 0.5, z=_errors(shift, z, exchange))
        wide = [_spread(one) for one in y]
        for found, values in ((shift, z), (along(wide[0], wide[1]), wide)):
            if _errors(found, values, exchange) > _SEEN:
                parts.append((found.before.cpu().numpy(), found.after.cpu().numpy()))
    if fired is not None and changed is not None and (changed.q <= DISCOVERED).any():
        parts.append(_fired_along(fired, changed))
    before, after = (
        sum((part[side] * max(part[1].mean(), 0.0) for part in parts), np.zeros(len(sides[side].mean)))
        for side in (0, 1)
    )
    deviation = before.std()
    if not deviation > 0:
        return None, direction
    return ((before - before.mean()) / deviation, (after - before.mean()) / deviation), direction


def _errors(found: Along, values: list[Tensor], exchange: Exchange) -> float:
    """The standard errors that the difference is large: of blocks, where these are what is exchanged."""
    if exchange.of != "blocks" or min(exchange.after.sum(), (~exchange.after).sum()) < LEAST_BLOCKS:
        return found.z if exchange.of != "blocks" else 0.0
    means = exchange.means(torch.cat(values))
    after = torch.from_numpy(exchange.after).to(means.device)
    return along(means[~after], means[after]).z


def _fired_along(fired: list[tuple[Ints, Ints]], changed: FeatureChanges) -> tuple[Floats, Floats]:
    """Places by the changed features: the logarithms of the ratios of their odds, summed over those that fired.

    Counts are without the unit itself.
    """
    some = changed.q <= DISCOVERED
    feature = changed.feature[some]
    count, total = (changed.fired_before[some], changed.fired_after[some]), (changed.units_before, changed.units_after)
    sums = []
    for side in (0, 1):
        odds = []
        for other in (0, 1):
            own = int(side == other)
            fires, rest = count[other] - own + 0.5, total[other] - count[other] + 0.5
            odds.append(np.log(np.maximum(fires, 0.5) / rest))
        weight = np.zeros(int(max(feature.max(), *(pair[1].max(initial=0) for pair in fired))) + 1)
        weight[feature] = odds[1] - odds[0]
        unit, fires_there = fired[side]
        sums.append(np.bincount(unit, weight[fires_there], minlength=total[side]))
    deviation = sums[0].std() or 1.0
    return (sums[0] - sums[0].mean()) / deviation, (sums[1] - sums[0].mean()) / deviation
