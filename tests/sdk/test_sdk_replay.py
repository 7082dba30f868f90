"""Passes with replaced rows: what is put in, what is left alone, and that nothing remains of it afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import hydrophone
import numpy as np
import pytest
import torch
from conftest import Blocks
from hydrophone.loss import Rebuilt
from hydrophone.replay import Measured, measure, next_token_loss
from hydrophone.requests import paused
from sink import Sink
from torch import nn

SITE = "model.layers.1"


def rebuild_as(change: Any = lambda x: x, *, sinks: int = 0) -> Any:
    """A dictionary that rebuilds rows as ``change`` gives them, and calls the first ``sinks`` of each batch sinks."""

    def rebuild(x: np.ndarray) -> Rebuilt:
        sink = np.arange(len(x)) < sinks
        return Rebuilt(np.where(sink[:, None], x, change(x)).astype(np.float32), sink, np.isfinite(x).all(1))

    return rebuild


@contextmanager
def entering(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What goes into ``module``, pass by pass."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().clone()))
    yield seen
    handle.remove()


def tokens(batch: int = 2, length: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(2, 64, (batch, length), generator=torch.Generator().manual_seed(seed))}


def squares(output: torch.Tensor, _batch: Any) -> tuple[torch.Tensor, int]:
    return output.square().sum(), output.numel()


def losses(measured: Measured) -> list[float]:
    return [tally.mean for tally in (measured.clean, measured.rebuilt, measured.by_mean, measured.by_zero)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("site", [SITE, SITE + ":input", "model.layers.1.self_attn", "model", "model.embed_tokens"])
def test_rows_put_back_as_they_were_change_nothing(llama: nn.Module, site: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = type(llama)(llama.config).to(dtype).eval()
    logits: list[torch.Tensor] = []

    def loss(output: Any, batch: Any) -> tuple[float, int]:
        logits.append(output.logits)
        return next_token_loss(output, batch)

    measured = measure(model, [tokens(), tokens(1, 9)], site, rebuild_as(), loss)
    clean, rebuilt, other, other_rebuilt, by_mean, by_zero, *_ = logits
    assert torch.equal(rebuilt, clean)
    assert torch.equal(other_rebuilt, other)
    assert not torch.equal(by_mean, clean)
    assert not torch.equal(by_zero, clean)
    assert losses(measured)[0] == losses(measured)[1]
    assert (measured.rows, measured.rows_sink, measured.rows_quarantined) == (2 * 6 + 9, 0, 0)
    assert (measured.sequences, measured.clean.count) == (3, 2 * 5 + 8)


def test_what_the_next_block_is_given_in_each_of_the_four_passes(llama: nn.Module) -> None:
    batches = [tokens(2, 5), tokens(1, 7, seed=1)]
    batches[0]["attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    asked: list[int] = []

    def rebuild(x: np.ndarray) -> Rebuilt:
        asked.append(len(x))
        return rebuild_as(lambda x: 2 * x + 1, sinks=2)(x)

    with entering(llama.model.layers[2]) as seen:
        measured = measure(llama, batches, SITE, rebuild)
    assert asked == [8, 7], "padding is not asked for"
    assert (measured.rows, measured.rows_sink) == (8 + 7 - 4, 4)
    (clean, rebuilt), (other, other_rebuilt), ablated, other_ablated = seen[:2], seen[2:4], seen[4:6], seen[6:]
    padding = batches[0]["attention_mask"] == 0
    sink = torch.zeros(2, 5, dtype=torch.bool)
    sink[0, :2] = True
    left, others_left = padding | sink, torch.arange(7)[None] < 2
    assert torch.equal(rebuilt, torch.where(left[..., None], clean, 2 * clean + 1))
    assert torch.equal(other_rebuilt, torch.where(others_left[..., None], other, 2 * other + 1))
    mean = torch.cat([clean[~left], other[~others_left]]).mean(0)
    for (by_mean, by_zero), whole, bypassed in ((ablated, clean, left), (other_ablated, other, others_left)):
        torch.testing.assert_close(by_mean, torch.where(bypassed[..., None], whole, mean))
        assert torch.equal(by_mean[bypassed], whole[bypassed])
        assert torch.equal(by_zero, torch.where(bypassed[..., None], whole, 0.0))


def test_rows_that_are_not_finite_stay_and_are_counted(blocks: Blocks) -> None:
    x = torch.randn(1, 4, 8)
    x[0, 1, 3] = torch.inf
    with entering(blocks.blocks[1]) as seen:
        measured = measure(blocks, [{"x": x}], "blocks.0", rebuild_as(np.zeros_like), lambda _o, _b: (1.0, 1))
    assert (measured.rows, measured.rows_quarantined, measured.sequences) == (3, 1, 1)
    for after in seen[1:]:
        assert torch.equal(after[0, 1], seen[0][0, 1])
        assert not torch.equal(after[0, 0], seen[0][0, 0])
    assert torch.equal(seen[1][0, [0, 2, 3]], torch.zeros(3, 8))


class Pair(NamedTuple):
    label: str
    first: torch.Tensor
    second: torch.Tensor


class Returning(nn.Module):
    """A site whose value is whatever ``form`` makes of two tensors; ``read`` finds the second in it."""

    def __init__(self, form: Any, read: Any) -> None:
        super().__init__()
        self.site, self.read = Form(form), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.site(x)
        result: torch.Tensor = self.read(value)
        return result


class Form(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor) -> Any:
        return self.form(x, x + 1)


@pytest.mark.parametrize(
    ("site", "form", "read"),
    [
        ("site[1]", lambda a, b: (a, b), lambda value: value[1]),
        ("site[1]", lambda a, b: [a, b, None], lambda value: value[1]),
        ("site[2]", lambda a, b: Pair("x", a, b), lambda value: value.second),
        ("site", lambda _a, b: ("x", b), lambda value: value[1]),
        ("site[1]", lambda a, b: {"first": a, "second": b}, lambda value: value["second"]),
    ],
)
def test_the_tensor_is_exchanged_in_whatever_holds_it(site: str, form: Any, read: Any) -> None:
    x = torch.randn(3, 4)
    seen: list[torch.Tensor] = []

    def loss(output: torch.Tensor, _batch: Any) -> tuple[float, int]:
        seen.append(output)
        return 0.0, 1

    measure(Returning(form, read), [{"x": x}], site, rebuild_as(lambda x: 3 * x), loss)
    assert torch.equal(seen[0], x + 1)
    assert torch.equal(seen[1], 3 * (x + 1))
    torch.testing.assert_close(seen[2], (x + 1).mean(0).expand(3, 4))
    assert torch.equal(seen[3], torch.zeros(3, 4))


def test_rows_of_images_are_their_places() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU())
    rows: list[np.ndarray] = []

    def rebuild(x: np.ndarray) -> Rebuilt:
        rows.append(x)
        return rebuild_as()(x)

    images = torch.randn(2, 3, 4, 6)
    measured = measure(model, [{"input": images}], "0", rebuild, squares)
    assert measured.rows == 2 * 4 * 6
    assert losses(measured)[0] == losses(measured)[1]
    np.testing.assert_array_equal(rows[0], model[0](images).detach().permute(0, 2, 3, 1).reshape(-1, 5).numpy())


def test_arguments_given_by_name_are_exchanged_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Bilinear(4, 4, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner(a, input2=b)
            return result

    model, a, b = Named(), torch.randn(3, 4), torch.randn(3, 4)
    seen: list[torch.Tensor] = []

    def loss(output: torch.Tensor, _batch: Any) -> tuple[float, int]:
        seen.append(output)
        return 0.0, 1

    measure(model, [{"a": a, "b": b}], "inner:input[1]", rebuild_as(lambda x: -x), loss)
    assert torch.equal(seen[1], model(a, -b))


@pytest.mark.parametrize("culprit", ["rebuild", "loss", "model"])
def test_hooks_mode_and_gradients_are_as_they_were_after_an_exception(blocks: Blocks, culprit: str) -> None:
    blocks.train()
    blocks.blocks[2].eval()  # as a frozen part is
    modes = [module.training for module in blocks.modules()]
    seen = []

    class BrokenError(Exception):
        pass

    def rebuild(x: np.ndarray) -> Rebuilt:
        seen.append((blocks.training, torch.is_grad_enabled(), paused()))
        if culprit == "rebuild":
            raise BrokenError
        return rebuild_as()(x)

    def loss(output: torch.Tensor, _batch: Any) -> tuple[float, int]:
        if culprit == "loss" and seen:
            raise BrokenError
        return 0.0, 1

    def break_model(_module: nn.Module, _args: Any) -> None:
        if culprit == "model" and seen:
            raise BrokenError

    handle = blocks.blocks[2].register_forward_pre_hook(break_model)
    with pytest.raises(BrokenError):
        measure(blocks, [{"x": torch.randn(2, 3, 8)}], "blocks.1", rebuild, loss)
    handle.remove()
    assert seen == [(False, False, True)]
    assert [module.training for module in blocks.modules()] == modes
    assert torch.is_grad_enabled()
    assert not paused()
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in blocks.modules())
    assert blocks(torch.randn(2, 3, 8)).requires_grad


def test_taps_hear_other_threads_and_not_the_measurement(blocks: Blocks, sink: Sink) -> None:
    x = torch.randn(1, 5, 8)
    expected = blocks(x).detach()
    answers = []

    def loss(output: torch.Tensor, _batch: Any) -> tuple[float, int]:
        live = threading.Thread(target=lambda: answers.append(blocks(x).detach()))
        live.start()
        live.join()
        return float(output.square().sum()), 1

    with hydrophone.attach(blocks, ["blocks.1", "blocks.2"], name="m", version="1", daemon=str(sink.path)) as tap:
        blocks(x)
        measured = measure(blocks, [{"x": x}], "blocks.1", rebuild_as(np.zeros_like), loss)
        assert len(answers) == 4
        assert all(torch.equal(answer, expected) for answer in answers), "live passes get their own rows"
        assert losses(measured)[1] != losses(measured)[0]
        status = tap.status()
        assert status.forwards == 1 + 4
        assert [stream["fires"] for stream in status.streams] == [1 + 4] * 2
        assert [stream["captured"] for stream in status.streams] == [(1 + 4) * 5] * 2


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(self.inner(x))
        return result


@pytest.mark.parametrize(
    ("site", "error", "message"),
    [
        ("blocks.*", hydrophone.InvalidOption, "names 3 modules"),
        ("blocks.7", hydrophone.SiteNotFound, "blocks.1"),
        ("blocks 1", hydrophone.InvalidSite, "is not of the form"),
        ("blocks.1[3]", hydrophone.CannotHook, "gives no rows of floating point numbers, but torch.float32 of shape"),
    ],
)
def test_sites_that_cannot_be_measured(blocks: Blocks, site: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(blocks, [{"x": torch.randn(2, 3, 8)}], site, rebuild_as(), squares)


def test_a_module_that_runs_twice_or_never_is_told() -> None:
    with pytest.raises(hydrophone.CannotHook, match="inner was reached 2 times"):
        measure(Twice(), [{"x": torch.randn(2, 4)}], "inner", rebuild_as(), squares)
    unused = nn.ModuleDict({"a": Twice()})
    unused.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(hydrophone.CannotHook, match=r"a\.inner was reached 0 times"):
        measure(unused, [{"x": torch.randn(2, 4)}], "a.inner", rebuild_as(), squares)


def test_batches_that_cannot_be_used(llama: nn.Module, blocks: Blocks) -> None:
    with pytest.raises(hydrophone.InvalidOption, match="a batch is a Tensor"):
        measure(llama, [torch.ones(1, 3)], SITE, rebuild_as())  # type: ignore[list-item]
    with pytest.raises(hydrophone.InvalidOption, match="0 batches hold nothing to score"):
        measure(llama, [], SITE, rebuild_as())
    with pytest.raises(hydrophone.InvalidOption, match="1 batches hold nothing to score"):
        measure(llama, [tokens(2, 1)], SITE, rebuild_as())
    with pytest.raises(hydrophone.InvalidOption, match="give loss="):
        measure(blocks, [{"x": torch.randn(2, 3, 8)}], "blocks.1", rebuild_as())


def test_the_default_loss_is_the_cross_entropy_of_next_tokens_that_are_no_padding(llama: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    ids, logits = torch.randint(0, 9, (3, 5), generator=generator), torch.randn(3, 5, 9, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    expected = [
        -float(logits[row, place].log_softmax(0)[ids[row, place + 1]])
        for row, places in ((0, (0, 1, 2, 3)), (1, (0, 1)), (2, (2, 3)))
        for place in places
    ]
    total, count = next_token_loss({"logits": logits}, {"input_ids": ids, "attention_mask": mask})
    assert count == 8
    assert total == pytest.approx(sum(expected), rel=1e-5)
    batch = tokens()
    with torch.no_grad():
        output = llama(**batch, labels=batch["input_ids"])
    total, count = next_token_loss(output, batch)
    assert total / count == pytest.approx(float(output.loss), rel=1e-5)
