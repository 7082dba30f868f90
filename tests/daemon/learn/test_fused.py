"""The Triton kernels against the plain ones.

Triton decides when it is imported whether kernels are interpreted, so the checks run in a process of their own: those
named ``check_`` in the interpreter, and on a GPU where there is one; those named ``compiles_`` through the compiler for
an H100, which needs no GPU and finds what the interpreter lets pass.
"""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import warnings

import pytest
import torch
from hydrophoned.learn.kernels import Adam, Latents, Pairs, plain
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder

DEVICE = torch.device("cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu")
WITHOUT = importlib.util.find_spec("triton") is None
REASON = "Triton is not installed: pip install 'hydrophone[gpu-test]'"


def run(pattern, tmp_path, **environment):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", f"python_functions={pattern}", __file__]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.skipif(WITHOUT, reason=REASON)
def test_interpreted(tmp_path):
    run("check_*", tmp_path, TRITON_INTERPRET="1")


@pytest.mark.skipif(WITHOUT, reason=REASON)
def test_compiles(tmp_path):
    run("compiles_*", tmp_path, TRITON_INTERPRET="0")


@pytest.mark.skipif(WITHOUT or not torch.cuda.is_available(), reason="no GPU, or Triton is not installed")
def test_on_the_gpu(tmp_path):
    run("check_*", tmp_path, TRITON_INTERPRET="0")


@pytest.fixture
def fused():
    from hydrophoned.learn.kernels import fused

    torch.manual_seed(0)
    return fused


class NoWaiting:
    """Inside, waiting for the GPU is an error. On the CPU it has no effect."""

    def __enter__(self):
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_):
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def products(n, F, dtype):
    return torch.randn(n, F).to(DEVICE, dtype), (torch.randn(F) / 8).to(DEVICE)


def agree_on_top(fused, p, bias, k):
    with NoWaiting():
        index, value = fused.topk(p, bias, k)
    expected = plain.topk(p, bias, k)[1]
    assert index.dtype is torch.int32
    assert value.dtype is torch.float32
    assert torch.equal(value.sort(1).values, expected.sort(1).values)
    assert torch.equal((p + bias).gather(1, index.long()), value)
    assert (index.diff(dim=1) > 0).all()
    return index


@pytest.mark.parametrize(
    ("n", "F", "k", "dtype"),
    [
        (5, 300, 7, torch.float32),
        (1, 1, 1, torch.float32),
        (2, 1023, 1023, torch.bfloat16),
        (3, 5003, 64, torch.bfloat16),
        (2, 3000, 300, torch.float32),
        (2, 1500, 1100, torch.float32),  # k above which there is no first round
        (0, 30, 2, torch.float32),
    ],
)
def check_topk(fused, n, F, k, dtype):
    agree_on_top(fused, *products(n, F, dtype), k)


def check_topk_of_ties_takes_the_first(fused):
    p, bias = torch.zeros(3, 2500, device=DEVICE), torch.zeros(2500, device=DEVICE)
    p[0, 1700] = p[1, 2499] = 1.0
    index = agree_on_top(fused, p, bias, 8)  # more ties than the room for candidates
    assert index.tolist() == [[*range(7), 1700], [*range(7), 2499], [*range(8)]]


def check_topk_of_ordered_rows(fused):
    p = torch.arange(3000.0, device=DEVICE).repeat(2, 1) - 1500
    p[1] = p[1].flip(0)
    agree_on_top(fused, p, torch.zeros(3000, device=DEVICE), 40)
    agree_on_top(fused, p.abs().neg(), torch.zeros(3000, device=DEVICE), 40)


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def check_topk_of_what_is_not_finite_stays_in_range(fused, bad):
    p, bias = products(3, 1300, torch.float32)
    p[0, 5:] = bad
    p[1] = bad
    index, value = fused.topk(p, bias, 20)
    assert 0 <= int(index.min()) <= int(index.max()) < 1300
    assert (index.diff(dim=1) > 0).all()
    assert not value.isnan().any()
    assert torch.equal(value[2].sort().values, plain.topk(p, bias, 20)[1][2].sort().values)


def check_topk_refuses(fused):
    p, bias = products(2, 10, torch.float32)
    with pytest.raises(ValueError, match=r"k = 11 is outside 1\.\.10"):
        fused.topk(p, bias, 11)
    with pytest.raises(TypeError, match="float64"):
        fused.topk(p.double(), bias, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "F", "threshold"), [(4, 1025, 1.5), (3, 700, -9.0), (3, 40, 9.0), (0, 9, 0.0)])
def check_above(fused, n, F, threshold, dtype):
    p, bias = products(n, F, dtype)
    got, expected = fused.above(p, bias, threshold), plain.above(p, bias, threshold)
    for own, other in zip(got, expected, strict=True):
        assert own.dtype == other.dtype
        assert torch.equal(own, other)


def pairs_of(segments, F, most):
    """Between 0 and ``most`` pairs to a segment, every third segment empty, some values 0."""
    counts = torch.randint(0, most + 1, (segments,))
    counts[::3] = 0
    offsets = torch.zeros(segments + 1, dtype=torch.int64)
    offsets[1:] = counts.cumsum(0)
    index = torch.cat([torch.randperm(F)[:count] for count in counts.tolist()]).to(torch.int32)
    value = torch.randn(len(index)) * (torch.rand(len(index)) > 0.2)
    return Pairs(offsets.to(DEVICE), index.to(DEVICE), value.to(DEVICE))


def latents_of(F, d, half):
    latents = Latents.zeros(F, d, torch.device("cpu"), torch.float32, half=half)
    latents.W_dec.copy_(torch.nn.functional.normalize(torch.randn(F, d), dim=1))
    latents.W_enc.copy_(torch.randn(F, d))
    latents.b_enc.copy_(torch.randn(F))
    latents.refresh()
    return copied(latents)


def copied(latents):
    return Latents(**{name: None if t is None else t.to(DEVICE, copy=True) for name, t in vars(latents).items()})


def close(own, other, factor=1.0):
    torch.testing.assert_close(own, other, rtol=1e-5 * factor, atol=1e-5 * factor)


@pytest.mark.parametrize(
    ("n", "groups", "F", "d", "most"),
    [(7, 1, 40, 33, 40), (4, 3, 40, 300, 9), (2, 5, 20, 1, 20), (3, 1, 5, 8, 0), (0, 1, 5, 8, 3)],
)
def check_reconstruct_and_decode(fused, n, groups, F, d, most):
    pairs = pairs_of(n * groups, F, most) if n else Pairs(*pairs_of(1, F, most)[:1], *pairs_of(1, F, 0)[1:])
    if not n:
        pairs = pairs._replace(offsets=pairs.offsets[:1])
    W_dec, target = torch.randn(F, d, device=DEVICE), torch.randn(n, d, device=DEVICE)
    with NoWaiting():
        got = fused.reconstruct(pairs, W_dec, target, groups=groups)
        decoded = fused.decode(pairs, W_dec)
        misfit = fused.misfit(pairs, W_dec, W_dec[0], target) if groups == 1 else None
    for own, other in zip(got, plain.reconstruct(pairs, W_dec, target, groups=groups), strict=True):
        assert own.shape == other.shape
        close(own, other, 4)
    close(decoded, plain.decode(pairs, W_dec))
    if misfit is not None:
        torch.testing.assert_close(misfit, plain.misfit(pairs, W_dec, W_dec[0], target), rtol=1e-5, atol=1e-4)


def same_latents(own, other):
    for field in dataclasses.fields(Latents):
        a, b = getattr(own, field.name), getattr(other, field.name)
        if a is None:
            assert b is None
        elif field.name == "W_half":
            torch.testing.assert_close(a, b, rtol=1 / 128, atol=1e-4)
        elif field.name[0] in "mv":  # gradients carry 2 / (n d)
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
        else:
            close(a, b, 5)


@pytest.mark.parametrize(
    ("n", "groups", "F", "d", "most", "half"),
    [
        (9, 1, 40, 33, 20, True),
        (5, 3, 40, 70, 9, False),
        (2, 1, 2100, 5, 30, True),  # more latents than programs
        (2, 1, 12, 600, 12, True),
        (1500, 1, 2, 6, 2, False),  # whole runs of pairs of one latent
        (3, 1, 5, 8, 0, True),  # no pairs
    ],
)
def check_update(fused, n, groups, F, d, most, half):
    latents = latents_of(F, d, half)
    ours, again, theirs = copied(latents), copied(latents), copied(latents)
    for step in range(3):
        pairs = pairs_of(n * groups, F, most)
        x = torch.randn(n, d, device=DEVICE)
        _, h, slope = plain.reconstruct(pairs, theirs.W_dec, x, groups=groups)
        slope = slope * (torch.rand(len(slope)) > 0.1).to(DEVICE)
        train_bias = step != 1
        arguments = {"scale": 2 / (n * d), "adam": Adam(1e-3, encoder=0.4), "groups": groups, "train_bias": train_bias}
        with NoWaiting():
            gradient, fired = fused.update(ours, pairs, slope, h, x, **arguments)
            repeated, _ = fused.update(again, pairs, slope, h, x, **arguments)
        expected, fired_expected = plain.update(theirs, pairs, slope, h, x, **arguments)
        assert fired.dtype is torch.int32
        assert torch.equal(fired, fired_expected)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-12)
        same_latents(ours, theirs)
        assert torch.equal(gradient, repeated)
        assert all(torch.equal(a, getattr(again, name)) for name, a in ours.tensors().items())
        if half and DEVICE.type == "cuda":  # the interpreter cuts bits off where the hardware rounds
            assert torch.equal(ours.W_half, ours.W_enc.bfloat16())


def check_update_leaves_silent_latents_alone(fused):
    latents = latents_of(6, 10, half=True)
    latents.m_dec += 1
    before = copied(latents)
    offsets = torch.tensor([0, 2, 3], device=DEVICE)
    index = torch.tensor([4, 1, 2], dtype=torch.int32, device=DEVICE)
    pairs = Pairs(offsets, index, torch.tensor([1.0, 2.0, 0.0], device=DEVICE))  # that of latent 2 does not count
    h, slope = torch.randn(2, 10, device=DEVICE), torch.tensor([1.0, 0.0, 0.0], device=DEVICE)
    _, fired = fused.update(latents, pairs, slope, h, h, scale=1.0, adam=Adam(1e-2))
    assert fired.tolist() == [0, 1, 0, 0, 1, 0]
    silent = fired == 0
    for name, tensor in vars(latents).items():
        assert torch.equal(tensor[silent], getattr(before, name)[silent]), name
        if name not in {"b_enc", "m_bias", "v_bias", "m_enc", "v_enc", "W_enc", "W_half"}:  # of slope 0 in latent 1
            assert not torch.equal(tensor[1], getattr(before, name)[1]), name


@pytest.mark.parametrize("variant", ["topk", "matryoshka", "batchtopk", "jumprelu", "gated", "l1"])
def check_learns_like_the_plain_kernels(fused, variant):
    shape = {"width": 12, "features": 40, "k": 4, "low_precision": False}
    config = DictionaryConfig(**shape, variant=variant, dead_after_rows=40, revive_every_rows=1000, aux_rows=8)

    def dictionary(kernels):
        generator = torch.Generator().manual_seed(1)
        return SparseAutoencoder(config, generator=generator, device=DEVICE, kernels_module=kernels)

    ours, theirs = dictionary(fused), dictionary(plain)
    rows = torch.randn(3, 16, 12, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    for each in (ours, theirs):
        each.initialise(rows.flatten(0, 1))
    for x in rows:
        close(ours.partial_fit(x).fvu, theirs.partial_fit(x).fvu, 20)
    same_latents(ours.latents, theirs.latents)
    close(ours.b_dec, theirs.b_dec, 10)


@pytest.mark.parametrize("variant", ["topk", "matryoshka"])
def check_a_step_waits_for_nothing(fused, variant):
    """Nor do rows that are not finite or dead latents make it wait; the whole of it is in test_waits.py."""
    config = DictionaryConfig(width=12, features=40, k=4, variant=variant, dead_after_rows=20, aux_rows=8)
    generator = torch.Generator().manual_seed(1)
    dictionary = SparseAutoencoder(config, generator=generator, device=DEVICE, kernels_module=fused)
    dictionary._masks = True  # as on a GPU
    rows = torch.randn(5, 16, 12, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    dictionary.initialise(rows.flatten(0, 1))
    rows[3, 5, 2] = float("nan")
    dictionary._any_dead = True
    for x in rows:
        with NoWaiting():
            dictionary.partial_fit(x)
    assert all(tensor.isfinite().all() for tensor in dictionary.tensors().values())


def compiled(kernel, constants, **options):
    """The kernel for an H100. The compiler takes sizes of 1 as constants: they may be among ``constants``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {
        "p": "*bf16",
        "W_half": "*bf16",
        "offsets": "*i64",
        **dict.fromkeys(("F", "k", "d", "pairs"), "i32"),
        **dict.fromkeys(("threshold", "scale", "take1", "take2", "eps", "share"), "fp32"),
        **dict.fromkeys(("count", "index", "to_index", "starts", "segments", "latents"), "*i32"),
    }
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = GPUTarget("cuda", 90, 32)
        return triton.compile(source, target=target, options={"enable_fp_fusion": True, **options}).asm["cubin"]


@pytest.mark.parametrize("ones", [{}, {"F": 1, "k": 1}])
@pytest.mark.parametrize("lanes", [1024, 4096])
def compiles_selection(lanes, ones):
    from hydrophoned.learn.kernels import fused_select

    room = {"LANES": lanes, "ROOM": lanes // 4} | ones
    assert compiled(fused_select._candidates, room)
    assert compiled(fused_select._select, room)
    room = {name: value for name, value in room.items() if name not in {"ROOM", "k"}}
    assert compiled(fused_select._count, room)
    assert compiled(fused_select._fill, room)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("strip", [16, 128])
def compiles_decoding(strip, groups):
    from hydrophoned.learn.kernels import fused_decode

    one = {"GROUPS": groups, "STRIP": 16, "PAIRS": 16, "d": 1, "pairs": 1}
    assert compiled(fused_decode._compare, one)
    assert compiled(fused_decode._sums, {"STRIP": strip, "PAIRS": 16})
    assert compiled(fused_decode._compare, {"GROUPS": groups, "STRIP": strip, "PAIRS": 16})


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("block", "pairs"), [(512, 8), (4096, 4)])
def compiles_the_step(block, pairs, groups):
    from hydrophoned.learn.kernels import fused

    shape = {"GROUPS": groups, "RUN": 256, "PAIRS": pairs}
    assert compiled(fused._runs, shape | {"STRIP": 512})
    assert compiled(fused._update, shape | {"BLOCK": 512, "HALF": True, "TRAIN_BIAS": True, "F": 1, "d": 1})
    for rest in (True, False):
        assert compiled(fused._update, shape | {"BLOCK": block, "HALF": rest, "TRAIN_BIAS": rest}, num_warps=8)
