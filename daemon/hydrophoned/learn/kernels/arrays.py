"""What the kernels work on."""

from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Active (row, latent) pairs of a batch, ordered by segment (CSR).

    A segment is a row, or one of ``groups`` parts of a row: segment s belongs to row s // groups. The pairs of
    segment s are ``offsets[s]`` to ``offsets[s + 1]``.

    ``offsets`` int64 [n * groups + 1]; ``index`` int32 [m], the latent; ``value`` [m], its coefficient z.
    """

    offsets: Tensor
    index: Tensor  # type: ignore[assignment]  # the field's own name; tuple.index is not used
    value: Tensor


@dataclass
class Latents:
    """Parameters of all latents and the optimiser's moments, one row per latent.

    ``W_dec``, ``W_enc`` and their moments are [F, d], ``b_enc`` and its moments [F], ``steps`` int64 [F] (updates of
    each latent); ``W_half`` is W_enc in bfloat16 [F, d] where products are taken in it, else None.
    """

    W_dec: Tensor
    W_enc: Tensor
    b_enc: Tensor
    m_dec: Tensor
    v_dec: Tensor
    m_enc: Tensor
    v_enc: Tensor
    m_bias: Tensor
    v_bias: Tensor
    steps: Tensor
    W_half: Tensor | None = None

    @classmethod
    def zeros(cls, features: int, width: int, device: torch.device, dtype: torch.dtype, *, half: bool) -> Self:
        """All zero; ``half`` says whether W_half is kept."""

        def matrix() -> Tensor:
            return torch.zeros(features, width, device=device, dtype=dtype)

        def vector() -> Tensor:
            return torch.zeros(features, device=device, dtype=dtype)

        steps = torch.zeros(features, device=device, dtype=torch.int64)
        own = matrix().bfloat16() if half else None
        return cls(matrix(), matrix(), vector(), matrix(), matrix(), matrix(), matrix(), vector(), vector(), steps, own)

    def tensors(self) -> dict[str, Tensor]:
        """What has to be kept to go on exactly, by name; W_half follows from W_enc."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "W_half"}

    def refresh(self, latents: Tensor | None = None) -> None:
        """Make W_half follow W_enc, everywhere or for ``latents``."""
        if self.W_half is None:
            return
        if latents is None:
            self.W_half.copy_(self.W_enc)
        else:
            self.W_half.index_copy_(0, latents, self.W_enc[latents].bfloat16())

    def forget(self, latents: Tensor) -> None:
        """Clear moments and step counts of ``latents``: they begin anew."""
        for moment in (self.m_dec, self.v_dec, self.m_enc, self.v_enc, self.m_bias, self.v_bias, self.steps):
            moment[latents] = 0


class Adam(NamedTuple):
    """Settings of the optimiser: Kingma & Ba 2015, algorithm 1, applied per latent (see ``plain.update``)."""

    rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    encoder: float = 1.0
    """Step size of encoder rows and biases, in units of ``rate``."""
    eps: float = 1e-12  # gradients of a mean over n * d elements are small: eps must be far below them
