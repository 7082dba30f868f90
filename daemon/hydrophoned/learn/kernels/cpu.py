"""The kernels of ``plain`` as compiled loops for float32 on a CPU, called through ctypes without the GIL.

They are built when the package is installed and a C++ compiler is there (``hatch_build.py``), once for each
instruction set; without them the daemon runs on ``plain``.
"""

import ctypes
import functools
import platform
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hydrophoned.learn.kernels import plain
from hydrophoned.learn.kernels.arrays import Adam, Latents, Pairs

VERSION: Final = 3
_LEVELS: Final = {"AVX512": ("v4", "v3", "base"), "AVX2": ("v3", "base")}


@functools.cache
def available() -> bool:
    """Whether compiled kernels for this machine were built."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    levels = _LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("base",))
    for level in levels:
        path = Path(__file__).parent / "built" / f"cpu-{platform.machine().lower()}-{level}.so"
        if path.exists():
            _share_openmp()
            library = ctypes.CDLL(str(path))
            if library.hydrophone_kernels_version() == VERSION:
                return _typed(library)
    return None


def _share_openmp() -> None:
    """Make the symbols of torch's own OpenMP runtime visible: two runtimes would spin against each other."""
    folder = Path(torch.__file__).parent
    found = [*(folder / "lib").glob("libgomp*"), *(folder.parent / "torch.libs").glob("libgomp*")]
    ctypes.CDLL(str(found[0]) if found else "libgomp.so.1", mode=ctypes.RTLD_GLOBAL)


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer: Any = ctypes.c_void_p
    size: Any = ctypes.c_int64
    integer: Any = ctypes.c_int
    real: Any = ctypes.c_float
    library.hydrophone_topk.argtypes = [pointer, integer, pointer, size, integer, integer, pointer, pointer, integer]
    library.hydrophone_topk.restype = None
    count = [pointer, integer, pointer, size, integer, real, pointer]
    library.hydrophone_above_count.argtypes = [*count, integer]
    library.hydrophone_above_count.restype = size
    library.hydrophone_above_fill.argtypes = [*count, pointer, pointer, integer]
    library.hydrophone_above_fill.restype = None
    library.hydrophone_reconstruct.argtypes = [*[pointer] * 5, size, integer, integer, *[pointer] * 3, integer]
    library.hydrophone_reconstruct.restype = None
    library.hydrophone_misfit.argtypes = [*[pointer] * 6, size, integer, pointer, integer]
    library.hydrophone_misfit.restype = integer
    numbers = [size, integer, integer, integer, *[real] * 6]
    library.hydrophone_update.argtypes = [*[pointer] * 6, *numbers, integer, *[pointer] * 13, integer]
    library.hydrophone_update.restype = integer
    return library


def topk(p: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See :func:`plain.topk`."""
    n, F = p.shape
    if not 0 < k <= F:
        raise ValueError(f"k = {k} is outside 1..{F}")
    index, value = torch.empty(n, k, dtype=torch.int32), torch.empty(n, k)
    _run("topk", *_matrix(p), bias, n, F, k, index, value)
    return index, value


def above(p: Tensor, bias: Tensor, threshold: float) -> Pairs:
    """See :func:`plain.above`."""
    n, F = p.shape
    offsets = torch.empty(n + 1, dtype=torch.int64)
    count = _run("above_count", *_matrix(p), bias, n, F, threshold, offsets)
    index, value = torch.empty(count, dtype=torch.int32), torch.empty(count)
    _run("above_fill", *_matrix(p), bias, n, F, threshold, offsets, index, value)
    return Pairs(offsets, index, value)


def reconstruct(pairs: Pairs, W_dec: Tensor, target: Tensor, *, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`plain.reconstruct`."""
    n, d = target.shape
    error, slope = torch.empty(n, d), torch.empty(len(pairs.index))
    h = torch.empty(n * groups, d) if groups > 1 else None
    _run("reconstruct", *pairs, W_dec, target.contiguous(), n, groups, d, error, h, slope)
    return error, error if h is None else h, slope


def decode(pairs: Pairs, W_dec: Tensor) -> Tensor:
    """See :func:`plain.decode`."""
    return plain.decode(pairs, W_dec)


def misfit(pairs: Pairs, W_dec: Tensor, b_dec: Tensor, target: Tensor) -> Tensor:
    """See :func:`plain.misfit`."""
    n, d = target.shape
    sums = torch.empty(2 + d, dtype=torch.float64)
    if _run("misfit", *pairs, W_dec, b_dec, target.contiguous(), n, d, sums):
        raise MemoryError(f"no memory to sum up rows of width {d}")
    return sums


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
    """See :func:`plain.update`."""
    F, d = latents.W_dec.shape
    gradient, fired = torch.empty(d), torch.empty(F, dtype=torch.int32)
    parameters = (latents.W_dec, latents.W_enc, latents.b_enc, latents.W_half)
    moments = (latents.m_dec, latents.v_dec, latents.m_enc, latents.v_enc, latents.m_bias, latents.v_bias)
    sizes = (len(pairs.offsets) - 1, groups, d, F)
    constants = (scale, adam.rate, adam.rate * adam.encoder, adam.beta1, adam.beta2, adam.eps, int(train_bias))
    inputs = (*pairs, slope.contiguous(), h.contiguous(), x.contiguous())
    if _run("update", *inputs, *sizes, *constants, *parameters, *moments, latents.steps, fired, gradient):
        raise MemoryError(f"no memory to order {len(pairs.index)} active pairs by latent")
    return gradient, fired


def _matrix(p: Tensor) -> tuple[Tensor, int]:
    half = p.dtype is torch.bfloat16
    if not half and p.dtype is not torch.float32:
        raise TypeError(f"pre-activations are {p.dtype}, not bfloat16 or float32")
    return p.contiguous(), int(half)


def _run(name: str, *arguments: Any) -> Any:
    """Call a function with tensors as pointers, and torch's number of threads last."""
    library = _library()
    if library is None:
        raise RuntimeError("the compiled kernels are not here: reinstall with a C++ compiler, or use the plain ones")
    # the tensors live in `arguments` until the call has returned
    plain_arguments = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    return getattr(library, f"hydrophone_{name}")(*plain_arguments, torch.get_num_threads())
