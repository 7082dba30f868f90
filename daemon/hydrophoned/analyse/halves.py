"""Two halves of the requests: what is chosen on one is scored on the other."""

import torch
from torch import Tensor

from hydrophoned.analyse.errors import TooLittle


def halves(request: Tensor, generator: torch.Generator) -> Tensor:
    """Bool [n]: whether a row is of the half to choose on; ``request`` int64 [n] is the number of its request.

    Whole requests are drawn, since rows of one request are alike: a row's neighbour in the other half would tell what
    it holds. Raises TooLittle for fewer than two requests.
    """
    known, place = numbered(request)
    if len(known) < 2:
        raise TooLittle(
            f"rows are of {len(known)} requests; at least 2 are needed, one to choose on and one to score. "
            "Give more rows, or the requests they are of."
        )
    first = torch.zeros(len(known), dtype=torch.bool)
    first[torch.randperm(len(known), generator=generator)[: (len(known) + 1) // 2]] = True
    return first.to(request.device)[place]


def numbered(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones of ``values`` [n], rising, and the place of each of them among those, int64 [n].

    >>> numbered(torch.tensor([7, 3, 7]))
    (tensor([3, 7]), tensor([1, 0, 1]))
    """
    known, place = torch.unique(values, return_inverse=True)
    return known, place
