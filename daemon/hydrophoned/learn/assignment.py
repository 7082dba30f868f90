"""One-to-one assignment over few candidate pairs: an auction (Bertsekas 1988, "The auction algorithm")."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_STEP: Final = 1e-3
_MOST_ROUNDS: Final = 20_000
Numbers = NDArray[np.int64]


def assign(row: Numbers, column: Numbers, gain: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of m candidate pairs (``row``, ``column``) are chosen, bool [m]: no two share a row or a column.

    The sum of their ``gain`` [m] is within 1e-3 for each row of the largest there is; a pair whose gain is not above 0
    is never chosen. No pair comes twice. Memory is that of the pairs. Rows bid for columns, all at a time: each for the
    one that is worth most to it less its price, raising the price to where the next best is worth as much; a column
    takes the highest bid, and a row that no column is worth anything to stays alone.
    """
    chosen = np.zeros(len(row), dtype=bool)
    order = np.lexsort((column, row))
    order = order[gain[order] > 0]
    if not len(order):
        return chosen
    rows, start, count = np.unique(row[order], return_index=True, return_counts=True)
    columns, place = np.unique(column[order], return_inverse=True)
    worth = gain[order]
    price = np.zeros(len(columns))
    owner, owned = np.full(len(columns), -1), np.full(len(columns), -1)  # of each column: the row, and the pair
    waiting = np.arange(len(rows))
    for _ in range(_MOST_ROUNDS):
        if not len(waiting):
            break
        pair, bid = _bids(waiting, start, count, place, worth, price)
        waiting = waiting[pair >= 0]
        pair, bid = pair[pair >= 0], bid[pair >= 0]
        # of the bids for one column the highest counts, of equal ones the first row's
        ranked = np.lexsort((waiting, -bid, place[pair]))
        first = np.ones(len(ranked), dtype=bool)
        first[1:] = place[pair[ranked[1:]]] != place[pair[ranked[:-1]]]
        best = ranked[first]
        taken = place[pair[best]]
        displaced = owner[taken]
        owner[taken], owned[taken], price[taken] = waiting[best], pair[best], bid[best]
        waiting = np.sort(np.concatenate([waiting[np.sort(ranked[~first])], displaced[displaced >= 0]]))
    chosen[order[owned[owned >= 0]]] = True
    return chosen


def _bids(
    rows: Numbers, start: Numbers, count: Numbers, place: Numbers, worth: NDArray[np.float64], price: NDArray[Any]
) -> tuple[Numbers, NDArray[np.float64]]:
    """For each of ``rows`` the pair it bids on, -1 where none is worth anything to it, and the price it bids."""
    sizes = count[rows]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    pairs = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start[rows], sizes)
    net = worth[pairs] - price[place[pairs]]
    segment = np.repeat(np.arange(len(rows)), sizes)
    most = np.maximum.reduceat(net, offsets[:-1])
    at = np.flatnonzero(net == most[segment])
    ties = np.bincount(segment[at], minlength=len(rows))
    best = at[np.cumsum(ties) - ties + rows % ties]  # rows that are alike do not all bid for the same one
    net[best] = -np.inf
    next_best = np.maximum(np.maximum.reduceat(net, offsets[:-1]), 0.0)  # staying alone is worth 0
    pair = np.where(most > 0, pairs[best], -1)
    bid = worth[pairs[best]] - next_best + _STEP
    return pair, bid
