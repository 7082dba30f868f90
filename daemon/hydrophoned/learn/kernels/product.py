"""The one dense product of a step, rows with the encoder, by the faster of the libraries that torch brings.

torch takes float32 products on a CPU to MKL, which leaves the widest vectors of processors not made by Intel unused:
there oneDNN needs about half the time. In bfloat16, and on a GPU, torch's own choice is the fast one.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor

_PART = 16 << 20  # bytes: larger results would be taken from the system and given back each time


def product(rows: Tensor, encoder: Tensor, *, out: Tensor) -> Tensor:
    """``rows`` [n, d] times the transpose of ``encoder`` [F, d], into ``out`` [n, F], all of one dtype."""
    if rows.dtype is not torch.float32 or rows.device.type != "cpu" or not _by_onednn():
        return torch.mm(rows, encoder.T, out=out)
    n = max(1, _PART // (out.element_size() * len(encoder)))
    for start in range(0, len(rows), n):
        part = rows[start : start + n]
        out[start : start + n] = torch.ops.mkldnn._linear_pointwise(part, encoder, None, "none", [], "")  # noqa: SLF001  no public call takes dense tensors there
    return out


@functools.cache
def _by_onednn() -> bool:
    """The processor has AVX-512 and is not Intel's, and this torch has the operation that leads to oneDNN."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch._C._has_mkldnn:  # noqa: SLF001  the public question is untyped
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and _vendor() not in {"GenuineIntel", ""}


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")
