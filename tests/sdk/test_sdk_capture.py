"""Rows that arrive are those of a plain forward hook, each with its request, position, phase and token."""

import threading

import hydrophone
import numpy as np
import pytest
import torch
from conftest import Blocks
from sink import Row, Sink
from torch import nn


class Plain:
    """A plain hook beside ours: the outputs of ``module``, as copies."""

    def __init__(self, module: nn.Module) -> None:
        self.outputs: list[torch.Tensor] = []
        self.handle = module.register_forward_hook(lambda _m, _a, output: self.outputs.append(output.detach().clone()))


def bits(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy().tobytes()


def attach(model: nn.Module, sink: Sink, sites: list[str] | str, **options: object) -> hydrophone.Tap:
    return hydrophone.attach(model, sites, name="m", version="1", daemon=str(sink.path), **options)  # type: ignore[arg-type]


PROMPTS = {
    "none": (torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[1, 1, 1, 1, 1]])),
    "left": (torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])),
    "right": (torch.tensor([[5, 6, 7, 0, 0], [1, 2, 3, 4, 5]]), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])),
}


def expected_rows(
    outputs: list[torch.Tensor], prompt: torch.Tensor, mask: torch.Tensor, answer: torch.Tensor, ids: list[str]
) -> list[Row]:
    """What must arrive for a generation, worked out one row at a time."""
    rows = []
    following = mask.sum(1).tolist()
    for step, output in enumerate(outputs):
        for element, request in enumerate(ids):
            if step == 0:
                position = 0
                for column in range(prompt.shape[1]):
                    if mask[element, column]:
                        token = int(prompt[element, column])
                        rows.append(Row(request, 0, position, 0, token, bits(output[element, column])))
                        position += 1
            else:
                token = int(answer[element, step - 1])
                rows.append(Row(request, 0, following[element], 1, token, bits(output[element, 0])))
                following[element] += 1
    return rows


@pytest.mark.parametrize("padding", PROMPTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_generated_rows_equal_a_plain_hook_bit_for_bit(
    llama: nn.Module, sink: Sink, padding: str, dtype: torch.dtype
) -> None:
    prompt, mask = PROMPTS[padding]
    ids = [f"r{element}" for element in range(len(prompt))]
    model = llama.to(dtype)
    plain = Plain(model.model.layers[1])
    try:
        with attach(model, sink, "model.layers.1") as tap:
            with tap.request(id=ids):
                answer = model.generate(prompt, attention_mask=mask, max_new_tokens=5, do_sample=False)
            assert tap.flush()
        answer = answer[:, prompt.shape[1] :]
        assert sorted(sink.rows()) == sorted(expected_rows(plain.outputs, prompt, mask, answer, ids))
        assert sink.batches[0][2].schema.metadata[b"hydrophone.dtype"].decode() == str(dtype).removeprefix("torch.")
    finally:
        plain.handle.remove()
        llama.to(torch.float32)


def test_generated_rows_equal_full_recomputation(llama: nn.Module, sink: Sink) -> None:
    prompt, mask = PROMPTS["left"]
    with attach(llama, sink, "model.layers.1") as tap, tap.request(id=["a", "b"]):
        answer = llama.generate(prompt, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for element, request in enumerate(["a", "b"]):
        rows = sorted((row for row in sink.rows() if row.request == request), key=lambda row: row.position)
        sequence = answer[element][-int(mask[element].sum()) - 6 :][:-1][None]  # the last token is never fed in
        plain = Plain(llama.model.layers[1])
        with torch.no_grad():
            llama(sequence)
        plain.handle.remove()
        assert [row.position for row in rows] == list(range(sequence.shape[1]))
        assert [row.token for row in rows] == sequence[0].tolist()
        captured = np.stack([np.frombuffer(row.x, np.float32) for row in rows])
        np.testing.assert_allclose(captured, plain.outputs[0][0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_without_a_scope_a_generation_is_one_request_per_element(llama: nn.Module, sink: Sink, cache: str) -> None:
    prompt, mask = PROMPTS["left"]
    with attach(llama, sink, "model.layers.2") as tap:
        for _ in range(2):
            llama.generate(
                prompt, attention_mask=mask, max_new_tokens=4, do_sample=False, cache_implementation=cache,
                disable_compile=True,
            )  # fmt: skip
        assert tap.flush()
    owners: dict[str, list[int]] = {}
    for row in sink.rows():
        owners.setdefault(row.request, []).append(row.position)
    assert sorted(map(sorted, owners.values())) == [list(range(6))] * 2 + [list(range(8))] * 2


def test_a_cache_made_by_the_model_is_followed(llama: nn.Module, sink: Sink) -> None:
    with attach(llama, sink, "model.layers.0") as tap, torch.no_grad():
        output = llama(torch.tensor([[3, 4, 5]]), use_cache=True)
        output = llama(torch.tensor([[6]]), cache=output.cache, use_cache=True)
        llama(torch.tensor([[7, 8]]), cache=output.cache, use_cache=True)
        assert tap.flush()
    rows = sink.rows()
    assert len({row.request for row in rows}) == 1
    assert [(row.position, row.phase) for row in rows] == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 0), (5, 0)]


def test_several_threads_keep_their_requests_apart(llama: nn.Module, sink: Sink) -> None:
    def serve(name: str, length: int) -> None:
        with tap.request(id=name):
            llama.generate(torch.arange(1, length + 1)[None], max_new_tokens=8, do_sample=False)

    with attach(llama, sink, "model.layers.1") as tap:
        threads = [threading.Thread(target=serve, args=(f"t{length}", length)) for length in (3, 5, 9, 14)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for length in (3, 5, 9, 14):
        rows = [row for row in sink.rows() if row.request == f"t{length}"]
        assert [row.position for row in rows] == list(range(length + 7))
        assert [row.token for row in rows[:length]] == list(range(1, length + 1))


def test_detach_leaves_the_model_as_it_was(llama: nn.Module, sink: Sink) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = llama(ids).logits
        tap = attach(llama, sink, ["model.layers.*", "model.layers.*:input"])
        during = llama(ids).logits
        tap.detach()
        after = llama(ids).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    for module in llama.modules():
        for hooks in (
            module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called,
            module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs,
        ):  # fmt: skip
            assert not hooks
    tap.detach()  # a second time does nothing


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_rows_are_copies_in_every_grad_mode(blocks: Blocks, sink: Sink, mode: str) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = blocks

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).mul_(0)  # written over after the hook has seen it

    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = blocks(x)
    model = InPlace()
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    with attach(model, sink, "inner") as tap, context():
        output = model(x)
        assert tap.flush()
    assert not output.any()
    np.testing.assert_array_equal(sink.values(), expected.reshape(6, 8).numpy())
    assert [(row.sequence, row.position) for row in sink.rows()] == [(0, 0), (0, 1), (0, 2)] * 2


def test_training_gives_the_same_gradients_and_checkpointing_no_rows_twice(blocks: Blocks, sink: Sink) -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = blocks

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    x = torch.randn(2, 3, 8)
    blocks(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in blocks.parameters()]
    blocks.zero_grad()
    model = Checkpointed()
    with attach(model, sink, "inner.blocks.1"):
        model(x).sum().backward()
    assert all(torch.equal(want, got.grad) for want, got in zip(expected, blocks.parameters(), strict=True))
    assert len(sink.rows()) == 6


def test_input_tuple_elements_and_keyword_inputs(sink: Sink) -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor, *, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + bias, x - bias

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pair(x, bias=torch.ones_like(x))[1]

    model, x = Model(), torch.randn(1, 2, 4)
    sites = ["pair", "pair[1]", "pair:input", "pair:input[1]", "pair:output[0]", "pair[7]"]
    with attach(model, sink, sites) as tap:
        model(x)
        assert tap.flush()
        dropped = {report["stream"]: report["dropped"] for report in tap.status().streams}
    x = x[0].numpy()
    for site, expected in [
        ("pair", x + 1),
        ("pair[0]", x + 1),
        ("pair[1]", x - 1),
        ("pair:input", x),
        ("pair:input[1]", x * 0 + 1),
    ]:
        np.testing.assert_array_equal(sink.values(f"/{site}"), expected)
    assert dropped["m@1/pair[7]"] == {"no_tensor": 1}


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((3, 8), [(0, 0), (1, 0), (2, 0)]),
        ((2, 4, 8), [(0, p) for p in range(4)] + [(1, p) for p in range(4)]),
        ((8,), [(0, 0)]),
    ],
)
def test_shapes_of_outputs(blocks: Blocks, sink: Sink, shape: tuple[int, ...], rows: list[tuple[int, int]]) -> None:
    x = torch.randn(*shape)
    with attach(blocks, sink, "blocks.2") as tap:
        plain = Plain(blocks.blocks[2])
        blocks(x)
        plain.handle.remove()
        assert tap.flush()
    order = list(dict.fromkeys(row.request for row in sink.rows()))
    assert [(order.index(row.request), row.position) for row in sink.rows()] == rows
    np.testing.assert_array_equal(sink.values(), plain.outputs[0].detach().reshape(-1, 8).numpy())


def test_images_give_one_row_for_each_place(sink: Sink) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)), torch.randn(2, 3, 4, 6)
    with attach(model, sink, "0"):
        output = model(x).detach()
    np.testing.assert_array_equal(sink.values(), output.permute(0, 2, 3, 1).reshape(-1, 5).numpy())
    assert [row.position for row in sink.rows()] == list(range(24)) * 2


def test_flattened_tokens_keep_their_positions(sink: Sink) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.flat = nn.Embedding(16, 4), nn.Identity()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  the hook reads it
            return self.flat(self.embed(input_ids).view(-1, 4))

    ids, mask = torch.tensor([[9, 1, 2], [3, 4, 5]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    model = Flat()
    with attach(model, sink, "flat"):
        model(ids, attention_mask=mask)
    assert [(row.position, row.token) for row in sink.rows()] == [(0, 1), (1, 2), (0, 3), (1, 4), (2, 5)]


def test_float64_is_sent_as_float32_and_a_dtype_can_be_asked_for(blocks: Blocks, sink: Sink) -> None:
    model, x = blocks.double(), torch.randn(1, 2, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)[0]
    outer = nn.Sequential(model)
    with attach(outer, sink, "0"):
        outer(x)
    np.testing.assert_array_equal(sink.values("/0"), expected.float().numpy())
    with hydrophone.attach(outer, "0", name="half", daemon=str(sink.path), dtype="float16") as tap:
        outer(x)
        assert tap.flush()
        np.testing.assert_array_equal(sink.values(tap.streams[0]), expected.half().numpy())


def test_what_is_not_rows_is_dropped_and_counted(sink: Sink) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep, self.whole, self.other, self.none = (nn.Identity() for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.deep(x[None, None])
            self.whole(x.long())
            self.other(x[:1])
            self.none("text")
            return x

    model = Odd()
    with attach(model, sink, ["deep", "whole", "other", "none"]) as tap:
        model(torch.ones(2, 3, 4))
        assert tap.flush()
        dropped = {report["stream"].partition("/")[2]: report["dropped"] for report in tap.status().streams}
        assert tap.status().dropped == {
            "unsupported_shape": 6,
            "unsupported_dtype": 6,
            "batch_mismatch": 3,
            "no_tensor": 1,
        }
    assert dropped["other"] == {"batch_mismatch": 3}
    assert not sink.batches


def test_ids_that_do_not_fit_the_batch_are_counted(blocks: Blocks, sink: Sink) -> None:
    with attach(blocks, sink, "blocks.0") as tap, tap.request(id=["a", "b"]):
        blocks(torch.randn(3, 2, 8))
        assert tap.status().dropped == {"request_mismatch": 6}
        blocks(torch.randn(4, 1, 8))
        assert tap.flush()
    assert [(row.request, row.sequence) for row in sink.rows()] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_a_width_that_changes_is_dropped_and_counted(sink: Sink) -> None:
    model = nn.Sequential(nn.Identity())
    with attach(model, sink, "0") as tap:
        model(torch.ones(1, 2, 4))
        assert tap.flush()
        model(torch.ones(1, 2, 6))
        assert tap.flush()
        assert tap.status().dropped == {"width_changed": 2}


def test_a_site_called_by_itself_is_a_request_of_its_own(blocks: Blocks, sink: Sink) -> None:
    with attach(blocks, sink, "blocks.0"):
        blocks.blocks[0](torch.randn(2, 3, 8))
    assert len({row.request for row in sink.rows()}) == 2
    assert len(sink.rows()) == 6


@pytest.mark.filterwarnings("ignore")  # dynamo's own, not ours to mend
def test_compiled_models_are_heard(blocks: Blocks, sink: Sink) -> None:
    x = torch.randn(2, 3, 8)
    compiled = torch.compile(blocks, backend="eager")
    plain = Plain(blocks.blocks[1])
    with attach(compiled, sink, "blocks.1") as tap, torch.no_grad():
        for _ in range(3):
            compiled(x)
        assert tap.flush()
        report = tap.status().streams[0]
    plain.handle.remove()
    assert (report["fires"], report["forwards"]) == (3, 3)
    np.testing.assert_array_equal(sink.values(), torch.cat(plain.outputs).reshape(-1, 8).numpy())
    assert len({row.request for row in sink.rows()}) == 6
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")  # dynamo's own, not ours to mend
def test_hooks_that_a_compiled_model_drops_are_reported(
    blocks: Blocks, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = torch.compile(blocks, backend="eager")
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        compiled(x)
        tap = attach(compiled, sink, "blocks.1")
        for _ in range(5):
            compiled(x)
        tap.detach()
    report = tap.status().streams[0]
    assert report["fires"] < report["forwards"] == 5
    assert "fired 0 times in 5 forward passes" in caplog.text
    torch.compiler.reset()


def test_fullgraph_models_are_refused(blocks: Blocks, sink: Sink) -> None:
    with pytest.raises(hydrophone.CannotHook, match="fullgraph"):
        attach(torch.compile(blocks, backend="eager", fullgraph=True), sink, "blocks.1")


def test_an_interrupted_forward_does_not_own_later_rows(blocks: Blocks, sink: Sink) -> None:
    class Stops(nn.Module):
        stop = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.stop:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(blocks, stops := Stops())
    with attach(model, sink, "0"):
        with pytest.raises(KeyboardInterrupt):
            model(torch.randn(1, 2, 8))
        stops.stop = False
        model(torch.randn(1, 2, 8))
    assert len({row.request for row in sink.rows()}) == 2


def test_a_forward_that_raised_does_not_own_later_rows(blocks: Blocks, sink: Sink) -> None:
    class Fails(nn.Module):
        def forward(self, _x: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError

    model = nn.Sequential(blocks, Fails())
    with attach(model, sink, "0") as tap:
        with pytest.raises(ZeroDivisionError):
            model(torch.randn(1, 2, 8))
        blocks(torch.randn(1, 2, 8))  # by itself, not through the model
        assert tap.status().forwards == 0
    assert len({row.request for row in sink.rows()}) == 2


def test_no_exception_leaves_a_hook(blocks: Blocks, sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    class Hostile:
        """A cache whose length cannot be read."""

        def get_seq_length(self) -> int:
            raise RuntimeError("hostile cache")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = blocks

        def forward(self, x: torch.Tensor, cache: object = None) -> torch.Tensor:  # noqa: ARG002  the hook reads it
            return self.inner(x)

    model = Model()
    with attach(model, sink, "inner") as tap:
        for _ in range(5):
            assert model(torch.randn(1, 2, 8), cache=Hostile()).shape == (1, 2, 8)
        assert tap.status().caught == {"RuntimeError": 5}
        assert tap.status().forwards == 5
    assert caplog.text.count("the model is not affected: hostile cache") == 1


def test_token_strings_are_sent_only_when_asked_for(llama: nn.Module, sink: Sink) -> None:
    class Tokenizer:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [f"<{token}>" for token in ids]

        def decode(self, ids: list[int]) -> str:
            return f"word{ids[0]}"

    from hydrophone_schemas.wire import FrameType

    prompt, mask = PROMPTS["left"]
    wanted = {
        None: [],
        "tokens": [["<5>", "<6>", "<7>"], ["<1>", "<2>", "<3>", "<4>", "<5>"]],
        "text": [["word5", "word6", "word7"], ["word1", "word2", "word3", "word4", "word5"]],
        "redact": [["WORD5", None, "WORD7"], ["WORD1", "WORD2", "WORD3", "WORD4", "WORD5"]],
    }
    for version, (text, pieces) in enumerate(wanted.items()):
        option = (lambda word: None if word == "word6" else word.upper()) if text == "redact" else text
        sink.frames.clear()
        sites = ["model.layers.0", "model.layers.1"]
        with (
            hydrophone.attach(
                llama, sites, name="t", version=str(version), daemon=str(sink.path), text=option, tokenizer=Tokenizer()
            ),
            torch.no_grad(),
        ):
            llama(prompt, attention_mask=mask)
        frames = sink.of_type(FrameType.TOKENS)
        assert [frame["pieces"] for frame in frames] == pieces
        assert all(frame["position"] == 0 for frame in frames)
    with pytest.raises(hydrophone.InvalidOption, match="needs tokenizer="):
        attach(llama, sink, "model.layers.0", text="tokens")


def test_sampling_takes_whole_requests(llama: nn.Module, sink: Sink) -> None:
    with attach(llama, sink, "model.layers.1", sample=0.5) as tap:
        for number in range(60):
            with tap.request(id=str(number)):
                llama.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False)
        assert tap.flush()
        report = tap.status().streams[0]
    taken = {row.request for row in sink.rows()}
    assert 10 < len(taken) < 50  # 60 draws at 0.5: outside of this once in ten million runs
    assert len(sink.rows()) == 5 * len(taken) == report["sent"]
    assert report["captured"] + report["sampled_out"] == 60 * 5
    assert {request["sample"] for request in sink.requests.values()} == {0.5}
