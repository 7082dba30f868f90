"""Codes and rows of which it is known what is in them."""

from typing import NamedTuple

import torch
from hydrophoned.learn.dictionary import Codes
from torch import Tensor


def codes_of(dense, k=None):
    """Codes of dense values [n, F], the k largest of each row; unused places have value 0."""
    value, index = dense.topk(k or max(1, int((dense > 0).sum(1).max())), dim=1)
    return Codes(index.int(), value.clamp_min(0))


def sparse(n, F, rate=0.05, seed=0):
    """Values above 0 in ``rate`` of the places, float32 [n, F]."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, F, generator=g).add(0.2) * (torch.rand(n, F, generator=g) < rate)


def directions(F, d, seed=0):
    return torch.nn.functional.normalize(torch.randn(F, d, generator=torch.Generator().manual_seed(seed)), dim=1)


class Labelled(NamedTuple):
    x: Tensor
    codes: Codes
    W_dec: Tensor
    label: Tensor
    request: Tensor
    hidden: Tensor
    """Rows with the label on which no main feature fires, by construction."""


MAINS, ABSORBERS, OTHERS = 3, 5, 80


def labelled(n=6000, *, d=512, absorbed=True, seed=0):
    """A label with three main features, silent on a sixth of its rows.

    There one of five other features fires whose decoder row holds the label's direction; or, not ``absorbed``, those
    fire anywhere, and the direction is in what the codes leave out.
    """
    g = torch.Generator().manual_seed(seed)
    F = MAINS + ABSORBERS + OTHERS
    base = torch.linalg.qr(torch.randn(d, F, generator=g))[0].T
    way = base[0]
    W = base.clone()
    W[:MAINS] = torch.nn.functional.normalize(way + 0.3 * base[:MAINS], dim=1)
    own = slice(MAINS, MAINS + ABSORBERS)
    if absorbed:
        W[own] = 0.6 * way + 0.8 * base[own]
    label = torch.rand(n, generator=g) < 0.4
    hidden = label & (torch.rand(n, generator=g) < 1 / 6)
    z = torch.zeros(n, F)
    fires = torch.rand(n, MAINS, generator=g) < 0.9
    fires[torch.arange(n), torch.randint(0, MAINS, (n,), generator=g)] = True
    z[:, :MAINS] = fires * (label & ~hidden)[:, None] * (1 + torch.rand(n, MAINS, generator=g))
    which = torch.randint(MAINS, MAINS + ABSORBERS, (n,), generator=g)
    rows = hidden if absorbed else torch.rand(n, generator=g) < 0.2
    z[rows, which[rows]] = 2 + torch.rand(int(rows.sum()), generator=g)
    z[:, MAINS + ABSORBERS :] = sparse(n, OTHERS, 0.05, seed + 1)
    x = z @ W + 0.02 * torch.randn(n, d, generator=g)
    if not absorbed:
        x[hidden] += 1.5 * way
    return Labelled(x, codes_of(z), W, label, torch.arange(n) // 40, hidden)
