"""Intervals of shares."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Z95: Final = 1.959963984540054
"""The normal distribution's two-sided 95%."""


def wilson(count: NDArray[Any], total: NDArray[Any] | int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's (1927) 95% bounds of ``count / total``, of independent trials; 0 and 1 of no trials.

    >>> low, high = wilson(np.array([0, 5, 10]), 10)
    >>> low.round(3).tolist(), high.round(3).tolist()
    ([0.0, 0.237, 0.722], [0.278, 0.763, 1.0])
    """
    n = np.maximum(np.asarray(total, dtype=np.float64), 1.0)
    share = np.asarray(count, dtype=np.float64) / n
    middle = share + Z95**2 / (2 * n)
    reach = Z95 * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    over = 1 + Z95**2 / n
    none = np.asarray(total) == 0
    low = np.where(none, 0.0, np.clip((middle - reach) / over, 0.0, np.minimum(share, 1.0)))
    high = np.where(none, 1.0, np.clip((middle + reach) / over, np.minimum(share, 1.0), 1.0))
    return low, high
