import math

import pytest
import torch
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.errors import CheckpointError, InvalidConfig, WidthMismatch
from hydrophoned.learn.kernels import cpu, plain
from hydrophoned.learn.sae import VARIANTS, DictionaryConfig, SparseAutoencoder

EACH = pytest.mark.parametrize("variant", VARIANTS)
ON_AVERAGE = pytest.mark.parametrize("variant", ["batchtopk", "jumprelu", "gated", "l1"])


def planted(n, *, d=32, atoms=48, active=3, seed=0):
    """Rows that are sums of ``active`` of ``atoms`` random unit directions with positive coefficients."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.nn.functional.normalize(torch.randn(atoms, d, generator=generator), dim=1)
    chosen = torch.rand(n, atoms, generator=generator).topk(active, dim=1).indices
    weight = 0.5 + torch.rand(n, active, generator=generator)
    rows = torch.zeros(n, d)
    for j in range(active):
        rows += weight[:, j : j + 1] * basis[chosen[:, j]]
    return rows * (d / rows.square().sum(1).mean()).sqrt(), basis


def trained(x, batch=128, **settings):
    config = DictionaryConfig(**({"width": x.shape[1], "features": 128, "k": 4, "dead_after_rows": 1024} | settings))
    dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(0))
    dictionary.initialise(x[:1024])
    reports = [dictionary.partial_fit(x[i : i + batch]) for i in range(0, len(x) - batch + 1, batch)]
    return dictionary, reports


def measured(dictionary, x):
    """fvu and l0 on rows, and which latents fire on them."""
    codes = dictionary.encode(x)
    error = dictionary.decode(codes) - x
    active = codes.value > 0
    fired = torch.zeros(dictionary.features, dtype=torch.bool)
    fired[codes.index[active].long()] = True
    fvu = error.square().sum() / (x - x.mean(0)).square().sum().clamp_min(1e-12)
    return float(fvu), float(active.sum(1).float().mean()), fired


def copied(state):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[name])), name


def all_finite(dictionary):
    return all(bool(t.isfinite().all()) for t in dictionary.tensors().values() if t.is_floating_point())


@EACH
def test_learns_planted_atoms(variant):
    x, basis = planted(124_000)
    x, held = x[:120_000], x[120_000:]
    dictionary, reports = trained(x, variant=variant)
    cosines = (basis @ dictionary.W_dec.T).max(1).values
    assert cosines.mean() > 0.95
    assert (cosines > 0.9).float().mean() > 0.9
    assert measured(dictionary, held)[0] < 0.25 < reports[0].fvu
    assert torch.allclose(dictionary.W_dec.norm(dim=1), torch.ones(128), atol=1e-5)


@EACH
def test_random_rows_are_not_explained_beyond_their_k_directions(variant):
    """Of rows without structure, the best k of 128 directions explain what the k largest of 128 normal numbers hold."""
    generator = torch.Generator().manual_seed(3)
    x, held = torch.randn(40_000, 64, generator=generator), torch.randn(4000, 64, generator=generator)
    dictionary, _ = trained(x, features=128, k=4, variant=variant)
    fvu, l0, _ = measured(dictionary, held)
    largest = torch.randn(4000, 128, generator=generator).topk(math.ceil(l0), dim=1).values
    assert fvu > 1 - float(largest.square().sum(1).mean()) / 64 - 0.05
    assert fvu < 1  # and no worse than the mean


@ON_AVERAGE
@pytest.mark.parametrize("k", [6, 12])
def test_l0_comes_to_k_on_rows_not_seen(variant, k):
    x, _ = planted(104_000, d=64, atoms=300, active=5)
    dictionary, reports = trained(x[:100_000], variant=variant, k=k, features=256, dead_after_rows=2048)
    l0 = measured(dictionary, x[100_000:])[1]
    assert l0 == pytest.approx(k, rel=0.1 if variant == "batchtopk" else 0.15)
    assert sum(float(r.l0) for r in reports[-100:]) / 100 == pytest.approx(k, rel=0.15)


@ON_AVERAGE
def test_rows_differ_in_their_number_of_active_latents(variant):
    x, _ = planted(44_000)
    dictionary, _ = trained(x[:40_000], variant=variant)
    codes = dictionary.encode(x[40_000:])
    assert codes.index.shape == (4000, 8)
    assert len((codes.value > 0).sum(1).unique()) > 2


def test_batchtopk_keeps_n_k_pairs_of_a_batch():
    x, _ = planted(4096)
    dictionary, _ = trained(x, variant="batchtopk")
    for n in (1, 7, 300):
        assert dictionary.partial_fit(x[:n]).l0 == 4


@pytest.mark.parametrize("variant", ["topk", "matryoshka", "jumprelu", "gated", "l1"])
def test_the_report_is_of_the_rows_before_the_step(variant):
    """batchtopk is not among them: which pairs of a row it keeps in training depends on the other rows."""
    x, _ = planted(8192)
    dictionary, _ = trained(x, variant=variant, features=8)  # codes have room for all latents
    rows = x[:256]
    fvu, l0, _ = measured(dictionary, rows)
    dead = float(dictionary.dead.float().mean())
    report = dictionary.partial_fit(rows)
    assert report.rows == 256
    assert float(report.fvu) == pytest.approx(fvu, rel=1e-4)
    assert float(report.l0) == pytest.approx(l0, rel=1e-6)
    assert float(report.dead_fraction) == pytest.approx(dead)


def test_codes_hold_the_k_largest_preactivations():
    x, _ = planted(2000)
    dictionary, _ = trained(x, low_precision=False)
    codes = dictionary.encode(x[:50])
    p = (x[:50] - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    best = p.topk(4, dim=1).values.relu()
    assert codes.index.dtype == torch.int32
    torch.testing.assert_close(codes.value.sort(dim=1, descending=True).values, best, atol=1e-5, rtol=1e-5)
    dense = torch.zeros(50, 128).scatter_add_(1, codes.index.long(), codes.value)
    torch.testing.assert_close(dictionary.decode(codes), dense @ dictionary.W_dec + dictionary.b_dec)


@EACH
def test_latents_pushed_far_below_zero_come_back(variant):
    x, _ = planted(90_000, d=64, atoms=300, active=4)
    x, held = x[:80_000], x[80_000:]
    dictionary, _ = trained(x[:20_000], features=256, k=8, dead_after_rows=2048, variant=variant)
    dictionary.b_enc[:100] = -20.0
    assert not measured(dictionary, held)[2][:100].any()
    for i in range(20_000, len(x) - 127, 128):
        dictionary.partial_fit(x[i : i + 128])
    assert int(measured(dictionary, held)[2][:100].sum()) >= 90


def test_gated_latents_come_back_whose_gate_opens_on_no_magnitude():
    x, _ = planted(90_000, d=64, atoms=300, active=4)
    x, held = x[:80_000], x[80_000:]
    dictionary, _ = trained(x[:20_000], features=256, k=8, dead_after_rows=2048, variant="gated")
    dictionary.tensors()["magnitude_bias"][:100] = -20.0
    assert not measured(dictionary, held)[2][:100].any()
    for i in range(20_000, len(x) - 127, 128):
        dictionary.partial_fit(x[i : i + 128])
    assert int(measured(dictionary, held)[2][:100].sum()) >= 90


@EACH
def test_auxk_alone_reaches_latents_far_below_zero(variant):
    """Without revival: the auxiliary loss has no ReLU."""
    x, _ = planted(60_000, d=64, atoms=300, active=4)
    settings = {"features": 256, "k": 8, "dead_after_rows": 1024, "revive_every_rows": 10**9, "variant": variant}
    dictionary, _ = trained(x[:20_000], **settings)
    dictionary.b_enc[:20] = -20.0
    before = dictionary.W_dec[:20].clone()
    for i in range(20_000, len(x) - 127, 128):
        dictionary.partial_fit(x[i : i + 128])
    assert dictionary.rows_revived_total == 0
    assert bool(((dictionary.W_dec[:20] * before).sum(1) < 0.99).all())
    assert bool((dictionary.b_enc[:20] != -20.0).all())
    assert all_finite(dictionary)


def test_revival_leaves_living_latents_alone():
    x, _ = planted(4096)
    dictionary, _ = trained(x, revive_every_rows=10**9)
    dictionary.silent_rows[:] = 0
    dictionary.silent_rows[5] = 10**6
    before = dictionary.W_dec.clone()
    error = torch.randn(128, 32, generator=torch.Generator().manual_seed(0))
    assert dictionary._revive(error) == 1
    changed = (dictionary.W_dec != before).any(1).nonzero().squeeze(1)
    assert changed.tolist() == [5]
    assert dictionary.latents.steps[5] == 0


KERNELS = pytest.mark.parametrize(
    "kernels_module",
    [
        pytest.param(plain, id="plain"),
        pytest.param(
            cpu,
            id="compiled",
            marks=pytest.mark.skipif(not cpu.available(), reason="the compiled kernels were not built"),
        ),
    ],
)


@EACH
@KERNELS
def test_goes_on_exactly_from_its_state(variant, kernels_module):
    """400 steps are 200, the state, and 200 more, bit for bit; dead latents are revived on both sides of the cut."""
    x, _ = planted(400 * 64)
    config = DictionaryConfig(width=32, features=128, k=4, dead_after_rows=512, revive_every_rows=640, variant=variant)

    def fresh(seed):
        return SparseAutoencoder(config, generator=torch.Generator().manual_seed(seed), kernels_module=kernels_module)

    def train(dictionary, first, last):
        for i in range(first, last):
            if i in (100, 300):
                dictionary.b_enc[:50] = -20.0
            dictionary.partial_fit(x[64 * i : 64 * (i + 1)])
        return dictionary.rows_revived_total

    whole, first = fresh(0), fresh(0)
    for dictionary in (whole, first):
        dictionary.initialise(x[:1024])
    train(whole, 0, 400)
    revived = train(first, 0, 200)
    assert 0 < revived < whole.rows_revived_total
    state, generator = copied(first.state_dict()), first.generator.get_state().clone()
    second = fresh(99).load_state(state)
    second.generator.set_state(generator)
    train(second, 200, 400)
    assert_same_state(whole.state_dict(), second.state_dict())
    for a, b in zip(whole.encode(x[:500]), second.encode(x[:500]), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole.generator.get_state(), second.generator.get_state())


@EACH
def test_same_seed_same_dictionary(variant):
    x, _ = planted(12_000)
    assert_same_state(trained(x, variant=variant)[0].state_dict(), trained(x, variant=variant)[0].state_dict())


@EACH
def test_reading_changes_no_state(variant):
    x, _ = planted(4096)
    dictionary, _ = trained(x, variant=variant)
    before = copied(dictionary.state_dict())
    dictionary.decode(dictionary.encode(x[:300]))
    assert_same_state(before, dictionary.state_dict())


def damaged(state, name):
    """The state without ``name``, and with it in another shape or type."""
    yield {key: value for key, value in state.items() if key != name}
    value = state[name]
    if isinstance(value, torch.Tensor):
        yield state | {name: torch.zeros(*value.shape, 1, dtype=value.dtype)}
        yield state | {name: value[:-1] if value.ndim else value.reshape(1)}
        yield state | {name: value.to(torch.int32 if value.dtype is torch.int64 else torch.float16)}
        yield state | {name: value.tolist()}
    yield state | {name: None}


@EACH
def test_a_damaged_state_is_refused_before_anything_changes(variant):
    x, _ = planted(4096)
    settings = {"features": 32, "variant": variant}
    source, target = trained(x, **settings)[0], trained(x[:1024], **settings)[0]
    good, before = copied(source.state_dict()), copied(target.state_dict())
    for name in good:
        for bad in damaged(good, name):
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                target.load_state(bad)
            assert_same_state(before, target.state_dict())
    target.load_state(good)
    assert_same_state(good, target.state_dict())


def test_a_state_of_another_variant_is_refused():
    x, _ = planted(2048)
    state = trained(x, variant="topk")[0].state_dict()
    for variant in ("batchtopk", "jumprelu", "gated", "l1"):
        dictionary, _ = trained(x, variant=variant)
        with pytest.raises(CheckpointError):
            dictionary.load_state(state)


@EACH
@pytest.mark.parametrize("n", [0, 1, 2])
def test_small_batches(n, variant):
    x, _ = planted(2048)
    dictionary, _ = trained(x, variant=variant)
    assert dictionary.decode(dictionary.encode(x[:n])).shape == (n, 32)
    if n:
        report = dictionary.partial_fit(x[:n])
        assert report.rows == n
        assert all_finite(dictionary)


@EACH
def test_no_rows_are_no_step(variant):
    x, _ = planted(2048)
    dictionary, _ = trained(x, variant=variant)
    before = copied(dictionary.tensors())
    report = dictionary.partial_fit(x[:0])
    assert report.rows == 0
    assert dictionary.rows_learned == 2048
    assert all_finite(dictionary)
    for name in ("W_enc", "W_dec", "b_enc", "silent_rows"):
        assert torch.equal(before[name], dictionary.tensors()[name]), name


@EACH
def test_learns_from_one_row_at_a_time(variant):
    x, _ = planted(4000)
    dictionary, _ = trained(x[:1024], variant=variant)
    start = measured(dictionary, x[3000:])[0]
    for row in x[1024:3000].split(1):
        dictionary.partial_fit(row)
    assert all_finite(dictionary)
    # where l0 is driven, that of one row says too little: such batches are no use, but must do no harm
    assert measured(dictionary, x[3000:])[0] < (start if variant in ("topk", "batchtopk", "matryoshka") else 1)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(128), rtol=1e-5, atol=1e-5)


ODD = {
    "constant": torch.ones(2048, 32),
    "zero": torch.zeros(2048, 32),
    "width one": torch.randn(2048, 1, generator=torch.Generator().manual_seed(0)),
    "huge": 1e4 * torch.randn(2048, 32, generator=torch.Generator().manual_seed(1)),
    "tiny": 1e-4 * torch.randn(2048, 32, generator=torch.Generator().manual_seed(2)),
    "one row again and again": torch.randn(1, 32, generator=torch.Generator().manual_seed(3)).repeat(2048, 1),
    "one that is not zero": torch.eye(2048, 32)[torch.randperm(2048, generator=torch.Generator().manual_seed(4))],
}


@EACH
@KERNELS
@pytest.mark.parametrize("k", [1, 8])
@pytest.mark.parametrize("x", ODD.values(), ids=ODD)
def test_odd_rows_do_no_harm(x, k, kernels_module, variant):
    """With a dictionary of 8 latents, all of them dead soon."""
    config = DictionaryConfig(
        width=x.shape[1], features=8, k=k, dead_after_rows=256, revive_every_rows=256, variant=variant
    )
    generator = torch.Generator().manual_seed(0)
    dictionary = SparseAutoencoder(config, generator=generator, kernels_module=kernels_module)
    dictionary.initialise(x[:1024])
    for rows in x.split(128):
        report = dictionary.partial_fit(rows)
        assert math.isfinite(report.fvu)
        assert math.isfinite(report.l0)
    assert all_finite(dictionary)
    codes = dictionary.encode(x[:50])
    assert codes.value.isfinite().all()
    assert bool((codes.value >= 0).all())
    assert bool(((codes.index >= 0) & (codes.index < 8)).all())
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(8), rtol=1e-4, atol=1e-4)


@EACH
def test_fewer_latents_alive_than_k(variant):
    x, _ = planted(8192)
    settings = {"features": 64, "k": 16, "aux_k": 0, "revive_every_rows": 10**9, "variant": variant}
    dictionary, _ = trained(x[:4096], **settings)
    dictionary.b_enc[5:] = -1000.0
    codes = dictionary.encode(x[4096:])
    assert bool((codes.index[codes.value > 0] < 5).all())
    for rows in x[4096:].split(128):
        report = dictionary.partial_fit(rows)
        assert report.l0 <= 5
    assert all_finite(dictionary)
    assert float(report.dead_fraction) >= 59 / 64
    codes = dictionary.encode(x[:100])
    assert bool((codes.index[codes.value > 0] < 5).all())


@EACH
def test_comes_back_when_all_latents_fall_silent_at_once(variant):
    """A stream shrinks when its producer changes a scale; then no living latent is there to go by."""
    x, _ = planted(100_000, d=64, atoms=300, active=4)
    dictionary, _ = trained(x[:20_000], features=256, k=8, dead_after_rows=2048, variant=variant)
    x = 0.1 * x
    for rows in x[20_000:96_000].split(128):
        dictionary.partial_fit(rows)
    fvu, l0, fired = measured(dictionary, x[96_000:])
    assert fvu < 0.6
    assert l0 > 2
    assert fired.sum() > 64


@EACH
def test_initialises_from_fewer_rows_than_latents(variant):
    x, _ = planted(4096)
    for n in (1, 2, 40):
        config = DictionaryConfig(width=32, features=128, k=4, variant=variant)
        dictionary = SparseAutoencoder(config, generator=torch.Generator().manual_seed(0))
        dictionary.initialise(x[:n])
        assert all_finite(dictionary)
        for rows in x.split(256):
            report = dictionary.partial_fit(rows)
        assert all_finite(dictionary)
        assert math.isfinite(report.fvu)


@EACH
def test_rows_of_another_width_change_nothing(variant):
    x, _ = planted(1024)
    dictionary, _ = trained(x, variant=variant)
    before = copied(dictionary.state_dict())
    for rows in (torch.zeros(3, 31), torch.zeros(3, 33), torch.zeros(32), torch.zeros(2, 3, 32)):
        for call in (dictionary.encode, dictionary.partial_fit, dictionary.initialise, dictionary.loss):
            with pytest.raises(WidthMismatch, match="width 32"):
                call(rows)
    assert_same_state(before, dictionary.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width 0"),
        ({"features": 0, "k": 1}, "features 0"),
        ({"k": 0}, "k = 0 is outside"),
        ({"variant": "relu"}, "variant 'relu' is not one of topk"),
        ({"variant": "matryoshka", "prefixes": (4, 2, 8)}, "do not rise"),
        ({"variant": "matryoshka", "prefixes": (2, 4)}, "do not rise"),
        ({"variant": "matryoshka", "prefixes": (0, 8)}, "do not rise"),
        ({"variant": "matryoshka", "prefixes": (2, 2, 8)}, "do not rise"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(InvalidConfig, match=message):
        DictionaryConfig(**({"width": 4, "features": 8, "k": 2} | settings))


@pytest.mark.parametrize("features", [1, 2, 3, 7, 8, 33, 4096])
def test_default_prefixes_rise_to_all_latents(features):
    ends = DictionaryConfig(width=4, features=features, k=1).prefix_ends
    assert list(ends) == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] == features


def test_matryoshkas_first_prefix_rebuilds_more_by_itself_than_topks():
    x, _ = planted(64_000)
    share = {}
    for variant in ("topk", "matryoshka"):
        dictionary, _ = trained(x[:60_000], variant=variant, features=128, k=8)
        codes = dictionary.encode(x[60_000:])
        first = Codes(codes.index, torch.where(codes.index < 16, codes.value, 0.0))
        error = dictionary.decode(first) - x[60_000:]
        share[variant] = float(error.square().sum() / (x[60_000:] - x[60_000:].mean(0)).square().sum())
    assert share["matryoshka"] < share["topk"] - 0.1


def test_errors_name_the_value():
    with pytest.raises(InvalidConfig, match="k = 9 is outside"):
        DictionaryConfig(width=4, features=8, k=9)
    x, _ = planted(1024)
    dictionary, _ = trained(x)
    with pytest.raises(WidthMismatch, match=r"\(3, 31\).*width 32"):
        dictionary.encode(torch.zeros(3, 31))


def test_decode_of_nothing():
    x, _ = planted(1024)
    dictionary, _ = trained(x)
    empty = Codes(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 4))
    assert dictionary.decode(empty).shape == (0, 32)
