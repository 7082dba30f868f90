"""The kernels in torch operations: any device, any floating dtype. Also what the others are tested against."""

import torch
from torch import Tensor

from hydrophoned.learn.kernels.arrays import Adam, Latents, Pairs

_CHUNK = 512  # latents per pass of the optimiser: parameter, moments and gradient stay in the processor's cache


def topk(p: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of p + bias in each row, in no particular order: index int32 [n, k], value [n, k].

    ``p`` is [n, F] in bfloat16 or the dtype of ``bias`` [F], which is that of ``value``. Rows whose values are not
    finite give some latents, never an index out of range.
    """
    value, index = (p + bias).topk(k, dim=1, sorted=False)
    return index.to(torch.int32), value


def above(p: Tensor, bias: Tensor, threshold: float) -> Pairs:
    """All pairs with p + bias above ``threshold``, and p + bias as their value; arguments as of :func:`topk`."""
    shifted = p + bias
    row, index = torch.nonzero(shifted > threshold, as_tuple=True)
    offsets = torch.zeros(len(p) + 1, dtype=torch.int64, device=p.device)
    torch.cumsum(torch.bincount(row, minlength=len(p)), 0, out=offsets[1:])
    return Pairs(offsets, index.to(torch.int32), shifted[row, index])


def reconstruct(pairs: Pairs, W_dec: Tensor, target: Tensor, *, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Decode and compare: error [n, d], h [n * groups, d] and slope [m].

    With y_m the reconstruction of a row by its first m groups, error is y_groups - target. The loss is half the mean
    over m of |y_m - target|^2, h its gradient to each group's part of the reconstruction (the error itself where
    ``groups`` is 1), and slope its gradient to each pair's value, <h[segment], W_dec[index]>.
    """
    n, d = target.shape
    parts = _sums(pairs.offsets, pairs.index, pairs.value, W_dec)
    if groups == 1:
        h = error = parts - target
    else:
        errors = parts.view(n, groups, d).cumsum(1) - target[:, None]
        error = errors[:, -1].contiguous()
        h = errors.flip(1).cumsum(1).flip(1).div_(groups).reshape(n * groups, d)
    return error, h, _dots(pairs.offsets, pairs.index, h, W_dec)


def decode(pairs: Pairs, W_dec: Tensor) -> Tensor:
    """Sum over each segment's pairs of value * W_dec[index]: [segments, d]."""
    return _sums(pairs.offsets, pairs.index, pairs.value, W_dec)


def misfit(pairs: Pairs, W_dec: Tensor, b_dec: Tensor, target: Tensor) -> Tensor:
    """How far rows rebuilt from their pairs, decode(pairs) + b_dec, are from ``target`` [n, d]: float64 [2 + d].

    The squared error, then the squared norm and the column sums of ``target``, each summed over rows.
    """
    return compared(decode(pairs, W_dec).add_(b_dec), target)


def compared(rebuilt: Tensor, target: Tensor) -> Tensor:
    """The sums of :func:`misfit` for rows that have been rebuilt; these are overwritten."""
    error = rebuilt.sub_(target)
    energies = [torch.linalg.vector_norm(rows, dim=1).double().square().sum() for rows in (error, target)]
    return torch.cat([torch.stack(energies), target.sum(0, dtype=torch.float64)])


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
    """One step of the optimiser on the latents that have pairs; b_dec's gradient [d] and the pairs used, int32 [F].

    With the sums over a latent's pairs, ``x`` [n, d] the encoder's input and ``slope`` [m] the gradient to p,

        g_dec = scale * sum(value * h[segment]),  g_enc = scale * sum(slope * x[row]),  g_bias = scale * sum(slope)

    less, of g_dec, the part along W_dec's row, whose norm stays 1. A latent's moments and its own step count move
    only when it has pairs, so that silent latents neither drift on old momentum nor cost anything. Pairs whose value
    and slope are both 0 do not count. The returned gradient is what reaches b_dec through the encoder's input,
    -scale * sum over latents of sum(slope) * W_enc, taken before the step.
    """
    F = len(latents.steps)
    by_latent = _ByLatent(pairs, slope, groups, F)
    fired = by_latent.counts
    used = fired.nonzero().squeeze(1)
    latents.steps[used] += 1
    b_dec_gradient = -scale * (by_latent.slope_sums(F) @ latents.W_enc)
    # most latents active: walk over all of them in place; few: gather the active ones and put them back
    whole = 2 * len(used) > F
    counts = fired if whole else fired[used]
    starts = [0, *counts.cumsum(0).tolist()]
    for start in range(0, len(counts), _CHUNK):
        chunk = slice(start, min(start + _CHUNK, len(counts)))
        gradients = [part.mul_(scale) for part in by_latent.gradients(starts[chunk.start : chunk.stop + 1], h, x)]
        touched = (counts[chunk] > 0).to(h.dtype) if whole else None
        _step(latents, chunk if whole else used[chunk], gradients, touched, adam, train_bias=train_bias)
    return b_dec_gradient, fired.to(torch.int32)


def gradients(
    latents: Latents, pairs: Pairs, slope: Tensor, h: Tensor, x: Tensor, *, scale: float, groups: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to W_dec [F, d], W_enc [F, d] and b_enc [F] as in :func:`update`, dense, the part along W_dec kept."""
    by_latent = _ByLatent(pairs, slope, groups, len(latents.steps))
    dec, enc, bias = by_latent.gradients([0, *by_latent.counts.cumsum(0).tolist()], h, x)
    return dec.mul_(scale), enc.mul_(scale), bias.mul_(scale)


def _step(
    latents: Latents,
    where: Tensor | slice,
    gradients: list[Tensor],
    touched: Tensor | None,
    adam: Adam,
    *,
    train_bias: bool,
) -> None:
    """Adam on the latents ``where``: those that were active, or a slice with ``touched`` 1 for the active ones."""
    g_dec, g_enc, g_bias = gradients
    steps = latents.steps[where].double()
    size = adam.rate * (1 - adam.beta2**steps).sqrt() / (1 - adam.beta1**steps).clamp_min(1e-300)
    size = size.to(g_dec.dtype)
    if touched is not None:
        size = size * touched
    step = -size.unsqueeze(1)
    rows = latents.W_dec[where]
    g_dec.addcmul_(rows, (g_dec * rows).sum(1, keepdim=True), value=-1)
    rows.addcmul_(_direction(latents.m_dec, latents.v_dec, where, g_dec, touched, adam), step)
    norms = rows.norm(dim=1, keepdim=True).clamp_min_(1e-12)
    rows.div_(norms if touched is None else torch.where(touched[:, None] > 0, norms, 1.0))
    encoder = latents.W_enc[where]
    encoder.addcmul_(_direction(latents.m_enc, latents.v_enc, where, g_enc, touched, adam), step * adam.encoder)
    if touched is None:  # rows and encoder are copies then, else views that were written in place
        latents.W_dec[where], latents.W_enc[where] = rows, encoder
    if train_bias:
        move = _direction(latents.m_bias, latents.v_bias, where, g_bias, touched, adam) * (size * adam.encoder)
        latents.b_enc[where] = latents.b_enc[where] - move
    if latents.W_half is not None:
        latents.W_half[where] = encoder.bfloat16()


def _direction(
    first: Tensor, second: Tensor, where: Tensor | slice, gradient: Tensor, touched: Tensor | None, adam: Adam
) -> Tensor:
    """Move the moments of the latents ``where``; m / (sqrt(v) + eps)."""
    m, v = first[where], second[where]
    if touched is None:
        m.lerp_(gradient, 1 - adam.beta1)
        v.mul_(adam.beta2).addcmul_(gradient, gradient, value=1 - adam.beta2)
        first[where], second[where] = m, v
        return m.div_(v.sqrt_().add_(adam.eps))
    share = touched if gradient.ndim == 1 else touched.unsqueeze(1)
    m.lerp_(gradient, share * (1 - adam.beta1))  # m and v are views: this writes the moments themselves
    v.lerp_(gradient * gradient, share * (1 - adam.beta2))
    return (v.sqrt().add_(adam.eps).reciprocal_()).mul_(m)


class _ByLatent:
    """Pairs ordered by latent, and the sums over those of a latent."""

    def __init__(self, pairs: Pairs, slope: Tensor, groups: int, features: int) -> None:
        flat = pairs.index.long()
        used = (pairs.value != 0) | (slope != 0)
        order = torch.where(used, flat, features).sort(stable=True).indices[: int(used.sum())]
        lengths = pairs.offsets.diff()
        segments = torch.arange(len(lengths), device=flat.device).repeat_interleave(lengths)
        self._segment = segments[order]
        self._row = self._segment if groups == 1 else self._segment // groups
        self._value, self._slope, self._latent = pairs.value[order], slope[order], flat[order]
        self.counts = torch.bincount(self._latent, minlength=features)

    def slope_sums(self, features: int) -> Tensor:
        return self._slope.new_zeros(features).index_add_(0, self._latent, self._slope)

    def gradients(self, starts: list[int], h: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums for the latents whose pairs are ``starts[i]`` to ``starts[i + 1]``: [c, d], [c, d], [c]."""
        span = slice(starts[0], starts[-1])
        offsets = torch.tensor(starts, device=h.device) - starts[0]

        def sparse(columns: Tensor, values: Tensor, count: int) -> Tensor:
            shape = (len(starts) - 1, count)
            return torch.sparse_csr_tensor(offsets, columns[span], values[span], shape, check_invariants=False)

        g_bias = torch.segment_reduce(self._slope[span], "sum", offsets=offsets, initial=0)
        by_value, by_slope = sparse(self._segment, self._value, len(h)), sparse(self._row, self._slope, len(x))
        return by_value @ h, by_slope @ x, g_bias


def _sums(offsets: Tensor, index: Tensor, value: Tensor, rows: Tensor) -> Tensor:
    if not len(index):
        return rows.new_zeros(len(offsets) - 1, rows.shape[1])
    return torch.nn.functional.embedding_bag(
        index.long(), rows, offsets, per_sample_weights=value, mode="sum", include_last_offset=True
    )


def _dots(offsets: Tensor, index: Tensor, h: Tensor, rows: Tensor) -> Tensor:
    """<h[segment], rows[index]> for each pair."""
    if not len(index):
        return h.new_zeros(0)
    bag = torch.arange(len(h), device=h.device).repeat_interleave(offsets.diff())
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(h, rows, index.long(), offsets, bag, 0)  # noqa: SLF001  the operator autograd itself calls
    return dots
