"""What is known of each row besides its activation, as tensors beside the batch."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from hydrophoned.learn.placement import put
from hydrophoned.rows import Rows


class RowMetadata(NamedTuple):
    """Columns of length n: daemon request key, sequence in it, position, phase, token id (-1 unknown), time in us."""

    request: Tensor
    sequence: Tensor
    position: Tensor
    phase: Tensor
    token: Tensor
    time: Tensor

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> Self:
        """The metadata of ``rows``, int64 but for the narrow columns, which are int32."""
        return cls(
            torch.from_numpy(rows.request).to(device, torch.int64),
            torch.from_numpy(rows.sequence.astype("int32")).to(device),
            torch.from_numpy(rows.position).to(device, torch.int32),
            torch.from_numpy(rows.phase.astype("int32")).to(device),
            torch.from_numpy(rows.token).to(device, torch.int32),
            torch.from_numpy(rows.time).to(device, torch.int64),
        )

    @classmethod
    def empty(cls, count: int, device: torch.device) -> Self:
        """Zeroed columns of length ``count``."""
        wide, narrow = torch.int64, torch.int32
        return cls(*(torch.zeros(count, dtype=t, device=device) for t in (wide, narrow, narrow, narrow, narrow, wide)))

    def take(self, index: Tensor) -> Self:
        """Rows ``index`` of every column (an integer or bool tensor)."""
        return type(self)(*(column[index] for column in self))

    def to(self, device: torch.device) -> Self:
        """Every column on ``device``."""
        return type(self)(*(put(column, device) for column in self))

    def put(self, index: Tensor, values: "RowMetadata") -> None:
        """Write ``values`` at rows ``index``."""
        for column, value in zip(self, values, strict=True):
            column[index] = value

    def join(self, other: "RowMetadata") -> Self:
        """Self followed by ``other``."""
        return type(self)(*(torch.cat(pair) for pair in zip(self, other, strict=True)))
