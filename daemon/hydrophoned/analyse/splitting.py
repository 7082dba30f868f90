"""Over how many features a label is split (Chanin et al. 2024, "A is for Absorption", section 4).

Features are taken in the order of their AUROC on the rows to choose on. A probe on the values of the first m of them
says on the other rows how well they tell the label together; m grows for as long as that raises F1 by GAIN.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.analyse.active import Active
from hydrophoned.analyse.auroc import aurocs_of_features
from hydrophoned.analyse.probe import Standard, best_threshold, f1, fit_probe

GAIN: Final = 0.03
"""What F1 has to gain for one more feature to count."""
_MOST: Final = 33  # F1 has no room for more gains than this


class Splitting(NamedTuple):
    """``features`` is over how many the label is split, None where they tell no more than calling every row.

    ``f1`` is that of probes on the first 1, 2, ... features, ending with the one that gained too little, on ``rows``
    rows, ``positive`` of which have the label; ``f1_of_all_called`` is the trivial one.
    """

    features: int | None
    f1: tuple[float, ...]
    f1_of_all_called: float
    rows: int
    positive: int


def splitting(choosing: Active, scoring: Active, labels: tuple[Tensor, Tensor]) -> Splitting:
    """Of labels bool [n], [n'] of the rows to choose on and of those to score on; both of both kinds."""
    order = aurocs_of_features(choosing, labels[0]).argsort(descending=True)[:_MOST]
    x, y = choosing.of_features(order).dense(), scoring.of_features(order).dense()
    standard = Standard.of(x)
    x, y = standard.apply(x), standard.apply(y)
    floor = f1(torch.ones_like(labels[1]), labels[1])
    curve: list[float] = []
    for m in range(1, len(order) + 1):
        probe = fit_probe(x[:, :m], labels[0])
        threshold = best_threshold(probe.logits(x[:, :m]), labels[0])
        curve.append(f1(probe.logits(y[:, :m]) >= threshold, labels[1]))
        if m > 1 and curve[-1] - curve[-2] < GAIN:
            break
    grew = len(curve) > 1 and curve[-1] - curve[-2] < GAIN
    features = len(curve) - 1 if grew else len(curve)
    found = features if curve and curve[features - 1] - floor >= GAIN else None
    return Splitting(found, tuple(curve), floor, len(labels[1]), int(labels[1].sum()))
