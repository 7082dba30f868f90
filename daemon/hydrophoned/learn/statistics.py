"""Statistics of each feature over the open window, and how long each has been silent."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from hydrophone_schemas import tables
from torch import Tensor

from hydrophoned.attributes import RequestAttributes
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.metadata import RowMetadata
from hydrophoned.learn.record_batch import arrow_array, record_batch
from hydrophoned.learn.request_counts import RequestCounts
from hydrophoned.learn.request_features import RequestFeatures
from hydrophoned.learn.request_rows import DistinctRequests, RequestRows
from hydrophoned.learn.sketch import QuantileSketch
from hydrophoned.learn.splits import Splits

_COLUMNS = ("_sum_squares", "_max", "_last_fired", "fired_before")
_PARTS = ("sketch", "request_counts", "splits", "request_features")


class WindowOf(NamedTuple):
    """Whose window it is, and its bounds in us: the columns that all rows of its tables share."""

    stream_key: int
    window_start: int
    window_end: int


class FeatureStatistics:
    """Per feature, over the open window: fired rows, requests; sum, sum of squares, maximum, quantiles of its values.

    Sums are in float64. The same, less, by phase and by attributes of requests, and of a sample of the requests: see
    the parts. Work follows the active pairs, not F; only closing a window walks over all features. Tables have a
    feature F at their end for pairs that are not active: to leave these out would be to wait for a GPU.
    """

    def __init__(
        self,
        features: int,
        device: torch.device,
        *,
        split_by: tuple[str, ...] = (),
        attributes: RequestAttributes | None = None,
        request_features: int = 8,
    ) -> None:
        self.features = features
        self.rows = 0
        self.sketch = QuantileSketch(features, device)
        self.request_counts = RequestCounts(features, device)
        self.splits = Splits(features, device, split_by=split_by, attributes=attributes)
        self.request_features = RequestFeatures(features, request_features, device)
        self.fired_before = torch.zeros(features, dtype=torch.int64, device=device)
        self._sum_squares = torch.zeros(features + 1, dtype=torch.float64, device=device)
        self._max = torch.zeros(features + 1, device=device)
        self._last_fired = torch.zeros(features + 1, dtype=torch.int64, device=device)
        self._request_rows = RequestRows()

    def update(self, codes: Codes, metadata: RowMetadata, requests: DistinctRequests | None = None) -> None:
        """Take in the codes of n rows with their metadata, and its requests where they were told apart before."""
        if not len(codes.index):
            return
        self.rows += len(codes.index)
        requests = DistinctRequests.of(metadata) if requests is None else requests
        value = codes.value
        feature = torch.where(value > 0, codes.index, self.features).long()
        wide = value.double()
        pairs = feature.reshape(-1)
        self._sum_squares.scatter_add_(0, pairs, wide.square().reshape(-1))
        self._max.scatter_reduce_(0, pairs, value.reshape(-1), "amax")
        self._last_fired.index_fill_(0, pairs, self.rows)
        self.sketch.update(pairs, value.reshape(-1))
        self._request_rows.add(requests)
        self.request_counts.update(feature, requests)
        self.splits.update(feature, wide, metadata.phase, requests)
        self.request_features.update(feature, value, requests)

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def fired(self) -> Tensor:
        """Rows on which each feature fired in the open window, int64 [F]."""
        return self.splits.phases.fired[:, :-1].sum(0)

    @property
    def sum(self) -> Tensor:
        """Sum of each feature's values in the open window, float64 [F]."""
        return self.splits.phases.sum[:, :-1].sum(0)

    @property
    def sum_squares(self) -> Tensor:
        """Sum of their squares, float64 [F]."""
        return self._sum_squares[:-1]

    @property
    def max(self) -> Tensor:
        """Largest of them, float32 [F]; 0 where the feature did not fire."""
        return self._max[:-1]

    @property
    def fired_in_all(self) -> Tensor:
        """Rows on which each feature fired, int64 [F], in all windows and the open one."""
        return self.fired_before + self.fired

    @property
    def fired_ever(self) -> Tensor:
        """Whether each feature has ever fired, bool [F]."""
        return self._last_fired[:-1] > 0

    @property
    def silent_rows(self) -> Tensor:
        """Scored rows since each feature last fired, int64 [F], counted by chunks."""
        return self.rows - self._last_fired[:-1]

    def dead_fraction(self, after_rows: int) -> float:
        """Share of features that have not fired for ``after_rows`` scored rows."""
        return float((self.silent_rows >= after_rows).double().mean())

    # -- windows ------------------------------------------------------------------------------------------------

    def close(self, window: WindowOf, version: int) -> dict[str, pa.RecordBatch]:
        """The open window's tables by name; :meth:`reset_window` then begins the next one."""
        return {
            "feature_window": self._feature_window(window, version),
            "request_feature": self.request_features.close(window.stream_key, window.window_start, version),
            **self.splits.close(self._request_rows.merged(), window._asdict(), version),
        }

    def reset_window(self) -> None:
        """Begin a new window."""
        self.fired_before += self.fired
        key = self._request_rows.merged()[0]
        self.request_features.clear(int((key >= 0).sum()))
        for part in (self.sketch, self.request_counts, self.splits, self._request_rows):
            part.clear()
        self._sum_squares.zero_()
        self._max.zero_()

    def _feature_window(self, window: WindowOf, version: int) -> pa.RecordBatch:
        feature = self.fired.nonzero().squeeze(1)
        count = len(feature)
        requests, known = (part[feature].cpu().numpy() for part in self.request_counts.requests())
        held = self.sketch.buckets(feature)
        offsets = arrow_array(held.offsets.cpu().numpy())
        return record_batch(
            {
                **{name: np.full(count, value) for name, value in window._asdict().items()},
                "feature": feature.cpu().numpy(),
                "fired": self.fired[feature].cpu().numpy(),
                "requests": pa.array(requests, mask=~known),
                "sum": self.sum[feature].cpu().numpy(),
                "sum_squares": self.sum_squares[feature].cpu().numpy(),
                "max": self.max[feature].cpu().numpy(),
                "buckets": pa.ListArray.from_arrays(offsets, arrow_array(held.bucket.cpu().numpy())),
                "counts": pa.ListArray.from_arrays(offsets, arrow_array(held.count.cpu().numpy())),
                "dictionary_version": np.full(count, version),
            },
            tables.FEATURE_WINDOW,
        )

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            "rows": self.rows,
            "request_rows": torch.from_numpy(self._request_rows.merged()),
            **{name: getattr(self, name) for name in _COLUMNS},
            **{f"{part}.{name}": value for part in _PARTS for name, value in getattr(self, part).state_dict().items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.rows = int(state["rows"])
        self._request_rows.load(state["request_rows"].cpu().numpy())
        for name in _COLUMNS:
            getattr(self, name).copy_(state[name])
        for part in _PARTS:
            own = {name.removeprefix(f"{part}."): v for name, v in state.items() if name.startswith(f"{part}.")}
            getattr(self, part).load_state(own)
