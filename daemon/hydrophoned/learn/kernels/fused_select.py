"""Triton kernels that choose active latents: the k largest of a row, or all above a threshold.

A row of p is read twice and never held: once for the running maximum of each of LANES interleaved parts of it, and once
for what is at least the k-th largest of those maxima. Since k parts reach that bound, so do k values at least; with
many more parts than k they are few more than k, and the exact choice is made among them. Values are compared as
integers of the same order, so that a bound can be found bit by bit with nothing but counting.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hydrophoned.learn.kernels.arrays import Pairs

jit: Callable[[Callable[..., Any]], Any] = triton.jit  # typed: Triton has no stubs

_LOWEST = tl.constexpr(-(2**31))  # below the key of every number, minus infinity included
_BOUND_BITS = tl.constexpr(20)  # of a bound that may be a little too low: sign, exponent, 11 bits
_WIDEST = 1024  # k above which the parts of a row would no longer fit in registers

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}  # the second said aloud, as its default differs between versions


@jit
def _values(p: tl.tensor, bias: tl.tensor, at: tl.tensor, F: tl.tensor) -> tl.tensor:
    """P + bias of one row at columns ``at``, float32; minus infinity for NaN, which is then chosen last."""
    inside = at < F
    value = tl.load(p + at, mask=inside, other=0.0).to(tl.float32) + tl.load(bias + at, mask=inside, other=0.0)
    magnitude = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(magnitude > 0x7F800000, float("-inf"), value)


@jit
def _keys(value: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Int32 in the order of the float32 ``value``; the lowest of all where not ``inside``."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(inside, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), _LOWEST)


@jit
def _kth(keys: tl.tensor, k: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """The largest number with 0 after its first BITS bits that at least ``k`` of ``keys`` reach."""
    bound = tl.where(tl.sum((keys >= 0).to(tl.int32)) >= k, 0, _LOWEST)
    for bit in range(1, BITS):
        higher = bound | (1 << (31 - bit))
        bound = tl.where(tl.sum((keys >= higher).to(tl.int32)) >= k, higher, bound)
    return bound


@jit
def _reaching(p: tl.tensor, bias: tl.tensor, F: tl.tensor, bound: tl.tensor, LANES: tl.constexpr) -> tl.tensor:
    """How many keys of a row are ``bound`` or more."""
    lane = tl.arange(0, LANES)
    reaching = tl.zeros((LANES,), tl.int32)
    for start in range(0, F, LANES):
        at = start + lane
        reaching += (_keys(_values(p, bias, at, F), at < F) >= bound).to(tl.int32)
    return tl.sum(reaching)


@jit
def _put(
    to_index: tl.tensor,
    to_value: tl.tensor,
    at: tl.tensor,
    value: tl.tensor,
    keep: tl.tensor,
    written: tl.tensor,
    room: tl.tensor,
) -> tl.tensor:
    """Append the kept of a tile, in order, after ``written`` others; returns how many there are now."""
    place = written + tl.cumsum(keep.to(tl.int32), 0) - 1
    fits = keep & (place < room)
    tl.store(to_index + place, at, mask=fits)
    tl.store(to_value + place, value, mask=fits)
    return written + tl.sum(keep.to(tl.int32))


@jit
def _candidates(
    p: tl.tensor,
    bias: tl.tensor,
    count: tl.tensor,
    index: tl.tensor,
    value: tl.tensor,
    F: tl.tensor,
    k: tl.tensor,
    LANES: tl.constexpr,
    ROOM: tl.constexpr,
) -> None:
    """A few more than k of a row's largest, in the order of latents: [n, ROOM], and how many there would be: [n]."""
    row = tl.program_id(0).to(tl.int64)
    p += row * F
    lane = tl.arange(0, LANES)
    best = tl.full((LANES,), _LOWEST, tl.int32)
    for start in range(0, F, LANES):
        at = start + lane
        best = tl.maximum(best, _keys(_values(p, bias, at, F), at < F))
    bound = _kth(best, k, _BOUND_BITS)
    found = 0
    for start in range(0, F, LANES):
        at = start + lane
        here = _values(p, bias, at, F)
        keep = (_keys(here, at < F) >= bound) & (at < F)
        if tl.max(keep.to(tl.int32), 0) > 0:
            found = _put(index + row * ROOM, value + row * ROOM, at, here, keep, found, ROOM)
    tl.store(count + row, found)


@jit
def _choice(keys: tl.tensor, bound: tl.tensor, spare: tl.tensor, ties: tl.tensor) -> tl.tensor:
    """Those above ``bound``, and of those equal to it the first ``spare``, ``ties`` of which have been passed."""
    equal = keys == bound
    return (keys > bound) | (equal & (ties + tl.cumsum(equal.to(tl.int32), 0) <= spare))


@jit
def _select(
    p: tl.tensor,
    bias: tl.tensor,
    count: tl.tensor,
    index: tl.tensor,
    value: tl.tensor,
    to_index: tl.tensor,
    to_value: tl.tensor,
    F: tl.tensor,
    k: tl.tensor,
    LANES: tl.constexpr,
    ROOM: tl.constexpr,
) -> None:
    """The k largest of a row's candidates; of the row itself, in 34 passes, where it had more than fit."""
    row = tl.program_id(0).to(tl.int64)
    number = tl.load(count + row)
    to_index += row * k
    to_value += row * k
    if number <= ROOM:
        slot = tl.arange(0, ROOM)
        inside = slot < number
        here = tl.load(value + row * ROOM + slot, mask=inside, other=0.0)
        at = tl.load(index + row * ROOM + slot, mask=inside, other=0)
        keys = _keys(here, inside)
        bound = _kth(keys, k, 32)
        spare = k - tl.sum((keys > bound).to(tl.int32))
        _put(to_index, to_value, at, here, _choice(keys, bound, spare, 0), 0, k)
    else:
        p += row * F
        bound = tl.where(_reaching(p, bias, F, 0, LANES) >= k, 0, _LOWEST)
        for bit in range(1, 32):
            higher = bound | (1 << (31 - bit))
            bound = tl.where(_reaching(p, bias, F, higher, LANES) >= k, higher, bound)
        spare = k - _reaching(p, bias, F, bound + 1, LANES)
        lane = tl.arange(0, LANES)
        written = 0
        ties = 0
        for start in range(0, F, LANES):
            at = start + lane
            here = _values(p, bias, at, F)
            keys = _keys(here, at < F)
            if tl.max(keys, 0) >= bound:
                written = _put(to_index, to_value, at, here, _choice(keys, bound, spare, ties), written, k)
                ties += tl.sum((keys == bound).to(tl.int32))


@jit
def _count(
    p: tl.tensor, bias: tl.tensor, threshold: tl.tensor, offsets: tl.tensor, F: tl.tensor, LANES: tl.constexpr
) -> None:
    """How many of a row are above the threshold, after the first of ``offsets`` [n + 1]."""
    row = tl.program_id(0).to(tl.int64)
    p += row * F
    lane = tl.arange(0, LANES)
    number = tl.zeros((LANES,), tl.int32)
    for start in range(0, F, LANES):
        at = start + lane
        number += ((_values(p, bias, at, F) > threshold) & (at < F)).to(tl.int32)
    tl.store(offsets + 1 + row, tl.sum(number).to(tl.int64))


@jit
def _fill(
    p: tl.tensor,
    bias: tl.tensor,
    threshold: tl.tensor,
    offsets: tl.tensor,
    index: tl.tensor,
    value: tl.tensor,
    F: tl.tensor,
    LANES: tl.constexpr,
) -> None:
    """Write those of a row that are above the threshold, in the order of latents."""
    row = tl.program_id(0).to(tl.int64)
    p += row * F
    first = tl.load(offsets + row)
    room = (tl.load(offsets + row + 1) - first).to(tl.int32)
    lane = tl.arange(0, LANES)
    written = 0
    for start in range(0, F, LANES):
        at = start + lane
        here = _values(p, bias, at, F)
        keep = (here > threshold) & (at < F)
        if tl.max(keep.to(tl.int32), 0) > 0:
            written = _put(index + first, value + first, at, here, keep, written, room)


def topk(p: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See :func:`plain.topk`. In the order of latents; of equal values the first latents win. Does not synchronise."""
    n, F = p.shape
    if not 0 < k <= F:
        raise ValueError(f"k = {k} is outside 1..{F}")
    p, bias = _matrix(p), bias.contiguous()
    fast = k <= _WIDEST
    lanes = max(1024, triton.next_power_of_2(4 * k)) if fast else 4 * _WIDEST
    room = max(256, triton.next_power_of_2(3 * k)) if fast else 1
    index = torch.empty(n, k, dtype=torch.int32, device=p.device)
    value = torch.empty(n, k, device=p.device)
    some_index = torch.empty(n, room, dtype=torch.int32, device=p.device)
    some_value = torch.empty(n, room, device=p.device)
    count = torch.full((n,), room + 1, dtype=torch.int32, device=p.device)
    options = OPTIONS | {"LANES": lanes, "ROOM": room, "num_warps": 4 if lanes <= 2048 else 8}
    with torch.cuda.device(p.get_device()):
        if fast:
            _candidates[(n,)](p, bias, count, some_index, some_value, F, k, **options)
        _select[(n,)](p, bias, count, some_index, some_value, index, value, F, k, **options)
    return index, value


def above(p: Tensor, bias: Tensor, threshold: float) -> Pairs:
    """See :func:`plain.above`. Waits for the device once: how many pairs there are decides how large the result is."""
    n, F = p.shape
    p, bias = _matrix(p), bias.contiguous()
    offsets = torch.zeros(n + 1, dtype=torch.int64, device=p.device)
    with torch.cuda.device(p.get_device()):
        _count[(n,)](p, bias, threshold, offsets, F, LANES=1024, **OPTIONS)
        offsets = offsets.cumsum(0)
        number = int(offsets[-1])
        index = torch.empty(number, dtype=torch.int32, device=p.device)
        value = torch.empty(number, device=p.device)
        _fill[(n,)](p, bias, threshold, offsets, index, value, F, LANES=1024, **OPTIONS)
    return Pairs(offsets, index, value)


def _matrix(p: Tensor) -> Tensor:
    if p.dtype not in {torch.bfloat16, torch.float32}:
        raise TypeError(f"pre-activations are {p.dtype}, not bfloat16 or float32")
    return p.contiguous()
