"""Adam whose cost follows the touched rows (lazy moments).

Kingma & Ba 2015, "Adam", algorithm 1, applied per latent: a latent's moments and its own step count move only when
it was active in the batch, so that silent latents neither drift on old momentum nor cost anything, and a revived one
can start clean (:meth:`LazyAdam.forget`).
"""

import torch
from torch import Tensor


class LazyAdam:
    """Moments for W_dec [F, d], W_enc [F, d], b_enc [F] (one step count per latent) and for b_dec [d]."""

    def __init__(
        self,
        features: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        self.betas = betas
        self.eps = 1e-12  # gradients of a mean over n * d elements are small: eps must be far below them
        self.steps = torch.zeros(features, dtype=torch.int64, device=device)
        self.vector_steps = torch.zeros((), dtype=torch.int64, device=device)
        shapes = {"W_dec": (features, width), "W_enc": (features, width), "b_enc": (features,), "b_dec": (width,)}
        self.first = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        self.second = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}

    def step_size(self, where: Tensor | slice, rate: float) -> Tensor:
        """Bias-corrected step size of each latent ``where``, from its own step count; 0 for one never touched."""
        steps = self.steps[where].double()
        size = rate * (1 - self.betas[1] ** steps).sqrt() / (1 - self.betas[0] ** steps).clamp_min(1e-300)
        return size.to(self.first["W_dec"].dtype)

    def direction(self, name: str, where: Tensor | slice, gradient: Tensor, touched: Tensor | None = None) -> Tensor:
        """Move the moments of the latents ``where`` by their ``gradient``; return m / (sqrt(v) + eps), same shape.

        ``where`` is either the latents that were active, or a slice that holds others too: then ``touched`` is 1 for
        the active ones and 0 for the others, whose moments stay.
        """
        first, second = self.first[name], self.second[name]
        m, v = first[where], second[where]
        if touched is None:
            m.lerp_(gradient, 1 - self.betas[0])
            v.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
            first[where], second[where] = m, v
            return m.div_(v.sqrt_().add_(self.eps))
        share = touched if gradient.ndim == 1 else touched.unsqueeze(1)
        m.lerp_(gradient, share * (1 - self.betas[0]))  # m and v are views: this writes the moments themselves
        v.lerp_(gradient * gradient, share * (1 - self.betas[1]))
        return (v.sqrt().add_(self.eps).reciprocal_()).mul_(m)

    def step_vector(self, b_dec: Tensor, gradient: Tensor, rate: float) -> None:
        """Update the decoder bias, which every batch touches."""
        self.vector_steps += 1
        steps = float(self.vector_steps)
        m, v = self.first["b_dec"], self.second["b_dec"]
        m.lerp_(gradient, 1 - self.betas[0])
        v.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        size = rate * (1 - self.betas[1] ** steps) ** 0.5 / (1 - self.betas[0] ** steps)
        b_dec.sub_(m / (v.sqrt() + self.eps) * size)

    def forget(self, latents: Tensor) -> None:
        """Clear moments and step counts of ``latents``: they begin anew."""
        self.steps[latents] = 0
        for name in ("W_dec", "W_enc", "b_enc"):
            self.first[name][latents] = 0
            self.second[name][latents] = 0

    def tensors(self) -> dict[str, Tensor]:
        """All state, by name."""
        return {
            "steps": self.steps,
            "vector_steps": self.vector_steps,
            **{f"first.{name}": tensor for name, tensor in self.first.items()},
            **{f"second.{name}": tensor for name, tensor in self.second.items()},
        }
