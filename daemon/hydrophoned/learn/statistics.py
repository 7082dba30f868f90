"""Statistics of each feature over the open window, and how long each has been silent."""

from typing import Any

import torch

from hydrophoned.learn.dictionary import Codes


class FeatureStatistics:
    """Per feature: fired rows, sum, sum of squares and maximum of activations in the open window; sums in float64."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.fired = torch.zeros(features, dtype=torch.int64, device=device)
        self.sum = torch.zeros(features, dtype=torch.float64, device=device)
        self.sum_squares = torch.zeros(features, dtype=torch.float64, device=device)
        self.max = torch.zeros(features, device=device)
        self.fired_before = torch.zeros(features, dtype=torch.int64, device=device)
        self.silent_rows = torch.zeros(features, dtype=torch.int64, device=device)
        self.fired_ever = torch.zeros(features, dtype=torch.bool, device=device)

    def update(self, codes: Codes) -> None:
        """Take in the codes of n rows."""
        index, value = codes.index.reshape(-1).long(), codes.value.reshape(-1)
        active = value > 0
        if not bool(active.all()):
            index, value = index[active], value[active]
        features = len(self.fired)
        counts = torch.bincount(index, minlength=features)
        wide = value.double()
        self.fired += counts
        self.sum += torch.bincount(index, wide, minlength=features)
        self.sum_squares += torch.bincount(index, wide.square(), minlength=features)
        self.max.scatter_reduce_(0, index, value, "amax")
        fired = counts > 0
        self.silent_rows += len(codes.index)
        self.silent_rows[fired] = 0
        self.fired_ever |= fired

    @property
    def fired_in_all(self) -> torch.Tensor:
        """Rows on which each feature fired, int64 [F], in all windows and the open one."""
        return self.fired_before + self.fired

    def dead_fraction(self, after_rows: int) -> float:
        """Share of features that have not fired for ``after_rows`` scored rows."""
        return float((self.silent_rows >= after_rows).double().mean())

    def reset_window(self) -> None:
        """Begin a new window."""
        self.fired_before += self.fired
        for column in (self.fired, self.sum, self.sum_squares, self.max):
            column.zero_()

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return dict(self.__dict__)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        for name, column in self.__dict__.items():
            column.copy_(state[name])
