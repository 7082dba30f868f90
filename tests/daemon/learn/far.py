"""A device simulated on the processor, that knows when it is waited for.

Inside :class:`Far`, tensors made on the device ``meta`` hold values. What a GPU's host would wait for is noted: reading
a value, results whose size depends on values, copies from the device, and copies to it that are not asked not to block.
"""

import sys
from collections import Counter

import torch
from hydrophoned.learn.kernels import Latents, plain
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
ATEN = torch.ops.aten
SIZE_DEPENDS = {
    ATEN.nonzero.default,
    ATEN.bincount.default,
    ATEN.masked_select.default,
    ATEN.repeat_interleave.Tensor,
    ATEN.unique_consecutive.default,
    ATEN._unique2.default,
    ATEN._unique.default,
    ATEN.unique_dim.default,
    ATEN._local_scalar_dense.default,
    ATEN.equal.default,
    ATEN.is_nonzero.default,
}


class FarTensor(torch.Tensor):
    """Says that it is on the far device; ``held`` is where its values are."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"FarTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} on a far tensor outside of Far")


def near(value):
    """Values of a far tensor; anything else as it is."""
    return tree_map(lambda one: one.held if isinstance(one, FarTensor) else one, value)


class _Values(TorchFunctionMode):
    """Lets ``torch.tensor`` keep its values, which it does not where the device is ``meta``."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if function is torch.tensor and device is not None and torch.device(device) == DEVICE:
            return torch.tensor(*args, **{name: value for name, value in kwargs.items() if name != "device"}).to(DEVICE)
        return function(*args, **kwargs)


class Far(TorchDispatchMode):
    """Inside, there is a far device. ``waits`` counts by the innermost function of the package that waits."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()
        self._values = _Values()

    def __enter__(self):
        self._values.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._values.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves, _ = tree_flatten((args, kwargs))
        far = {id(one.held): one for one in leaves if isinstance(one, FarTensor)}
        asked = kwargs.get("device")
        to_far = asked is not None and torch.device(asked) == DEVICE
        if to_far:
            kwargs["device"] = torch.device("cpu")
        if self._waits(function, args, kwargs, far, asked):
            self.note()
        result = function(*near(args), **near(kwargs))
        if far and asked is not None and not to_far:  # back in main memory, in memory of its own
            return result.clone() if id(result) in far else result
        if not far and not to_far:
            return result
        if to_far and isinstance(result, torch.Tensor) and not far:
            return FarTensor(result.clone() if function is ATEN._to_copy.default else result)

        def wrapped(one):
            return far[id(one)] if id(one) in far else FarTensor(one) if isinstance(one, torch.Tensor) else one

        return tree_map(wrapped, result)

    @staticmethod
    def _waits(function, args, kwargs, far, asked):
        if far and (function in SIZE_DEPENDS):
            return True
        if function in (ATEN.index.Tensor, ATEN.index_put_.default, ATEN._index_put_impl_.default):
            masks = any(isinstance(one, FarTensor) and one.dtype is torch.bool for one in args[1] if one is not None)
            return masks and (function is ATEN.index.Tensor or args[2].numel() != 1)
        if function is ATEN._to_copy.default and asked is not None:
            crosses = bool(far) != (torch.device(asked) == DEVICE) or (far and torch.device(asked) != DEVICE)
            return crosses and (bool(far) or not kwargs.get("non_blocking", False))
        if function is ATEN.copy_.default:
            to, source = args[0], args[1]
            crosses = isinstance(to, FarTensor) != isinstance(source, FarTensor)
            return crosses and not (isinstance(to, FarTensor) and source.ndim == 0)
        return False

    def note(self):
        """Count a wait."""
        frame = sys._getframe()
        while frame is not None and "/hydrophoned/" not in frame.f_code.co_filename:
            frame = frame.f_back
        place = "?" if frame is None else f"{frame.f_code.co_filename.rsplit('/', 1)[1]}:{frame.f_code.co_name}"
        self.waits[place] += 1


class FarKernels:
    """The plain kernels on far tensors, where only ``above`` waits, as in the Triton ones."""

    def __init__(self, far):
        self._far = far

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if name == "above":
                self._far.note()
            result = getattr(plain, name)(*map(_inner, args), **{key: _inner(one) for key, one in kwargs.items()})
            return tree_map(lambda one: FarTensor(one) if isinstance(one, torch.Tensor) else one, result)

        return call


def _inner(value):
    if isinstance(value, Latents):
        return Latents(**{name: near(tensor) for name, tensor in vars(value).items()})
    return near(value)
