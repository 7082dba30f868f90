"""The parts of a training step that are worth a kernel, in three forms with the same functions.

``plain`` is torch operations and runs everywhere; ``cpu`` calls compiled loops and is used for float32 on a CPU where
they were built; ``fused`` holds Triton kernels for CUDA. :func:`choose` picks. What a function does is documented in
``plain``; the others are tested against it.
"""

import importlib.util

import torch

from hydrophoned.learn.kernels import cpu, plain
from hydrophoned.learn.kernels.arrays import Adam, Latents, Pairs
from hydrophoned.learn.kernels.contract import Kernels

__all__ = ["Adam", "Kernels", "Latents", "Pairs", "choose", "plain"]


def choose(device: torch.device, dtype: torch.dtype = torch.float32) -> Kernels:
    """The kernels for this device: ``cpu`` or ``fused`` where they can be used, else ``plain``."""
    if dtype is torch.float32:
        if device.type == "cpu" and cpu.available():
            return cpu
        if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
            from hydrophoned.learn.kernels import fused  # noqa: PLC0415  Triton is there only beside CUDA

            return fused
    return plain
