"""How sure a model's linear head is of a unit: energy, and the shaped score."""

from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from hydrophoned.detect.errors import ReferenceMismatch

_BINS: Final = 100
_TAIL: Final = 0.001
_SCALE: Final = 1000.0
_MOST_VALUES: Final = 1 << 20  # whose quantiles are taken


class Head(NamedTuple):
    """The last linear layer of a model: logits = W x + b, with W [C, d] and b [C]."""

    W: Tensor
    b: Tensor


class HeadScores(NamedTuple):
    """Two scores of the inputs x [n, d] of a linear head, fitted to those of a reference.

    energy      -logsumexp(W x + b)                                              (Liu et al. 2020)
    shaped      -sum_j w_yj theta(x_j) x_j,  y the largest logit                  (Zhao et al. 2024)

    theta takes one value in each of 100 bins of equal width between the 0.001 and 0.999 quantiles of all x_j of the
    reference, and is 0 outside: the values of unit norm, times 1000, that make the mean shaped score of the reference
    largest, which are proportional to I_k = E sum_j [x_j in bin k] w_yj x_j ("Towards optimal feature-shaping methods
    for out-of-distribution detection", equation of the closed form). Both are larger for what the head is less sure
    of. New input can make a head surer than what it knows, so that either may be new at both ends.
    """

    head: Head
    low: float
    width: float
    theta: Tensor

    @classmethod
    def of(cls, x: Tensor, head: Head) -> Self:
        """Fitted to units x [n, d]. Raises ReferenceMismatch for a head of another width."""
        W, b = head
        if W.ndim != 2 or W.shape[1] != x.shape[1] or b.shape != W.shape[:1]:
            raise ReferenceMismatch(
                f"a head with W {list(W.shape)} and b {list(b.shape)} does not fit units of width {x.shape[1]}: "
                f"W [C, {x.shape[1]}] and b [C] are needed"
            )
        head = Head(W.to(x), b.to(x))
        some = x[: max(1, _MOST_VALUES // x.shape[1])].flatten().sort().values
        low, high = (float(some[round(q * (len(some) - 1))]) for q in (_TAIL, 1 - _TAIL))
        fitted = cls(head, low, max(high - low, 1e-30) / _BINS, torch.zeros(_BINS + 1, device=x.device))
        total = torch.zeros(_BINS + 1, dtype=torch.float64, device=x.device)
        for start in range(0, len(x), 1024):
            part = x[start : start + 1024]
            part_of = part * head.W[_logits(part, head).argmax(1)]
            total.index_add_(0, fitted._bin(part).flatten(), part_of.double().flatten())
        total[_BINS] = 0
        theta = _SCALE * total / total.norm().clamp_min(1e-30)
        return fitted._replace(theta=theta.float())

    def scores(self, x: Tensor) -> list[Tensor]:
        """Energy and shaped score of units x [n, d], float32 [n] each."""
        logits = _logits(x, self.head)
        shaped = (self.head.W[logits.argmax(1)] * x * self.theta[self._bin(x)]).sum(1)
        return [-logits.logsumexp(1), -shaped]

    def _bin(self, x: Tensor) -> Tensor:
        """Bin of each value of x, ``_BINS`` for those outside of all."""
        place = ((x - self.low) / self.width).floor()
        inside = (place >= 0) & (x <= self.low + _BINS * self.width)
        return torch.where(inside, place.clamp(0, _BINS - 1), float(_BINS)).long()


def _logits(x: Tensor, head: Head) -> Tensor:
    return x @ head.W.T + head.b
