"""The active pairs of row and feature of codes: what sparse sums go over."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes


class Active(NamedTuple):
    """``m`` pairs of ``rows`` rows and ``features`` features whose value is above 0, in the order of rows.

    ``row`` and ``feature`` are int64 [m], ``value`` float32 [m]. No pair comes twice.
    """

    rows: int
    features: int
    row: Tensor
    feature: Tensor
    value: Tensor

    @classmethod
    def of(cls, codes: Codes, features: int) -> Self:
        """The active pairs of ``codes``."""
        row, place = (codes.value > 0).nonzero(as_tuple=True)
        return cls(len(codes.value), features, row, codes.index[row, place].long(), codes.value[row, place])

    def of_rows(self, chosen: Tensor) -> Self:
        """Those of the rows where bool [rows] is true, rows numbered anew."""
        number = chosen.cumsum(0) - 1
        kept = chosen[self.row]
        return self._replace(
            rows=int(chosen.sum()), row=number[self.row[kept]], feature=self.feature[kept], value=self.value[kept]
        )

    def of_features(self, chosen: Tensor) -> Self:
        """Those of the features ``chosen`` int64 [c], which get the numbers 0..c-1."""
        number = chosen.new_full((self.features,), -1)
        number[chosen] = torch.arange(len(chosen), device=chosen.device)
        feature = number[self.feature]
        kept = feature >= 0
        return self._replace(features=len(chosen), row=self.row[kept], feature=feature[kept], value=self.value[kept])

    def shuffled(self, generator: torch.Generator) -> Self:
        """The same with the codes of the rows dealt out anew: each feature fires as often, and with nothing."""
        dealt = torch.randperm(self.rows, generator=generator).to(self.row.device)[self.row]
        row, order = dealt.sort(stable=True)
        return self._replace(row=row, feature=self.feature[order], value=self.value[order])

    def fired(self) -> Tensor:
        """Rows on which each feature is active, int64 [features]."""
        return torch.bincount(self.feature, minlength=self.features)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature over all rows, float64 [features]; deviation 0 of a constant."""
        value = self.value.double()
        mean = torch.bincount(self.feature, value, minlength=self.features) / self.rows
        square = torch.bincount(self.feature, value.square(), minlength=self.features) / self.rows
        variance = square - mean.square()
        # a constant's variance is rounding
        return mean, torch.where(variance > 1e-12 * square, variance, torch.zeros_like(variance)).sqrt()

    def dense(self) -> Tensor:
        """Values [rows, features], float32."""
        full = self.value.new_zeros(self.rows, self.features)
        full[self.row, self.feature] = self.value
        return full
