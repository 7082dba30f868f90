"""Groups among novel units: are they of a kind, or each new by itself."""

from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hydrophoned.analyse.columns import Floats

MOST_UNITS: Final = 512
"""Units that are grouped, at most: the last ones."""
LEAST_SIZE: Final = 5
"""Units of a cluster, at least."""
_TOGETHER: Final = 0.5  # of the cosine within: halves more alike than that are one cluster
_SHUFFLES: Final = 8
_MARGIN: Final = 2.0  # over what signs at random give in the mean
_LEAST_DEVIATIONS: Final = 5.0
_MOST_COSINE: Final = 1 - 1e-9
_LEAST: Final = 1e-30


class Cluster(NamedTuple):
    """Units that lie in one direction from the middle of the reference.

    ``members`` int64 [m] are their places, nearest to the middle of the cluster first. ``cohesion`` is the mean cosine
    between two of them, whitened: 1 where all are alike, about 0 for units that have nothing to do with each other.
    ``centroid`` [d] is their mean as captured.
    """

    members: Tensor
    cohesion: float
    centroid: Tensor

    @property
    def size(self) -> int:
        """Units m."""
        return len(self.members)


def clusters(x: Tensor, whitened: Tensor, *, generator: torch.Generator, least: int = LEAST_SIZE) -> list[Cluster]:
    """Clusters, of ``least`` units at least, of units x [n, d]; the largest first, none where there is no structure.

    ``whitened`` [n, r] are the same units in coordinates in which the reference's have mean 0 and vary equally
    (:meth:`~hydrophoned.detect.novelty.NoveltyScorer.whiten`): there, units that are new each in their own way point in
    directions that have nothing to do with each other. Units that are not finite are in no cluster.

    Units are joined by the mean cosine between groups (average linkage; Sokal & Michener 1958), and the tree is cut
    from the top: a group stays whole where its two halves are at least half as alike to each other as they are within.
    It is told if its pairs are more alike than those of any group would be by chance: than in the trees of units with
    coordinates' signs drawn at random by ``generator``, which leaves them as far out and undoes what they have in
    common.
    """
    first = max(0, len(x) - MOST_UNITS)
    finite = (x[first:].isfinite().all(1) & whitened[first:].isfinite().all(1)).nonzero().squeeze(1) + first
    if len(finite) < least:
        return []
    w = whitened[finite].double()
    w = w / w.abs().amax(1, keepdim=True).clamp_min(_LEAST)
    y = (w / w.norm(dim=1, keepdim=True).clamp_min(_LEAST)).cpu().numpy()
    by_chance = _by_chance(y, least, generator)
    found = []
    for group in _groups(y @ y.T, least):
        if group.evidence > by_chance:
            near = np.argsort(-(y[group.members] @ y[group.members].sum(0)), kind="stable")
            members = finite[torch.from_numpy(group.members[near]).to(finite.device)]
            found.append(Cluster(members, group.cohesion, x[members].mean(0)))
    return sorted(found, key=lambda cluster: -cluster.size)


class _Group(NamedTuple):
    """Places int64 [m], the mean cosine c of pairs, and atanh(c) times the root of how many pairs there are."""

    members: np.ndarray[tuple[int], np.dtype[np.int64]]
    cohesion: float
    evidence: float


class _Joined(NamedTuple):
    """Two groups of the tree, joined: the mean cosine between them, and units and pairs' cosines in all."""

    left: int
    right: int
    between: float
    size: int
    inside: float


def _by_chance(y: Floats, least: int, generator: torch.Generator) -> float:
    """Evidence that no group reaches by chance: twice what the best of units with signs drawn at random has.

    At least five standard deviations of what a group has that was not looked for: where few units form no group at all.
    """
    largest, square = 0.0, 0.0
    for _ in range(_SHUFFLES):
        sign = 2 * torch.randint(0, 2, y.shape, generator=generator).numpy() - 1.0
        shuffled = y * sign
        cosine = shuffled @ shuffled.T
        square += float(np.square(cosine).sum() - np.square(np.diag(cosine)).sum()) / (len(y) * (len(y) - 1))
        largest += max((group.evidence for group in _groups(cosine, least)), default=0.0)
    return float(max(_MARGIN * largest / _SHUFFLES, _LEAST_DEVIATIONS * (square / _SHUFFLES) ** 0.5))


def _groups(cosine: Floats, least: int) -> list[_Group]:
    """Groups of ``least`` at least that the tree of units is cut into, from their ``cosine`` [n, n]."""
    n, tree = len(cosine), _tree(cosine)
    found, open_nodes = [], [n + len(tree) - 1] if tree else []
    while open_nodes:
        node = open_nodes.pop()
        if node < n or tree[node - n].size < least:
            continue
        joined = tree[node - n]
        parts = [tree[part - n] for part in (joined.left, joined.right) if part >= n]
        pairs = sum(part.size * (part.size - 1) / 2 for part in parts)
        within = sum(part.inside for part in parts) / pairs if pairs else joined.between
        if joined.between < _TOGETHER * within:
            open_nodes += [joined.left, joined.right]
            continue
        all_pairs = joined.size * (joined.size - 1) / 2
        cohesion = joined.inside / all_pairs
        evidence = float(np.arctanh(min(cohesion, _MOST_COSINE))) * all_pairs**0.5
        found.append(_Group(_leaves(node, tree, n), min(cohesion, 1.0), evidence))
    return found


def _leaves(node: int, tree: list[_Joined], n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    leaves, inside = [], [node]
    while inside:
        at = inside.pop()
        if at < n:
            leaves.append(at)
        else:
            inside += [tree[at - n].left, tree[at - n].right]
    return np.sort(np.array(leaves, dtype=np.int64))


def _tree(cosine: Floats) -> list[_Joined]:
    """Average linkage by chains of nearest neighbours (Benzecri 1982): node n + i is the i-th pair joined."""
    n = len(cosine)
    likeness = cosine.copy()
    np.fill_diagonal(likeness, -np.inf)
    node, size, inside = np.arange(n), np.ones(n), np.zeros(n)
    tree: list[_Joined] = []
    chain: list[int] = []
    left_over = np.ones(n, dtype=bool)
    while len(tree) < n - 1:
        if not chain:
            chain.append(int(left_over.argmax()))
        top = chain[-1]
        row = likeness[top]
        near = int(row.argmax())
        if len(chain) > 1 and row[chain[-2]] >= row[near]:
            near = chain[-2]
        if len(chain) < 2 or near != chain[-2]:
            chain.append(near)
            continue
        del chain[-2:]
        between = float(row[near])
        inside[near] += inside[top] + between * size[top] * size[near]
        both = (size[top] * likeness[top] + size[near] * likeness[near]) / (size[top] + size[near])
        tree.append(_Joined(int(node[top]), int(node[near]), between, int(size[top] + size[near]), float(inside[near])))
        size[near] += size[top]
        node[near] = n + len(tree) - 1
        both[near] = -np.inf
        likeness[near], likeness[:, near] = both, both
        likeness[top], likeness[:, top] = -np.inf, -np.inf
        left_over[top] = False
    return tree
