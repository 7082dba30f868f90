"""A linear probe: logistic regression with a ridge, by L-BFGS."""

from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

RIDGE: Final = 1e-3
"""Weight of half the squared norm beside the mean loss of a row; of standardised columns."""
_MOST_STEPS: Final = 200


class Standard(NamedTuple):
    """Mean and standard deviation of columns, float32 [d]; the deviation of a constant column is 1."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Those of x [n, d]."""
        deviation, mean = torch.std_mean(x, dim=0, correction=0)
        constant = deviation <= 1e-6 * mean.abs()
        return cls(mean, deviation.masked_fill(constant, 1.0))

    def apply(self, x: Tensor) -> Tensor:
        """Rows x [n, d] standardised."""
        return (x - self.mean).div_(self.deviation)


class Probe(NamedTuple):
    """Logits ``x @ weight + bias`` of standardised rows x [n, d]: above 0, the label is the likelier."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """[n]."""
        return x @ self.weight + self.bias


def fit_probe(x: Tensor, label: Tensor, *, ridge: float = RIDGE) -> Probe:
    """The probe of bool ``label`` [n] on standardised rows x [n, d] that has the least mean loss and ridge."""
    weight = torch.zeros(x.shape[1], device=x.device, requires_grad=True)
    share = label.float().mean()
    bias = torch.logit(share.clamp(1e-6, 1 - 1e-6)).detach().requires_grad_()
    target = label.float()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_MOST_STEPS, history_size=20, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        missed = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, target)
        total = missed + ridge / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    return Probe(weight.detach(), bias.detach())


def f1(called: Tensor, label: Tensor) -> float:
    """Harmonic mean of precision and recall of bool ``called`` [n] for ``label`` [n]; 0 where nothing is right."""
    both = int((called & label).sum())
    return 2 * both / max(int(called.sum()) + int(label.sum()), 1)


def best_threshold(logits: Tensor, label: Tensor) -> float:
    """The logit from which on to call, so that F1 on these rows is the best there is; 0 is too much for a rare label.

    Half way down to the next row that is not called.
    """
    value, order = logits.sort(descending=True)
    right = label[order].cumsum(0).double()
    found = 2 * right / (torch.arange(1, len(value) + 1, device=value.device) + right[-1])
    found[:-1].masked_fill_(value[:-1] == value[1:], 0)  # rows of equal logits are called together
    last = int(found.argmax())
    return float(value[last : last + 2].mean())
