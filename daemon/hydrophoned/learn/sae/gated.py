"""Gated: which latents are active and how strongly are decided apart.

Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", eq. 6 to 9. With
q = (y - b_dec) W_enc^T and p = q + b_enc the gate:

    z    = 1[p > 0] ReLU(exp(r) q + b_mag)
    loss = |y - z W_dec - b_dec|^2 / d + lambda sum over j of ReLU(p_j)
           + |y - ReLU(p) sg(W_dec) - sg(b_dec)|^2 / d

``sg`` passes no gradient: without it the dictionary collapses. lambda is driven until l0 is k
(:class:`SparsityController`).
"""

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.kernels.arrays import Adam, Pairs
from hydrophoned.learn.sae.config import DictionaryConfig
from hydrophoned.learn.sae.own import DAMPING, LatentVector, SparsityController
from hydrophoned.learn.sae.variant import Batch, Gradient
from hydrophoned.learn.sae.wide import quantile_for, widest


class Gated:
    """A gate and a magnitude that share their directions."""

    groups = 1
    bounded = False

    def __init__(self, config: DictionaryConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.k, self.width = config.k, config.width
        zeros = torch.zeros(config.features, device=device, dtype=dtype)
        self.log_scale = LatentVector(zeros)
        self.magnitude_bias = LatentVector(zeros.clone())
        self.gate_bias_state = LatentVector(zeros.clone())  # moments only: the value is b_enc
        self.controller = SparsityController(config.sparsity, config.k, device, damping=DAMPING)
        self._gate = torch.empty(0, device=device, dtype=dtype)

    def _magnitude(self, gate: Tensor, latent: Tensor, b_gate: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled q, and the magnitude, of pairs with this gate."""
        scaled = self.log_scale.value.exp()[latent] * (gate - b_gate[latent])
        return scaled, (scaled + self.magnitude_bias.value[latent]).relu_()

    def codes(self, batch: Batch) -> Codes:
        """Magnitudes where the gate is open, of at most twice k open gates of a row."""
        index, gate = widest(batch, batch.latents.b_enc, self.k)
        _, value = self._magnitude(gate, index.long(), batch.latents.b_enc)
        return Codes(index, torch.where(gate > 0, value, 0.0))

    def select(self, batch: Batch) -> Pairs:
        """All open gates; the magnitude of some may be 0."""
        found = batch.kernels.above(batch.p, batch.latents.b_enc, 0.0)
        self._gate = found.value
        _, value = self._magnitude(found.value, found.index.long(), batch.latents.b_enc)
        return Pairs(found.offsets, found.index, value)

    def backward(self, batch: Batch, pairs: Pairs, slope: Tensor, target: Tensor, adam: Adam) -> Gradient:
        """Magnitude through exp(r), gate through its own reconstruction; moves r, both biases and lambda."""
        self.controller.observe((pairs.value > 0).sum(), batch.rows)
        latent = pairs.index.long()
        b_enc = batch.latents.b_enc
        scaled, _ = self._magnitude(self._gate, latent, b_enc)
        through = slope.masked_fill(pairs.value == 0, 0)
        _, _, gate_slope = batch.kernels.reconstruct(
            Pairs(pairs.offsets, pairs.index, self._gate), batch.latents.W_dec, target
        )
        gate_slope = gate_slope + self.controller.weight.to(slope.dtype) * (self.width / 2)
        to_p = through * self.log_scale.value.exp()[latent] + gate_slope
        touched = torch.zeros(b_enc.shape, dtype=torch.bool, device=b_enc.device).index_fill_(0, latent, value=True)
        scale = 2 / (batch.rows * self.width)

        def summed(per_pair: Tensor) -> Tensor:
            return torch.zeros_like(b_enc).index_add_(0, latent, per_pair) * scale

        self.log_scale.step(summed(through * scaled), touched, adam)
        self.magnitude_bias.step(summed(through), touched, adam)
        self.gate_bias_state.value = b_enc
        gate = summed(gate_slope)
        self.gate_bias_state.step(gate, touched, adam._replace(rate=adam.rate * adam.encoder))
        return Gradient(to_p, train_bias=False, bias=gate)

    def initialise(self, batch: Batch) -> None:
        """Gates that leave k per row of the first rows open."""
        batch.latents.b_enc.sub_(quantile_for(batch.p.float() + batch.latents.b_enc, self.k))

    def rescale(self, factor: float) -> None:
        """The magnitude's bias is in units of p."""
        self.magnitude_bias.value.mul_(factor)

    def revive(self, latents: Tensor, living: Tensor) -> None:  # noqa: ARG002  same for all
        """Begin with magnitude and gate alike."""
        zero = torch.zeros((), device=latents.device)
        self.log_scale.forget(latents, zero)
        self.magnitude_bias.forget(latents, zero)
        self.gate_bias_state.forget(latents, self.gate_bias_state.value[latents])  # b_enc has been set

    def tensors(self) -> dict[str, Tensor]:
        """Both vectors, the gate bias's moments, and the weight of the penalty."""
        gate = {name: tensor for name, tensor in self.gate_bias_state.tensors("gate_bias").items() if "." in name}
        return {
            **self.log_scale.tensors("log_scale"),
            **self.magnitude_bias.tensors("magnitude_bias"),
            **gate,
            **self.controller.tensors(),
        }
