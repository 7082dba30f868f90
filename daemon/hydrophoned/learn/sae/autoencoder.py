"""A sparse autoencoder that learns from a stream, through its active latents only.

With y a row, W_enc and W_dec [F, d], unit rows in W_dec:

    p     = (y - b_dec) W_enc^T + b_enc                [F]
    z     = what the variant makes of p                few values above 0
    y_hat = z W_dec + b_dec
    loss  = mean |y_hat - y|^2 / d  +  what the variant adds  +  aux_weight |e - e_hat|^2 / |e|^2

The last term is AuxK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix A.2), taken while latents
are dead: e = y - y_hat is held fixed, and e_hat rebuilt from the ``aux_k`` dead latents of largest p, without ReLU, so
that latents far below zero receive a gradient too. Latents that stay dead are set anew at badly rebuilt rows (Bricken
et al. 2023, "Towards Monosemanticity", neuron resampling).

Only one product is dense: p. Decoding, and the gradients of both matrices, go through the active pairs; the optimiser
touches only latents that have some (see ``kernels``).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from hydrophoned.learn import kernels
from hydrophoned.learn.dictionary import Codes, StepReport
from hydrophoned.learn.errors import CheckpointError, WidthMismatch
from hydrophoned.learn.kernels import Adam, Latents, Pairs
from hydrophoned.learn.kernels.product import product
from hydrophoned.learn.placement import move
from hydrophoned.learn.sae.auxiliary import dead_pairs
from hydrophoned.learn.sae.config import DictionaryConfig
from hydrophoned.learn.sae.finite import LONGEST, not_finite, usable_rows
from hydrophoned.learn.sae.variant import Batch
from hydrophoned.learn.sae.variants import make_variant

_SCALE_ROWS = 1024
_ALIKE = 0.7
_HURRY = 10
_FEW_LATENTS = 256
_SOME_LATENTS = 4096
_FEWER = 16
_WEAKER = 0.5
_COUNTERS = ("batches", "rows_learned", "schedule_rows", "hurry_until", "rows_since_revival", "rows_revived_total")


class _Step(NamedTuple):
    """One batch's way through the loss, before anything moves. Gradients are in units of half a squared error."""

    batch: Batch
    centred: Tensor
    pairs: Pairs
    error: Tensor
    h: Tensor
    slope: Tensor


class SparseAutoencoder:
    """A dictionary of normalised rows, of the variant that ``config`` names. See the module for the equations.

    ``revivals``, int64 [F], counts how often each latent was set anew.
    """

    def __init__(
        self,
        config: DictionaryConfig,
        *,
        generator: torch.Generator,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        kernels_module: kernels.Kernels | None = None,
    ) -> None:
        self.config = config
        self.width, self.features, self.k = config.width, config.features, config.k
        self.device = device or torch.device("cpu")
        self.generator = generator
        self._own_kernels = kernels_module
        self.kernels: kernels.Kernels = kernels_module or kernels.choose(self.device, dtype)
        self.latents = Latents.zeros(self.features, self.width, self.device, dtype, half=self._halves(dtype))
        directions = torch.randn(self.features, self.width, generator=generator, dtype=dtype).to(self.device)
        self.latents.W_dec.copy_(_unit(directions))
        self.latents.W_enc.copy_(self.latents.W_dec)
        self.latents.refresh()
        self.b_dec = torch.zeros(self.width, dtype=dtype, device=self.device)
        self.m_b_dec, self.v_b_dec = torch.zeros_like(self.b_dec), torch.zeros_like(self.b_dec)
        self.silent_rows = torch.zeros(self.features, dtype=torch.int64, device=self.device)
        self.revivals = torch.zeros(self.features, dtype=torch.int64, device=self.device)
        self.variant = make_variant(config, self.device, dtype)
        self.batches = 0
        self.rows_learned = 0
        self.schedule_rows = 0
        self.hurry_until = 0
        self.rows_since_revival = 0
        self.rows_revived_total = 0
        self._any_dead = False
        self._masks = self.device.type != "cpu"  # rather than wait for the device and raise
        self._products = torch.empty(0, dtype=dtype, device=self.device)

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def W_enc(self) -> Tensor:  # noqa: N802  named as in the papers
        """Encoder rows [F, d]."""
        return self.latents.W_enc

    @property
    def W_dec(self) -> Tensor:  # noqa: N802  named as in the papers
        """Decoder rows [F, d], of norm 1."""
        return self.latents.W_dec

    @property
    def b_enc(self) -> Tensor:
        """Encoder bias [F]."""
        return self.latents.b_enc

    def encode(self, x: Tensor, *, exact: bool = False) -> Codes:
        """Codes of normalised rows x [n, d], float32; ``exact`` takes products in float32 in any case.

        Of a variant whose rows have differing numbers of active latents at most ``2 k`` are kept.
        """
        self._check(x)
        return self.variant.codes(self._batch(x - self.b_dec, exact=exact))

    def decode(self, codes: Codes) -> Tensor:
        """Rows [n, d] rebuilt from codes: z W_dec + b_dec."""
        return self.kernels.decode(_pairs(codes), self.W_dec).add_(self.b_dec)

    def misfit(self, codes: Codes, x: Tensor) -> Tensor:
        """Sums over the rows x [n, d] of ``codes``, float64 [2 + d]: squared error, squared norm, and x by column."""
        self._check(x)
        return self.kernels.misfit(_pairs(codes), self.W_dec, self.b_dec, x)

    @property
    def dead(self) -> Tensor:
        """Bool [F]: latents silent for ``dead_rows`` rows, or half as many after a change."""
        hurried = self.rows_learned < self.hurry_until
        return self.silent_rows >= self.config.dead_rows // (2 if hurried else 1)

    @property
    def learning_rate(self) -> float:
        """Step size in force."""
        decay = float((1 + self.schedule_rows / self.config.decay_rows) ** -0.5)
        return self.config.learning_rate * max(decay, self.config.learning_rate_floor)

    # -- learning -----------------------------------------------------------------------------------------------

    def initialise(self, x: Tensor) -> None:
        """Point the latents at rows of the stream: x [n, d], normalised; n may be smaller than F.

        Each direction is a row mixed one to one with noise, unit norm; the encoder is tied to it and scaled by the
        one least-squares number that gives the reconstruction of x the right size. Raises RowsNotFinite.
        """
        self._check(x)
        if not bool(usable_rows(x).all()):
            raise not_finite(x)
        n, F, d = len(x), self.features, self.width
        centre = x.mean(0)
        order = torch.cat([torch.randperm(n, generator=self.generator) for _ in range(-(-F // n))])[:F].to(x.device)
        for start in range(0, F, _SOME_LATENTS):  # a large dictionary must not need several times its own memory
            some = order[start : start + _SOME_LATENTS]
            noise = torch.randn(len(some), d, generator=self.generator, dtype=x.dtype).to(x.device) / d**0.5
            self.W_dec[start : start + len(some)] = _unit(_unit(x[some] - centre) + noise)
        self.W_enc.copy_(self.W_dec)
        self.b_dec.copy_(centre)
        self.b_enc.zero_()
        self.latents.refresh()
        sample = x[: min(n, _SCALE_ROWS)]
        self.variant.initialise(self._batch(sample - self.b_dec))
        rebuilt = self.decode(self.encode(sample)) - self.b_dec
        fit = (rebuilt * (sample - self.b_dec)).sum() / rebuilt.square().sum().clamp_min(1e-12)
        factor = max(float(fit), 1e-3)
        self.W_enc.mul_(factor)
        self.b_enc.mul_(factor)
        self.variant.rescale(factor)
        self.latents.refresh()

    def partial_fit(self, x: Tensor) -> StepReport:
        """One step on normalised rows x [n, d]; the report is of the state before it.

        Raises RowsNotFinite, before anything has moved, for rows that hold NaN or Inf or are far too large. On a GPU
        that would have to be waited for: there such rows count as rows at b_dec, and the fvu told is not a number.
        """
        self._check(x)
        n, d = x.shape
        if not n:
            unknown = torch.full((), math.nan, dtype=x.dtype)
            return StepReport(0, unknown, unknown, self.dead.sum() / self.features, 0)
        step = self._forward(x)
        pairs, h, groups = step.pairs, step.h, self.variant.groups
        error = torch.linalg.vector_norm(step.error)
        if not self._masks and not float(error) <= LONGEST:  # neither for NaN
            raise not_finite(x)
        fvu = error.square() / _variance(x).clamp_min(1e-12)
        l0 = (pairs.value > 0).sum() / n
        adam = Adam(self.learning_rate, encoder=self.config.encoder_rate)
        scale = 2 / (n * d)
        gradient = self.variant.backward(step.batch, pairs, step.slope, step.centred, adam)
        reached, fired = self.kernels.update(
            self.latents,
            pairs,
            gradient.slope,
            h,
            step.centred,
            scale=scale,
            adam=adam,
            groups=groups,
            train_bias=gradient.train_bias,
        )
        if not self.variant.bounded:  # among the pairs are latents that were close to firing, or open with magnitude 0
            fired = torch.zeros_like(fired).index_add_(0, pairs.index, (pairs.value > 0).to(fired.dtype))
        self._step_b_dec(reached.add_(h.view(n, groups, d)[:, 0].sum(0), alpha=scale), adam)
        dead = self.dead
        # elsewhere the answer would have to be waited for: it is that of the last revival
        if self.device.type == "cpu":
            self._any_dead = bool(dead.any())
        if self._any_dead and self.config.aux_k:
            self._auxiliary(step, dead & (fired == 0), adam)  # one that fires in this batch learns from its own firing
        self.silent_rows.add_(n).masked_fill_(fired > 0, 0)
        self.rows_since_revival += n
        revived = 0
        if self.rows_since_revival >= self.config.revive_rows:
            self.rows_since_revival = 0
            revived = self._revive(step.error)
        self.batches += 1
        self.rows_learned += n
        self.schedule_rows += n
        return StepReport(n, fvu, l0, dead.sum() / self.features, revived)

    def quicken(self, share: float) -> None:
        """Learn faster for a while, since rows have changed.

        The step size rises to ``share`` of its start, where it is smaller, and falls again from there; latents that the
        new rows do not need are given up after half as many silent rows.
        """
        self.hurry_until = self.rows_learned + _HURRY * self.config.dead_rows
        self.schedule_rows = min(self.schedule_rows, int(self.config.decay_rows * (share**-2 - 1)))

    def transform_input(self, shift: Tensor, factor: float) -> None:
        """Say the same of rows (y - shift) * factor: indices and directions stay, values are ``factor`` as large."""
        self.b_dec.sub_(shift).mul_(factor)
        self.b_enc.mul_(factor)
        self.variant.rescale(factor)

    def loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean |y_hat - y|^2 / d over rows x (over nested prefixes too), and its gradients as a step would use them.

        Gradients are dense: W_dec, W_enc [F, d], b_enc [F], b_dec [d]; they hold what the variant adds to the loss,
        which moves the variant's own numbers. For tests and questions, not for training: nothing else moves.
        """
        self._check(x)
        n, d = x.shape
        step = self._forward(x)
        scale, groups = 2 / (n * d), self.variant.groups
        gradient = self.variant.backward(step.batch, step.pairs, step.slope, step.centred, Adam(0.0))
        dec, enc, bias = kernels.plain.gradients(
            self.latents, step.pairs, gradient.slope, step.h, step.centred, scale=scale, groups=groups
        )
        b_dec = scale * step.h.view(n, groups, d)[:, 0].sum(0) - bias @ self.W_enc
        suffixes = step.h.view(n, groups, d) * groups  # sums of the prefixes' errors from behind
        errors = suffixes - torch.cat([suffixes[:, 1:], suffixes.new_zeros(n, 1, d)], 1)
        b_enc = bias if gradient.bias is None else gradient.bias
        loss = errors.square().sum() / (groups * n * d)
        return loss, {"W_dec": dec, "W_enc": enc, "b_enc": b_enc, "b_dec": b_dec}

    def _forward(self, x: Tensor) -> _Step:
        centred = x - self.b_dec
        if self._masks:
            centred.masked_fill_(~usable_rows(centred)[:, None], 0)
        batch = self._batch(centred)
        pairs = self.variant.select(batch)
        error, h, slope = self.kernels.reconstruct(pairs, self.W_dec, centred, groups=self.variant.groups)
        return _Step(batch, centred, pairs, error, h, slope)

    def _auxiliary(self, step: _Step, waiting: Tensor, adam: Adam) -> None:
        n = min(len(step.error), self.config.aux_rows)
        chosen = dead_pairs(step.batch, waiting, rows=n, count=self.config.aux_k)
        if chosen is None:
            return
        pairs = chosen.pairs
        residual = -step.error[:n]  # e = y - y_hat, held fixed: dead latents fit what is missing, and move nothing else
        miss, _, slope = self.kernels.reconstruct(pairs, self.W_dec, residual)
        # comparable with the main loss, whose gradient carries 2 / (n d): both are per normalised unit of variance
        scale = 2 * self.config.aux_weight / residual.square().sum().clamp_min(1e-12)
        slope = slope * scale
        if chosen.spare is not None:
            slope.masked_fill_(chosen.spare, 0)
        self.kernels.update(self.latents, pairs, slope, miss * scale, step.centred[:n], scale=1.0, adam=adam)

    def _step_b_dec(self, gradient: Tensor, adam: Adam) -> None:
        steps = self.batches + 1
        self.m_b_dec.lerp_(gradient, 1 - adam.beta1)
        self.v_b_dec.mul_(adam.beta2).addcmul_(gradient, gradient, value=1 - adam.beta2)
        size = adam.rate * (1 - adam.beta2**steps) ** 0.5 / (1 - adam.beta1**steps)
        self.b_dec.addcdiv_(self.m_b_dec, self.v_b_dec.sqrt().add_(adam.eps), value=-size)

    def _revive(self, error: Tensor) -> int:
        """Set long-dead latents anew at residuals of badly rebuilt rows, drawn in proportion to squared error."""
        dead = self.dead.nonzero().squeeze(1)
        self._any_dead = bool(len(dead))
        if not self._any_dead:
            return 0
        weight = torch.linalg.vector_norm(error, dim=1).square().cpu()
        # each row revives at most one latent, and of rows that lack the same direction only one counts: many equal
        # latents would fire together and overshoot, most of all where nothing bounds how many do
        most = len(error) // (2 if self.variant.bounded else _FEWER)
        drawn = min(len(dead), int((weight > 0).sum()), max(1, most))
        if not drawn:
            return 0
        chosen = torch.multinomial(weight, drawn, replacement=False, generator=self.generator).to(error.device)
        direction = _unit(-error[chosen])
        close = direction.bfloat16() if self.latents.W_half is not None else direction
        alike = (close @ close.T).tril_(-1).amax(1) > _ALIKE
        direction = direction[~alike]
        count = len(direction)
        latents = dead[torch.randperm(len(dead), generator=self.generator)[:count].to(dead.device)]
        living = ~self.dead
        some = (living if bool(living.any()) else self.dead).nonzero().squeeze(1)
        some = some[:: max(1, len(some) // _FEW_LATENTS)]
        norm = torch.linalg.vector_norm(self.W_enc[some], dim=1).mean() * (1 if self.variant.bounded else _WEAKER)
        self.W_dec.index_copy_(0, latents, direction)
        self.W_enc.index_copy_(0, latents, direction * norm)
        alive = not self.variant.bounded and bool(living.any())
        self.b_enc[latents] = self.b_enc[living].median() if alive else 0.0
        self.variant.revive(latents, living)
        self.latents.forget(latents)
        self.silent_rows[latents] = 0
        self.revivals[latents] += 1
        self.latents.refresh(latents)
        self.rows_revived_total += count
        return count

    # -- place --------------------------------------------------------------------------------------------------

    def to(self, device: torch.device) -> Self:
        """Go on on ``device``. Raises torch.OutOfMemoryError where it has no room."""
        with self.moving():
            move((self,), device)
        return self

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Inside, its tensors are moved; what can be made again is dropped before and made anew after."""
        self._products = self._products.new_empty(0)
        self.latents.W_half = None
        try:
            yield
        finally:  # where they could not be moved it goes on where they are
            self.device = self.b_dec.device
            self._masks = self.device.type != "cpu"
            self.kernels = self._own_kernels or kernels.choose(self.device, self.b_dec.dtype)
            if self._halves(self.b_dec.dtype):
                self.latents.W_half = self.W_enc.bfloat16()

    def _halves(self, dtype: torch.dtype) -> bool:
        """Whether products are taken in bfloat16."""
        return self.config.low_precision and dtype is torch.float32 and _has_fast_bfloat16(self.device)

    # -- state --------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by name: loading copies into them."""
        return {
            **self.latents.tensors(),
            "b_dec": self.b_dec,
            "m_b_dec": self.m_b_dec,
            "v_b_dec": self.v_b_dec,
            "silent_rows": self.silent_rows,
            "revivals": self.revivals,
            **self.variant.tensors(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and counters to go on exactly; see :meth:`load_state`. The generator's state is its owner's."""
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {**self.tensors(), **counters, "any_dead": int(self._any_dead)}

    def load_state(self, state: dict[str, Any]) -> Self:
        """Take over a state made by :meth:`state_dict` of a dictionary with the same config.

        Raises :class:`CheckpointError` for one that lacks something or has another shape, before anything changes.
        """
        own = self.tensors()
        for name, tensor in own.items():
            given = state.get(name)
            if not isinstance(given, Tensor) or given.shape != tensor.shape or given.dtype != tensor.dtype:
                what = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else repr(given)
                raise CheckpointError(f"{name} is {what}, not {tensor.dtype} {list(tensor.shape)}")
        for name in (*_COUNTERS, "any_dead"):
            if not isinstance(state.get(name), int):
                raise CheckpointError(f"{name} is {state.get(name)!r}, not a number")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        self._any_dead = bool(state["any_dead"])
        self.latents.refresh()
        return self

    def save(self, directory: Path) -> None:
        """Write ``config.json`` and ``dictionary.safetensors`` into ``directory``; see :mod:`.files`."""
        from hydrophoned.learn.sae import files  # noqa: PLC0415  files makes dictionaries

        files.save(self, directory)

    @classmethod
    def load(cls, directory: Path, *, device: torch.device | None = None) -> "SparseAutoencoder":
        """A dictionary that goes on exactly where the saved one stood."""
        from hydrophoned.learn.sae import files  # noqa: PLC0415  files makes dictionaries

        return files.load(directory, device=device)

    # -- inside -------------------------------------------------------------------------------------------------

    def _batch(self, centred: Tensor, *, exact: bool = False) -> Batch:
        """Products of centred rows with the encoder, without bias: bfloat16 where that is fast.

        They are valid until the next call, which writes to the same memory: taking tens of megabytes from the system
        and giving them back costs as much as the product.
        """
        half = None if exact else self.latents.W_half
        rows, encoder = (centred, self.W_enc) if half is None else (centred.bfloat16(), half)
        size = len(rows) * self.features
        if len(self._products) < size or self._products.dtype is not rows.dtype:
            self._products = torch.empty(size, dtype=rows.dtype, device=rows.device)
        p = self._products[:size].view(len(rows), self.features)
        return Batch(product(rows, encoder, out=p), self.latents, self.kernels)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.width:
            raise WidthMismatch(f"rows of shape {tuple(x.shape)} given to a dictionary of width {self.width}")


def _pairs(codes: Codes) -> Pairs:
    n, k = codes.index.shape
    offsets = torch.arange(0, n * k + 1, max(k, 1), device=codes.index.device)
    return Pairs(offsets, codes.index.reshape(-1), codes.value.reshape(-1))


def _unit(rows: Tensor) -> Tensor:
    return rows.div(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12))


def _variance(x: Tensor) -> Tensor:
    """Squared distances from the batch's own mean, summed over elements."""
    mean = x.mean(0)
    variance: Tensor = torch.linalg.vector_norm(x).square() - len(x) * mean.square().sum()
    return variance


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001  no public query exists
