"""Since when: the unit at which a stream changed, with an interval, from the reference and the latest units.

The units watched are cut in two where the difference is surest between those after the cut and all before it, the
reference's among them. With n units before and m after, of mean a and b,

    gain = n m / (n + m) (|b - a|^2 - noise),    noise = tr S_a / n + tr S_b / m,

a U-statistic: without the noise the cut would come to lie where few units are left. Since the reference is one sample
with the units before the cut, its own error does not grow with the units after it. Values are looked at in three ways,
and the one is taken whose gain is the least to be expected of blocks of units in another order: whitened coordinates of
units brought to equal length (:mod:`.unit_features`; a shift), the logarithms of 1 + their squares (a change of
spread), and the units' size. The last two are compared with the quarter of the reference that the whitening has not
seen, and under which they would be too small.

The interval is that of the likelihood (Hinkley 1970, "Inference about the change-point in a sequence of random
variables"), of the units' places along the change. Features that fire in few units have no such places: of these the
cut and its interval are those of the rates' likelihood, with rates of their own before and after each cut.
"""

from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from hydrophoned.detect.along import along
from hydrophoned.detect.fired import Fired
from hydrophoned.detect.unit_features import UnitDirections

LEAST_REFERENCE: Final = 32
LEAST_UNITS: Final = 8
P_AT_MOST: Final = 0.05
"""No change point is told where other orders of the units show as much of one with a larger chance than this."""
_CLIP: Final = 4.0
_ROUNDING: Final = 1e-6  # of the size of a value: what varies less does not vary
_LEAST_AFTER: Final = 3
_ORDERS: Final = 99
_BLOCKS: Final = 128
_PRODUCTS: Final = 1024  # blocks whose products with each other are worked out beforehand, at most
_HELD_OUT: Final = 4  # every fourth unit of the reference
_WITHIN: Final = 6.0  # log-likelihood; 3.7 would hold the true one in 95% of cases, were direction and size known

Values = tuple[Tensor, Tensor]  # of the reference's units, and of those watched


class ChangePoint(NamedTuple):
    """The first changed unit, as a place among the ``units`` latest ones, in order of time; ``of`` says what changed.

    It lies from ``low`` to ``high``, both included, in 9 of 10 cases or more; ``low`` 0 means that it may have been
    before these units. ``of`` is "mean", "spread", "size", "direction" or "features". ``strength`` is by how many
    standard deviations a unit's place along the change is further after than before. ``p`` is the chance that the units
    in another order show as much of a change: at least 0.01.
    """

    unit: int
    low: int
    high: int
    of: str
    strength: float
    p: float
    units: int
    reference_units: int


class Directions(NamedTuple):
    """Units of a reference and the latest ones as they are looked at, for whoever looks at them more than once.

    ``reference`` float32 [r, d] and ``recent`` [n, d] are their directions (:mod:`.unit_features`), the sizes [r] and
    [n] are how long they were. Units of the reference that are ``held_out``, bool [r], had no part in the whitening.
    """

    reference: Tensor
    reference_size: Tensor
    recent: Tensor
    recent_size: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, reference: Tensor, recent: Tensor) -> Self:
        """Those of finite units ``reference`` [r, d], and of ``recent`` [n, d]: not finite where these are not."""
        held_out = torch.arange(len(reference), device=reference.device) % _HELD_OUT == 0
        known = UnitDirections(reference[~held_out])
        return cls(*known.directions(reference), *known.directions(recent), held_out)


def change_point(
    reference: Tensor,
    recent: Tensor,
    *,
    generator: torch.Generator,
    direction: Tensor | None = None,
    directions: Directions | None = None,
) -> ChangePoint | None:
    """The change point of units ``recent`` [n, d], in order of time, against those of ``reference`` [r, d].

    None where there is no change to be seen, or where there are too few units to look at. With a ``direction`` [d] only
    the projections x . direction are looked at. Units that are not finite are passed over. ``directions`` may be given
    where they are known, of these very units, those of the reference being finite.
    """
    reference = reference[reference.isfinite().all(1)]
    (kept,) = recent.isfinite().all(1).nonzero(as_tuple=True)
    if len(reference) < LEAST_REFERENCE or len(kept) < LEAST_UNITS or not bool((reference != reference[0]).any()):
        return None
    if direction is None:
        known = directions or Directions.of(reference, recent)
        found = _surest(_views(known, kept), generator)
    else:
        found = _surest({"direction": _projected(reference, recent[kept], direction)}, generator)
    if found is None:
        return None
    low = 0 if found.low == 0 else int(kept[found.low])
    return found._replace(unit=int(kept[found.unit]), low=low, high=int(kept[found.high]), units=len(recent))


def feature_change_point(
    reference: Fired, recent: Fired, features: Tensor, *, generator: torch.Generator
) -> ChangePoint | None:
    """The change point of how often ``features`` int [c] fire: those that a detector or an attribution named, a few.

    ``strength`` and ``p`` are too favourable by as much as they were named for these very units.
    """
    if reference.units < LEAST_REFERENCE or recent.units < LEAST_UNITS or not len(features):
        return None
    fires = _fires(reference, features), _fires(recent, features)
    values = _standard(*fires)
    values = values[0].clamp(max=_CLIP), values[1].clamp(max=_CLIP)
    found = _surest({"features": values}, generator)
    if found is None:
        return None
    unit, low, high = _by_rates(*fires)
    return found._replace(unit=unit, low=low, high=high, strength=_interval(*values, unit)[2])


def _surest(views: dict[str, Values], generator: torch.Generator) -> ChangePoint | None:
    """The change point in the view that other orders show least of a change in."""
    reference, recent = next(iter(views.values()))
    size = -(-len(recent) // _BLOCKS)
    gains = {name: _standardised(before, values, size, generator) for name, (before, values) in views.items()}
    of = max(gains, key=lambda name: float(gains[name][0]))
    others = torch.stack([found[1:] for found in gains.values()]).amax(0)
    p = (1 + int((others >= gains[of][0]).sum())) / (1 + _ORDERS)
    if p > P_AT_MOST:
        return None
    before, values = views[of]
    unit = int(_gains(before, values).argmax())
    low, high, strength = _interval(before, values, unit)
    return ChangePoint(unit, low, high, of, strength, p, len(recent), len(reference))


def _views(known: Directions, kept: Tensor) -> dict[str, Values]:
    y, y_recent = known.reference.clamp(-_CLIP, _CLIP), known.recent[kept].clamp_(-_CLIP, _CLIP)
    return {
        "mean": (y, y_recent),
        "spread": _standard(y[known.held_out].square().log1p(), y_recent.square().log1p()),
        "size": _standard(known.reference_size[known.held_out, None], known.recent_size[kept, None]),
    }


def _projected(reference: Tensor, recent: Tensor, direction: Tensor) -> Values:
    line = direction.to(reference)[:, None]
    z, w = _standard(reference @ line, recent @ line)
    return z.clamp(-_CLIP, _CLIP), w.clamp(-_CLIP, _CLIP)


def _fires(fired: Fired, features: Tensor) -> Tensor:
    """Whether each of ``features`` [c] fired in each unit: float32 [n, c], 0 or 1."""
    unit = torch.repeat_interleave(fired.offsets.diff())
    values = torch.zeros(fired.units, len(features), device=fired.feature.device)
    for place, feature in enumerate(features.tolist()):
        values[unit[fired.feature == feature], place] = 1.0
    return values


def _standard(reference: Tensor, recent: Tensor) -> Values:
    mean, spread = reference.mean(0), reference.std(0)
    spread = torch.where(spread > _ROUNDING * mean.abs(), spread, mean.abs().clamp_min(1.0))
    return (reference - mean) / spread, (recent - mean) / spread


def _standardised(before: Tensor, values: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Largest gains over the cuts between blocks: of the order of time, then of ``_ORDERS`` others, in their units."""
    blocks = torch.cat([_block_sums(before, size), _block_sums(values, size)])
    watched = -(-len(values) // size)
    units = torch.full((len(blocks),), float(size), device=values.device)
    units[-1] = len(values) - size * (watched - 1)
    units[-1 - watched] = len(before) - size * (len(blocks) - watched - 1)
    blocks -= units[:, None] * (blocks.sum(0) / units.sum())
    blocks = blocks.double()
    products = blocks @ blocks.T if len(blocks) <= _PRODUCTS else None
    found = torch.empty(1 + _ORDERS)
    for number in range(1 + _ORDERS):
        order = torch.randperm(len(blocks), generator=generator) if number else torch.arange(len(blocks))
        last = order[-watched:].flip(0).to(values.device)
        after = units[last].cumsum(0)
        pairs = blocks[last] @ blocks[last].T if products is None else products[last[:, None], last]
        away = (2 * pairs.tril(-1).sum(1) + pairs.diagonal()).cumsum(0)  # squared lengths of the sums from the end
        found[number] = float((away / after / (1 - after / units.sum())).max())
    return (found - found[1:].mean()) / found[1:].std().clamp_min(1e-30)


def _block_sums(values: Tensor, size: int) -> Tensor:
    block = torch.arange(len(values), device=values.device) // size
    sums = torch.zeros(int(block[-1]) + 1, values.shape[1], device=values.device)
    return sums.index_add_(0, block, values)


def _gains(before: Tensor, values: Tensor) -> Tensor:
    """The gain of a cut before each of the values [n, d]: float64 [n], -inf where it leaves fewer than three."""
    count = len(before)
    n = count + torch.arange(len(values), dtype=torch.float64, device=values.device)
    total = count + len(values)
    m = total - n
    mean = (before.sum(0, dtype=torch.float64) + values.sum(0, dtype=torch.float64)) / total
    own = values.double() - mean
    after = own.flip(0).cumsum(0).flip(0)  # what is before sums to the opposite
    squares = own.square().sum(1).flip(0).cumsum(0).flip(0)
    all_squares = (before - mean.float()).square().sum(dtype=torch.float64) + squares[0]
    away = after.square().sum(1)
    noise = (squares - away / m) / (m - 1) / m + (all_squares - squares - away / n) / (n - 1) / n
    gain = (away * (1 / n + 1 / m) ** 2 - noise) * n * m / total
    gain[m < min(_LEAST_AFTER, len(values))] = -torch.inf
    return gain


def _interval(before: Tensor, values: Tensor, unit: int) -> tuple[int, int, float]:
    """First and last unit where the likelihood is near its maximum, and the difference along the change."""
    found = along(torch.cat([before, values[:unit]]), values[unit:])
    places = torch.cat([found.before[len(before) :], found.after])
    strength = float(found.after.mean())
    n, m = len(found.before), len(found.after)
    variance = (n + m * float(found.after.var())) / (n + m)
    ratio = strength * (places - strength / 2) / variance
    likelihood = ratio.flip(0).cumsum(0).flip(0)
    (near,) = (likelihood >= likelihood.max() - _WITHIN).nonzero(as_tuple=True)
    return min(int(near[0]), unit), max(int(near[-1]), unit), strength


def _by_rates(before: Tensor, values: Tensor) -> tuple[int, int, int]:
    """The most likely cut, and the first and last that are nearly as likely, of firings [n, c] and [m, c], 0 or 1.

    Features are taken as independent; where they fire together, likelihoods are so much nearer to each other.
    """
    before, values = before.double(), values.double()
    known, units = before.sum(0), len(before) + len(values)
    after = values.flip(0).cumsum(0).flip(0)
    count = torch.arange(len(values), 0, -1, dtype=torch.float64, device=values.device)[:, None]
    rest = known + values.sum(0) - after
    likelihood = (_of_rates(after, count) + _of_rates(rest, units - count)).sum(1)
    likelihood[len(values) - min(_LEAST_AFTER, len(values)) + 1 :] = -torch.inf
    unit = int(likelihood.argmax())
    rate, rate_after = ((k + 0.5) / (n + 1) for k, n in ((rest[unit], units - count[unit]), (after[unit], count[unit])))
    weight = rate_after.logit() - rate.logit()
    own = float((torch.cat([before, values[:unit]]) @ weight).var())
    alone = float((rate * (1 - rate) * weight.square()).sum())
    (near,) = (likelihood >= likelihood[unit] - _WITHIN * max(1.0, own / alone)).nonzero(as_tuple=True)
    return unit, int(near[0]), int(near[-1])


def _of_rates(fired: Tensor, units: Tensor) -> Tensor:
    """Log-likelihood of firings in ``fired`` of so many units, at the rate that makes it largest."""
    rate = fired / units
    return torch.xlogy(fired, rate) + torch.xlogy(units - fired, 1 - rate)
