"""Rows that wait in main memory until a chunk of them is full."""

import torch
from torch import Tensor

from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.placement import MAIN_MEMORY
from hydrophoned.rows import Rows


class Staging:
    """Rows as they came, with their metadata."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[tuple[Tensor, RowMetadata]] = []

    @property
    def since(self) -> int | None:
        """Time (UTC us) of the first row that waits, None without one."""
        return int(self._parts[0][1].time[0]) if self._parts else None

    def add(self, rows: Rows) -> None:
        """Let ``rows`` wait too."""
        tensor = torch.from_numpy(rows.activation)
        if rows.dtype == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        self._parts.append((tensor, RowMetadata.of(rows, MAIN_MEMORY)))
        self.count += rows.count

    def take(self) -> tuple[Tensor, RowMetadata]:
        """All that wait, of which there must be some, as one: activations [n, d] in a dtype that holds them exactly."""
        (x, metadata), *others = self._parts
        if others:
            x = torch.cat([x, *(part[0] for part in others)])
        for part in others:
            metadata = metadata.join(part[1])
        self._parts, self.count = [], 0
        return x, metadata
