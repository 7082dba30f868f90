"""What the comparison of two samples says; made by the daemon's analyses, handed to the user by the SDK."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Distance(NamedTuple):
    """``effect`` says how far apart two samples are, ``p`` how often they are as far when units are exchanged."""

    effect: float
    p: float


class Separation(NamedTuple):
    """How well a classifier tells ``units`` that it has not learned: 0.5 as well as a coin.

    ``low`` and ``high`` are 95% bounds of ``auroc``.
    """

    auroc: float
    low: float
    high: float
    units: int


class CoordinateChanges(NamedTuple):
    """Of each of d coordinates, float64 [d]; NaN where it is not known.

    ``shift`` is the difference of the means, current - reference, in standard deviations of the reference; ``spread``
    the ratio of the standard deviations. Each has its two-sided p-value, and the q-value that bounds the share of false
    discoveries among the coordinates with at most that q, whatever their dependence.
    """

    shift: Floats
    shift_p: Floats
    shift_q: Floats
    spread: Floats
    spread_p: Floats
    spread_q: Floats


class Comparison(NamedTuple):
    """Two samples of units compared.

    ``units_reference`` and ``units_current`` were compared, ``left_out_reference`` and ``left_out_current`` more held
    NaN or Inf. ``groups_reference`` and ``groups_current`` were exchanged as wholes, the units themselves where no
    groups were given, in ``permutations`` ways drawn at random.
    """

    units_reference: int
    units_current: int
    left_out_reference: int
    left_out_current: int
    groups_reference: int
    groups_current: int
    permutations: int
    p: float
    """How often the surest of the four distances is as sure when units are exchanged."""
    mahalanobis: Distance
    """Of the means, in standard deviations in the direction of their difference, without what is in it by chance."""
    spread: Distance
    """The same of the squares of whitened coordinates: whether units vary more, less, or elsewhere."""
    mmd: Distance
    """Squared maximum mean discrepancy over the mean kernel within the samples: 0 alike, 1 nothing in common."""
    energy: Distance
    """Energy distance over twice the mean distance between the samples: 0 alike, 1 nothing in common."""
    paired_units: int
    """Units, of both samples together, whose distances from each other ``mmd`` and ``energy`` are of."""
    classifier: Separation
    coordinates: CoordinateChanges
    names: tuple[str, ...] | None = None
    """Of the coordinates, where they were given as columns."""
