"""The engine's losses and gradients against dense autograd in float64, variant by variant (see ``dense``)."""

import dense
import pytest
import torch
from hydrophoned.learn.kernels import cpu, plain
from hydrophoned.learn.sae import VARIANTS, DictionaryConfig, SparseAutoencoder

OWN = {"jumprelu": ("log_threshold",), "gated": ("log_scale", "magnitude_bias")}
# n, d, F, k
SHAPES = {
    "one row": (1, 6, 10, 3),
    "one latent per row": (7, 5, 16, 1),
    "all latents": (9, 4, 6, 6),
    "width one": (5, 1, 4, 2),
    "one latent in all": (4, 3, 1, 1),
    "ordinary": (60, 24, 96, 5),
    "wide": (30, 40, 20, 8),
}
EACH = pytest.mark.parametrize("variant", VARIANTS)


def make(variant, shape, *, seed=0, dtype=torch.float64, shift=0.0, kernels_module=plain, **settings):
    """A dictionary in which nothing is 0 or tied, and rows for it."""
    n, d, F, k = shape
    generator = torch.Generator().manual_seed(seed)
    config = DictionaryConfig(
        width=d, features=F, k=k, variant=variant, sparsity=0.2, low_precision=False, **({"aux_k": 0} | settings)
    )
    dictionary = SparseAutoencoder(config, generator=generator, dtype=dtype, kernels_module=kernels_module)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    state = dictionary.tensors()
    state["W_enc"].add_(0.3 * normal(F, d).to(dtype))
    state["b_enc"].copy_(0.2 * normal(F) + shift)
    state["b_dec"].copy_(0.3 * normal(d))
    for name in OWN.get(variant, ()):
        state[name].copy_(0.3 * normal(F) - (0.5 if variant == "jumprelu" else 0.0))
    return dictionary, (1.5 * normal(n, d)).to(dtype)


def reference(dictionary, x, before):
    """Dense result at the parameters ``before``, with the weight that the controller had for this batch."""
    config = dictionary.config
    controller = getattr(dictionary.variant, "controller", None)
    settings = dense.Settings(
        config.k, config.prefix_ends, float(controller.weight) if controller else 0.0, bandwidth=config.bandwidth
    )
    return dense.differentiate(config.variant, before, x.double(), settings)


def parameters(dictionary):
    names = ("W_dec", "W_enc", "b_enc", "b_dec", *OWN.get(dictionary.config.variant, ()))
    return {name: dictionary.tensors()[name].double().clone() for name in names}


def assert_close(got, wanted, what, rtol=1e-6):
    """Within ``rtol`` of each number, or of the largest one: sums of numbers of both signs cancel."""
    size = float(wanted.abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(
        got.double(), wanted, rtol=rtol, atol=rtol * max(size, 1e-9), msg=lambda text: f"{what}: {text}"
    )


def assert_same_gradients(dictionary, x):
    before = parameters(dictionary)
    loss, gradients = dictionary.loss(x)
    wanted = reference(dictionary, x, before)
    for name in ("W_dec", "W_enc", "b_dec", "b_enc"):
        assert_close(gradients[name], wanted.gradients[name], name)
    assert_close(loss, wanted.main, "loss")
    return wanted


@EACH
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_and_gradients_equal_dense_autograd(variant, shape):
    for seed in range(3):
        assert_same_gradients(*make(variant, shape, seed=seed))


@EACH
def test_loss_and_gradients_where_few_of_the_chosen_are_positive(variant):
    dictionary, x = make(variant, (40, 12, 30, 6), shift=-2.5)
    wanted = assert_same_gradients(dictionary, x)
    active = (wanted.z > 0).sum(1)
    assert active.min() < 6
    assert active.sum() > 0


@EACH
def test_loss_and_gradients_where_no_latent_is_active(variant):
    dictionary, x = make(variant, (20, 12, 30, 6), shift=-1000.0)
    wanted = assert_same_gradients(dictionary, x)
    assert not wanted.z.any()
    assert wanted.gradients["b_dec"].abs().max() > 0


@pytest.mark.parametrize("prefixes", [(20,), (1, 20), (1, 2, 3, 20), (5, 10, 15, 20), tuple(range(1, 21))])
def test_nested_prefixes_that_are_empty_for_some_rows(prefixes):
    dictionary, x = make("matryoshka", (25, 8, 20, 3), prefixes=prefixes)
    wanted = assert_same_gradients(dictionary, x)
    if prefixes[0] < 5 and len(prefixes) > 1:
        assert (wanted.z[:, : prefixes[0]] == 0).all(1).any()


def test_matryoshka_with_one_prefix_is_topk():
    nested, x = make("matryoshka", (25, 8, 20, 3), prefixes=(20,))
    plainly, _ = make("topk", (25, 8, 20, 3))
    for a, b in zip(nested.loss(x)[1].values(), plainly.loss(x)[1].values(), strict=True):
        assert_close(a, b, "gradient", rtol=1e-12)


@pytest.mark.parametrize("variant", OWN)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_variants_own_numbers_get_their_gradients(variant, shape):
    seen = 0.0
    for seed in range(8):
        dictionary, x = make(variant, shape, seed=seed)
        before = parameters(dictionary)
        dictionary.partial_fit(x)
        wanted = reference(dictionary, x, before)
        state = dictionary.tensors()
        for name in OWN[variant]:  # the first moment after one step is a tenth of the gradient
            assert_close(state[f"{name}.m"] / 0.1, wanted.gradients[name], name)
            seen = max(seen, float(wanted.gradients[name].abs().max()))
        if variant == "gated":
            assert_close(state["gate_bias.m"] / 0.1, wanted.gradients["b_enc"], "gate bias")
    assert seen > 0


def test_a_threshold_is_moved_by_pairs_on_both_sides_of_it():
    dictionary, x = make("jumprelu", (80, 10, 12, 3))
    before = parameters(dictionary)
    p = dense.preactivations(before, x)
    distance = p - before["log_threshold"].exp()
    assert ((distance > 0) & (distance < 0.15)).any()
    assert ((distance < 0) & (distance > -0.15)).any()
    below_only = (((distance < 0) & (distance > -0.15)).any(0)) & ~(distance > 0).any(0)
    dictionary.partial_fit(x)
    wanted = reference(dictionary, x, before).gradients["log_threshold"]
    got = dictionary.tensors()["log_threshold.m"] / 0.1
    assert_close(got, wanted, "log_threshold")
    assert bool((got[below_only] != 0).all())


@EACH
@pytest.mark.parametrize("precision", ["float64", "float32, compiled"])
def test_a_step_moves_the_parameters_by_the_dense_gradients(variant, precision):
    compiled = precision != "float64"
    if compiled and not cpu.available():
        pytest.skip("the compiled kernels were not built")
    dtype, module, rtol = (torch.float32, cpu, 2e-4) if compiled else (torch.float64, plain, 1e-6)
    dictionary, x = make(variant, (200, 24, 96, 5), dtype=dtype, kernels_module=module)
    before = parameters(dictionary)
    dictionary.partial_fit(x)
    wanted = reference(dictionary, x, before)
    state, gradients = dictionary.tensors(), dict(wanted.gradients)
    along = (gradients["W_dec"] * before["W_dec"]).sum(1, keepdim=True)
    gradients["W_dec"] = gradients["W_dec"] - along * before["W_dec"]
    moments = {"W_dec": "m_dec", "W_enc": "m_enc", "b_enc": "m_bias", "b_dec": "m_b_dec"}
    if variant == "gated":
        moments["b_enc"] = "gate_bias.m"
    for name, moment in moments.items():
        assert_close(state[moment] / 0.1, gradients[name], name, rtol)
        if name == "W_dec" or (variant == "gated" and name == "b_enc"):
            continue  # moved along the sphere; at the variant's own pace
        # Adam's first step is one step size against the gradient's sign
        config = dictionary.config
        rate = config.learning_rate * (config.encoder_rate if name in ("W_enc", "b_enc") else 1)
        clear = gradients[name].abs() > 1e-3 * gradients[name].abs().max()
        moved = (state[name].double() - before[name])[clear]
        expected = -rate * gradients[name][clear].sign()
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}")
    torch.testing.assert_close(state["W_dec"].norm(dim=1).double(), torch.ones(96, dtype=torch.float64))


@EACH
def test_loss_moves_no_parameter(variant):
    dictionary, x = make(variant, (40, 12, 30, 4))
    before = parameters(dictionary)
    dictionary.loss(x)
    for name, value in parameters(dictionary).items():
        assert torch.equal(value, before[name]), name


@EACH
def test_codes_are_the_dense_codes(variant):
    dictionary, x = make(variant, (50, 16, 40, 4), shift=-2.5)
    wanted = reference(dictionary, x, parameters(dictionary)).z
    if variant == "batchtopk":
        threshold = 0.4
        dictionary.tensors()["threshold"].fill_(threshold)
        p = dense.preactivations(parameters(dictionary), x)
        wanted = torch.where(p > threshold, p, 0.0)
    codes = dictionary.encode(x)
    kept = min(2 * 4, 40)
    row_fits = (wanted > 0).sum(1) <= kept
    assert row_fits.sum() > 25
    assert wanted.any()
    got = torch.zeros(50, 40, dtype=torch.float64).scatter_add_(1, codes.index.long(), codes.value.double())
    torch.testing.assert_close(got[row_fits], wanted[row_fits], rtol=1e-9, atol=1e-12)
    # those with more keep some of them, and never a value that is not theirs
    other = got[~row_fits]
    assert bool(((other == 0) | torch.isclose(other, wanted[~row_fits])).all())
    assert bool(((other > 0).sum(1) <= kept).all())
