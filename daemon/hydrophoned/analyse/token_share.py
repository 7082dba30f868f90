"""How much of a feature's firing its token tells."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from hydrophoned.analyse.facts import Facts
from hydrophoned.analyse.firing import Firing
from hydrophoned.analyse.halves import halves

DEPENDENT: Final = 0.1
"""Share of a feature's entropy that its token has to tell before its firing is said to depend on the token."""
_SMOOTHING: Final = 2.0
_CHANCE: Final = 0.05
_CELLS: Final = 1 << 22  # of tokens by features that are held at a time

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def token_share(facts: Facts, firing: Firing, *, seed: int = 0) -> Floats:
    """Share of each feature's entropy that its token tells, float64 [F]; NaN of features that fire too little.

    Two halves of the requests, each predicted from the other: with n rows of a token of which k fire, and p the share
    of all, by (k + 2 p) / (n + 2). The share is the nats of log likelihood gained over p, divided by those to be
    gained; it is below 0 where the token tells nothing. The mean of exp(gain) is at most 1 if the token tells nothing
    and rows are independent (it is an e-value): a gain of less than log(F / 0.05) counts as 0, for it may be chance.
    Raises TooLittle.
    """
    token = facts.fields["token"]
    first: Bools = halves(torch.from_numpy(facts.request), torch.Generator().manual_seed(seed)).numpy()
    gains, entropies = [], []
    for learned in (first, ~first):
        gain, entropy = _gain(token.code, len(token.values), firing, learned)
        gains.append(gain)
        entropies.append(entropy)
    total, entropy = gains[0] + gains[1], entropies[0] + entropies[1]
    evidence = np.logaddexp(gains[0], gains[1]) - np.log(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(entropy > 0, total / entropy, np.nan)
    return np.where((share > 0) & (evidence < np.log(firing.features / _CHANCE)), 0.0, share)


def _gain(code: NDArray[np.int32], values: int, firing: Firing, learned: Bools) -> tuple[Floats, Floats]:
    """Nats gained on the rows not ``learned`` on, and nats to be gained there, float64 [F] each."""
    feature = np.repeat(np.arange(firing.features), firing.fired())
    on = learned[firing.row]
    share = np.bincount(feature[on], minlength=firing.features) / max(int(learned.sum()), 1)
    share = np.clip(share, 1e-9, 1 - 1e-9)
    count = np.bincount(code[learned], minlength=values)
    tested = np.bincount(code[~learned], minlength=values)
    present = np.flatnonzero(tested)
    gain, entropy = np.zeros(firing.features), np.zeros(firing.features)
    width = max(1, _CELLS // max(len(present), 1))
    for begin in range(0, firing.features, width):
        end = min(begin + width, firing.features)
        part = slice(firing.start[begin], firing.start[end])
        local, rows, inside = feature[part] - begin, firing.row[part], on[part]
        key = local * values + code[rows]
        hits, fired = (
            np.bincount(key[kept], minlength=(end - begin) * values).reshape(end - begin, values)[:, present]
            for kept in (inside, ~inside)
        )
        p = share[begin:end, None]
        q = (hits + _SMOOTHING * p) / (count[present] + _SMOOTHING)
        gain[begin:end] = (fired * np.log(q / p) + (tested[present] - fired) * np.log((1 - q) / (1 - p))).sum(1)
        all_fired, rows_tested = fired.sum(1), tested.sum()
        p = p[:, 0]
        entropy[begin:end] = -(all_fired * np.log(p) + (rows_tested - all_fired) * np.log(1 - p))
    return gain, entropy
