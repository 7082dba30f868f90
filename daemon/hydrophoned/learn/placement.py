"""Where tensors are: sending them to a device, moving all that objects hold, and counting them.

Objects are walked, so that a part that gains a tensor needs no code here: tensors in attributes, lists, dicts and
tuples are found in whatever depth, through objects of this package.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

MAIN_MEMORY: Final = torch.device("cpu")


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, from main memory without waiting for what the device is busy with.

    That is safe from memory that is not pinned: CUDA takes a copy of it before the call returns.
    """
    return tensor.to(device, non_blocking=True)


def tensors(*holders: object, apart: tuple[object, ...] = ()) -> list[Tensor]:
    """All tensors that ``holders`` hold, each once; objects ``apart`` are not entered."""
    found: dict[int, Tensor] = {}
    for tensor in _found(holders, {id(one) for one in apart}):
        found[id(tensor)] = tensor
    return list(found.values())


def move(holders: tuple[object, ...], device: torch.device, *, apart: tuple[object, ...] = ()) -> None:
    """Put all tensors that ``holders`` hold on ``device``; their attributes that name a device name this one then.

    Objects ``apart`` stay as they are. What was one tensor under two names stays one. Raises torch.OutOfMemoryError,
    before anything has changed, where the device has no room for all.
    """
    moved = {id(tensor): tensor.to(device, copy=True) for tensor in tensors(*holders, apart=apart)}
    seen = {id(one) for one in apart}
    for holder in holders:
        _replaced(holder, moved, device, seen)


def _ours(value: object) -> bool:
    return type(value).__module__.startswith("hydrophoned.learn") and hasattr(value, "__dict__")


def _found(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _found(item, seen)
    elif isinstance(value, dict):
        yield from _found(list(value.values()), seen)
    elif _ours(value) and id(value) not in seen:
        seen.add(id(value))
        yield from _found(vars(value), seen)


def _replaced(value: Any, moved: dict[int, Tensor], device: torch.device, seen: set[int]) -> Any:
    """``value`` with its tensors replaced; lists, dicts and objects are changed in place, tuples made anew."""
    if isinstance(value, Tensor):
        return moved[id(value)]
    if isinstance(value, torch.device):
        return device
    if isinstance(value, tuple):
        items = [_replaced(item, moved, device, seen) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if id(value) in seen or not (isinstance(value, (list, dict)) or _ours(value)):
        return value
    seen.add(id(value))
    if isinstance(value, list):
        value[:] = [_replaced(item, moved, device, seen) for item in value]
    else:
        held = value if isinstance(value, dict) else vars(value)
        held.update({name: _replaced(item, moved, device, seen) for name, item in held.items()})
    return value
