"""The parts of a training step that are worth a kernel, in three forms with the same functions.

``plain`` is torch operations and runs everywhere; ``cpu`` calls compiled loops and is used for float32 on a CPU where
they were built; ``fused`` holds Triton kernels for CUDA. :func:`choose` picks. What a function does is documented in
``plain``; the others are tested against it.
"""

import importlib
import importlib.util
import os

import torch

from hydrophoned.learn.kernels import cpu, plain
from hydrophoned.learn.kernels.arrays import Adam, Latents, Pairs
from hydrophoned.learn.kernels.contract import Kernels

__all__ = ["Adam", "Kernels", "Latents", "Pairs", "choose", "plain"]


def choose(device: torch.device, dtype: torch.dtype = torch.float32) -> Kernels:
    """The kernels for this device: ``cpu`` or ``fused`` where they can be used, else ``plain``.

    ``HYDROPHONE_KERNELS=plain`` in the environment chooses ``plain`` anywhere.
    """
    if dtype is not torch.float32 or os.environ.get("HYDROPHONE_KERNELS") == "plain":
        return plain
    if device.type == "cpu" and cpu.available():
        return cpu
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        fused: Kernels = importlib.import_module("hydrophoned.learn.kernels.fused")
        return fused
    return plain
