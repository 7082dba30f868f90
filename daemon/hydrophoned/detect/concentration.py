"""In which attributes of the units (tenant, route, phase, model version) a change is concentrated."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrophoned.analyse.columns import Bools, Floats, Ints
from hydrophoned.detect.exchange import Exchange, discovery_q, share_test, student_p

LEAST_UNITS: Final = 8
"""Units that have to have a value for it to be looked at, of both sides together."""
LEAST_OBSERVED: Final = 3
"""Units, or blocks of them, with and without a value on each side that a p-value is told from."""
MOST_VALUES: Final = 50
"""Values of an attribute that are looked at, the most frequent ones."""


class Concentration(NamedTuple):
    """What the change is like in the units whose attribute ``name`` is ``value``.

    ``before`` and ``after`` are their numbers, the shares are of the units whose ``name`` is known. ``share_q`` is the
    q-value of the hypothesis that there are no more and no fewer of them. ``shift`` is by how many standard deviations
    their places along the change moved, for a value without units before from the mean of all units; ``elsewhere`` is
    that of the units with other values or none, and ``shift_q`` the q-value of the hypothesis that the two are alike.
    They are None where too few units are known.
    """

    name: str
    value: str
    before: int
    after: int
    share_before: float | None
    share_after: float | None
    share_q: float | None
    shift: float | None
    elsewhere: float | None
    shift_q: float | None

    @property
    def q(self) -> float:
        """The smaller of the two q-values, 1 where there is none."""
        return min(1.0 if q is None else q for q in (self.share_q, self.shift_q))


def concentrations(
    attributes: Sequence[Mapping[str, str]],
    places: Floats,
    before: int,
    block: NDArray[Any] | None,
    exchange: Exchange,
) -> list[Concentration]:
    """Of all values of all attributes, the surest first.

    ``places`` [n] are those of the units along the change, of which the first ``before`` are before it.

    An attribute that has one value throughout tells nothing and is left out.
    """
    found: list[Concentration] = []
    for name in sorted({name for one in attributes for name in one}):
        found += _of_attribute(name, [one.get(name) for one in attributes], places, before, block, exchange)
    share_p = np.array([1.0 if one.share_q is None else one.share_q for one in found])
    shift_p = np.array([1.0 if one.shift_q is None else one.shift_q for one in found])
    told = np.array([[one.share_q is not None, one.shift_q is not None] for one in found], dtype=np.bool_)
    q = discovery_q(np.concatenate([share_p, shift_p]), told.T.reshape(-1)) if found else np.zeros(0)
    mended = [
        one._replace(
            share_q=None if one.share_q is None else float(q[place]),
            shift_q=None if one.shift_q is None else float(q[place + len(found)]),
        )
        for place, one in enumerate(found)
    ]
    return sorted(mended, key=lambda one: (one.q, -abs(one.shift or 0.0), one.name, one.value))


def _of_attribute(
    name: str,
    values: list[str | None],
    places: Floats,
    before: int,
    block: NDArray[Any] | None,
    exchange: Exchange,
) -> list[Concentration]:
    """Of one attribute; p-values where q-values are to come."""
    known = np.array([value is not None for value in values])
    distinct, number = np.unique([value or "" for value in values], return_inverse=True)
    count = np.bincount(number[known], minlength=len(distinct))
    chosen = np.flatnonzero(count >= LEAST_UNITS)
    chosen = chosen[np.argsort(-count[chosen], kind="stable")][:MOST_VALUES]
    if not known.any() or (known.all() and (count > 0).sum() == 1):
        return []
    shares = _share_p(number, known, chosen, exchange)
    is_after = np.arange(len(values)) >= before
    totals = [int((known & ~is_after).sum()), int((known & is_after).sum())]
    found = []
    for place, one in enumerate(chosen):
        inside = known & (number == one)
        counts = int((inside & ~is_after).sum()), int((inside & is_after).sum())
        share = [each / total if total else None for each, total in zip(counts, totals, strict=True)]
        found.append(
            Concentration(
                name,
                str(distinct[one]),
                counts[0],
                counts[1],
                share[0],
                share[1],
                shares[place],
                *_shift(places, inside, is_after, block),
            )
        )
    return found


def _share_p(number: Ints, known: Bools, chosen: Ints, exchange: Exchange) -> list[float | None]:
    """P-values of no change of shares, among the units of which the attribute is known."""
    place = np.full(int(number.max(initial=0)) + 1, -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    of_known = exchange.only(known)
    (unit,) = (known & (place[number] >= 0)).nonzero()
    p = share_test(of_known.shares(unit, place[number[unit]], len(chosen)), of_known).p
    both = bool(of_known.after.any()) and not bool(of_known.after.all())
    return [float(one) if both else None for one in p]


def _shift(
    places: Floats, inside: Bools, is_after: Bools, block: NDArray[Any] | None
) -> tuple[float | None, float | None, float | None]:
    """How far the units inside moved, and the others, and the p-value of no difference (Welch's t)."""
    samples, moved = [], []
    for mask in (inside, ~inside):
        after, before = (_observations(places, mask & side, block) for side in (is_after, ~is_after))
        if not len(before):
            before = _observations(places, ~is_after, block)
        samples += [after, before]
        moved.append(float(after.mean() - before.mean()) if len(after) else None)
    if moved[0] is None or moved[1] is None or min(len(sample) for sample in samples) < LEAST_OBSERVED:
        return moved[0], moved[1], None
    errors = np.array([sample.var(ddof=1) / len(sample) for sample in samples])
    if not errors.sum() > 0:
        return moved[0], moved[1], None
    freedom = errors.sum() ** 2 / sum(error**2 / (len(one) - 1) for error, one in zip(errors, samples, strict=True))
    t = (moved[0] - moved[1]) / errors.sum() ** 0.5
    return moved[0], moved[1], float(student_p(np.array([t]), freedom)[0])


def _observations(places: Floats, mask: Bools, block: NDArray[Any] | None) -> Floats:
    """Places of the units of a mask, or the means of those of each block."""
    if block is None:
        return places[mask]
    _, number = np.unique(block[mask], return_inverse=True)
    found: Floats = np.bincount(number, places[mask]) / np.bincount(number)
    return found
