"""Forward passes in which the rows at one site are replaced: how loss recovered is measured. Uses torch."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydrophone.capture import HostCopy, select, uncompiled, unwrap
from hydrophone.errors import CannotHook, InvalidOption
from hydrophone.loss import Rebuilt
from hydrophone.requests import pause, paused
from hydrophone.sites import Site, resolve

Batch = Mapping[str, Any]
Loss = Callable[[Any, Batch], tuple[Any, Any]]


@dataclass
class Tally:
    """Loss summed over what it was taken of."""

    sum: float = 0.0
    count: float = 0.0

    def add(self, loss: tuple[Any, Any]) -> None:
        """Take in a sum and the number of terms in it; tensors of one element are numbers, too."""
        self.sum += float(loss[0])
        self.count += float(loss[1])

    @property
    def mean(self) -> float:
        """The mean loss."""
        return self.sum / self.count


@dataclass
class Measured:
    """Losses with the rows as they are, rebuilt, and replaced by their mean or by 0; and numbers of rows."""

    clean: Tally = field(default_factory=Tally)
    rebuilt: Tally = field(default_factory=Tally)
    by_mean: Tally = field(default_factory=Tally)
    by_zero: Tally = field(default_factory=Tally)
    sequences: int = 0
    rows: int = 0
    """Rows that were replaced."""
    rows_sink: int = 0
    rows_quarantined: int = 0


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    site: str,
    rebuild: Callable[[NDArray[np.float32]], Rebuilt],
    loss: Loss | None = None,
) -> Measured:
    """Losses of ``model`` over ``batches``: with the rows at ``site`` as they are, rebuilt, all their mean, and all 0.

    ``rebuild`` takes rows float32 [n, d] without padding. Sinks, rows that are not finite and padding stay as they are
    in all four; the mean is that of the other rows of these batches. Raises :class:`InvalidOption`,
    :class:`SiteNotFound` and :class:`CannotHook`, and whatever ``rebuild``, ``loss`` and the model do.
    """
    inner = unwrap(model)
    found = resolve(inner, [site])
    if len(found) != 1:
        raise InvalidOption(f"site={site!r} names {len(found)} modules; loss recovered is of one")
    loss = loss or next_token_loss
    known = list(batches)  # twice through: the mean is known at the end of the first
    measured, replaced, total = Measured(), [], np.zeros(())
    with Replay(inner, found[0]) as replay:
        for batch in known:
            output, x = replay.look(batch)
            measured.clean.add(loss(output, batch))
            mask, x_hat = _rebuild(x, _live(batch, len(x)), rebuild, measured)
            measured.rebuilt.add(loss(replay.run(batch, mask, x_hat), batch))
            measured.sequences += _sequences(batch)
            replaced.append(mask)
            total = total + x[mask].sum(0, dtype=np.float64)
        if not measured.clean.count:
            raise InvalidOption(f"{len(known)} batches hold nothing to score: a sequence needs two tokens")
        mean = (total / max(measured.rows, 1)).astype(np.float32)
        for batch, mask in zip(known, replaced, strict=True):
            measured.by_mean.add(loss(replay.run(batch, mask, mean), batch))
            measured.by_zero.add(loss(replay.run(batch, mask, np.zeros_like(mean)), batch))
    return measured


def next_token_loss(output: Any, batch: Batch) -> tuple[float, int]:
    """Cross-entropy of each next token, in nats: its sum, and the number of tokens.

    From ``logits`` [B, T, V] and ``input_ids`` [B, T]; where ``attention_mask`` is 0 a token is neither scored nor
    scored from. Raises :class:`InvalidOption` where these are missing.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    ids = batch.get("input_ids")
    if not (isinstance(logits, Tensor) and isinstance(ids, Tensor) and logits.shape[:-1] == ids.shape):
        raise InvalidOption(
            "the default loss needs input_ids [B, T] in each batch and logits [B, T, V] in the model's output: "
            "give loss=, a function of output and batch that returns the sum of the losses and their number"
        )
    mask = batch.get("attention_mask")
    known = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    scored = (known[:, 1:] & known[:, :-1]).to(logits.device)
    total, ids = 0.0, ids.to(logits.device)
    for row, following, kept in zip(logits[:, :-1], ids[:, 1:], scored, strict=True):  # float32 logits of one at a time
        total += nn.functional.cross_entropy(row[kept].float(), following[kept], reduction="sum").item()
    return total, int(scored.sum())


class Replay:
    """Runs ``model`` with a hook on the module of ``site``, which acts on these passes and no others.

    A context manager: meanwhile the model is in evaluation mode, gradients are off and taps do not listen to the passes
    run here. Afterwards all is as it was, whatever has been raised.
    """

    def __init__(self, model: nn.Module, site: Site) -> None:
        self._model, self._site = model, site
        self._treat: Callable[[Tensor], Tensor | None] = lambda _rows: None
        self._fired = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(pause())
            stack.enter_context(_evaluating(self._model))
            stack.callback(self._hook().remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def look(self, batch: Batch) -> tuple[Any, NDArray[np.float32]]:
        """The model's output, and the rows float32 [n, d] at the site."""
        copies: list[HostCopy] = []

        def take(rows: Tensor) -> None:
            copies.append(HostCopy(rows, torch.float32))

        output = self._run(batch, take)
        return output, copies[0].numpy()

    def run(self, batch: Batch, replaced: NDArray[np.bool_], rows: NDArray[np.float32]) -> Any:
        """The model's output when ``rows``, [n, d] or one [d] for all, stand in where ``replaced`` [n] is true."""

        def put(own: Tensor) -> Tensor:
            mask = torch.from_numpy(replaced).to(own.device)
            return torch.where(mask[:, None], torch.from_numpy(rows).to(own.device, own.dtype), own)

        return self._run(batch, put)

    def _run(self, batch: Batch, treat: Callable[[Tensor], Tensor | None]) -> Any:
        if not isinstance(batch, Mapping):
            raise InvalidOption(f"a batch is a {type(batch).__name__}; give mappings of the model's arguments")
        self._treat, self._fired = treat, 0
        output = self._model(**batch)
        if self._fired != 1:
            raise CannotHook(
                f"{self._site.name} was reached {self._fired} times in a forward pass, where one is needed. "
                "If the model was compiled, call torch.compiler.reset(), or measure before compiling it"
            )
        return output

    def _hook(self) -> Any:
        module = self._site.module

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            return self._replace(output)

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            items = self._replace((*args, *kwargs.values()))
            if items is None:
                return None
            return items[: len(args)], dict(zip(kwargs, items[len(args) :], strict=True))

        if self._site.part == "input":
            return module.register_forward_pre_hook(uncompiled(before), with_kwargs=True)
        return module.register_forward_hook(uncompiled(after))

    def _replace(self, value: Any) -> Any:
        """``value`` with the site's rows treated; None, which leaves it as it is, where there is nothing to do."""
        if not paused():  # a live pass, on another thread: not ours
            return None
        tensor = select(value, self._site.element)
        if tensor is None or not tensor.ndim or not tensor.is_floating_point():
            raise CannotHook(f"{self._site.name} gives no rows of floating point numbers, but {_described(value)}")
        self._fired += 1
        rows = tensor.movedim(1, -1) if tensor.ndim == 4 else tensor  # [B, C, H, W]: a row for each place
        treated = self._treat(rows.reshape(-1, rows.shape[-1]))
        if treated is None:
            return None
        treated = treated.reshape(rows.shape)
        # in the same memory format: what follows sums in its order
        new = torch.empty_like(tensor).copy_(treated.movedim(-1, 1) if tensor.ndim == 4 else treated)
        return _exchange(value, tensor, new)


def _rebuild(
    x: NDArray[np.float32],
    live: NDArray[np.bool_],
    rebuild: Callable[[NDArray[np.float32]], Rebuilt],
    measured: Measured,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which rows of x are to be replaced, and the rows with these rebuilt; they are counted in ``measured``."""
    rebuilt = rebuild(x[live])
    mask, x_hat = live.copy(), x.copy()
    mask[live] = rebuilt.finite & ~rebuilt.sink
    x_hat[live] = rebuilt.row
    measured.rows += int(mask.sum())
    measured.rows_sink += int((rebuilt.finite & rebuilt.sink).sum())
    measured.rows_quarantined += int((~rebuilt.finite).sum())
    return mask, x_hat


def _live(batch: Batch, rows: int) -> NDArray[np.bool_]:
    """Bool [n]: which rows are not padding, where the batch has a mask with one value for each."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.numel() != rows:
        return np.ones(rows, np.bool_)
    live: NDArray[np.bool_] = (mask.reshape(-1) != 0).cpu().numpy()
    return live


def _sequences(batch: Batch) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)


def _exchange(value: Any, old: Tensor, new: Tensor) -> Any:
    """``value`` with ``new`` in the place of ``old``; what holds it is copied."""
    if value is old:
        return new
    if isinstance(value, Mapping):
        mapping: Any = copy.copy(value)
        for key in [key for key, item in value.items() if item is old]:
            mapping[key] = new
        return mapping
    items = [new if item is old else item for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module has the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.train(mode=False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
