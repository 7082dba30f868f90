"""TopK sparse autoencoder with AuxK and revival, trained through its active latents only.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (TopK: eq. 4; AuxK: appendix A.2); revival by
high-error rows after Bricken et al. 2023, "Towards Monosemanticity" (neuron resampling).

With y a row, W_enc and W_dec [F, d], unit rows in W_dec:

    p     = (y - b_dec) W_enc^T + b_enc                [F]
    z     = ReLU(TopK_k(p))                            k values
    y_hat = z W_dec + b_dec
    loss  = mean |y_hat - y|^2 / d  +  aux_weight |e - e_hat|^2 / |e|^2      (see :meth:`TopKDictionary.partial_fit`)

Only one product is dense: p. Decoding, and the gradients of both matrices, go through the k active latents, as
sparse (CSR) products; the optimiser touches only rows whose latent was active in the batch.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from hydrophoned.learn.adam import LazyAdam
from hydrophoned.learn.dictionary import Codes, StepReport
from hydrophoned.learn.errors import InvalidConfig, WidthMismatch

_CHUNK = 512  # latents per pass of the optimiser: parameter, moments and gradient stay in the processor's cache


@dataclass(frozen=True, kw_only=True)
class TopKConfig:
    """Settings of a TopK dictionary."""

    width: int
    """Row width d, in elements."""
    features: int
    """Number of latents F."""
    k: int = 32
    """Active latents per row."""
    learning_rate: float = 3e-3
    """Adam step size at the start, in units of a unit-norm decoder row."""
    decay_rows: int = 30_000
    """The step size falls as (1 + rows / decay_rows)^-1/2: it needs no horizon. In rows."""
    learning_rate_floor: float = 0.1
    """Share of ``learning_rate`` below which the step size does not fall, so that learning never ends."""
    dead_after_rows: int = 8192
    """Rows after which a latent that has not fired counts as dead."""
    revive_every_rows: int = 2048
    """Rows between two revivals of dead latents."""
    aux_k: int = 64
    """Dead latents per row that take part in the auxiliary reconstruction; 0 switches AuxK off."""
    aux_weight: float = 1 / 32
    """Weight of the auxiliary reconstruction."""
    low_precision: bool = True
    """Compute p in bfloat16 where the device has such products in hardware."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.features < 1:
            raise InvalidConfig(f"width {self.width} and features {self.features} must be at least 1")
        if not 1 <= self.k <= self.features:
            raise InvalidConfig(f"k = {self.k} is outside 1..features = {self.features}")


class TopKDictionary:
    """A TopK dictionary of normalised rows. See the module for equations and papers."""

    def __init__(
        self,
        config: TopKConfig,
        *,
        generator: torch.Generator,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        self.width, self.features, self.k = config.width, config.features, config.k
        self.device = device or torch.device("cpu")
        self.generator = generator
        d, F = config.width, config.features
        directions = torch.randn(F, d, generator=generator, dtype=dtype)
        self.W_dec = (directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)).to(self.device)
        self.W_enc = self.W_dec.clone()
        self.b_enc = torch.zeros(F, dtype=dtype, device=self.device)
        self.b_dec = torch.zeros(d, dtype=dtype, device=self.device)
        self.silent_rows = torch.zeros(F, dtype=torch.int64, device=self.device)
        self.rows_learned = 0
        self.rows_since_revival = 0
        self.rows_revived_total = 0
        self.adam = LazyAdam(F, d, self.device, dtype)
        half = config.low_precision and dtype is torch.float32 and _has_fast_bfloat16(self.device)
        self._W_half = self.W_enc.bfloat16() if half else None

    # -- reading ------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Codes:
        """Codes of normalised rows x [n, d], float32."""
        self._check(x)
        value, index = self._preactivations(x - self.b_dec).topk(self.k, dim=1, sorted=False)
        return Codes(index.to(torch.int32), value.to(x.dtype).relu_())

    def decode(self, codes: Codes) -> Tensor:
        """Rows [n, d] rebuilt from codes: z W_dec + b_dec."""
        return _gather_sum(codes.index, codes.value, self.W_dec) + self.b_dec

    @property
    def dead(self) -> Tensor:
        """Bool [F]: latents silent for ``dead_after_rows`` rows."""
        return self.silent_rows >= self.config.dead_after_rows

    @property
    def learning_rate(self) -> float:
        """Step size in force."""
        decay = float((1 + self.rows_learned / self.config.decay_rows) ** -0.5)
        return self.config.learning_rate * max(decay, self.config.learning_rate_floor)

    # -- learning -----------------------------------------------------------------------------------------------

    def initialise(self, x: Tensor) -> None:
        """Point the latents at rows of the stream: x [n, d], normalised; n may be smaller than F.

        Each direction is a row mixed one to one with noise, unit norm; the encoder is tied to it and scaled by the
        one least-squares number that gives the reconstruction of x the right size.
        """
        self._check(x)
        n, F, d = len(x), self.features, self.width
        centre = x.mean(0)
        order = torch.cat([torch.randperm(n, generator=self.generator) for _ in range(-(-F // n))])[:F].to(x.device)
        rows = x[order] - centre
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        noise = torch.randn(F, d, generator=self.generator, dtype=x.dtype).to(x.device) / d**0.5
        mixed = rows + noise
        self.W_dec.copy_(mixed / mixed.norm(dim=1, keepdim=True).clamp_min(1e-12))
        self.W_enc.copy_(self.W_dec)
        self.b_dec.copy_(centre)
        self.b_enc.zero_()
        self._refresh_half(None)
        sample = x[: min(n, 1024)]
        rebuilt = self.decode(self.encode(sample)) - self.b_dec
        scale = float((rebuilt * (sample - self.b_dec)).sum() / rebuilt.square().sum().clamp_min(1e-12))
        self.W_enc.mul_(max(scale, 1e-3))
        self._refresh_half(None)

    def partial_fit(self, x: Tensor) -> StepReport:
        """One step on normalised rows x [n, d]; the report is of the state before it.

        The loss is mean |y_hat - y|^2 / d over the batch, plus AuxK while latents are dead:
        aux_weight |e - e_hat|^2 / |e|^2 with e = y - y_hat held fixed and e_hat rebuilt from the ``aux_k`` dead
        latents of largest p (without ReLU, so that latents far below zero receive a gradient too).
        """
        self._check(x)
        n, d = x.shape
        centred = x - self.b_dec
        p = self._preactivations(centred)
        value, index = p.topk(self.k, dim=1, sorted=False)
        value = value.to(x.dtype).relu_()
        error = _gather_sum(index, value, self.W_dec).sub_(centred)  # y_hat - y
        active = value > 0
        fvu = _fvu(error, x)
        l0 = active.sum().div(n)
        g = error * (2 / (n * d))
        # dL/dz of each active pair: <W_dec[j], g>
        slope = _pair_dots(g, self.W_dec, index) * active
        b_dec_grad = g.sum(0) - _gather_sum(index, slope, self.W_enc).sum(0)
        pairs = [_Pairs(index, value, slope, g, centred)]
        dead = self.dead
        if self.config.aux_k:
            waiting = dead.clone()
            waiting[index[active].long()] = False  # one that fires in this batch learns from its own firing
            if bool(waiting.any()):
                pairs.append(self._auxiliary(p, waiting, error, centred))
        self._update(pairs, b_dec_grad)
        self._count_firings(index, active, n)
        revived = self._revive(x, error) if self.rows_since_revival >= self.config.revive_every_rows else 0
        self.rows_learned += n
        return StepReport(n, float(fvu), float(l0), float(dead.float().mean()), revived)

    def _auxiliary(self, p: Tensor, dead: Tensor, error: Tensor, centred: Tensor) -> "_Pairs":
        n = len(p)
        latents = dead.nonzero().squeeze(1)
        # no gradient to e or to b_dec: dead latents are to fit what is missing, not to move what is there
        value, local = p[:, latents].topk(min(self.config.aux_k, len(latents)), dim=1, sorted=False)
        index, value = latents[local], value.to(error.dtype)
        residual = -error  # e = y - y_hat, held fixed
        miss = _gather_sum(index, value, self.W_dec) - residual
        energy = residual.square().sum().clamp_min(1e-12)
        # comparable with the main loss, whose gradient carries 2 / (n d): both are per normalised unit of variance
        g = miss * (2 * self.config.aux_weight / energy)
        return _Pairs(index, value, _pair_dots(g, self.W_dec, index), g, centred, n)

    def _update(self, pairs: list["_Pairs"], b_dec_grad: Tensor) -> None:
        rate = self.learning_rate
        for part in pairs:
            latents, fired = part.arrange(self.features)
            self.adam.steps[latents] += 1
            # most latents active: walk over all of them in place; few: gather the active ones and put them back
            whole = 2 * len(latents) > self.features
            counts = fired if whole else fired[latents]
            starts = [0, *counts.cumsum(0).tolist()]
            touched = (fired > 0).to(self.W_dec.dtype) if whole else None
            for start in range(0, len(counts), _CHUNK):
                chunk = slice(start, min(start + _CHUNK, len(counts)))
                self._update_latents(
                    chunk if whole else latents[chunk],
                    part.gradients(starts[chunk.start : chunk.stop + 1]),
                    None if touched is None else touched[chunk],
                    rate,
                )
        self.adam.step_vector(self.b_dec, b_dec_grad, rate)

    def _update_latents(
        self, where: Tensor | slice, gradients: tuple[Tensor, Tensor, Tensor], touched: Tensor | None, rate: float
    ) -> None:
        g_dec, g_enc, g_bias = gradients
        size = self.adam.step_size(where, rate)
        if touched is not None:
            size = size * touched
        step = -size.unsqueeze(1)
        rows = self.W_dec[where]
        # the part of a decoder gradient along its row only changes the norm, which is 1
        g_dec.addcmul_(rows, (g_dec * rows).sum(1, keepdim=True), value=-1)
        rows.addcmul_(self.adam.direction("W_dec", where, g_dec, touched), step)
        rows.div_(rows.norm(dim=1, keepdim=True).clamp_min_(1e-12))
        encoder = self.W_enc[where]
        encoder.addcmul_(self.adam.direction("W_enc", where, g_enc, touched), step)
        bias = self.b_enc[where] - self.adam.direction("b_enc", where, g_bias, touched) * size
        if touched is None:  # rows and encoder are copies then, else views that were written in place
            self.W_dec[where], self.W_enc[where] = rows, encoder
        self.b_enc[where] = bias
        if self._W_half is not None:
            self._W_half[where] = encoder.bfloat16()

    def _count_firings(self, index: Tensor, active: Tensor, n: int) -> None:
        self.silent_rows.add_(n)
        self.silent_rows[index[active].long()] = 0
        self.rows_since_revival += n

    def _revive(self, x: Tensor, error: Tensor) -> int:
        """Set long-dead latents anew at residuals of badly rebuilt rows, drawn in proportion to squared error."""
        self.rows_since_revival = 0
        dead = self.dead.nonzero().squeeze(1)
        if not len(dead):
            return 0
        weight = error.square().sum(1).cpu()
        usable = int((weight > 0).sum())
        # a few rows must not become many equal latents: each row revives at most one
        count = min(len(dead), usable, max(1, len(x) // 2))
        if not count:
            return 0
        chosen = torch.multinomial(weight, count, replacement=False, generator=self.generator).to(x.device)
        latents = dead[torch.randperm(len(dead), generator=self.generator)[:count].to(dead.device)]
        residual = -error[chosen]
        direction = residual / residual.norm(dim=1, keepdim=True).clamp_min(1e-12)
        living = ~self.dead
        norm = self.W_enc[living].norm(dim=1).mean() if bool(living.any()) else self.W_enc.norm(dim=1).mean()
        self.W_dec.index_copy_(0, latents, direction)
        self.W_enc.index_copy_(0, latents, direction * norm)
        self.b_enc[latents] = 0
        self.adam.forget(latents)
        self.silent_rows[latents] = 0
        self._refresh_half(latents)
        self.rows_revived_total += count
        return count

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and counters to go on exactly; see :meth:`load_state`."""
        return {
            "W_enc": self.W_enc,
            "W_dec": self.W_dec,
            "b_enc": self.b_enc,
            "b_dec": self.b_dec,
            "silent_rows": self.silent_rows,
            "rows_learned": self.rows_learned,
            "rows_since_revival": self.rows_since_revival,
            "rows_revived_total": self.rows_revived_total,
            **{f"adam.{name}": tensor for name, tensor in self.adam.tensors().items()},
        }

    def load_state(self, state: dict[str, Any]) -> Self:
        """Take over a state made by :meth:`state_dict` of a dictionary with the same config."""
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "silent_rows"):
            target: Tensor = getattr(self, name)
            target.copy_(state[name])
        for name in ("rows_learned", "rows_since_revival", "rows_revived_total"):
            setattr(self, name, int(state[name]))
        for name, tensor in self.adam.tensors().items():
            tensor.copy_(state[f"adam.{name}"])
        self._refresh_half(None)
        return self

    # -- inside -------------------------------------------------------------------------------------------------

    def _preactivations(self, centred: Tensor) -> Tensor:
        """P [n, F], float32."""
        if self._W_half is not None:
            return torch.mm(centred.bfloat16(), self._W_half.T).float().add_(self.b_enc)
        return torch.addmm(self.b_enc, centred, self.W_enc.T)

    def _refresh_half(self, latents: Tensor | None) -> None:
        if self._W_half is None:
            return
        if latents is None:
            self._W_half.copy_(self.W_enc)
        else:
            self._W_half.index_copy_(0, latents, self.W_enc[latents].bfloat16())

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.width:
            raise WidthMismatch(f"rows of shape {tuple(x.shape)} given to a dictionary of width {self.width}")


class _Pairs:
    """Active (row, latent) pairs of a batch and the gradients they carry.

    index, value, slope are [n, k]; g [n, d] is dL/dy_hat; centred [n, d] is the encoder's input.
    """

    def __init__(self, index: Tensor, value: Tensor, slope: Tensor, g: Tensor, centred: Tensor, n: int = 0) -> None:
        self.index, self.value, self.slope, self.g, self.centred = index, value, slope, g, centred
        self.n = n or len(index)
        self._rows, self._value, self._slope = index, value, slope  # of the pairs in use, once arranged

    def arrange(self, features: int) -> tuple[Tensor, Tensor]:
        """Order the pairs by latent; the latents in use, ascending [U], and the pairs of every latent [F]."""
        flat = self.index.reshape(-1).long()
        used = (self.value != 0).reshape(-1)
        order = torch.where(used, flat, features).sort(stable=True).indices[: int(used.sum())]
        self._rows = order // self.index.shape[1]
        self._value, self._slope = self.value.reshape(-1)[order], self.slope.reshape(-1)[order]
        counts = torch.bincount(flat[order], minlength=features)
        return counts.nonzero().squeeze(1), counts

    def gradients(self, starts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of W_dec [c, d], W_enc [c, d] and b_enc [c] for c latents.

        Their pairs, in the order of :meth:`arrange`, are those from ``starts[i]`` to ``starts[i + 1]``.
        """
        span, device = slice(starts[0], starts[-1]), self.g.device
        offsets = torch.tensor(starts, device=device) - starts[0]
        shape = (len(starts) - 1, self.n)
        rows, value, slope = self._rows[span], self._value[span], self._slope[span]
        by_value = torch.sparse_csr_tensor(offsets, rows, value, shape, check_invariants=False)
        by_slope = torch.sparse_csr_tensor(offsets, rows, slope, shape, check_invariants=False)
        g_bias = torch.segment_reduce(slope, "sum", offsets=offsets, initial=0)
        return by_value @ self.g, by_slope @ self.centred, g_bias


def _gather_sum(index: Tensor, value: Tensor, rows: Tensor) -> Tensor:
    """Sum over k of value[:, k] * rows[index[:, k]]: [n, d]."""
    if not len(index):
        return rows.new_zeros(0, rows.shape[1])
    return torch.nn.functional.embedding_bag(index, rows, per_sample_weights=value, mode="sum")


def _pair_dots(g: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """<g[i], rows[index[i, j]]> for each pair: [n, k]."""
    n, k = index.shape
    flat = index.reshape(-1)
    offsets = torch.arange(0, n * k, k, device=index.device, dtype=index.dtype)
    bag = torch.arange(n, device=index.device, dtype=index.dtype).repeat_interleave(k)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(g, rows, flat, offsets, bag, 0)  # noqa: SLF001  the operator autograd itself calls
    return dots.view(n, k)


def _fvu(error: Tensor, x: Tensor) -> Tensor:
    """Squared error over the variance around the batch's own mean, both summed over elements."""
    return error.square().sum() / (x - x.mean(0)).square().sum().clamp_min(1e-12)


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001  no public query exists
