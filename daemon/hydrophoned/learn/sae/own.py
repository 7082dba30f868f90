"""Numbers of a variant: one per latent, moved by the same lazy Adam as the matrices; and the weight of its loss."""

from typing import Final

import torch
from torch import Tensor

from hydrophoned.learn.kernels.arrays import Adam

_GAIN: Final = 0.04
_KEEP: Final = 0.9


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

    After every step the weight is multiplied by exp(0.04 * clip((l0 - k) / k, -1, 1)), with l0 smoothed by 0.9 per
    step. On the device throughout.
    """

    def __init__(self, weight: float, target: int, device: torch.device) -> None:
        self.weight = torch.tensor(weight, dtype=torch.float64, device=device)
        self.l0 = torch.tensor(float(target), dtype=torch.float64, device=device)
        self.target = target

    def observe(self, active: Tensor, rows: int) -> None:
        """``active`` pairs were active in a batch of ``rows``."""
        self.l0.mul_(_KEEP).add_((1 - _KEEP) * active / rows)
        excess = ((self.l0 - self.target) / self.target).clamp(-1, 1)
        self.weight.mul_(torch.exp(_GAIN * excess))

    def tensors(self) -> dict[str, Tensor]:
        """All state, by name."""
        return {"sparsity.weight": self.weight, "sparsity.l0": self.l0}
