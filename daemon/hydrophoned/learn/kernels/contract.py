"""What a module of kernels offers; documented function by function in ``plain``."""

from typing import Protocol

from torch import Tensor

from hydrophoned.learn.kernels.arrays import Adam, Latents, Pairs


class Kernels(Protocol):
    """The functions that ``plain``, ``cpu`` and ``fused`` have in common."""

    def topk(self, p: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest of each row."""
        ...

    def above(self, p: Tensor, bias: Tensor, threshold: float) -> Pairs:
        """All pairs above a threshold."""
        ...

    def reconstruct(
        self, pairs: Pairs, W_dec: Tensor, target: Tensor, *, groups: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Error, its sums by group, and the slopes of the pairs."""
        ...

    def decode(self, pairs: Pairs, W_dec: Tensor) -> Tensor:
        """Sums of decoder rows."""
        ...

    def misfit(self, pairs: Pairs, W_dec: Tensor, b_dec: Tensor, target: Tensor) -> Tensor:
        """Sums over rows by which rows rebuilt are judged."""
        ...

    def update(
        self,
        latents: Latents,
        pairs: Pairs,
        slope: Tensor,
        h: Tensor,
        x: Tensor,
        *,
        scale: float,
        adam: Adam,
        groups: int = 1,
        train_bias: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """One step of the optimiser on the latents that have pairs."""
        ...
