"""Hooks: what runs inside the user's model. With ``replay``, the only module of the SDK that uses torch.

A hook copies the rows, appends them to the buffer and returns; it never waits for a device, a lock held for long or
the network, and no exception leaves it. On CUDA the copy goes to pinned memory without blocking, and an event
recorded on the current stream is waited for by the sending thread; that path follows PyTorch's documented use of
events and pinned memory, but has not been run on a GPU.
"""

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydrophone.errors import CannotHook, InvalidOption
from hydrophone.forward import Columns, Forward
from hydrophone.requests import UNSAMPLED, RequestBook, paused
from hydrophone.sites import Site
from hydrophone.streams import Stream

T = TypeVar("T")
DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Dtypes that are sent, by name."""

_SENT_AS: Final = {torch.float64: torch.float32} | {dtype: dtype for dtype in DTYPES.values()}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_ID_NAMES: Final = ("input_ids", "decoder_input_ids", "ids", "idx", "tokens", "token_ids")
_CACHE_NAMES: Final = ("cache", "past_key_values", "cache_params")
"""Transformers 5 says ``cache``; earlier ones the others."""
_RECORD_BYTES: Final = 512
"""Memory of a capture besides its rows, roughly."""


class HostCopy:
    """A private copy of a tensor in host memory; on CUDA it arrives when ``event`` has happened."""

    __slots__ = ("event", "tensor")

    def __init__(self, tensor: Tensor, dtype: torch.dtype | None = None) -> None:
        if tensor.requires_grad:
            tensor = tensor.detach()
        self.event: Any = None
        if tensor.is_cpu:
            if dtype is None or dtype is tensor.dtype:
                plain = tensor.is_contiguous()
                self.tensor = tensor.clone() if plain else tensor.clone(memory_format=torch.contiguous_format)
            else:
                self.tensor = tensor.to(dtype, memory_format=torch.contiguous_format, copy=True)
        elif tensor.is_cuda:
            source = tensor if dtype is None else tensor.to(dtype)
            self.tensor = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self.tensor.copy_(source, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record(torch.cuda.current_stream(tensor.device))
        else:
            self.tensor = tensor.to("cpu", dtype, copy=True).contiguous()

    def numpy(self) -> NDArray[Any]:
        """The values; bfloat16 as uint16 holding its bits. Waits for the device, without the GIL."""
        if self.event is not None:
            self.event.synchronize()
            self.event = None
        if self.tensor.dtype is torch.bfloat16:
            return self.tensor.view(torch.int16).numpy().view(np.uint16)
        return self.tensor.numpy()


class Capture:
    """Rows taken by one call of a hook: ``batch`` times ``length`` rows of width ``width``."""

    __slots__ = ("batch", "copy", "dtype", "forward", "length", "nbytes", "rows", "stream", "taken", "width")

    def __init__(self, stream: Stream, forward: Forward, copy: HostCopy, batch: int, length: int) -> None:
        self.stream = stream
        self.forward: Forward | None = forward
        self.copy = copy
        self.batch = batch
        self.length = length
        self.rows = batch * length
        tensor = copy.tensor
        self.width = tensor.shape[-1]
        self.nbytes = tensor.nbytes + _RECORD_BYTES
        self.taken = forward.taken
        self.dtype = _NAMES[tensor.dtype]

    def columns(self) -> Columns:
        """What describes the rows."""
        assert self.forward is not None  # noqa: S101  set above
        return self.forward.columns(self.batch, self.length)

    def values(self) -> NDArray[Any]:
        """All captured rows [batch * length, d], padding included."""
        return self.copy.numpy().reshape(self.rows, self.width)


class Watch(NamedTuple):
    """Whom the hooks tell: ``failed`` takes an exception that was caught, ``completed`` ends each forward pass."""

    failed: Callable[[BaseException], None]
    completed: Callable[[], None]


class _Running(threading.local):
    """The forward pass in progress on this thread, and the module that began it."""

    owner: nn.Module | None = None
    forward: Forward | None = None


class Hooks:
    """The hooks of one tap on one model. ``put`` takes each :class:`Capture`.

    Raises :class:`CannotHook` for a model compiled with ``fullgraph=True``, which admits no hooks of this kind.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[tuple[Site, Stream]],
        book: RequestBook,
        put: Callable[[Capture], None],
        watch: Watch,
        *,
        dtype: str | None = None,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise InvalidOption(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        self._put = put
        self._watch = watch
        self._dtype = None if dtype is None else DTYPES[dtype]
        self._running = _Running()
        self._root = _Root(unwrap(model), book)
        self._handles: list[Any] = []
        try:
            roots = [model] if unwrap(model) is model else [model, unwrap(model)]
            for root in roots:
                self._hook_root(root)
            for site, stream in sites:
                self._hook_site(site, stream)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take all hooks away; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook_root(self, module: nn.Module) -> None:
        running, root, watch = self._running, self._root, self._watch

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            try:
                if paused():
                    return
                # An outer wrapper may have begun this forward already; an interrupted one never ended.
                if running.owner is None or running.owner is module:
                    running.owner = module
                    running.forward = None
                    running.forward = root.begin(args, kwargs)
            except Exception as error:  # noqa: BLE001  nothing that goes wrong here may reach the model
                watch.failed(error)

        def after(module: nn.Module, _args: Any, output: Any) -> None:
            try:
                if running.owner is module and not paused():
                    forward, running.forward, running.owner = running.forward, None, None
                    if output is not None:  # None: the forward raised
                        watch.completed()
                        root.end(forward, output)
            except Exception as error:  # noqa: BLE001  nothing that goes wrong here may reach the model
                watch.failed(error)

        self._handles.append(module.register_forward_pre_hook(uncompiled(before), with_kwargs=True))
        self._handles.append(module.register_forward_hook(uncompiled(after), always_call=True))

    def _hook_site(self, site: Site, stream: Stream) -> None:
        take = self._taker(site, stream)
        watch = self._watch

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            try:
                take(output)
            except Exception as error:  # noqa: BLE001  nothing that goes wrong here may reach the model
                watch.failed(error)

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            try:
                take((*args, *kwargs.values()))
            except Exception as error:  # noqa: BLE001  nothing that goes wrong here may reach the model
                watch.failed(error)

        if site.part == "input":
            self._handles.append(site.module.register_forward_pre_hook(uncompiled(before), with_kwargs=True))
        else:
            self._handles.append(site.module.register_forward_hook(uncompiled(after)))

    def _taker(self, site: Site, stream: Stream) -> Callable[[Any], None]:
        """What a hook of ``site`` does with the value it sees."""
        running, book, put, dtype, index = self._running, self._root.book, self._put, self._dtype, site.element

        def take(value: Any) -> None:
            if paused():
                return
            tensor = value if type(value) is Tensor and not index else select(value, index)
            forward = running.forward
            if forward is None:
                # A checkpointed block that is computed again in the backward pass has been seen already.
                if torch._C._current_graph_task_id() != -1:  # noqa: SLF001  autograd tells it nowhere else
                    return
                forward = Forward()
            if tensor is None:
                stream.fire(1, taken=True)
                stream.drop("no_tensor", 1)
            elif forward.assignment is UNSAMPLED:
                stream.fire(_rows(tensor), taken=False)
            else:
                _capture(tensor, stream, forward, book=book, put=put, dtype=dtype)

        return take


class _Root:
    """Reads the arguments of the whole model's forward."""

    def __init__(self, model: nn.Module, book: RequestBook) -> None:
        self.book = book
        self._names = list(inspect.signature(model.forward).parameters)

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Forward:
        forward = Forward()
        named = dict(zip(self._names, args, strict=False)) if args else {}
        named.update(kwargs)
        ids_name, ids = _first_named(named, _ID_NAMES)
        if not isinstance(ids, Tensor):
            ids = None
        elif ids.ndim == 1:
            ids = ids[None]
        embeds = named.get("inputs_embeds")
        main = ids if ids is not None else embeds if isinstance(embeds, Tensor) else _first_tensor(named.values())
        if main is None or main.ndim == 0:
            return forward
        forward.batch = main.shape[0] if main.ndim > 1 else 1
        if main.ndim == 3 or ids is not None:
            forward.length = main.shape[1]
        _, cache = _first_named(named, _CACHE_NAMES)
        if cache is not None:
            forward.past = self._past(cache)
        assignment = self.book.assign(forward.batch, cache, forward.past)
        forward.assignment = assignment
        if cache is not None and assignment is not None:
            self.book.remember(cache, assignment, forward.batch, forward.past + (forward.length or 0))
        if assignment is not None and assignment is not UNSAMPLED and forward.length is not None:
            prefix = "decoder_" if ids_name == "decoder_input_ids" else ""
            self._record(forward, ids, named.get(prefix + "attention_mask"), named.get(prefix + "position_ids"))
        return forward

    def end(self, forward: Forward | None, output: Any) -> None:
        """Remember the KV cache that this forward began, so that the next one finds it."""
        if forward is None or forward.assignment is None or forward.batch is None or isinstance(output, Tensor):
            return
        cache = next((found for name in _CACHE_NAMES if (found := _field(output, name)) is not None), None)
        if cache is not None:
            length = forward.past + (forward.length or 0)
            self.book.remember(cache, forward.assignment, forward.batch, length)

    @staticmethod
    def _record(forward: Forward, ids: Tensor | None, mask: Any, positions: Any) -> None:
        if ids is not None:
            forward.ids = HostCopy(ids)
        if isinstance(mask, Mapping):
            mask = _first_tensor(mask.values())
        if isinstance(mask, Tensor):
            if mask.ndim == 2 and mask.shape[0] == forward.batch:
                forward.mask = HostCopy(mask)
                return
            if mask.ndim == 4:  # [B, 1, T, S]: a column that is padding is not visible to itself either
                visible = mask.diagonal(forward.past, -2, -1)[:, 0]
                if visible.shape == (forward.batch, forward.length):
                    forward.visible = HostCopy(visible > -1 if visible.is_floating_point() else visible)
        if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] == forward.length:
            forward.positions = HostCopy(positions)

    def _past(self, cache: Any) -> int:
        length = getattr(cache, "get_seq_length", None)
        if length is None:
            return int(cache[0][0].shape[-2]) if isinstance(cache, tuple) and cache else self.book.length(cache)
        past = length()
        if isinstance(past, Tensor) and not past.is_cpu:  # reading it would wait for the device
            return self.book.length(cache)
        return int(past)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``'s wrapper, whose paths are the user's; else the model itself.

    Raises :class:`CannotHook` if it was compiled with ``fullgraph=True``.
    """
    if not isinstance(model, nn.Module):
        raise InvalidOption(f"model is a {type(model).__name__}, not a torch.nn.Module")
    inner = getattr(model, "_orig_mod", None)
    if not isinstance(inner, nn.Module):
        return model
    context = getattr(model, "dynamo_ctx", None)
    if getattr(context, "fullgraph", False) or getattr(context, "nopython", False):
        raise CannotHook(
            "the model is compiled with fullgraph=True, which admits no hooks that copy rows out: "
            "compile it without fullgraph, and attach before its first call"
        )
    return inner


def _capture(
    tensor: Tensor,
    stream: Stream,
    forward: Forward,
    *,
    book: RequestBook,
    put: Callable[[Capture], None],
    dtype: torch.dtype | None,
) -> None:
    rows = _rows(tensor)
    target = dtype if dtype is not None and tensor.is_floating_point() else _SENT_AS.get(tensor.dtype)
    reason = None
    assignment = forward.assignment
    layout = _layout(tensor, forward)
    if layout is None:
        reason = "unsupported_shape"
    elif target is None:
        reason = "unsupported_dtype"
    elif forward.batch is None:
        forward.batch = layout[0]
        assignment = forward.assignment = book.assign(layout[0])
    elif layout[0] != forward.batch:
        reason = "batch_mismatch"
    if reason is None and assignment is None:
        reason = "request_mismatch"
    if reason is None and tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        reason = "cuda_graph"
    taken = assignment is not UNSAMPLED
    stream.fire(rows, taken=taken)
    if reason is not None:
        stream.drop(reason, rows)
    elif taken and layout is not None:
        if tensor.ndim == 4:
            tensor = tensor.permute(0, 2, 3, 1)
        put(Capture(stream, forward, HostCopy(tensor, target), layout[0], layout[1]))


def _layout(tensor: Tensor, forward: Forward) -> tuple[int, int] | None:
    """Number of sequences and rows of each, or None if the shape holds no rows."""
    shape = tensor.shape
    if len(shape) == 3:
        layout = (shape[0], shape[1])
    elif len(shape) == 2:
        batch, length = forward.batch, forward.length
        flat = batch is not None and length is not None and shape[0] == batch * length
        layout = (batch or 1, length or 1) if flat else (shape[0], 1)
    elif len(shape) == 4:
        layout = (shape[0], shape[2] * shape[3])
    elif len(shape) == 1:
        layout = (1, 1)
    else:
        return None
    return layout if tensor.numel() else None


def _rows(tensor: Tensor) -> int:
    if tensor.ndim == 0:
        return 1
    width = tensor.shape[1] if tensor.ndim == 4 else tensor.shape[-1]
    return tensor.numel() // max(1, width)


def select(value: Any, index: int | None) -> Tensor | None:
    """The tensor at ``index`` of a tuple, list or mapping, or the first tensor."""
    if isinstance(value, Tensor):
        return None if index else value
    items = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(items, (tuple, list)):
        return None
    if index is None:
        return _first_tensor(items)
    found = items[index] if index < len(items) else None
    return found if isinstance(found, Tensor) else None


def _first_named(named: Mapping[str, Any], names: Iterable[str]) -> tuple[str, Any]:
    """The first of ``names`` whose value is not None, and the value; plain, as it runs before each forward."""
    for name in names:
        value = named.get(name)
        if value is not None:
            return name, value
    return "", None


def _field(output: Any, name: str) -> Any:
    """A field of a model's output; mappings are asked by key, as their old attribute names warn."""
    if isinstance(output, Mapping):
        return output[name] if name in output else None  # noqa: SIM401  ``get`` is not everywhere overridden alike
    return getattr(output, name, None)


def _first_tensor(values: Iterable[Any]) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)


def uncompiled(hook: Callable[..., T]) -> Callable[..., T]:
    """Keep a hook out of compiled graphs: it is called between them."""
    return cast("Callable[..., T]", torch.compiler.disable(hook))  # type: ignore[no-untyped-call]
