"""The contract of a sparse dictionary, whatever its variant."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Codes(NamedTuple):
    """The sparse coefficients of ``n`` rows: ``k`` (index, value) pairs each.

    ``index`` is int32 [n, k]; ``value`` is float32 [n, k], at least 0; a pair whose value is 0 is not active.
    """

    index: Tensor  # type: ignore[assignment]  # the field's own name, as in the contract; tuple.index is not used
    value: Tensor


class StepReport(NamedTuple):
    """What one training step saw, before it changed anything.

    ``fvu`` is the fraction of variance unexplained on the batch, ``l0`` the mean number of active features per row,
    ``dead_fraction`` the share of features silent for ``dead_after_rows`` rows: scalars on the dictionary's device,
    so that nobody waits for it who does not read them. ``revived`` is how many dead features the step set anew.
    """

    rows: int
    fvu: Tensor
    l0: Tensor
    dead_fraction: Tensor
    revived: int


class Dictionary(Protocol):
    """A learned sparse code of rows [n, d] by ``features`` directions."""

    width: int
    features: int
    k: int

    def encode(self, x: Tensor) -> Codes:
        """Codes of rows x [n, d], float32."""
        ...

    def decode(self, codes: Codes) -> Tensor:
        """Rows [n, d] rebuilt from codes."""
        ...

    def misfit(self, codes: Codes, x: Tensor) -> Tensor:
        """Sums over the rows x [n, d] of ``codes``, float64 [2 + d]: squared error, squared norm, and x by column."""
        ...

    def partial_fit(self, x: Tensor) -> StepReport:
        """One training step on rows x [n, d]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly: tensors and plain numbers."""
        ...
