"""A uniform sample of the codes of scored rows: what questions about features are answered from."""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.learn.buffers import kept_slots
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.placement import put


class CodedRows(NamedTuple):
    """Codes of n rows with what is known of each row.

    ``index`` int32 and ``value`` float32 [n, k], pairs of value 0 are not active; the others have length n, as in
    ``RowMetadata``.
    """

    index: NDArray[np.int32]  # type: ignore[assignment]  # see Codes
    value: NDArray[np.float32]
    request: NDArray[np.int64]
    sequence: NDArray[np.int32]
    position: NDArray[np.int32]
    phase: NDArray[np.int32]
    token: NDArray[np.int32]
    time: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.request)

    def take(self, chosen: NDArray[Any]) -> Self:
        """Rows ``chosen`` (integers or bool) of every column."""
        return type(self)(*(column[chosen] for column in self))


class CodeSample:
    """Uniform sample of ``capacity`` of all scored rows (Vitter 1985, algorithm R), as codes with their metadata.

    Codes are those that the dictionary gave when the row came. A share p seen in m sampled rows has a standard error of
    sqrt(p (1 - p) / m) if rows are independent; rows of one request are not.
    """

    def __init__(self, width: int, capacity: int, seed: int, device: torch.device) -> None:
        self.index = torch.zeros(capacity, width, dtype=torch.int32, device=device)
        self.value = torch.zeros(capacity, width, device=device)
        self.metadata = RowMetadata.empty(capacity, device)
        self.seen = 0
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def count(self) -> int:
        """Rows held."""
        return min(self.seen, len(self.value))

    def update(self, codes: Codes, metadata: RowMetadata) -> None:
        """Offer the codes of n rows with their metadata."""
        n = len(codes.value)
        if not n or not len(self.value):
            return
        slots, source = kept_slots(self.seen, n, len(self.value), self._generator)
        if len(slots):
            slots, source = put(slots, self.value.device), put(source, self.value.device)
            width = min(codes.value.shape[1], self.value.shape[1])
            self.value[slots] = 0.0
            self.index[slots, :width] = codes.index[source, :width]
            self.value[slots, :width] = codes.value[source, :width]
            self.metadata.put(slots, metadata.take(source))
        self.seen += n

    def rescale(self, factor: float) -> None:
        """Activations are ``factor`` times as large from now on."""
        self.value.mul_(factor)

    def forget(self, features: Tensor) -> None:
        """Take ``features`` [n] out of all codes: from now on another feature stands at each of these indices."""
        self.value.masked_fill_(torch.isin(self.index, features.to(self.index.dtype)), 0.0)

    def rows(self) -> CodedRows:
        """A copy of the rows held."""
        held = (self.index, self.value, *self.metadata)
        return CodedRows(*(_copy(column[: self.count]) for column in held))

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            "index": self.index[: self.count].clone(),
            "value": self.value[: self.count].clone(),
            "seen": self.seen,
            "generator": self._generator.get_state(),
            **{f"metadata.{name}": column[: self.count].clone() for name, column in self.metadata._asdict().items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.seen = int(state["seen"])
        self.index[: self.count] = state["index"]
        self.value[: self.count] = state["value"]
        self._generator.set_state(state["generator"])
        for name, column in self.metadata._asdict().items():
            column[: self.count] = state[f"metadata.{name}"]


def _copy(column: Tensor) -> NDArray[Any]:
    copied: NDArray[Any] = column.to("cpu", copy=True).numpy()
    return copied
