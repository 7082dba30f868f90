"""Tails of urns, for many at a time: P(K >= k), not less than it is and at k far out hardly more.

The probabilities of both distributions here fall ever faster: each is r_k times the one before, and r_k falls with k.
So P(K >= k) <= P(k) (1 + r_k + r_k r_k+1 + ...), where the terms after some are at most a geometric series'. Ten terms
are within 1% from two standard deviations on, and nearer the middle the bound is too large, at most 1.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from hydrophoned.analyse.columns import Floats, Ints

_TERMS: Final = 10


def draws_tail(k: Ints, marked: Ints, drawn: int, total: int) -> Floats:
    """At least k of ``marked`` among ``drawn`` of ``total`` balls without replacement (hypergeometric), float64.

    >>> draws_tail(np.array([0, 4]), np.array([4, 4]), 5, 10).round(6).tolist()  # 5/10 4/9 3/8 2/7
    [1.0, 0.02381]
    """

    def ratio(at: Floats) -> Floats:
        return (marked - at) * (drawn - at) / ((at + 1) * np.maximum(total - marked - drawn + at + 1, 1))

    log_first = _log_choose(marked, k) + _log_choose(total - marked, drawn - k) - _log_choose(total, drawn)
    return _tail(k, log_first, ratio)


def exceedances_tail(k: Ints, n: Ints, over: Ints, c: Ints) -> Floats:
    """At least k of ``n`` values above that one of ``c`` others that ``over`` of these are above, float64.

    All n + c values in any order with the same chance (negative hypergeometric).

    >>> exceedances_tail(np.array([0, 2]), np.array([2, 2]), np.array([1, 1]), np.array([3, 3])).round(6).tolist()
    [1.0, 0.3]
    """
    under = c - 1 - over

    def ratio(at: Floats) -> Floats:
        return (over + at + 1) * (n - at) / ((at + 1) * np.maximum(under + n - at, 1))

    log_first = _log_choose(over + k, k) + _log_choose(under + n - k, n - k) - _log_choose(c + n, n)
    return _tail(k, log_first, ratio)


def _tail(k: Ints, log_first: Floats, ratio: Callable[[Floats], Floats]) -> Floats:
    at = k.astype(np.float64)
    last = ratio(at + _TERMS)
    series = np.where(last < 1, 1 / np.maximum(1 - last, 1e-12), np.inf)
    for term in reversed(range(_TERMS)):
        step = ratio(at + term)
        series = np.where(step > 0, 1 + step * series, 1.0)
    return np.where(k > 0, np.minimum(np.exp(log_first) * series, 1.0), 1.0)


def _log_choose(n: Ints | int, k: Ints | int) -> Floats:
    return _log_factorial(n) - _log_factorial(k) - _log_factorial(np.subtract(n, k))


def _log_factorial(n: Ints | int) -> Floats:
    values: Floats = torch.lgamma(torch.as_tensor(np.asarray(n, dtype=np.float64)) + 1).numpy()
    return values
