"""The top activating rows of every feature, kept while the dictionary goes on changing."""

import math
from typing import Any

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.metadata import RowMetadata

_EMPTY = float("-inf")


class TopExamples:
    """For each feature the ``count`` rows with the highest score, at most one per request and sequence.

    score = log2(value) + log2(rows_seen): each time the stream's rows have doubled, an old activation weighs half as
    much against a new one. So examples made by an early state of the dictionary give way while it moves fast, and
    the list settles (about count * log(rows) entries in all) as it settles.
    """

    def __init__(self, features: int, count: int, device: torch.device) -> None:
        self.count = count
        self.score = torch.full((features, count), _EMPTY, dtype=torch.float64, device=device)
        self.value = torch.zeros(features, count, device=device)
        self.fresh = torch.zeros(features, count, dtype=torch.bool, device=device)
        self.metadata = RowMetadata._make(
            column.view(features, count) for column in RowMetadata.empty(features * count, device)
        )

    def update(self, codes: Codes, metadata: RowMetadata, rows_seen: int) -> None:
        """Offer the codes of n rows and their metadata; ``rows_seen`` is the stream's count before them."""
        if not self.count or not codes.index.numel():
            return
        _n, k = codes.index.shape
        value = codes.value.reshape(-1)
        feature = codes.index.reshape(-1).long()
        score = value.double().log2_() + math.log2(rows_seen + 1)
        hit = (score > self.score[feature, -1]).nonzero().squeeze(1)  # a value of 0 scores -inf: never a hit
        if not len(hit):
            return
        feature, score, value, row = feature[hit], score[hit], value[hit], hit // k
        keep = self._best_per_request(feature, score, metadata, row)
        touched, local, rank = _ranks(feature[keep])
        best = (rank < self.count).nonzero().squeeze(1)
        keep, local, rank = keep[best], local[best], rank[best]
        self._merge(touched, local, rank, score[keep], value[keep], metadata.take(row[keep]))

    def rescale(self, factor: float) -> None:
        """Activations are ``factor`` times as large from now on: what is kept stays comparable with them."""
        self.value.mul_(factor)
        self.score.add_(math.log2(factor))

    def forget(self, features: Tensor) -> None:
        """Give up the rows of ``features`` [n]: from now on another feature stands at each of these indices."""
        self.score[features] = _EMPTY
        self.value[features] = 0.0
        self.fresh[features] = False

    def take_fresh(self) -> tuple[Tensor, Tensor]:
        """(feature, slot) of the examples that entered since the last call."""
        feature, slot = self.fresh.nonzero(as_tuple=True)
        self.fresh.zero_()
        return feature, slot

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {
            "score": self.score,
            "value": self.value,
            "fresh": self.fresh,
            **{f"metadata.{name}": column for name, column in self.metadata._asdict().items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        for name, column in self.state_dict().items():
            column.copy_(state[name])

    @staticmethod
    def _best_per_request(feature: Tensor, score: Tensor, metadata: RowMetadata, row: Tensor) -> Tensor:
        """Positions of the best hit of each (feature, request, sequence), ordered by feature and falling score."""
        # sequences have 16 bits; the numbering is made over the few rows, not over the many hits
        sources, source_id = torch.unique((metadata.request << 16) | metadata.sequence, return_inverse=True)
        by_score = torch.sort(score, descending=True, stable=True).indices
        key = (feature * len(sources) + source_id[row])[by_score]
        order = torch.sort(key, stable=True)
        first = torch.ones_like(order.values, dtype=torch.bool)
        first[1:] = order.values[1:] != order.values[:-1]
        best = by_score[order.indices[first]]
        best = best[torch.sort(score[best], descending=True, stable=True).indices]
        return best[torch.sort(feature[best], stable=True).indices]

    def _merge(
        self, touched: Tensor, local: Tensor, rank: Tensor, score: Tensor, value: Tensor, metadata: RowMetadata
    ) -> None:
        """Merge candidates into the lists of ``touched`` features; ``local`` and ``rank`` are their places there."""
        shape = (len(touched), self.count)

        def placed(column: Tensor, fill: float) -> Tensor:
            table = torch.full(shape, fill, dtype=column.dtype, device=column.device)
            table[local, rank] = column
            return table

        new_score, new_value = placed(score, _EMPTY), placed(value, 0)
        new = RowMetadata._make(placed(column, 0) for column in metadata)
        old_score = self.score[touched]
        old = RowMetadata._make(column[touched] for column in self.metadata)
        # the same request and sequence may stand in the list already: the better of the two stays
        same = (new.request[:, :, None] == old.request[:, None, :]) & (
            new.sequence[:, :, None] == old.sequence[:, None, :]
        )
        same &= (new_score[:, :, None] > _EMPTY) & (old_score[:, None, :] > _EMPTY)
        better = new_score[:, :, None] > old_score[:, None, :]
        old_score = old_score.masked_fill((same & better).any(1), _EMPTY)
        new_score = new_score.masked_fill((same & ~better).any(2), _EMPTY)
        joined, order = torch.cat([old_score, new_score], 1).sort(dim=1, descending=True, stable=True)
        order = order[:, : self.count]
        fresh = torch.cat([self.fresh[touched], torch.ones(shape, dtype=torch.bool, device=score.device)], 1)
        self.score[touched] = joined[:, : self.count]
        self.value[touched] = torch.cat([self.value[touched], new_value], 1).gather(1, order)
        self.fresh[touched] = fresh.gather(1, order) & (joined[:, : self.count] > _EMPTY)
        for column, before, after in zip(self.metadata, old, new, strict=True):
            column[touched] = torch.cat([before, after], 1).gather(1, order)


def _ranks(feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a sorted ``feature`` [m]: the distinct ones, the index of each entry's among them, and its rank in it."""
    touched, local, counts = torch.unique_consecutive(feature, return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(feature), device=feature.device) - starts[local]
    return touched, local, rank
