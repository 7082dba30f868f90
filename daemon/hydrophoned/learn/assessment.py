"""How good a dictionary is, on rows that it has not been trained on."""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes, Dictionary

DENSITY_EDGES: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Between the bins of the density histogram; one more bin before them holds the features that never fired."""


class Assessment(NamedTuple):
    """Of ``rows`` fresh rows taken at ``time`` (UTC us).

    ``fvu_by_count`` has pairs (m, fvu when only the m largest values of each row are kept), up to the width of the
    code: how much the first features of a row explain, and what the last ones add. None where rows do not vary.
    """

    time: int
    rows: int
    l0: float
    fvu_by_count: tuple[tuple[int, float], ...] | None


def assess(dictionary: Dictionary, codes: Codes, y: Tensor, time: int) -> Assessment:
    """Assess ``dictionary`` by the ``codes`` of normalised rows y [n, d] that it was not trained on."""
    n, width = codes.value.shape
    variance = float((y - y.mean(0)).square().sum())
    by_count = None
    if n > 1 and variance > 0:
        value, order = codes.value.sort(dim=1, descending=True)
        index = codes.index.gather(1, order)
        counts = sorted({*(1 << power for power in range(width.bit_length())), width})
        by_count = tuple((m, _error(dictionary, index, value, y, m) / variance) for m in counts if m <= width)
    return Assessment(time, n, float((codes.value > 0).sum()) / n, by_count)


def density(fired: Tensor, rows: int) -> list[int] | None:
    """Numbers of features by the share of ``rows`` rows on which each of int64 [F] fired; None of no rows.

    The first number is of those that never did, the others are of the bins that DENSITY_EDGES part.
    """
    if not rows:
        return None
    share = fired.double().cpu() / rows
    edges = torch.tensor(DENSITY_EDGES, dtype=torch.float64)
    place = torch.where(share > 0, torch.bucketize(share, edges, right=True) + 1, 0)
    counts: list[int] = torch.bincount(place, minlength=len(DENSITY_EDGES) + 2).tolist()
    return counts


def as_numbers(assessment: Assessment) -> dict[str, Any]:
    """Plain numbers, to be shown."""
    by_count = assessment.fvu_by_count
    return assessment._asdict() | {"fvu_by_count": None if by_count is None else [list(pair) for pair in by_count]}


def _error(dictionary: Dictionary, index: Tensor, value: Tensor, y: Tensor, count: int) -> float:
    kept = Codes(index[:, :count].contiguous(), value[:, :count].contiguous())
    return float((dictionary.decode(kept) - y).square().sum())
