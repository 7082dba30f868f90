"""The optimiser that touches active latents only, against the same written out over whole arrays with masks."""

import dense
import pytest
import torch
from hydrophoned.learn.kernels import Adam, Latents, Pairs, cpu, plain
from hydrophoned.learn.sae.own import LatentVector

NAMES = ("W_dec", "W_enc", "b_enc", "m_dec", "v_dec", "m_enc", "v_enc", "m_bias", "v_bias")
COMPILED = pytest.param(
    (cpu, torch.float32),
    marks=pytest.mark.skipif(not cpu.available(), reason="the compiled kernels were not built"),
    id="compiled",
)
KERNELS = pytest.mark.parametrize("kind", [pytest.param((plain, torch.float64), id="plain"), COMPILED])


class Dense:
    """All latents as whole float64 arrays; a step changes those that had a pair."""

    def __init__(self, latents):
        for name in NAMES:
            setattr(self, name, getattr(latents, name).double().clone())
        self.steps = latents.steps.clone()

    def step(self, z, s, h, x, *, scale, adam, groups=1, train_bias=True):
        """``z`` and ``s`` [segments, F]: value and slope of each pair, 0 without one."""
        used = (z != 0) | (s != 0)
        touched = used.any(0)
        rows = x.repeat_interleave(groups, 0)
        to_b_dec = -scale * (s @ self.W_enc).sum(0)
        g_dec, g_enc, g_bias = scale * z.T @ h, scale * s.T @ rows, scale * s.sum(0)
        g_dec = g_dec - (g_dec * self.W_dec).sum(1, keepdim=True) * self.W_dec
        self.steps += touched
        settings = {"beta1": adam.beta1, "beta2": adam.beta2, "eps": adam.eps}
        for weight, m, v, gradient in (
            ("W_dec", "m_dec", "v_dec", g_dec),
            ("W_enc", "m_enc", "v_enc", g_enc),
            ("b_enc", "m_bias", "v_bias", g_bias),
        ):
            if weight == "b_enc" and not train_bias:
                continue
            before = getattr(self, weight), getattr(self, m), getattr(self, v)
            rate = adam.rate * (1 if weight == "W_dec" else adam.encoder)
            after = dense.adam_step(*before, self.steps, gradient, touched, rate=rate, **settings)
            for name, value in zip((weight, m, v), after, strict=True):
                setattr(self, name, value)
        self.W_dec = self.W_dec / self.W_dec.norm(dim=1, keepdim=True)
        return to_b_dec, used.sum(0).to(torch.int32)


def start(F, d, dtype, *, half=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = Latents.zeros(F, d, torch.device("cpu"), dtype, half=half)
    latents.W_dec.copy_(torch.nn.functional.normalize(torch.randn(F, d, generator=generator, dtype=dtype), dim=1))
    latents.W_enc.copy_(torch.randn(F, d, generator=generator, dtype=dtype))
    latents.b_enc.copy_(torch.randn(F, generator=generator, dtype=dtype))
    latents.refresh()
    return latents, generator


def batch(generator, dtype, *, n, F, d, share, groups=1, zero_share=0.2):
    """Random pairs of which some have value 0, some slope 0, some both; and the same as matrices."""
    segments = n * groups
    there = torch.rand(segments, F, generator=generator) < share
    z = torch.rand(segments, F, generator=generator, dtype=dtype) * there
    s = torch.randn(segments, F, generator=generator, dtype=dtype) * there
    z[torch.rand(segments, F, generator=generator) < zero_share] = 0
    s[torch.rand(segments, F, generator=generator) < zero_share] = 0
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), there.sum(1).cumsum(0)])
    pairs = Pairs(offsets, there.nonzero()[:, 1].to(torch.int32), z[there])
    h = torch.randn(segments, d, generator=generator, dtype=dtype)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    return pairs, s[there], h, x, z.double(), s.double()


@KERNELS
@pytest.mark.parametrize("share", [0.002, 0.05, 0.6], ids=["few active", "some", "most"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("train_bias", [True, False])
def test_steps_equal_a_masked_dense_adam(kind, share, groups, train_bias):
    module, dtype = kind
    rtol = 1e-6 if dtype is torch.float64 else 1e-3
    latents, generator = start(40, 21, dtype)
    reference = Dense(latents)
    for step in range(8):
        adam = Adam(3e-3 * 0.9**step, encoder=0.4)
        pairs, slope, h, x, z, s = batch(generator, dtype, n=30, F=40, d=21, share=share, groups=groups)
        settings = {"scale": 2 / 630, "adam": adam, "groups": groups, "train_bias": train_bias}
        to_b_dec, fired = module.update(latents, pairs, slope, h, x, **settings)
        wanted_b_dec, wanted_fired = reference.step(z, s, h.double(), x.double(), **settings)
        assert torch.equal(fired, wanted_fired)
        assert torch.equal(latents.steps, reference.steps)
        torch.testing.assert_close(to_b_dec.double(), wanted_b_dec, rtol=rtol, atol=rtol * 0.1)
        for name in NAMES:
            got, wanted = getattr(latents, name).double(), getattr(reference, name)
            size = float(wanted.abs().max())
            assert float((got - wanted).abs().max()) <= rtol * max(size, 1e-12), (step, name)
    assert latents.steps.max() > 0
    assert len(latents.steps.unique()) > 1 or share == 0.6  # latents are at different steps


@KERNELS
def test_a_latent_without_pairs_keeps_its_moments_and_its_step_count(kind):
    module, dtype = kind
    for share in (0.05, 0.9):  # few latents active, and nearly all
        latents, generator = start(64, 20, dtype)
        for _ in range(3):
            pairs, slope, h, x, *_ = batch(generator, dtype, n=20, F=64, d=20, share=0.9)
            module.update(latents, pairs, slope, h, x, scale=0.01, adam=Adam(1e-2))
        pairs, slope, h, x, *_ = batch(generator, dtype, n=20, F=64, d=20, share=share)
        kept = torch.arange(64) % 3 == 0
        pairs.value[kept[pairs.index.long()]] = 0
        slope[kept[pairs.index.long()]] = 0
        before = {name: getattr(latents, name).clone() for name in (*NAMES, "steps")}
        _, fired = module.update(latents, pairs, slope, h, x, scale=0.01, adam=Adam(1e-2))
        assert not fired[kept].any()
        for name, value in before.items():
            got = getattr(latents, name)
            if name == "W_dec":  # its norm may be brought back to 1 from a rounding error beside it
                torch.testing.assert_close(got[kept], value[kept], rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(got[kept], value[kept]), name
            assert not torch.equal(got[~kept], value[~kept]), name


@KERNELS
def test_decoder_rows_keep_norm_one_through_large_steps(kind):
    module, dtype = kind
    latents, generator = start(32, 17, dtype)
    for _ in range(20):
        pairs, slope, h, x, *_ = batch(generator, dtype, n=20, F=32, d=17, share=0.3)
        module.update(latents, pairs, slope, h, x, scale=1.0, adam=Adam(0.5))
    torch.testing.assert_close(latents.W_dec.norm(dim=1), torch.ones(32, dtype=dtype), rtol=1e-6, atol=1e-6)
    assert latents.W_enc.isfinite().all()


@KERNELS
def test_a_gradient_along_the_decoder_row_does_not_reach_its_moments(kind):
    module, dtype = kind
    latents, _ = start(4, 12, dtype)
    pairs = Pairs(torch.arange(5), torch.arange(4, dtype=torch.int32), torch.ones(4, dtype=dtype))
    h = 5 * latents.W_dec.clone()  # row i's only pair is with latent i
    module.update(latents, pairs, torch.ones(4, dtype=dtype), h, h, scale=1.0, adam=Adam(1e-3))
    assert float(latents.m_dec.abs().max()) < 1e-5 * 0.5
    assert float(latents.m_enc.abs().max()) > 0.1


@KERNELS
def test_the_first_step_of_every_latent_is_one_step_size_whenever_it_comes(kind):
    module, dtype = kind
    latents, generator = start(10, 16, dtype)
    one = torch.ones(1, dtype=dtype)
    for latent in range(10):
        h, x = torch.zeros(1, 16, dtype=dtype), torch.randn(1, 16, generator=generator, dtype=dtype)
        before = latents.W_enc.clone()
        pairs = Pairs(torch.tensor([0, 1]), torch.tensor([latent], dtype=torch.int32), one)
        module.update(latents, pairs, one, h, x, scale=1e-4, adam=Adam(1e-2))
        moved = latents.W_enc - before
        torch.testing.assert_close(moved[latent], -1e-2 * x[0].sign(), rtol=1e-3, atol=1e-6)
        assert not moved[torch.arange(10) != latent].any()


@KERNELS
def test_half_precision_encoder_follows_the_encoder(kind):
    module, dtype = kind
    if dtype is torch.float64:
        dtype = torch.float32
    latents, generator = start(48, 21, dtype, half=True)
    for share in (0.01, 0.5):
        pairs, slope, h, x, *_ = batch(generator, dtype, n=20, F=48, d=21, share=share)
        module.update(latents, pairs, slope, h, x, scale=0.01, adam=Adam(1e-2))
        assert torch.equal(latents.W_half, latents.W_enc.bfloat16())


def test_a_variants_own_vector_equals_a_masked_dense_adam():
    generator = torch.Generator().manual_seed(0)
    vector = LatentVector(torch.randn(30, generator=generator, dtype=torch.float64))
    value, m, v = vector.value.clone(), torch.zeros(30, dtype=torch.float64), torch.zeros(30, dtype=torch.float64)
    steps = torch.zeros(30, dtype=torch.int64)
    for _ in range(12):
        touched = torch.rand(30, generator=generator) < 0.4
        gradient = torch.randn(30, generator=generator, dtype=torch.float64) * 1e-4 * touched
        vector.step(gradient, touched, Adam(2e-3))
        steps += touched
        value, m, v = dense.adam_step(value, m, v, steps, gradient, touched, rate=2e-3)
        torch.testing.assert_close(vector.value, value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(vector.m, m, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(vector.v, v, rtol=1e-9, atol=1e-18)
        assert torch.equal(vector.steps, steps)
