"""Rows that would poison a dictionary, and what to say of them."""

from typing import Final

import torch
from torch import Tensor

from hydrophoned.learn.errors import RowsNotFinite

LONGEST: Final = 1e9
"""Norm of a row, or of a batch's error, beyond which squares of gradients may overflow; a row should have d^1/2."""


def usable_rows(x: Tensor) -> Tensor:
    """Bool [n]: rows of x [n, d] that hold numbers, and are not longer than LONGEST."""
    usable: Tensor = torch.linalg.vector_norm(x, dim=1) <= LONGEST
    return usable


def not_finite(x: Tensor) -> RowsNotFinite:
    """The error for rows x [n, d] that cannot be learned from."""
    bad = int((~usable_rows(x)).sum())
    what = (
        f"{bad} of {len(x)} rows hold NaN or Inf, or are longer than {LONGEST:.0e}; leave them out"
        if bad
        else f"the error of {len(x)} rows is larger than {LONGEST:.0e}; scale them to a mean square of 1"
    )
    return RowsNotFinite(f"{what}. Nothing was learned of this batch.")
