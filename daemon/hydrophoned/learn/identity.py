"""What a feature of one version of a dictionary is in the next one, and the ids that stay with features.

Two features are the same when their decoder rows point the same way and they fire alike on the same rows:

    score = (cosine of the decoder rows + correlation of the activations) / 2

or the cosine alone where neither fires often enough to tell. Which feature continues which is the one-to-one assignment
of largest sum of scores above 0.6 (:mod:`.assignment`). Indices say nothing in it: features that are numbered anew are
found again, with the same ids. What an assignment cannot say, that one feature's firing is now covered by several, or
that of several by one, is read from who fires on whose rows (:mod:`.cofiring`).
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.learn.assignment import assign
from hydrophoned.learn.cofiring import CoFiring, Numbers, Reals
from hydrophoned.learn.dictionary import Codes

KINDS: Final = ("stable", "moved", "split", "merged", "born", "lost")
STABLE, MOVED, SPLIT, MERGED, BORN, LOST = range(len(KINDS))

_SAME: Final = 0.6
_STEADY: Final = 0.9
_FACING: Final = 0.2  # a score of 0.6 needs a cosine of 0.2, however alike two features fire
_OTHER_LIFE: Final = 0.75  # what a score is worth where only one of the two lives
_FEW: Final = 10  # a correlation of fewer firings says nothing
_TWICE: Final = 2  # two features that fire together once do not fire alike
_SEARCHED: Final = 8192
_UNMOVED: Final = 0.9999
_SURE: Final = 0.9
_MOST_ALIKE: Final = 16
_BLOCK: Final = 1 << 22  # cosines held at a time: 16 MB

_WHOLE_ROWS: Final = 10
_PART_ROWS: Final = 5
_INSIDE: Final = 0.7
_COVERED: Final = 0.7
_ALONE: Final = 0.8
_PART: Final = 0.1
_RELATED: Final = 0.3
_SILENT: Final = 0.2


class Snapshot(NamedTuple):
    """A dictionary as it was: what features are compared by.

    ``W_dec`` [F, d] has rows of norm 1, of any float dtype; ``codes`` are of a fixed sample of rows, the same ones in
    both snapshots that are compared; ``alive`` is bool [F].
    """

    W_dec: Tensor
    codes: Codes
    alive: Tensor


class Match(NamedTuple):
    """How the features of one snapshot became those of another: one entry for each pair that belongs together.

    ``kind`` int8 (a place in ``KINDS``); ``before`` and ``after`` int64 are indices, -1 for none; ``cosine`` and
    ``correlation`` float64, NaN where unknown. ``continues`` int64 [F of the later one] is the feature whose id each
    takes over, -1 for none; ``order`` int64 holds those without one in an order that does not depend on indices.
    ``rows`` is how many rows correlations are of.

    stable     the same feature, score at least 0.9
    moved      the same feature, but it points or fires a little differently: score at least 0.6
    split      what ``before`` fired on is now covered by several; one of them may continue it
    merged     what several fired on is now covered by ``after``, which may continue one of them
    born, lost nothing corresponds to it
    """

    kind: NDArray[np.int8]
    before: Numbers
    after: Numbers
    cosine: Reals
    correlation: Reals
    continues: Numbers
    order: Numbers
    rows: int


def match(before: Snapshot, after: Snapshot, *, anew: Tensor | None = None) -> Match:
    """Match the features of two snapshots of the same rows' codes.

    Features in bool [F] ``anew`` were begun anew since and continue none, whatever they look like.

    Beyond 8192 features those that stand at the same index with a cosine of 0.9 are not searched for; the cost is that
    of the products of all others with each other. Memory is bounded: no more than 16 MB of cosines are held at a time,
    and 16 candidates of a feature.
    """
    features = len(before.W_dec), len(after.W_dec)
    together = CoFiring.of(before.codes, after.codes, features)
    fixed = _in_place(before, after, together, anew)
    free_before = np.setdiff1d(np.arange(features[0]), fixed)
    free_after = np.setdiff1d(np.arange(features[1]), fixed)
    if anew is not None:
        free_after = free_after[~anew.cpu().numpy()[free_after]]
    first, second = _candidates(before, after, together, free_before, free_after)
    scored = _Scored.of(before, after, together, first, second)
    chosen = assign(first, second, scored.score - _SAME)
    pairs = np.concatenate([fixed, first[chosen]]), np.concatenate([fixed, second[chosen]])
    continues = np.full(features[1], -1)
    continues[pairs[1]] = pairs[0]
    return _told(before, after, together, continues)


class FeatureIds:
    """Which id the feature at each index has. Ids are numbers from 1, each given once and never again.

    ``ids`` is int64 [F]; ``born`` int32 [F] is the version in which each began. Empty before the first version.
    """

    def __init__(self) -> None:
        self.ids = torch.zeros(0, dtype=torch.int64)
        self.born = torch.zeros(0, dtype=torch.int32)
        self.next_id = 1

    def begin(self, features: int, version: int) -> None:
        """Give every one of ``features`` features a new id."""
        self.ids = torch.arange(self.next_id, self.next_id + features, dtype=torch.int64)
        self.born = torch.full((features,), version, dtype=torch.int32)
        self.next_id += features

    def follow(self, found: Match, version: int) -> None:
        """Go over to ``version``: who continues a feature takes over its id, the others get new ones."""
        continues = torch.from_numpy(found.continues)
        order = torch.from_numpy(found.order)
        ids, born = self.ids[continues], self.born[continues]
        ids[order] = torch.arange(self.next_id, self.next_id + len(order), dtype=torch.int64)
        born[order] = version
        self.ids, self.born = ids, born
        self.next_id += len(order)

    def reserve(self, next_id: int) -> None:
        """Never give an id below ``next_id`` again, whoever gave it."""
        self.next_id = max(self.next_id, next_id)

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {"ids": self.ids.clone(), "born": self.born.clone(), "next_id": self.next_id}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.ids, self.born, self.next_id = state["ids"].clone(), state["born"].clone(), int(state["next_id"])


# -- who continues whom -----------------------------------------------------------------------------------------------


class _Scored(NamedTuple):
    """Candidate pairs' cosine, correlation (NaN where unknown) and score."""

    cosine: Reals
    correlation: Reals
    score: Reals

    @classmethod
    def of(cls, before: Snapshot, after: Snapshot, together: CoFiring, first: Numbers, second: Numbers) -> "_Scored":
        cosine = cosines(before.W_dec, after.W_dec, first, second)
        product = together.of_pairs(first, second)
        correlation = together.correlation(first, second, product, least=_FEW)
        score = np.where(np.isnan(correlation), cosine, (cosine + correlation) / 2)
        # one that lives is rather one that lives: among the silent there are copies of everything
        same_life = before.alive.cpu().numpy()[first] == after.alive.cpu().numpy()[second]
        return cls(cosine, correlation, np.where(same_life, score, _OTHER_LIFE * score))


def _in_place(before: Snapshot, after: Snapshot, together: CoFiring, anew: Tensor | None) -> Numbers:
    """Features that need not be searched for: what is at their index is as good as anything could be."""
    if together.features[0] != together.features[1]:
        return np.zeros(0, np.int64)
    every = np.arange(together.features[0])
    least_cosine, least_score = (_UNMOVED, _STEADY) if len(every) <= _SEARCHED else (_SURE, _SAME)
    scored = _Scored.of(before, after, together, every, every)
    near = (scored.cosine >= least_cosine) & (scored.score >= least_score)
    if anew is not None:
        near &= ~anew.cpu().numpy()
    return np.flatnonzero(near)


def _candidates(
    before: Snapshot, after: Snapshot, together: CoFiring, free_before: Numbers, free_after: Numbers
) -> tuple[Numbers, Numbers]:
    """All pairs of free features that may reach a score of 0.6, but for those beyond the 16 nearest of a feature."""
    is_free = np.zeros(together.features[0], bool), np.zeros(together.features[1], bool)
    is_free[0][free_before] = is_free[1][free_after] = True
    often = np.flatnonzero(together.together >= _TWICE)
    often = often[is_free[0][together.first[often]] & is_free[1][together.second[often]]]
    first, second = together.first[often], together.second[often]
    alike = together.correlation(first, second, together.product[often], least=_FEW) >= _SAME  # false for NaN
    first, second = first[alike], second[alike]
    facing = cosines(before.W_dec, after.W_dec, first, second) >= _FACING
    near = list(_near(before.W_dec, after.W_dec, free_before, free_after))
    key = np.concatenate([first[facing] * together.features[1] + second[facing], *near])
    key = np.unique(key)
    return key // together.features[1], key % together.features[1]


def _near(before: Tensor, after: Tensor, rows: Numbers, columns: Numbers) -> Iterator[Numbers]:
    """Keys i * F_after + j of the pairs with a cosine of 0.6, at most the 16 nearest of each row, block by block."""
    if not len(rows) or not len(columns):
        return
    other = _rows(after, columns)
    at_once = max(1, _BLOCK // len(columns))
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        cosine = _rows(before, some).to(other.device) @ other.T
        many = (cosine >= _SAME).sum(1) > _MOST_ALIKE
        if bool(many.any()):
            crowded = cosine[many]
            least = crowded.topk(_MOST_ALIKE, dim=1).values[:, -1:]
            cosine[many] = crowded.masked_fill(crowded < least, 0.0)
        row, column = (part.cpu().numpy() for part in (cosine >= _SAME).nonzero(as_tuple=True))
        yield some[row] * len(after) + columns[column]


def cosines(before: Tensor, after: Tensor, first: Numbers, second: Numbers) -> Reals:
    """Cosines of pairs of rows of two matrices with rows of norm 1, float64 [n]; worked out where ``after`` is."""
    found = np.empty(len(first))
    at_once = max(1, _BLOCK // max(1, before.shape[1]))
    for start in range(0, len(first), at_once):
        some = slice(start, start + at_once)
        product = (_rows(before, first[some]).to(after.device) * _rows(after, second[some])).sum(1)
        found[some] = product.double().cpu().numpy()
    return found


def _rows(matrix: Tensor, index: Numbers) -> Tensor:
    return matrix[torch.from_numpy(index).to(matrix.device)].float()


# -- what became of each ----------------------------------------------------------------------------------------------


def _told(before: Snapshot, after: Snapshot, together: CoFiring, continues: Numbers) -> Match:
    features = together.features
    continued = np.full(features[0], -1)
    heirs = np.flatnonzero(continues >= 0)
    continued[continues[heirs]] = heirs
    split = _parts(before, after, together, continued, continues)
    merged = _parts(after, before, together.swapped(), continues, continued)[::-1]
    # a feature takes part in one of them, and a pair that does is not told once more as its own continuation
    of_split = np.isin(merged[0], split[0]) | np.isin(merged[1], split[1])
    merged = merged[0][~of_split], merged[1][~of_split]
    key = np.concatenate([one[0] * features[1] + one[1] for one in (split, merged)])
    kept = heirs[~np.isin(continues[heirs] * features[1] + heirs, key)]
    first = np.concatenate([split[0], merged[0], continues[kept]])
    second = np.concatenate([split[1], merged[1], kept])
    scored = _Scored.of(before, after, together, first, second)
    steady = np.where(scored.score[len(first) - len(kept) :] >= _STEADY, STABLE, MOVED)
    alone_before = np.setdiff1d(np.arange(features[0]), first)
    alone_after = np.setdiff1d(np.arange(features[1]), second)
    kind = np.concatenate(
        [
            np.full(len(split[0]), SPLIT),
            np.full(len(merged[0]), MERGED),
            steady,
            np.full(len(alone_after), BORN),
            np.full(len(alone_before), LOST),
        ]
    )
    nobody = np.full(len(alone_after), -1), np.full(len(alone_before), -1)
    unknown = np.full(len(alone_after) + len(alone_before), np.nan)
    begun = np.flatnonzero(continues < 0)
    leading = _rows(after.W_dec, begun)[:, :2].cpu().numpy()
    return Match(
        kind.astype(np.int8),
        np.concatenate([first, nobody[0], alone_before]),
        np.concatenate([second, alone_after, nobody[1]]),
        np.concatenate([scored.cosine, unknown]),
        np.concatenate([scored.correlation, unknown]),
        continues,
        begun[np.lexsort(leading.T[::-1])],
        together.rows,
    )


def _parts(
    whole_side: Snapshot, part_side: Snapshot, together: CoFiring, heir: Numbers, comes_from: Numbers
) -> tuple[Numbers, Numbers]:
    """Wholes of one side whose firing the other side now has in parts: (whole, part), each int64 [m].

    A part fires on at least 0.1 of the whole's rows and at most 0.3 outside them, and faces the same way (cosine 0.3).
    It is new there: it continues the whole, or nothing, or something that hardly fired. Together parts cover 0.7 of the
    whole's rows, and the one that continues it not 0.8 by itself. ``heir`` is the part that continues each whole,
    ``comes_from`` the whole that each part continues; -1 for none.
    """
    fired, part_fired = together.fired
    place = np.flatnonzero(together.together >= _PART_ROWS * _INSIDE)
    first, second, shared = together.first[place], together.second[place], together.together[place]
    source = comes_from[second]
    is_new = (source < 0) | (fired[source] < _SILENT * part_fired[second])
    fits = (fired[first] >= _WHOLE_ROWS) & (part_fired[second] >= _PART_ROWS) & (is_new | (source == first))
    fits &= (shared >= _INSIDE * part_fired[second]) & (shared >= _PART * fired[first])
    place, first, second, shared, source = (one[fits] for one in (place, first, second, shared, source))
    facing = cosines(whole_side.W_dec, part_side.W_dec, first, second) >= _RELATED
    place, first, second = place[facing], first[facing], second[facing]
    is_part = np.zeros(len(together.first), bool)
    is_part[place] = True
    rows = is_part[together.pair]
    covered = np.unique(together.first[together.pair[rows]] * together.rows + together.row[rows])
    covered_rows = np.bincount(covered // max(together.rows, 1), minlength=together.features[0])
    is_whole = (np.bincount(first, minlength=together.features[0]) >= 2) & (covered_rows >= _COVERED * fired)
    chosen = is_whole[first] & ~_goes_on(together, heir, first, second)[first]
    return first[chosen], second[chosen]


def _goes_on(together: CoFiring, heir: Numbers, first: Numbers, second: Numbers) -> NDArray[np.bool_]:
    """Which wholes just go on, bool [F]: their heir covers 0.8 of their rows by itself, or is none of the parts.

    ``first`` and ``second`` are wholes and their parts.
    """
    fired, part_fired = together.fired
    of_heir = np.flatnonzero(heir[together.first] == together.second)
    shared = np.zeros(len(heir), np.int64)
    shared[together.first[of_heir]] = together.together[of_heir]
    is_part = np.zeros(len(heir), bool)
    is_part[first[heir[first] == second]] = True
    elsewhere = (heir >= 0) & ~is_part & (part_fired[heir] >= _SILENT * fired)
    return elsewhere | (shared >= _ALONE * np.maximum(fired, 1))
