"""Every variant written densely from its paper's equations, for autograd in float64. Shares no code with the engine.

A code z is a whole matrix [n, F], straight-through steps are ``torch.autograd.Function``, stop-gradients are detached.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


class Jump(torch.autograd.Function):
    """p where p > theta, else 0. Backward: Rajamanoharan et al. 2024, "Jumping Ahead", eq. 11."""

    @staticmethod
    def forward(ctx, p, theta, width):
        ctx.save_for_backward(p, theta)
        ctx.width = width
        return torch.where(p > theta, p, torch.zeros_like(p))

    @staticmethod
    def backward(ctx, gradient):
        p, theta = ctx.saved_tensors
        kernel = ((p - theta).abs() / ctx.width < 0.5).to(p.dtype)
        return gradient * (p > theta).to(p.dtype), -gradient * theta / ctx.width * kernel, None


class Step(torch.autograd.Function):
    """1 where p > theta, else 0. Backward: the same paper, eq. 12; nothing to p."""

    @staticmethod
    def forward(ctx, p, theta, width):
        ctx.save_for_backward(p, theta)
        ctx.width = width
        return (p > theta).to(p.dtype)

    @staticmethod
    def backward(ctx, gradient):
        p, theta = ctx.saved_tensors
        kernel = ((p - theta).abs() / ctx.width < 0.5).to(p.dtype)
        return None, -gradient / ctx.width * kernel, None


@dataclass
class Settings:
    """What a loss needs besides parameters and rows."""

    k: int
    prefixes: tuple[int, ...] = ()
    weight: float = 0.0
    bandwidth: float = 0.3


@dataclass
class Result:
    """``main`` is the reconstruction part of ``total``; ``z`` the code [n, F]; ``gradients`` of total, by name."""

    main: Tensor
    total: Tensor
    z: Tensor
    gradients: dict[str, Tensor] = field(default_factory=dict)


def squared(P: dict[str, Tensor], x: Tensor, z: Tensor) -> Tensor:
    """Mean squared error per element."""
    return (z @ P["W_dec"] + P["b_dec"] - x).square().sum() / x.numel()


def preactivations(P: dict[str, Tensor], x: Tensor) -> Tensor:
    return (x - P["b_dec"]) @ P["W_enc"].T + P["b_enc"]


def largest(values: Tensor, k: int) -> Tensor:
    """1 at the k largest of each row, else 0."""
    return torch.zeros_like(values).scatter(1, values.topk(k, dim=1).indices, 1.0)


def topk(P, x, s):
    p = preactivations(P, x)
    z = torch.relu(p * largest(p.detach(), s.k))
    loss = squared(P, x, z)
    return Result(loss, loss, z)


def batchtopk(P, x, s):
    p = preactivations(P, x)
    wanted = min(len(x) * s.k, p.numel())
    z = torch.relu(p * largest(p.detach().reshape(1, -1), wanted).view_as(p))
    loss = squared(P, x, z)
    return Result(loss, loss, z)


def matryoshka(P, x, s):
    p = preactivations(P, x)
    z = torch.relu(p * largest(p.detach(), s.k))
    losses = []
    for end in s.prefixes:
        kept = (torch.arange(z.shape[1]) < end).to(z.dtype)
        losses.append(squared(P, x, z * kept))
    loss = torch.stack(losses).mean()
    return Result(loss, loss, z)


def jumprelu(P, x, s):
    p = preactivations(P, x)
    theta = P["log_threshold"].exp().expand_as(p)
    z = Jump.apply(p, theta, s.bandwidth)
    loss = squared(P, x, z)
    return Result(loss, loss + s.weight * Step.apply(p, theta, s.bandwidth).sum(1).mean(), z)


def gated(P, x, s):
    q = (x - P["b_dec"]) @ P["W_enc"].T
    gate = q + P["b_enc"]
    z = (gate.detach() > 0) * torch.relu(P["log_scale"].exp() * q + P["magnitude_bias"])
    loss = squared(P, x, z)
    frozen = {"W_dec": P["W_dec"].detach(), "b_dec": P["b_dec"].detach()}
    opened = torch.relu(gate)
    return Result(loss, loss + s.weight * opened.sum(1).mean() + squared(frozen, x, opened), z)


def l1(P, x, s):
    z = torch.relu(preactivations(P, x))
    loss = squared(P, x, z)
    return Result(loss, loss + s.weight * z.sum(1).mean(), z)


LOSSES = {
    "topk": topk,
    "batchtopk": batchtopk,
    "matryoshka": matryoshka,
    "jumprelu": jumprelu,
    "gated": gated,
    "l1": l1,
}


def differentiate(variant: str, parameters: dict[str, Tensor], x: Tensor, settings: Settings) -> Result:
    """Loss and gradients of ``variant`` at ``parameters``, by autograd."""
    P = {name: value.detach().clone().requires_grad_(True) for name, value in parameters.items()}
    with torch.enable_grad():
        result = LOSSES[variant](P, x, settings)
        found = torch.autograd.grad(result.total, list(P.values()), allow_unused=True)
    result.main, result.total, result.z = result.main.detach(), result.total.detach(), result.z.detach()
    result.gradients = {
        name: torch.zeros_like(P[name]) if gradient is None else gradient
        for name, gradient in zip(P, found, strict=True)
    }
    return result


def adam_step(value, m, v, steps, gradient, touched, *, rate, beta1=0.9, beta2=0.99, eps=1e-12):
    """Kingma & Ba 2015 (the form at the end of section 2) on the rows ``touched`` [F] alone, by whole arrays.

    ``steps`` [F] already counts this step. Returns the new value, m and v.
    """
    column = (slice(None),) + (None,) * (value.ndim - 1)
    here, t = touched[column], steps[column].to(value.dtype)
    new_m = torch.where(here, beta1 * m + (1 - beta1) * gradient, m)
    new_v = torch.where(here, beta2 * v + (1 - beta2) * gradient**2, v)
    t = torch.where(here, t, torch.ones_like(t))
    size = rate * torch.sqrt(1 - beta2**t) / (1 - beta1**t)
    moved = value - size * new_m / (torch.sqrt(new_v) + eps)
    return torch.where(here, moved, value), new_m, new_v
