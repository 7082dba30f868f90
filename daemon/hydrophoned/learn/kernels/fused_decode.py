"""Triton kernels that gather decoder rows: reconstruction, its error, and the slopes of the active pairs.

One program makes a strip of columns of one row. Neighbouring programs take the same strip of neighbouring rows, so that
what is in use of W_dec at any time is one strip of all latents: with few enough columns it stays in the GPU's second
level cache, and main memory delivers each element about once per batch, not once per pair.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from hydrophoned.learn.kernels import plain
from hydrophoned.learn.kernels.arrays import Pairs
from hydrophoned.learn.kernels.fused_select import OPTIONS, jit

_CACHE: Final = 32 << 20  # bytes of W_dec in use at a time: an H100 has 50 MB of second level cache
_PAIRS: Final = 16


@jit
def _rows(
    W_dec: tl.tensor,
    index: tl.tensor,
    value: tl.tensor,
    j: tl.tensor,
    last: tl.tensor,
    column: tl.tensor,
    d: tl.tensor,
    PAIRS: tl.constexpr,
) -> tl.tuple:
    """Decoder rows [PAIRS, STRIP] and values [PAIRS] of pairs j, j + 1, ...; 0 from ``last`` on."""
    pair = j + tl.arange(0, PAIRS)
    inside = pair < last
    latent = tl.load(index + pair, mask=inside, other=0).to(tl.int64)
    weight = tl.load(value + pair, mask=inside, other=0.0)
    mask = inside[:, None] & (column < d)[None, :]
    return tl.load(W_dec + latent[:, None] * d + column[None, :], mask=mask, other=0.0), weight


@jit
def _sums(
    offsets: tl.tensor,
    index: tl.tensor,
    value: tl.tensor,
    W_dec: tl.tensor,
    to: tl.tensor,
    d: tl.tensor,
    STRIP: tl.constexpr,
    PAIRS: tl.constexpr,
) -> None:
    """Of one segment and strip: sum of value * W_dec[index]."""
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * STRIP + tl.arange(0, STRIP)
    last = tl.load(offsets + segment + 1)
    total = tl.zeros((STRIP,), tl.float32)
    for j in range(tl.load(offsets + segment), last, PAIRS):
        rows, weight = _rows(W_dec, index, value, j, last, column, d, PAIRS)
        total += tl.sum(rows * weight[:, None], 0)
    tl.store(to + segment * d + column, total, mask=column < d)


@jit
def _compare(
    offsets: tl.tensor,
    index: tl.tensor,
    value: tl.tensor,
    W_dec: tl.tensor,
    target: tl.tensor,
    error: tl.tensor,
    h: tl.tensor,
    slopes: tl.tensor,
    pairs: tl.tensor,
    d: tl.tensor,
    GROUPS: tl.constexpr,
    STRIP: tl.constexpr,
    PAIRS: tl.constexpr,
) -> None:
    """Of one row and strip: error, h of each group, and the strip's share of each pair's slope.

    The second walk over the pairs finds the rows of the first in the nearest cache. It goes from the last group back:
    a group's part of h is the sum of the errors of all prefixes that hold it.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * STRIP + tl.arange(0, STRIP)
    inside = column < d
    slopes += tl.program_id(1).to(tl.int64) * pairs
    offsets += row * GROUPS
    last = tl.load(offsets + GROUPS)
    y = tl.zeros((STRIP,), tl.float32)
    for j in range(tl.load(offsets), last, PAIRS):
        rows, weight = _rows(W_dec, index, value, j, last, column, d, PAIRS)
        y += tl.sum(rows * weight[:, None], 0)
    wanted = tl.load(target + row * d + column, mask=inside, other=0.0)
    tl.store(error + row * d + column, y - wanted, mask=inside)
    missed = tl.zeros((STRIP,), tl.float32)
    for back in range(GROUPS):
        group = GROUPS - 1 - back
        missed += y - wanted
        gradient = missed / GROUPS
        if GROUPS > 1:
            tl.store(h + (row * GROUPS + group) * d + column, gradient, mask=inside)
        last = tl.load(offsets + group + 1)
        for j in range(tl.load(offsets + group), last, PAIRS):
            rows, weight = _rows(W_dec, index, value, j, last, column, d, PAIRS)
            pair = j + tl.arange(0, PAIRS)
            tl.store(slopes + pair, tl.sum(rows * gradient[None, :], 1), mask=pair < last)
            if GROUPS > 1:
                y -= tl.sum(rows * weight[:, None], 0)


def reconstruct(pairs: Pairs, W_dec: Tensor, target: Tensor, *, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`plain.reconstruct`. Does not synchronise."""
    n, d = target.shape
    target = target.contiguous()
    strip = _strip(W_dec)
    strips = triton.cdiv(d, strip)
    error = torch.empty_like(target)
    h = error if groups == 1 else torch.empty(n * groups, d, device=target.device)
    slopes = torch.empty(strips, len(pairs.index), device=target.device)
    with torch.cuda.device(target.get_device()):
        _compare[(n, strips)](
            *_flat(pairs),
            W_dec,
            target,
            error,
            h,
            slopes,
            len(pairs.index),
            d,
            GROUPS=groups,
            STRIP=strip,
            PAIRS=_PAIRS,
            **OPTIONS,
        )
    return error, h, slopes[0] if strips == 1 else slopes.sum(0)


def decode(pairs: Pairs, W_dec: Tensor) -> Tensor:
    """See :func:`plain.decode`. Does not synchronise."""
    segments, d = len(pairs.offsets) - 1, W_dec.shape[1]
    strip = _strip(W_dec)
    to = torch.empty(segments, d, device=W_dec.device)
    with torch.cuda.device(W_dec.get_device()):
        _sums[(segments, triton.cdiv(d, strip))](*_flat(pairs), W_dec, to, d, STRIP=strip, PAIRS=_PAIRS, **OPTIONS)
    return to


def misfit(pairs: Pairs, W_dec: Tensor, b_dec: Tensor, target: Tensor) -> Tensor:
    """See :func:`plain.misfit`. Does not synchronise."""
    return plain.compared(decode(pairs, W_dec).add_(b_dec), target)


def _flat(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    return pairs.offsets.contiguous(), pairs.index.contiguous(), pairs.value.contiguous()


def _strip(W_dec: Tensor) -> int:
    """Columns of a program: as many as keep a strip of all latents in the cache, 64 to 256."""
    F, d = W_dec.shape
    strip = 256
    while strip > 64 and 4 * F * strip > _CACHE:
        strip //= 2
    return min(strip, max(16, int(triton.next_power_of_2(d))))
