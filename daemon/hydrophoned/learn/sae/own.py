"""Numbers of a variant: one per latent, moved by the same lazy Adam as the matrices; and the weight of its loss."""

from typing import Final

import torch
from torch import Tensor

from hydrophoned.learn.kernels.arrays import Adam

_GAIN: Final = 0.04
_KEEP: Final = 0.9
_AT_ONCE: Final = 6.0
DAMPING: Final = 1.0
"""Of a penalty that reaches l0 by way of what is learned, some steps late."""
_FARTHEST: Final = 20.0


class LatentVector:
    """One trained number per latent, [F]."""

    def __init__(self, start: Tensor) -> None:
        self.value = start
        self.m, self.v = torch.zeros_like(start), torch.zeros_like(start)
        self.steps = torch.zeros(start.shape, dtype=torch.int64, device=start.device)

    def step(self, gradient: Tensor, touched: Tensor, adam: Adam) -> None:
        """Move the latents of bool [F] ``touched`` against their ``gradient`` [F]."""
        share = touched.to(gradient.dtype)
        self.steps.add_(touched)
        self.m.lerp_(gradient, share * (1 - adam.beta1))
        self.v.lerp_(gradient * gradient, share * (1 - adam.beta2))
        steps = self.steps.double()
        size = adam.rate * (1 - adam.beta2**steps).sqrt() / (1 - adam.beta1**steps).clamp_min(1e-300)
        self.value.sub_(self.m / (self.v.sqrt() + adam.eps) * (size.to(gradient.dtype) * share))

    def forget(self, latents: Tensor, value: Tensor) -> None:
        """Begin anew at ``value`` for ``latents``."""
        self.value[latents] = value
        for state in (self.m, self.v, self.steps):
            state[latents] = 0

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All state, by name."""
        return {name: self.value, f"{name}.m": self.m, f"{name}.v": self.v, f"{name}.steps": self.steps}


class SparsityController:
    """Drives the weight of a sparsity loss until l0 is the wanted one: no constant would.

    With l0 smoothed by 0.9 per step and r = clip((l0 - k) / k, -1, 1), u moves by 0.04 r after every step and the
    weight is start * exp(u + damping r): the part that reacts to r itself brakes l0 before it is past k. ``signed``,
    it is start * sinh(u + 6 r), which may fall below 0, so that a loss whose effect does not reverse by itself
    (thresholds that have risen stay) rewards activity where there is too little. On the device throughout.
    """

    def __init__(
        self, start: float, target: int, device: torch.device, *, signed: bool = False, damping: float = 0.0
    ) -> None:
        self.start, self.target, self.signed, self.damping = start, target, signed, damping
        self.l0 = torch.tensor(float(target), dtype=torch.float64, device=device)
        self.level = torch.tensor(float(signed), dtype=torch.float64, device=device)

    @property
    def weight(self) -> Tensor:
        """The weight in force, a scalar."""
        if self.signed:
            return self.start * torch.sinh(self.level + _AT_ONCE * self._excess)
        return self.start * torch.exp(self.level + self.damping * self._excess)

    @property
    def _excess(self) -> Tensor:
        return ((self.l0 - self.target) / self.target).clamp(-1, 1)

    def observe(self, active: Tensor, rows: int) -> None:
        """``active`` pairs were active in a batch of ``rows``."""
        self.l0.mul_(_KEEP).add_((1 - _KEEP) * active / rows)
        self.level.add_(_GAIN * self._excess).clamp_(-_FARTHEST, _FARTHEST)

    def tensors(self) -> dict[str, Tensor]:
        """All state, by name."""
        return {"sparsity.level": self.level, "sparsity.l0": self.l0}
