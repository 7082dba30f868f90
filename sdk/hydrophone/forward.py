"""One forward pass of the model: which positions it computes, for which requests.

What is recorded on the model's thread is raw (copies of ids and masks); positions are worked out by the sending thread.
"""

import time
from typing import Any, NamedTuple, Protocol

import numpy as np
from hydrophone_schemas.activations import Phase
from numpy.typing import NDArray

from hydrophone.requests import Assignment, Request


class HostArray(Protocol):
    """A copy that may still be on its way from a device."""

    def numpy(self) -> NDArray[Any]:
        """The values, once they have arrived."""
        ...


class Columns(NamedTuple):
    """What describes the rows of a capture, besides the rows; arrays have length n.

    ``keep`` says which captured rows these are, None for all. ``token`` is None where no id is known, and -1 for
    single unknown ones.
    """

    keep: NDArray[np.bool_] | None
    request: NDArray[np.uint64]
    sequence: NDArray[np.uint16]
    position: NDArray[np.int32]
    phase: NDArray[np.uint8]
    token: NDArray[np.int32] | None
    time: NDArray[np.int64]
    requests: tuple[Request, ...]

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.request)


class Run(NamedTuple):
    """Token ids of adjoining positions of one sequence of a request."""

    request: Request
    sequence: int
    position: int
    ids: NDArray[np.int32]


class Forward:
    """Recorded by the hook on the whole model before it runs.

    ``batch`` B and ``length`` T are those of its input where known; ``past`` is the length of the KV cache before.
    ``ids`` [B, T]; ``mask`` [B, S] is not 0 where a column is not padding; ``visible`` [B, T] says the same of this
    forward's own columns; ``positions`` [B or 1, T]. ``assignment`` is None if the requests do not fit the batch.
    """

    __slots__ = (
        "_columns",
        "assignment",
        "batch",
        "ids",
        "length",
        "mask",
        "past",
        "positions",
        "taken",
        "time",
        "tokens_taken",
        "visible",
    )

    def __init__(self) -> None:
        self.time = time.time_ns() // 1000
        self.taken = time.monotonic()
        self.batch: int | None = None
        self.length: int | None = None
        self.past = 0
        self.ids: HostArray | None = None
        self.mask: HostArray | None = None
        self.visible: HostArray | None = None
        self.positions: HostArray | None = None
        self.assignment: Assignment | None = None
        self.tokens_taken = False
        self._columns: dict[tuple[int, int], Columns] = {}

    def columns(self, batch: int, length: int) -> Columns:
        """Columns of a capture of ``batch`` times ``length`` rows; ``batch`` is that of the assignment."""
        known = self._columns.get((batch, length))
        if known is None:
            known = self._columns[batch, length] = self._expand(batch, length)
        return known

    def runs(self) -> list[Run]:
        """Token ids of this forward as runs of adjoining positions; empty if ids are not known."""
        if self.ids is None or self.assignment is None or self.batch is None or self.length is None:
            return []
        columns = self.columns(self.batch, self.length)
        if columns.token is None:
            return []
        keep = np.ones(self.batch * self.length, np.bool_) if columns.keep is None else columns.keep
        element = np.flatnonzero(keep) // self.length
        ends = np.flatnonzero((np.diff(element) != 0) | (np.diff(columns.position) != 1)) + 1
        runs = []
        for rows in np.split(np.arange(columns.rows), ends):
            if len(rows):
                owner = int(element[rows[0]])
                request, sequence = self.assignment.requests[owner], self.assignment.sequences[owner]
                runs.append(Run(request, sequence, int(columns.position[rows[0]]), columns.token[rows]))
        return runs

    def _expand(self, batch: int, length: int) -> Columns:
        assert self.assignment is not None  # noqa: S101  captures of other forwards are dropped at the hook
        if length == 1 and batch == self.batch and self.length == 1 and self.visible is None:
            return self._step(batch, self.assignment)
        token = None
        if (batch, length) == (self.batch, self.length):
            position, keep = self._places(batch, length)
            if self.ids is not None:
                token = self.ids.numpy().astype(np.int32).reshape(-1)
        else:
            start = self.past if length == 1 else 0
            position, keep = np.broadcast_to(np.arange(start, start + length), (batch, length)), None
        request = np.repeat(np.array([owner.number for owner in self.assignment.requests], np.uint64), length)
        sequence = np.repeat(np.array(self.assignment.sequences, np.uint16), length)
        flat = position.reshape(-1)
        if keep is not None:
            request, sequence, flat = request[keep], sequence[keep], flat[keep]
            token = None if token is None else token[keep]
        rows = len(request)
        phase = Phase.DECODE if self.past > 0 and self.length == 1 else Phase.PROMPT
        return Columns(
            keep,
            request,
            sequence,
            np.ascontiguousarray(flat, np.int32),
            np.full(rows, phase, np.uint8),
            token,
            np.full(rows, self.time, np.int64),
            tuple(dict.fromkeys(self.assignment.requests)),
        )

    def _step(self, batch: int, assignment: Assignment) -> Columns:
        """As ``_expand``, for one row of each sequence: the many small forwards of decoding, so without detours."""
        past, keep, token, taken = self.past, None, None, list(range(batch))
        position = [past] * batch
        if self.positions is not None:
            position = np.broadcast_to(self.positions.numpy(), (batch, 1))[:, 0].tolist()
        if self.mask is not None:
            mask = self.mask.numpy()
            if mask.shape[1] > past:
                position = [int(np.count_nonzero(row[: past + 1])) - 1 for row in mask]
            if mask.shape[1] > past or mask.shape[1] == 1:
                column = past if mask.shape[1] > past else 0
                live = mask[:, column].tolist()
                if not all(live):
                    keep = np.array(live, np.bool_)
                    taken = [element for element in taken if live[element]]
        if self.ids is not None:
            ids = self.ids.numpy()
            token = np.array([ids[element, 0] for element in taken], np.int32)
        rows = len(taken)
        return Columns(
            keep,
            np.array([assignment.requests[element].number for element in taken], np.uint64),
            np.array([assignment.sequences[element] for element in taken], np.uint16),
            np.array([position[element] for element in taken], np.int32),
            np.array([Phase.DECODE if past else Phase.PROMPT] * rows, np.uint8),
            token,
            np.array([self.time] * rows, np.int64),
            tuple(dict.fromkeys(assignment.requests)),
        )

    def _places(self, batch: int, length: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Positions [B, T] and which of the B * T rows are not padding (None for all)."""
        keep: NDArray[np.bool_] | None = None
        position: NDArray[Any] | None = None
        end = self.past + length
        if self.mask is not None:
            mask = self.mask.numpy() != 0
            if mask.shape[1] >= end:
                position = np.cumsum(mask[:, :end], axis=1)[:, self.past :] - 1
                keep = mask[:, self.past : end]
            elif mask.shape[1] == length:
                keep = mask
        elif self.visible is not None:
            keep = self.visible.numpy() != 0
        if position is None and self.positions is not None:
            position = self.positions.numpy()
        if position is None:
            position = np.arange(self.past, end)
        flat = None if keep is None or keep.all() else np.ascontiguousarray(keep).reshape(-1)
        return np.broadcast_to(position, (batch, length)), flat
