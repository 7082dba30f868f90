"""The kernels of ``plain`` in Triton, for float32 parameters on CUDA.

Selection is in ``fused_select``, decoding in ``fused_decode``, the optimiser's step here. Results are deterministic:
nothing is added up by atomic operations, and sums run in an order that the shapes fix. Only :func:`above` waits for the
device. What they cost is worked out in docs/explanation/gpu.md.
"""

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hydrophoned.learn.kernels.arrays import Adam, Latents, Pairs
from hydrophoned.learn.kernels.fused_decode import decode, misfit, reconstruct
from hydrophoned.learn.kernels.fused_select import OPTIONS, above, jit, topk

__all__ = ["above", "decode", "misfit", "reconstruct", "topk", "update"]

_RUN: Final = 256  # pairs of one latent that are added up ahead, so that no program has more than twice as many to add
_PROGRAMS: Final = 2048  # of a step, each with its share of the latents and its own sum for b_dec
_TILE: Final = 16_384  # elements of h and x in registers at a time


class _ByLatent(NamedTuple):
    """Pairs ordered by latent; those of latent f are ``starts[f]`` to ``starts[f + 1]``, unused ones come last."""

    starts: Tensor
    latent: Tensor
    segment: Tensor
    value: Tensor
    slope: Tensor


@jit
def _gather(
    segments: tl.tensor,
    values: tl.tensor,
    slopes: tl.tensor,
    h: tl.tensor,
    x: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    column: tl.tensor,
    d: tl.tensor,
    dec: tl.tensor,
    enc: tl.tensor,
    GROUPS: tl.constexpr,
    PAIRS: tl.constexpr,
) -> tl.tuple:
    """Add value * h[segment] to ``dec`` and slope * x[row] to ``enc`` for the pairs ``first`` to ``last``."""
    for j in range(first, last, PAIRS):
        pair = j + tl.arange(0, PAIRS)
        inside = pair < last
        segment = tl.load(segments + pair, mask=inside, other=0).to(tl.int64)
        value = tl.load(values + pair, mask=inside, other=0.0)
        slope = tl.load(slopes + pair, mask=inside, other=0.0)
        mask = inside[:, None] & (column < d)[None, :]
        errors = tl.load(h + segment[:, None] * d + column[None, :], mask=mask, other=0.0)
        dec += tl.sum(errors * value[:, None], 0)
        rows = tl.load(x + (segment // GROUPS)[:, None] * d + column[None, :], mask=mask, other=0.0)
        enc += tl.sum(rows * slope[:, None], 0)
    return dec, enc


@jit
def _runs(
    latents: tl.tensor,
    segments: tl.tensor,
    values: tl.tensor,
    slopes: tl.tensor,
    h: tl.tensor,
    x: tl.tensor,
    runs_dec: tl.tensor,
    runs_enc: tl.tensor,
    F: tl.tensor,
    d: tl.tensor,
    GROUPS: tl.constexpr,
    RUN: tl.constexpr,
    STRIP: tl.constexpr,
    PAIRS: tl.constexpr,
) -> None:
    """The sums of those RUN consecutive pairs that are all of one latent, a strip of columns: [runs, d] each."""
    run = tl.program_id(0)
    column = tl.program_id(1) * STRIP + tl.arange(0, STRIP)
    first = run * RUN
    latent = tl.load(latents + first)
    if (latent == tl.load(latents + first + RUN - 1)) & (latent < F):
        dec = tl.zeros((STRIP,), tl.float32)
        enc = tl.zeros((STRIP,), tl.float32)
        dec, enc = _gather(segments, values, slopes, h, x, first, first + RUN, column, d, dec, enc, GROUPS, PAIRS)
        to = run.to(tl.int64) * d + column
        tl.store(runs_dec + to, dec, mask=column < d)
        tl.store(runs_enc + to, enc, mask=column < d)


@jit
def _direction(
    first: tl.tensor,
    second: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    gradient: tl.tensor,
    take1: tl.tensor,
    take2: tl.tensor,
    eps: tl.tensor,
) -> tl.tensor:
    """Move the moments at ``at``, by 1 - beta1 and 1 - beta2; m / (sqrt(v) + eps)."""
    m = tl.load(first + at, mask=mask, other=0.0)
    m += (gradient - m) * take1
    tl.store(first + at, m, mask=mask)
    v = tl.load(second + at, mask=mask, other=0.0)
    v += (gradient * gradient - v) * take2
    tl.store(second + at, v, mask=mask)
    return m / (tl.sqrt_rn(v) + eps)


@jit
def _update(
    starts: tl.tensor,
    segments: tl.tensor,
    values: tl.tensor,
    slopes: tl.tensor,
    h: tl.tensor,
    x: tl.tensor,
    runs_dec: tl.tensor,
    runs_enc: tl.tensor,
    sizes: tl.tensor,
    W_dec: tl.tensor,
    W_enc: tl.tensor,
    b_enc: tl.tensor,
    W_half: tl.tensor,
    m_dec: tl.tensor,
    v_dec: tl.tensor,
    m_enc: tl.tensor,
    v_enc: tl.tensor,
    m_bias: tl.tensor,
    v_bias: tl.tensor,
    sums: tl.tensor,
    F: tl.tensor,
    d: tl.tensor,
    scale: tl.tensor,
    take1: tl.tensor,
    take2: tl.tensor,
    eps: tl.tensor,
    share: tl.tensor,
    GROUPS: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    HALF: tl.constexpr,
    TRAIN_BIAS: tl.constexpr,
) -> None:
    """Gradients and step of every PROGRAMS-th latent, a whole row in registers; the sum for b_dec: [PROGRAMS, d]."""
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < d
    reached = tl.zeros((BLOCK,), tl.float32)
    for f in range(program, F, tl.num_programs(0)):
        start = tl.load(starts + f)
        stop = tl.load(starts + f + 1)
        if start < stop:
            # pairs before the first whole run, the runs, and pairs after them; without a run all are before
            run = (start + RUN - 1) // RUN
            end = stop // RUN
            whole = run < end
            dec = tl.zeros((BLOCK,), tl.float32)
            enc = tl.zeros((BLOCK,), tl.float32)
            dec, enc = _gather(
                segments,
                values,
                slopes,
                h,
                x,
                start,
                tl.where(whole, run * RUN, stop),
                column,
                d,
                dec,
                enc,
                GROUPS,
                PAIRS,
            )
            for ready in range(run, end):
                to = tl.cast(ready, tl.int64) * d + column
                dec += tl.load(runs_dec + to, mask=inside, other=0.0)
                enc += tl.load(runs_enc + to, mask=inside, other=0.0)
            dec, enc = _gather(
                segments,
                values,
                slopes,
                h,
                x,
                tl.where(whole, end * RUN, stop),
                stop,
                column,
                d,
                dec,
                enc,
                GROUPS,
                PAIRS,
            )
            slope = tl.zeros((RUN,), tl.float32)
            for j in range(start, stop, RUN):
                pair = j + tl.arange(0, RUN)
                slope += tl.load(slopes + pair, mask=pair < stop, other=0.0)
            bias = tl.sum(slope)
            size = tl.load(sizes + f)
            at = tl.cast(f, tl.int64) * d + column

            encoder = tl.load(W_enc + at, mask=inside, other=0.0)
            reached += bias * encoder
            encoder -= size * share * _direction(m_enc, v_enc, at, inside, scale * enc, take1, take2, eps)
            tl.store(W_enc + at, encoder, mask=inside)
            if HALF:
                tl.store(W_half + at, encoder.to(tl.bfloat16), mask=inside)

            row = tl.load(W_dec + at, mask=inside, other=0.0)
            # the part of a decoder gradient along its row only changes the norm, which is 1
            dec = scale * (dec - tl.sum(dec * row) * row)
            row -= size * _direction(m_dec, v_dec, at, inside, dec, take1, take2, eps)
            row /= tl.maximum(tl.sqrt_rn(tl.sum(row * row)), 1e-12)
            tl.store(W_dec + at, row, mask=inside)

            if TRAIN_BIAS:
                move = _direction(m_bias, v_bias, f, start < stop, scale * bias, take1, take2, eps)
                tl.store(b_enc + f, tl.load(b_enc + f) - size * share * move)
    tl.store(sums + program.to(tl.int64) * d + column, reached, mask=inside)


def update(
    latents: Latents,
    pairs: Pairs,
    slope: Tensor,
    h: Tensor,
    x: Tensor,
    *,
    scale: float,
    adam: Adam,
    groups: int = 1,
    train_bias: bool = True,
) -> tuple[Tensor, Tensor]:
    """See :func:`plain.update`. Does not synchronise. Rows of active latents are read and written once."""
    F, d = latents.W_dec.shape
    h, x = h.contiguous(), x.contiguous()
    with torch.cuda.device(h.get_device()):
        ordered = _by_latent(pairs, slope, F)
        fired = ordered.starts.diff()
        latents.steps += fired > 0
        steps = latents.steps.double()
        # of latents without a step yet it is not a number; they have no pairs, so that it is not read
        sizes = (adam.rate * (1 - adam.beta2**steps).sqrt() / (1 - adam.beta1**steps)).float()
        gathered = (*ordered[2:], h, x)
        runs = _sum_runs(ordered, gathered, F, d, groups)
        programs = min(F, _PROGRAMS)
        sums = torch.empty(programs, d, device=h.device)
        block = max(512, triton.next_power_of_2(d))
        own = latents
        _update[(programs,)](
            ordered.starts,
            *gathered,
            *runs,
            sizes,
            *(own.W_dec, own.W_enc, own.b_enc, own.W_enc if own.W_half is None else own.W_half),
            *(own.m_dec, own.v_dec, own.m_enc, own.v_enc, own.m_bias, own.v_bias),
            sums,
            F,
            d,
            scale,
            1 - adam.beta1,
            1 - adam.beta2,
            adam.eps,
            adam.encoder,
            GROUPS=groups,
            RUN=_RUN,
            BLOCK=block,
            PAIRS=max(1, min(8, _TILE // block)),
            HALF=own.W_half is not None,
            TRAIN_BIAS=train_bias,
            **OPTIONS | {"num_warps": max(4, min(16, block // 128))},
        )
        return sums.sum(0).mul_(-scale), fired


def _by_latent(pairs: Pairs, slope: Tensor, features: int) -> _ByLatent:
    """Order the pairs by latent, and those of a latent by row. A stable sort: counting them would need atomics."""
    used = (pairs.value != 0) | (slope != 0)
    latent, order = torch.where(used, pairs.index, features).sort(stable=True)
    bounds = torch.arange(features + 1, dtype=torch.int32, device=latent.device)
    starts = torch.searchsorted(latent, bounds, out_int32=True)
    segment = torch.searchsorted(pairs.offsets, order, right=True, out_int32=True) - 1
    return _ByLatent(starts, latent, segment, pairs.value[order], slope[order])


def _sum_runs(
    ordered: _ByLatent, gathered: tuple[Tensor, ...], features: int, d: int, groups: int
) -> tuple[Tensor, Tensor]:
    """What :func:`_runs` makes: [runs, d] each, unset where a run is not of one latent."""
    device = ordered.latent.device
    runs = len(ordered.latent) // _RUN
    dec, enc = torch.empty(max(runs, 1), d, device=device), torch.empty(max(runs, 1), d, device=device)
    strip = min(512, max(16, triton.next_power_of_2(d)))
    if runs:
        _runs[(runs, triton.cdiv(d, strip))](
            ordered.latent,
            *gathered,
            dec,
            enc,
            features,
            d,
            GROUPS=groups,
            RUN=_RUN,
            STRIP=strip,
            PAIRS=8,
            **OPTIONS,
        )
    return dec, enc
