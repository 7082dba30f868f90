"""What each request of a small sample did to the features: its rows' sums."""

from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from hydrophone_schemas import tables
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.learn.placement import put
from hydrophoned.learn.record_batch import arrow_array, record_batch
from hydrophoned.learn.request_rows import DistinctRequests

_SLACK: Final = 2
_HALF: Final = 0.5
_NOT_KNOWN: Final = -1


class Sums(NamedTuple):
    """Of r requests and F features: rows on which it fired int32, sum float64, and maximum float32, all [r, F + 1].

    The last feature takes pairs that are not active.
    """

    fired: Tensor
    sum: Tensor
    max: Tensor

    @classmethod
    def zeros(cls, requests: int, features: int, device: torch.device) -> "Sums":
        """No rows yet."""
        shape = (requests, features + 1)
        kinds = (torch.int32, torch.float64, torch.float32)
        return cls(*(torch.zeros(shape, dtype=kind, device=device) for kind in kinds))


class RequestFeatures:
    """Per-request sums of about ``per_window`` requests of each window, whole: all rows that each has in the window.

    A request is taken when a hash of its key, uniform in [0, 1), is below p: a sample of requests, whatever their
    length, and the same ones in each stream and window as far as p allows. A window begins with the p that would have
    given ``per_window`` requests in the one before; whenever there would be more than twice as many, p is halved and
    those above it are dropped. What is left is what the last p would have given from the start.
    """

    def __init__(self, features: int, per_window: int, device: torch.device) -> None:
        self.features, self.per_window = features, per_window
        self.sample = 1.0
        self._sums = Sums.zeros(0, features, device)
        self._slots: dict[int, int] = {}
        self._rows: dict[int, int] = {}

    def update(self, feature: Tensor, value: Tensor, requests: DistinctRequests) -> None:
        """Take in pairs ``feature`` int64 and ``value`` float32 [n, k] of rows of ``requests``; F: no feature."""
        chosen = self._chosen(requests)
        if not len(chosen):
            return
        slots = np.full(len(requests.key), -1, dtype=np.int64)
        for place in chosen.tolist():
            key = int(requests.key[place])
            slots[place] = self._slots[key]
            self._rows[key] += int(requests.rows[place])
        of_row = slots[requests.place]
        rows = (of_row >= 0).nonzero()[0]
        offsets = put(torch.from_numpy(of_row[rows] * (self.features + 1)), feature.device)[:, None]
        if len(rows) < len(of_row):
            taken = put(torch.from_numpy(rows), feature.device)
            feature, value = feature[taken], value[taken]
        places, value = (feature + offsets).reshape(-1), value.reshape(-1)
        ones = torch.ones((), dtype=torch.int32, device=value.device).expand(len(places))
        self._sums.fired.view(-1).scatter_add_(0, places, ones)
        self._sums.sum.view(-1).scatter_add_(0, places, value.double())
        self._sums.max.view(-1).scatter_reduce_(0, places, value, "amax")

    def close(self, stream_key: int, window_start: int, version: int) -> pa.RecordBatch:
        """The open window's table ``request_feature``, in order of request."""
        kept = sorted(self._slots)
        device = self._sums.fired.device
        slots = torch.tensor([self._slots[key] for key in kept], dtype=torch.int64, device=device)
        fired, total, largest = (part[slots, : self.features] for part in self._sums)
        row, feature = fired.nonzero(as_tuple=True)
        offsets = np.searchsorted(row.cpu().numpy(), np.arange(len(kept) + 1))

        def lists(values: Tensor) -> pa.Array:
            return pa.ListArray.from_arrays(arrow_array(offsets.astype(np.int32)), arrow_array(values.cpu().numpy()))

        count = len(kept)
        return record_batch(
            {
                "stream_key": np.full(count, stream_key),
                "request_key": np.array(kept, dtype=np.int64),
                "window_start": np.full(count, window_start),
                "rows_scored": np.array([self._rows[key] for key in kept], dtype=np.int64),
                "sample": np.full(count, self.sample),
                "features": lists(feature),
                "fired": lists(fired[row, feature]),
                "sum": lists(total[row, feature]),
                "max": lists(largest[row, feature]),
                "dictionary_version": np.full(count, version),
            },
            tables.REQUEST_FEATURE,
        )

    def clear(self, requests: int) -> None:
        """Begin a new window, after one that had rows of ``requests`` requests."""
        for part in self._sums:
            part.zero_()
        self._slots, self._rows = {}, {}
        if requests:
            self.sample = min(1.0, self.per_window / requests)

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        held = [(key, slot, self._rows[key]) for key, slot in self._slots.items()]
        return {
            "sample": self.sample,
            "held": torch.tensor(held, dtype=torch.int64).reshape(len(held), 3),
            **self._sums._asdict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        device = self._sums.fired.device
        self.sample = float(state["sample"])
        held = state["held"].tolist()
        self._slots = {key: slot for key, slot, _ in held}
        self._rows = {key: rows for key, _, rows in held}
        sums = Sums(*(state[name].to(device, copy=True) for name in Sums._fields))
        if sums.fired.shape[1] != self.features + 1:
            raise ValueError(f"sums of {sums.fired.shape[1] - 1} features given to {self.features}")
        self._sums = sums

    def _chosen(self, requests: DistinctRequests) -> NDArray[np.int64]:
        """Places in ``requests.key`` of those that are in the sample, once there is room for all of them."""
        if not self.per_window:
            return np.zeros(0, dtype=np.int64)
        known, drawn = requests.key != _NOT_KNOWN, hashed(requests.key)
        while True:
            places: NDArray[np.int64] = (known & (drawn < self.sample)).nonzero()[0]
            keys = requests.key[places].tolist()
            fresh = [key for key in keys if key not in self._slots]
            if len(self._slots) + len(fresh) <= _SLACK * self.per_window:
                break
            self.sample *= _HALF
            self._drop()
        free = sorted(set(range(len(self._slots) + len(fresh))) - set(self._slots.values()))
        self._grow(len(self._slots) + len(fresh))
        for key, slot in zip(fresh, free, strict=False):
            self._slots[key], self._rows[key] = slot, 0
        return places

    def _drop(self) -> None:
        """Forget the requests that a lower p no longer takes."""
        held = np.fromiter(self._slots, dtype=np.int64, count=len(self._slots))
        gone = held[hashed(held) >= self.sample].tolist()
        slots = [self._slots.pop(key) for key in gone]
        for key in gone:
            del self._rows[key]
        if slots:
            places = put(torch.tensor(slots), self._sums.fired.device)
            for part in self._sums:
                part.index_fill_(0, places, 0)

    def _grow(self, requests: int) -> None:
        have = len(self._sums.fired)
        if requests <= have:
            return
        most = max(requests, min(2 * have, _SLACK * self.per_window))
        more = Sums.zeros(most - have, self.features, self._sums.fired.device)
        self._sums = Sums(*(torch.cat(pair) for pair in zip(self._sums, more, strict=True)))


def hashed(key: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each key, as if drawn at random (Steele et al. 2014, SplitMix64's finaliser).

    >>> hashed(np.array([1, 2, 3])).round(3).tolist()
    [0.883, 0.432, 0.026]
    """
    with np.errstate(over="ignore"):
        z = key.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    drawn: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn
