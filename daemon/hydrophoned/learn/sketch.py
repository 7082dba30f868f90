"""Quantiles of every feature's activations, from counts in logarithmic buckets that can be added up."""

from typing import Any, Final, NamedTuple

import torch
from hydrophone_schemas.buckets import BUCKETS, LOWEST_EXPONENT, PER_OCTAVE, bucket_value
from torch import Tensor

_MANTISSA_BITS: Final = 23
_DROPPED_BITS: Final = _MANTISSA_BITS - PER_OCTAVE.bit_length() + 1
_BUCKET_BITS: Final = BUCKETS.bit_length() - 1
_FIRST: Final = (127 + LOWEST_EXPONENT) * PER_OCTAVE


class Buckets(NamedTuple):
    """The buckets that are not empty, feature by feature.

    Those of the i-th feature asked for are ``offsets[i]`` to ``offsets[i + 1]``: ``bucket`` int16, rising, and how many
    values fell into it, ``count`` int32. ``offsets`` is int32 [features + 1].
    """

    offsets: Tensor
    bucket: Tensor
    count: Tensor  # type: ignore[assignment]  # values are counted; tuple.count is not used


class QuantileSketch:
    """For each of F features, how many of its values fell into each of 128 buckets: int32 [F, 128], 512 bytes each.

    Buckets in the manner of DDSketch (Masson, Rim & Lee 2019, "DDSketch: a fast and fully-mergeable quantile sketch
    with relative-error guarantees"), but each octave is cut into 8 parts of equal width, so that a value's bucket is
    its exponent and the first 3 bits of its mantissa: no logarithm, and the same on every machine. Bucket b holds

        2^e (1 + m / 8) <= x < 2^e (1 + (m + 1) / 8),    e = b // 8 - 6, m = b mod 8

    from 2^-6 = 0.0156 to 2^10 = 1024; what is smaller or larger is counted in the first or the last bucket. Two
    sketches of different values, added, are the sketch of both.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        # feature F takes pairs that are not active: none has to be left out, which would be to wait for a GPU
        self._counts = torch.zeros(features + 1, BUCKETS, dtype=torch.int32, device=device)

    @property
    def counts(self) -> Tensor:
        """Values by feature and bucket, int32 [F, 128]."""
        return self._counts[:-1]

    def update(self, feature: Tensor, value: Tensor) -> None:
        """Count ``value`` float32 [m] for ``feature`` int64 [m], which is F where there is nothing to count."""
        places = feature * BUCKETS + bucket_of(value)
        ones = torch.ones((), dtype=torch.int32, device=value.device).expand(len(places))
        self._counts.view(-1).scatter_add_(0, places, ones)

    def merge(self, other: "QuantileSketch") -> None:
        """Take in all that ``other`` has counted."""
        self._counts += other._counts  # noqa: SLF001  of its own kind

    def quantile(self, q: float) -> Tensor:
        """The ``q``-quantile of each feature, float32 [F]; NaN where it is not known. See :func:`quantile`."""
        return quantile(self.counts, q)

    def buckets(self, features: Tensor) -> Buckets:
        """The buckets of ``features`` (int64, rising) that are not empty."""
        counts = self.counts.reshape(-1)
        place = counts.nonzero().squeeze(1)
        owner = place >> _BUCKET_BITS
        held = torch.bincount(owner, minlength=len(self.counts))[features]
        offsets = torch.zeros(len(features) + 1, dtype=torch.int32, device=place.device)
        torch.cumsum(held, 0, dtype=torch.int32, out=offsets[1:])
        if len(place) != int(offsets[-1]):  # some belong to features that were not asked for
            wanted = torch.zeros(len(self.counts), dtype=torch.bool, device=place.device)
            wanted[features] = True
            place, owner = place[wanted[owner]], owner[wanted[owner]]
        bucket = (place & (BUCKETS - 1)).to(torch.int16)
        return Buckets(offsets, bucket, counts[place])

    def clear(self) -> None:
        """Begin anew."""
        self._counts.zero_()

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly: most buckets are empty, so only the others."""
        place = self._counts.view(-1).nonzero().squeeze(1)
        return {"place": place, "count": self._counts.view(-1)[place]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.clear()
        self._counts.view(-1)[state["place"].to(self._counts.device)] = state["count"].to(self._counts.device)


def bucket_of(value: Tensor) -> Tensor:
    """The bucket of each value, int32 in 0..127; 0 for values that are not above 0.

    >>> bucket_of(torch.tensor([0.001, 1.0, 1.2, 3.0, 5000.0])).tolist()
    [0, 48, 49, 60, 127]
    """
    bits = value.view(torch.int32) >> _DROPPED_BITS
    return bits.sub_(_FIRST).clamp_(0, BUCKETS - 1)


def bucket_values(device: torch.device | None = None) -> Tensor:
    """:func:`~hydrophone_schemas.buckets.bucket_value` of every bucket, float32 [128]; NaN where there is none."""
    values = (bucket_value(bucket) for bucket in range(BUCKETS))
    return torch.tensor([float("nan") if value is None else value for value in values], device=device)


def quantile(counts: Tensor, q: float) -> Tensor:
    """The ``q``-quantile of what was counted in ``counts`` int32 [..., 128], float32 [...].

    Of n values in order it is the one of rank floor(q (n - 1)), counted from 0, off by at most 1/17 of itself. NaN
    where n is 0, and where that value lies in the first or the last bucket.

    >>> sketch = QuantileSketch(1, torch.device("cpu"))
    >>> sketch.update(torch.zeros(99, dtype=torch.int64), torch.arange(1.0, 100.0))
    >>> round(float(sketch.quantile(0.5)[0]), 1)  # of 1..99: 50
    49.9
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q = {q} is not in 0..1")
    reached = counts.long().cumsum(-1)
    total = reached[..., -1:]
    rank = torch.floor(q * (total - 1).double()).long()
    bucket = (reached <= rank).sum(-1).clamp_(max=BUCKETS - 1)
    return bucket_values(counts.device)[bucket].masked_fill(total.squeeze(-1) == 0, float("nan"))
