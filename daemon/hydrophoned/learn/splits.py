"""The window's statistics by phase, and by attributes of requests such as tenant or route."""

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from hydrophone_schemas import tables
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.attributes import RequestAttributes
from hydrophoned.learn.placement import put
from hydrophoned.learn.record_batch import arrow_array, record_batch
from hydrophoned.learn.request_rows import DistinctRequests

PHASE: Final = "phase"
PHASES: Final = ("prompt", "decode")
MAX_VALUES: Final = 32
"""Values of one attribute that are told apart, the first ones seen; further ones are counted together."""
OTHER: Final = "other"

_NONE: Final = 0  # the group of rows whose request does not have the attribute
_FEWEST: Final = 4


class GroupSums:
    """For each of some groups of rows and F features: rows on which it fired, int32, and sum of its values, float64.

    Both are [groups, F + 1]; the last feature takes pairs that are not active.
    """

    def __init__(self, groups: int, features: int, device: torch.device) -> None:
        self.features = features
        self.fired = torch.zeros(groups, features + 1, dtype=torch.int32, device=device)
        self.sum = torch.zeros(groups, features + 1, dtype=torch.float64, device=device)

    def update(self, group: Tensor, feature: Tensor, value: Tensor) -> None:
        """Take in pairs ``feature`` int64 and ``value`` float64 [n, k] of rows of ``group`` int64 [n]."""
        places = (feature + (group * (self.features + 1))[:, None]).reshape(-1)
        ones = torch.ones((), dtype=torch.int32, device=value.device).expand(len(places))
        self.fired.view(-1).scatter_add_(0, places, ones)
        self.sum.view(-1).scatter_add_(0, places, value.reshape(-1))

    def grow(self, groups: int) -> None:
        """Make room for ``groups`` groups."""
        more = groups - len(self.fired)
        if more > 0:
            added = GroupSums(more, self.features, self.fired.device)
            self.fired, self.sum = torch.cat([self.fired, added.fired]), torch.cat([self.sum, added.sum])

    def clear(self) -> None:
        """Begin anew."""
        self.fired.zero_()
        self.sum.zero_()


class _Cell(NamedTuple):
    """A group of rows that is not empty: whose it is, its size, and where its sums are."""

    attribute: str
    value: str
    rows: int
    requests: int
    sums: GroupSums
    group: int


class _Attribute:
    """One attribute: its values in the order in which they were first seen, and the sums of each.

    Group 0 is of rows without it, group i of the i-th value, and the last one of all values beyond those.
    """

    def __init__(self, name: str, features: int, device: torch.device) -> None:
        self.name = name
        self.values: list[str] = []
        self.sums = GroupSums(_FEWEST, features, device)

    def group(self, value: str | None) -> int:
        """The group of rows whose request has this value."""
        if value is None:
            return _NONE
        if value in self.values:
            return self.values.index(value) + 1
        if len(self.values) < MAX_VALUES and value != OTHER:
            self.values.append(value)
            self._make_room(len(self.values))
            return len(self.values)
        self._make_room(MAX_VALUES + 1)
        return MAX_VALUES + 1

    def named(self) -> list[tuple[int, str]]:
        """Groups and their values."""
        return [*enumerate(self.values, 1), (MAX_VALUES + 1, OTHER)]

    def _make_room(self, group: int) -> None:
        have = len(self.sums.fired)
        if group >= have:
            self.sums.grow(min(max(group + 1, 2 * have), MAX_VALUES + 2))


class Splits:
    """Sums of the open window by phase and by the attributes called ``split_by``.

    A value keeps its place for good once it is among the first 32 of its attribute, so that a value's series does not
    break off. Rows whose request does not have an attribute are in none of its groups.
    """

    def __init__(
        self,
        features: int,
        device: torch.device,
        *,
        split_by: Sequence[str] = (),
        attributes: RequestAttributes | None = None,
    ) -> None:
        self.phases = GroupSums(len(PHASES), features, device)
        self._attributes = [_Attribute(name, features, device) for name in split_by]
        self._known = attributes or RequestAttributes(())
        self._groups: dict[int, tuple[int, ...]] = {}  # by request of the open window: its group by each attribute

    def update(self, feature: Tensor, value: Tensor, phase: Tensor, requests: DistinctRequests) -> None:
        """Take in pairs ``feature`` int64 (F: none) and ``value`` float64 [n, k] of rows of ``phase`` int32 [n]."""
        self.phases.update(phase.long(), feature, value)
        if not self._attributes:
            return
        for attribute, group in zip(self._attributes, self._groups_of(requests.key), strict=True):
            if group.any():
                of_row = put(torch.from_numpy(group[requests.place]), feature.device)
                attribute.sums.update(of_row, feature, value)

    def close(self, merged: NDArray[np.int64], window: dict[str, int], version: int) -> dict[str, pa.RecordBatch]:
        """The window's tables ``stream_split`` and ``feature_split``.

        ``merged`` is of its scored rows, see :class:`~hydrophoned.learn.request_rows.RequestRows`; ``window`` holds the
        columns that all their rows share.
        """
        cells = self._cells(merged)
        rows = {
            "attribute": [cell.attribute for cell in cells],
            "value": [cell.value for cell in cells],
            "rows_scored": [cell.rows for cell in cells],
            "requests": [cell.requests for cell in cells],
        }
        shared = {name: np.full(len(cells), value) for name, value in window.items()}
        return {
            "stream_split": record_batch(shared | rows, tables.STREAM_SPLIT),
            "feature_split": self._feature_split(cells, window, version),
        }

    def clear(self) -> None:
        """Begin a new window."""
        self.phases.clear()
        self._groups = {}
        for attribute in self._attributes:
            attribute.sums.clear()

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        names = {attribute.name: attribute.values for attribute in self._attributes}
        groups = [(key, *groups) for key, groups in self._groups.items()]
        return {
            "fired": self.phases.fired,
            "sum": self.phases.sum,
            "attributes": torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8),
            "groups": torch.tensor(groups, dtype=torch.int64).reshape(len(groups), 1 + len(self._attributes)),
            **{f"{one.name}.fired": one.sums.fired for one in self._attributes},
            **{f"{one.name}.sum": one.sums.sum for one in self._attributes},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`; what it has of attributes that are no longer split by is left."""
        self.phases.fired.copy_(state["fired"])
        self.phases.sum.copy_(state["sum"])
        names: dict[str, list[str]] = json.loads(bytes(state["attributes"].tolist()))
        places = {name: place for place, name in enumerate(names, 1)}
        wanted = [places.get(attribute.name) for attribute in self._attributes]
        self._groups = {
            row[0]: tuple(_NONE if place is None else row[place] for place in wanted)
            for row in state["groups"].tolist()
        }
        for attribute in self._attributes:
            if attribute.name in names:
                attribute.values = names[attribute.name]
                attribute.sums.grow(len(state[f"{attribute.name}.fired"]))
                attribute.sums.fired.copy_(state[f"{attribute.name}.fired"])
                attribute.sums.sum.copy_(state[f"{attribute.name}.sum"])

    def _groups_of(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """By attribute, the group of each request: int64 [attributes, m]."""
        groups = [self._of(key) for key in keys.tolist()]
        return np.array(groups, dtype=np.int64).reshape(len(keys), len(self._attributes)).T

    def _of(self, key: int) -> tuple[int, ...]:
        groups = self._groups.get(key)
        if groups is None:
            known = self._known.of(key)
            groups = tuple(attribute.group(known.get(attribute.name)) for attribute in self._attributes)
            self._groups[key] = groups
        return groups

    def _cells(self, merged: NDArray[np.int64]) -> list[_Cell]:
        key, rows, decode = merged
        known = key >= 0
        cells = []
        for group, value in enumerate(PHASES):
            of_phase = decode if group else rows - decode
            requests = int((known & (of_phase > 0)).sum())
            cells.append(_Cell(PHASE, value, int(of_phase.sum()), requests, self.phases, group))
        for attribute, group in zip(self._attributes, self._groups_of(key), strict=True):
            for number, value in attribute.named():
                inside = group == number
                counted = (int(rows[inside].sum()), int((known & inside).sum()))
                cells.append(_Cell(attribute.name, value, *counted, attribute.sums, number))
        return [cell for cell in cells if cell.rows]

    def _feature_split(self, cells: list[_Cell], window: dict[str, int], version: int) -> pa.RecordBatch:
        feature = [cell.sums.fired[cell.group, :-1].nonzero().squeeze(1) for cell in cells]
        fired = [cell.sums.fired[cell.group][one] for cell, one in zip(cells, feature, strict=True)]
        total = [cell.sums.sum[cell.group][one] for cell, one in zip(cells, feature, strict=True)]
        lengths = [len(one) for one in feature]
        place = arrow_array(np.repeat(np.arange(len(cells), dtype=np.int32), lengths))

        def of_cell(names: list[str]) -> pa.Array:
            return pa.DictionaryArray.from_arrays(place, pa.array(names, pa.string())).cast(pa.string())

        columns: dict[str, Any] = {name: np.full(sum(lengths), value) for name, value in window.items()}
        columns |= {
            "attribute": of_cell([cell.attribute for cell in cells]),
            "value": of_cell([cell.value for cell in cells]),
            "feature": _joined(feature, np.int64),
            "fired": _joined(fired, np.int64),
            "sum": _joined(total, np.float64),
            "dictionary_version": np.full(sum(lengths), version),
        }
        return record_batch(columns, tables.FEATURE_SPLIT)


def _joined(parts: list[Tensor], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([part.cpu().numpy() for part in parts] or [np.zeros(0)]).astype(kind)
