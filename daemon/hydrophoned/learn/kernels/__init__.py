"""The parts of a training step that are worth a kernel, in three forms with the same functions.

``plain`` is torch operations and runs everywhere; ``cpu`` calls compiled loops and is used for float32 on a CPU where
they were built; ``fused`` holds Triton kernels for CUDA. :func:`choose` picks. What a function does is documented in
``plain``; the others are tested against it.
"""

import functools
import importlib
import logging
import os

import torch

from hydrophoned.learn.kernels import cpu, plain
from hydrophoned.learn.kernels.arrays import Adam, Latents, Pairs
from hydrophoned.learn.kernels.contract import Kernels

__all__ = ["Adam", "Kernels", "Latents", "Pairs", "choose", "plain"]

_log = logging.getLogger(__name__)


def choose(device: torch.device, dtype: torch.dtype = torch.float32) -> Kernels:
    """The kernels for this device: ``cpu`` or ``fused`` where they can be used, else ``plain``.

    ``HYDROPHONE_KERNELS=plain`` in the environment chooses ``plain`` anywhere. Where Triton is missing, too old or
    cannot build a kernel, a warning in the log says so, once.
    """
    if dtype is not torch.float32 or os.environ.get("HYDROPHONE_KERNELS") == "plain":
        return plain
    if device.type == "cpu" and cpu.available():
        return cpu
    if device.type == "cuda":
        return _fused(device) or plain
    return plain


@functools.cache
def _fused(device: torch.device) -> Kernels | None:
    """The Triton kernels, if they run on ``device``; tried out on a row of four values."""
    try:
        fused: Kernels = importlib.import_module("hydrophoned.learn.kernels.fused")
        fused.topk(torch.zeros(1, 4, device=device), torch.zeros(4, device=device), 1)
    except Exception as error:  # noqa: BLE001  whatever Triton, its compiler or its driver raises, torch's own operations do
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        _log.warning("no Triton kernels on %s, torch's own operations are used and are slower: %s", device, reason)
        return None
    return fused
