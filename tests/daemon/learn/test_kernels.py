"""The compiled kernels against the plain ones in float32, and against themselves for determinism."""

import ctypes
import os
import platform
import shutil
from pathlib import Path

import pytest
import torch
from hydrophoned.learn.kernels import Adam, Latents, Pairs, choose, cpu, plain
from hypothesis import given, settings
from hypothesis import strategies as st

compiled = pytest.mark.skipif(not cpu.available(), reason="the compiled kernels were not built, or are switched off")
HALF = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
THREADS = pytest.mark.parametrize("threads", [1, 2])
INFINITE = float("inf")
examples = settings(max_examples=60, deadline=None, derandomize=True)
MOVED = ("W_dec", "W_enc", "b_enc", "m_dec", "v_dec", "m_enc", "v_enc", "m_bias", "v_bias")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(pairs, features):
    """Pairs as a matrix [segments, F]."""
    rows = torch.arange(len(pairs.offsets) - 1).repeat_interleave(pairs.offsets.diff())
    matrix = torch.zeros(len(pairs.offsets) - 1, features, dtype=pairs.value.dtype)
    return matrix.index_put((rows, pairs.index.long()), pairs.value, accumulate=True)


@pytest.fixture(params=["v4", "v3", "base"])
def level(request, monkeypatch):
    """The kernels built for one instruction set, though this processor may have a better one."""
    built = Path(cpu.__file__).parent / "built" / f"cpu-{platform.machine().lower()}-{request.param}.so"
    runs = cpu._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("base",))
    if request.param not in runs or not built.exists() or not cpu.available():
        pytest.skip(f"kernels {request.param} do not run here, or were not built")
    library = cpu._typed(ctypes.CDLL(str(built)))
    monkeypatch.setattr(cpu, "_library", lambda: library)
    return request.param


# -- there at all ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.environ.get("HYDROPHONE_KERNELS") == "plain", reason="switched off by HYDROPHONE_KERNELS")
def test_kernels_are_built_where_there_is_a_compiler():
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler here")
    assert cpu.available(), f"{compiler} is here, but the kernels are not built: run `python hatch_build.py`"
    assert choose(torch.device("cpu")) is cpu


def test_what_the_compiled_kernels_cannot_do_goes_to_the_plain_ones():
    assert choose(torch.device("cpu"), torch.float64) is plain


# -- topk -----------------------------------------------------------------------------------------------------------


def assert_topk(p, bias, k):
    """Rows of finite numbers: the k largest, each with its own latent, of equal values any."""
    index, value = cpu.topk(p, bias, k)
    n = len(p)
    assert (index.shape, value.shape) == ((n, k), (n, k))
    assert (index.dtype, value.dtype) == (torch.int32, torch.float32)
    _, wanted = plain.topk(p, bias, k)
    assert torch.equal(value.sort(dim=1).values, wanted.sort(dim=1).values)
    assert torch.equal(value, (p + bias).gather(1, index.long()))
    assert torch.equal(index.sort(dim=1).values.diff(dim=1) > 0, torch.ones(n, k - 1, dtype=torch.bool))


@compiled
@HALF
@THREADS
@pytest.mark.parametrize(
    ("n", "F", "k"),
    [
        (0, 40, 3),
        (1, 40, 3),
        (1, 1, 1),
        (3, 1, 1),
        (50, 7, 1),
        (50, 7, 7),
        (50, 15, 4),
        (50, 16, 16),
        (50, 17, 17),
        (50, 100, 1),
        (50, 500, 32),
        (20, 500, 500),
        (20, 3000, 40),
        (5, 1000, 999),
    ],
)
def test_topk(n, F, k, dtype, threads):
    torch.set_num_threads(threads)
    generator = seeded(F + k)
    assert_topk(torch.randn(n, F, generator=generator).to(dtype), torch.randn(F, generator=generator), k)


@compiled
@examples
@given(
    st.integers(1, 12),
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([0, 1, 3, 10]),
)
def test_topk_of_any_shape_with_ties(n, F, k, seed, half, kinds):
    """Values of few kinds are full of ties; 0 kinds means all different."""
    k = min(k, F)
    p = torch.randn(n, F, generator=seeded(seed))
    if kinds:
        p = (p * kinds).round() / kinds
    assert_topk(p.bfloat16() if half else p, torch.zeros(F) if kinds else torch.randn(F, generator=seeded(seed + 1)), k)


@compiled
@HALF
@pytest.mark.parametrize("k", [1, 5, 64, 300])
def test_topk_where_all_values_are_equal(dtype, k):
    for value in (0.0, -0.0, -3.0, 7.5):
        assert_topk(torch.full((9, 300), value).to(dtype), torch.zeros(300), k)


@compiled
@HALF
@pytest.mark.parametrize("k", [1, 8, 100])
@pytest.mark.parametrize("order", ["falling", "rising", "alternating", "jump"])
def test_topk_where_the_row_before_misleads(dtype, k, order):
    """The threshold is carried from row to row: here it is always too high or too low."""
    n, F = 60, 600
    p = torch.randn(n, F, generator=seeded(1))
    level = torch.arange(n).float()[:, None]
    p = {
        "falling": p - 3 * level,
        "rising": p + 3 * level,
        "alternating": p * torch.where(level % 2 == 0, 1000.0, 0.001),
        "jump": p + torch.where(level == n // 2, 1e6, 0.0),
    }[order]
    assert_topk(p.to(dtype), torch.zeros(F), k)


@compiled
@HALF
def test_topk_of_values_that_rise_or_fall_along_the_row(dtype):
    for k in (1, 16, 40):  # every value replaces one that was kept, or none does
        rising = torch.arange(5000.0)[None].repeat(3, 1)
        assert_topk(rising.to(dtype), torch.zeros(5000), k)
        assert_topk(rising.flip(1).to(dtype), torch.zeros(5000), k)


@compiled
@HALF
@THREADS
def test_topk_of_heavy_tailed_rows(dtype, threads):
    torch.set_num_threads(threads)
    generator = seeded(2)
    p = torch.randn(80, 700, generator=generator) / torch.rand(80, 700, generator=generator).clamp_min(1e-6)
    p *= torch.randn(80, 1, generator=generator).mul(3).exp()
    for k in (1, 20, 350):
        assert_topk(p.to(dtype), torch.randn(700, generator=generator), k)


@compiled
@HALF
@THREADS
@pytest.mark.parametrize("k", [1, 6, 40])
@pytest.mark.parametrize("bad", [float("nan"), INFINITE, -INFINITE], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("rows", [(0,), (4, 5, 6, 7, 20), (0, 2, 29), tuple(range(29))])
def test_rows_that_are_not_finite_spoil_no_other(dtype, threads, k, bad, rows):
    torch.set_num_threads(threads)
    p = torch.randn(30, 40, generator=seeded(3)).to(dtype)
    p[list(rows)] = bad
    bias = torch.randn(40, generator=seeded(4))
    index, value = cpu.topk(p, bias, k)
    assert bool(((index >= 0) & (index < 40)).all())
    good = [i for i in range(30) if i not in rows]
    wanted = plain.topk(p[good], bias, k)[1]
    torch.testing.assert_close(value[good].sort(dim=1).values, wanted.sort(dim=1).values, rtol=0, atol=0)
    assert torch.equal(value[good], (p[good] + bias).gather(1, index[good].long()))


@compiled
@HALF
def test_a_row_with_fewer_finite_values_than_k_gives_those(dtype):
    p = torch.full((6, 50), -INFINITE).to(dtype)
    p[:, 7], p[:, 33] = 2.0, 5.0
    p[3, 20] = float("nan")
    index, value = cpu.topk(p, torch.zeros(50), 8)
    for i in (0, 1, 2, 4, 5):
        active = value[i] > 0
        assert sorted(zip(index[i][active].tolist(), value[i][active].tolist(), strict=True)) == [(7, 2.0), (33, 5.0)]
        assert value[i][~active].relu().sum() == 0
    assert bool(((index >= 0) & (index < 50)).all())


@compiled
@HALF
def test_topk_of_a_bias_of_minus_infinity_never_chooses_that_latent(dtype):
    bias = torch.zeros(64)
    bias[::2] = -INFINITE
    index, value = cpu.topk(torch.randn(20, 64, generator=seeded()).to(dtype), bias, 10)
    assert bool((index % 2 == 1).all())
    assert value.isfinite().all()


@compiled
def test_topk_reads_rows_that_are_not_contiguous():
    p = torch.randn(64, 30, generator=seeded()).T
    assert_topk(p, torch.zeros(64), 5)


@compiled
@pytest.mark.parametrize("k", [0, -1, 11])
def test_topk_refuses_a_k_that_no_row_has(k):
    with pytest.raises(ValueError, match=f"k = {k} is outside"):
        cpu.topk(torch.zeros(2, 10), torch.zeros(10), k)


@compiled
def test_other_types_are_refused():
    with pytest.raises(TypeError, match="float64"):
        cpu.topk(torch.zeros(2, 10, dtype=torch.float64), torch.zeros(10), 2)


# -- above ----------------------------------------------------------------------------------------------------------


@compiled
@examples
@given(
    st.integers(0, 12),
    st.integers(1, 200),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([-INFINITE, -1.0, 0.0, 0.5, 3.0, INFINITE]),
    st.sampled_from([1, 2]),
)
def test_above_of_any_shape(n, F, seed, half, threshold, threads):
    torch.set_num_threads(threads)
    p = (torch.randn(n, F, generator=seeded(seed)) * 4).round() / 4  # some are equal to the threshold
    p = p.bfloat16() if half else p
    bias = torch.zeros(F) if seed % 2 else torch.randn(F, generator=seeded(seed + 1))
    for got, wanted in zip(cpu.above(p, bias, threshold), plain.above(p, bias, threshold), strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


@compiled
@HALF
def test_above_of_values_that_are_not_finite(dtype):
    p = torch.randn(12, 50, generator=seeded()).to(dtype)
    p[2], p[4], p[6], p[8, 3:20] = float("nan"), INFINITE, -INFINITE, float("nan")
    for threshold in (0.0, -INFINITE):
        for got, wanted in zip(
            cpu.above(p, torch.zeros(50), threshold), plain.above(p, torch.zeros(50), threshold), strict=True
        ):
            assert torch.equal(got, wanted)


# -- reconstruct ----------------------------------------------------------------------------------------------------


def some_pairs(generator, segments, F, *, most=6, empty=0.3):
    """Random pairs, differing latents in a segment, of which a share are empty."""
    counts = torch.randint(0, min(most, F) + 1, (segments,), generator=generator)
    counts[torch.rand(segments, generator=generator) < empty] = 0
    index = [torch.randperm(F, generator=generator)[: int(c)] for c in counts]
    index = torch.cat([*index, torch.zeros(0, dtype=torch.int64)]).to(torch.int32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return Pairs(offsets, index, torch.rand(len(index), generator=generator))


def assert_reconstruct(pairs, W_dec, target, groups):
    got = cpu.reconstruct(pairs, W_dec, target, groups=groups)
    wanted = plain.reconstruct(
        pairs._replace(value=pairs.value.double()), W_dec.double(), target.double(), groups=groups
    )
    for a, b, name in zip(got, wanted, ("error", "h", "slope"), strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max()) if b.numel() else 0.0), msg=name
        )


@compiled
@THREADS
@pytest.mark.parametrize("d", [1, 5, 16, 17, 64, 96, 97, 200, 576])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_reconstruct(d, groups, threads):
    torch.set_num_threads(threads)
    generator = seeded(d)
    W_dec = torch.randn(50, d, generator=generator)
    for n in (1, 40):
        pairs = some_pairs(generator, n * groups, 50, most=12)
        assert_reconstruct(pairs, W_dec, torch.randn(n, d, generator=generator), groups)


@compiled
@pytest.mark.parametrize("groups", [1, 3])
def test_reconstruct_of_nothing(groups):
    W_dec = torch.randn(10, 8, generator=seeded())
    nothing = Pairs(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    error, h, slope = cpu.reconstruct(nothing, W_dec, torch.zeros(0, 8), groups=groups)
    assert (error.shape, h.shape, slope.shape) == ((0, 8), (0, 8), (0,))
    without = nothing._replace(offsets=torch.zeros(5 * groups + 1, dtype=torch.int64))
    target = torch.randn(5, 8, generator=seeded())
    assert torch.equal(cpu.reconstruct(without, W_dec, target, groups=groups)[0], -target)
    assert_reconstruct(without, W_dec, target, groups)


@compiled
@examples
@given(st.integers(1, 10), st.integers(1, 130), st.integers(1, 40), st.integers(1, 5), st.integers(0, 10**6))
def test_reconstruct_of_any_shape(n, d, F, groups, seed):
    generator = seeded(seed)
    W_dec = torch.randn(F, d, generator=generator)
    pairs = some_pairs(generator, n * groups, F)
    assert_reconstruct(pairs, W_dec, torch.randn(n, d, generator=generator), groups)


@compiled
def test_reconstruct_and_decode_agree():
    generator = seeded()
    W_dec, pairs = torch.randn(30, 50, generator=generator), some_pairs(generator, 20, 30)
    error, _, _ = cpu.reconstruct(pairs, W_dec, torch.zeros(20, 50))
    torch.testing.assert_close(cpu.decode(pairs, W_dec), error)
    torch.testing.assert_close(error, dense(pairs, 30) @ W_dec)


@compiled
@THREADS
@pytest.mark.parametrize(("n", "d"), [(0, 8), (1, 1), (1, 576), (7, 50), (130, 97)])
def test_misfit(n, d, threads):
    torch.set_num_threads(threads)
    generator = seeded(d)
    W_dec, b_dec, target = (torch.randn(*shape, generator=generator) for shape in ((30, d), (d,), (n, d)))
    pairs = some_pairs(generator, n, 30)
    sums = cpu.misfit(pairs, W_dec, b_dec, target)
    error = dense(pairs, 30).double() @ W_dec.double() + b_dec - target
    wanted = [error.square().sum(), target.double().square().sum(), *target.double().sum(0)]
    assert sums.dtype is torch.float64
    torch.testing.assert_close(sums, torch.stack(wanted), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.misfit(pairs, W_dec, b_dec, target), sums, rtol=1e-5, atol=1e-5)


@compiled
def test_a_row_that_is_not_finite_spoils_no_other_reconstruction():
    generator = seeded()
    W_dec, pairs = torch.randn(30, 50, generator=generator), some_pairs(generator, 20, 30, empty=0.0)
    target = torch.randn(20, 50, generator=generator)
    clean = cpu.reconstruct(pairs, W_dec, target)
    target[3] = float("nan")
    spoilt = cpu.reconstruct(pairs, W_dec, target)
    others = torch.arange(20) != 3
    assert torch.equal(clean[0][others], spoilt[0][others])
    assert spoilt[0][3].isnan().all()


# -- update ---------------------------------------------------------------------------------------------------------


def latents(F, d, *, half=False, seed=0):
    """Parameters and moments as in the middle of a run."""
    generator = seeded(seed)
    made = Latents.zeros(F, d, torch.device("cpu"), torch.float32, half=half)
    made.W_dec.copy_(torch.nn.functional.normalize(torch.randn(F, d, generator=generator), dim=1))
    made.W_enc.copy_(torch.randn(F, d, generator=generator))
    made.b_enc.copy_(torch.randn(F, generator=generator))
    for name in ("dec", "enc", "bias"):
        m, v = getattr(made, f"m_{name}"), getattr(made, f"v_{name}")
        m.copy_(1e-3 * torch.randn(m.shape, generator=generator))
        v.copy_(1e-6 * (0.2 + torch.rand(v.shape, generator=generator)))
    made.steps.copy_(torch.randint(0, 50, (F,), generator=generator))
    made.refresh()
    return made


def updated(module, F, d, n, *, groups=1, train_bias=True, half=False, seed=0, steps=2, most=6):
    """Latents after some steps, with what the last one returned."""
    made, generator = latents(F, d, half=half, seed=seed), seeded(seed + 1)
    for _ in range(steps):
        pairs = some_pairs(generator, n * groups, F, most=most)
        slope = torch.randn(len(pairs.index), generator=generator)
        unused = torch.rand(len(pairs.index), generator=generator) < 0.2
        pairs.value[unused], slope[unused] = 0, 0
        pairs.value[torch.rand(len(pairs.index), generator=generator) < 0.2] = 0
        h, x = torch.randn(n * groups, d, generator=generator), torch.randn(n, d, generator=generator)
        settings = {"scale": 2 / (n * d), "adam": Adam(1e-2, encoder=0.5), "groups": groups, "train_bias": train_bias}
        returned = module.update(made, pairs, slope, h, x, **settings)
    return made, returned


def assert_update(F, d, n, **options):
    got, (b_dec, fired) = updated(cpu, F, d, n, **options)
    wanted, (wanted_b_dec, wanted_fired) = updated(plain, F, d, n, **options)
    assert torch.equal(fired, wanted_fired)
    assert fired.dtype == torch.int32
    assert torch.equal(got.steps, wanted.steps)
    scale = max(float(wanted_b_dec.abs().max()), 1e-6)
    torch.testing.assert_close(b_dec, wanted_b_dec, rtol=1e-4, atol=1e-4 * scale)
    for name in MOVED:
        a, b = getattr(got, name), getattr(wanted, name)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * max(float(b.abs().max()), 1e-9), msg=name)
    if got.W_half is not None:
        assert torch.equal(got.W_half, got.W_enc.bfloat16())


@compiled
@THREADS
@pytest.mark.parametrize("half", [False, True], ids=["full", "with W_half"])
@pytest.mark.parametrize("train_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("groups", [1, 3])
def test_update(half, train_bias, groups, threads):
    torch.set_num_threads(threads)
    assert_update(60, 37, 50, groups=groups, train_bias=train_bias, half=half)


@compiled
@pytest.mark.parametrize(("F", "d", "n"), [(1, 1, 1), (1, 40, 5), (5, 1, 20), (7, 64, 1), (200, 130, 3), (16, 16, 400)])
def test_update_of_extreme_shapes(F, d, n):
    assert_update(F, d, n)


@compiled
@examples
@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_update_of_any_shape(F, d, n, groups, seed):
    assert_update(F, d, n, groups=groups, seed=seed, steps=1)


@compiled
@THREADS
def test_update_without_pairs_changes_nothing(threads):
    torch.set_num_threads(threads)
    nothing = Pairs(torch.zeros(5, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))
    for module in (cpu, plain):
        made, before = latents(20, 18), latents(20, 18)
        b_dec, fired = module.update(
            made, nothing, torch.zeros(0), torch.ones(4, 18), torch.ones(4, 18), scale=1.0, adam=Adam(0.1)
        )
        assert not b_dec.any()
        assert not fired.any()
        for name in (*MOVED, "steps"):
            assert torch.equal(getattr(made, name), getattr(before, name)), name


@compiled
@THREADS
def test_update_where_one_latent_has_all_pairs(threads):
    torch.set_num_threads(threads)
    n = 300
    pairs = Pairs(torch.arange(n + 1), torch.full((n,), 9, dtype=torch.int32), torch.rand(n, generator=seeded()))
    slope = torch.randn(n, generator=seeded(1))
    h, x = torch.randn(n, 33, generator=seeded(2)), torch.randn(n, 33, generator=seeded(3))
    made, wanted = latents(10, 33), latents(10, 33)
    _, fired = cpu.update(made, pairs, slope, h, x, scale=1e-3, adam=Adam(1e-2))
    plain.update(wanted, pairs, slope, h, x, scale=1e-3, adam=Adam(1e-2))
    assert fired.tolist() == [0] * 9 + [n]
    for name in MOVED:
        torch.testing.assert_close(getattr(made, name), getattr(wanted, name), rtol=1e-3, atol=1e-5, msg=name)


@compiled
def test_half_precision_encoder_keeps_what_is_not_finite():
    """A NaN must not become a number, nor Inf a NaN."""
    made = latents(3, 20, half=True)
    made.W_enc[0], made.W_enc[1] = float("nan"), INFINITE
    pairs = Pairs(torch.arange(4), torch.arange(3, dtype=torch.int32), torch.ones(3))
    zeros = torch.zeros(3, 20)
    cpu.update(made, pairs, torch.ones(3), zeros, zeros, scale=1.0, adam=Adam(1e-2))
    assert made.W_half[0].isnan().all()
    assert (made.W_half[1] == INFINITE).all()
    assert made.W_half[2].isfinite().all()


# -- determinism ----------------------------------------------------------------------------------------------------


@compiled
@THREADS
def test_twice_the_same_result_bit_for_bit(threads):
    torch.set_num_threads(threads)
    generator = seeded(7)
    p, bias = torch.randn(300, 900, generator=generator), torch.randn(900, generator=generator)
    W_dec, target = torch.randn(900, 70, generator=generator), torch.randn(150, 70, generator=generator)
    pairs = some_pairs(generator, 300, 900, most=30)

    def everything():
        made, returned = updated(cpu, 200, 70, 150, groups=2, half=True, most=30)
        return [
            *cpu.topk(p, bias, 24),
            *cpu.topk(p.bfloat16(), bias, 24),
            *cpu.above(p, bias, 1.0),
            *cpu.reconstruct(pairs, W_dec, target, groups=2),
            *made.tensors().values(),
            made.W_half,
            *returned,
        ]

    first = everything()
    for _ in range(5):
        for a, b in zip(first, everything(), strict=True):
            assert torch.equal(a, b)


@compiled
def test_selection_does_not_depend_on_the_number_of_threads():
    p, bias = torch.randn(301, 700, generator=seeded()), torch.randn(700, generator=seeded(1))
    p = (p * 8).round() / 8  # with ties
    chosen = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        index, value = cpu.topk(p, bias, 20)
        order = index.argsort(dim=1)
        chosen.append((index.gather(1, order), value.gather(1, order)))
    for index, value in chosen[1:]:
        assert torch.equal(index, chosen[0][0])
        assert torch.equal(value, chosen[0][1])


# -- each instruction set -------------------------------------------------------------------------------------------


@compiled
@HALF
def test_selection_of_each_instruction_set(level, dtype):
    for n, F, k in ((1, 1, 1), (40, 15, 4), (40, 100, 100), (40, 700, 33)):
        p, bias = torch.randn(n, F, generator=seeded(F)).to(dtype), torch.randn(F, generator=seeded())
        assert_topk(p, bias, k)
        assert_topk((p * 4).round() / 4, torch.zeros(F), k)
        for got, wanted in zip(cpu.above(p, bias, 0.5), plain.above(p, bias, 0.5), strict=True):
            assert torch.equal(got, wanted)
    p = torch.arange(5000.0)[None].repeat(3, 1) * torch.tensor([[1.0], [-1.0], [3.0]])
    assert_topk(p.to(dtype), torch.zeros(5000), 16)
    p = torch.randn(30, 40, generator=seeded())
    p[5:9] = float("nan")
    index, value = cpu.topk(p.to(dtype), torch.zeros(40), 6)
    assert bool(((index >= 0) & (index < 40)).all())
    assert_topk(p[[*range(5), *range(9, 30)]].to(dtype), torch.zeros(40), 6)
    wanted = plain.topk(p[9:].to(dtype), torch.zeros(40), 6)[1]
    assert torch.equal(value[9:].sort(dim=1).values, wanted.sort(dim=1).values)


@compiled
@pytest.mark.parametrize("groups", [1, 3])
def test_sums_of_each_instruction_set(level, groups):
    generator = seeded()
    for d in (1, 17, 130):
        W_dec, pairs = torch.randn(50, d, generator=generator), some_pairs(generator, 20 * groups, 50, most=12)
        assert_reconstruct(pairs, W_dec, torch.randn(20, d, generator=generator), groups)
        assert_update(50, d, 20, groups=groups, half=True)


@compiled
def test_rounding_to_half_precision_is_torchs_for_each_instruction_set(level):
    bits = torch.randint(-(2**31), 2**31, (64, 33), generator=seeded(), dtype=torch.int64).to(torch.int32)
    made = latents(64, 33, half=True)
    made.W_enc.copy_(bits.view(torch.float32))
    made.W_enc[:4, :8] = torch.tensor([1.00390625, 1.01171875, 3.3895e38, -3.3895e38, 1e-40, -1e-45, 0.0, -0.0])
    pairs = Pairs(torch.arange(65), torch.arange(64, dtype=torch.int32), torch.ones(64))
    zeros = torch.zeros(64, 33)
    made.m_enc.zero_()
    cpu.update(made, pairs, torch.zeros(64), zeros, zeros, scale=1.0, adam=Adam(1e-9))
    wanted = made.W_enc.bfloat16()
    number = ~wanted.isnan()
    assert torch.equal(made.W_half.isnan(), ~number)
    assert torch.equal(made.W_half[number], wanted[number])
