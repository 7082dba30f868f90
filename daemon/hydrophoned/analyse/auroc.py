"""Area under the ROC curve: the chance that a row with the label has a higher score than one without, ties a half."""

import torch
from torch import Tensor

from hydrophoned.analyse.active import Active
from hydrophoned.analyse.halves import numbered

_COLUMNS = 64


def auroc(score: Tensor, label: Tensor) -> float:
    """Of ``score`` [n] for bool ``label`` [n] of both kinds.

    >>> auroc(torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([False, False, True, True]))
    0.875
    """
    return float(aurocs_of_columns(score[:, None], label)[0])


def aurocs_of_columns(x: Tensor, label: Tensor) -> Tensor:
    """Of each column of x [n, d] for bool ``label`` [n] of both kinds; float64 [d]."""
    found = []
    for columns in torch.split(x, _COLUMNS, dim=1):
        without, with_ = columns[~label].T.contiguous().sort(dim=1).values, columns[label].T.contiguous()
        below = torch.searchsorted(without, with_) + torch.searchsorted(without, with_, right=True)
        found.append(below.double().mean(1) / (2 * without.shape[1]))
    return torch.cat(found)


def aurocs_of_features(active: Active, label: Tensor) -> Tensor:
    """Of each feature's value for bool ``label`` [n] of both kinds, from the active pairs; float64 [F]."""
    F, here = active.features, label[active.row]
    n1, n0 = int(label.sum()), int((~label).sum())
    values, rank = numbered(active.value)
    # feature and value in one number, so that values of one feature are compared among themselves
    key = active.feature * max(len(values), 1) + rank
    feature, with_, without = active.feature[here], key[here], key[~here].sort().values
    before = torch.searchsorted(without, torch.arange(F, device=key.device) * max(len(values), 1))
    below = torch.searchsorted(without, with_) + torch.searchsorted(without, with_, right=True)
    c1 = torch.bincount(feature, minlength=F).double()
    c0 = torch.bincount(active.feature[~here], minlength=F).double()
    wins = torch.bincount(feature, below.double() / 2 - before[feature].double(), minlength=F)
    return (wins + c1 * (n0 - c0) + (n1 - c1) * (n0 - c0) / 2) / (n1 * n0)
