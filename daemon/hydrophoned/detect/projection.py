"""Units in the coordinates that the cheap detectors work in: whitened, and no more of them than are asked for."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from hydrophoned.detect.blocks import representable
from hydrophoned.detect.covariance import Whitening
from hydrophoned.detect.errors import InsufficientReference


class Projection(NamedTuple):
    """y = (x - centre) A, with ``centre`` float32 [d] and ``matrix`` float32 [d, m]."""

    centre: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, x: Tensor, most: int, generator: torch.Generator) -> Self:
        """That under which units like x [n, d] have m = min(d, ``most``) coordinates that vary about equally.

        Where d is more than ``most`` the whitened units are projected on random orthonormal directions.
        """
        whitening = Whitening.fit(x)
        d = x.shape[1]
        if d <= most:
            directions = torch.eye(d, device=x.device)
        else:
            drawn = torch.randn(d, most, generator=generator)
            directions = torch.linalg.qr(drawn).Q.to(x.device)
        return cls(whitening.centre, whitening.unwhitened(directions))

    @property
    def width(self) -> int:
        """Coordinates m."""
        return self.matrix.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        """Coordinates [n, m] of units x [n, d]."""
        return (x - self.centre) @ self.matrix


def halves(reference: Tensor, least: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two random halves of the finite units of ``reference`` [n, d]; the second has the odd one.

    Raises InsufficientReference for fewer than ``least`` finite units, or for units that are all the same.
    """
    finite = reference[representable(reference)].float()
    if len(finite) < least:
        raise InsufficientReference(
            f"the reference has {len(finite)} finite units of {len(reference)}: {least} are needed at least"
        )
    if not bool((finite != finite[0]).any()):
        raise InsufficientReference(
            f"all {len(finite)} units of the reference are the same: nothing can be told of a change"
        )
    order = torch.randperm(len(finite), generator=generator).to(finite.device)
    half = len(finite) // 2
    return finite[order[:half]], finite[order[half:]]
