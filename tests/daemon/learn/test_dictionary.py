import pytest
import torch
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.errors import InvalidConfig, WidthMismatch
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder


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


def test_learns_planted_atoms():
    x, basis = planted(40_000)
    dictionary, reports = trained(x)
    cosines = (basis @ dictionary.W_dec.T).max(1).values
    assert cosines.mean() > 0.9
    assert reports[-1].fvu < 0.15 < reports[0].fvu
    assert torch.allclose(dictionary.W_dec.norm(dim=1), torch.ones(128), atol=1e-5)


def test_random_rows_are_not_explained_beyond_their_k_directions():
    x = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(3))
    _, reports = trained(x, features=128, k=4)
    assert reports[-1].fvu > 0.6


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


def test_latents_pushed_far_below_zero_come_back():
    x, _ = planted(60_000)
    dictionary, _ = trained(x[:20_000], features=256, dead_after_rows=2048)
    silenced = torch.arange(100)
    dictionary.b_enc[silenced] = -20.0
    for i in range(20_000, 60_000 - 128, 128):
        dictionary.partial_fit(x[i : i + 128])
    fired = torch.zeros(256, dtype=torch.bool)
    codes = dictionary.encode(x[:20_000])
    fired[codes.index[codes.value > 0].long()] = True
    assert int(fired[silenced].sum()) >= 90


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


def test_same_seed_same_dictionary_and_state_round_trip_is_exact():
    x, _ = planted(12_000)
    whole, _ = trained(x)
    first, _ = trained(x[:6016])
    second = SparseAutoencoder(first.config, generator=torch.Generator())
    second.load_state({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in first.state_dict().items()})
    second.generator.set_state(first.generator.get_state())
    for i in range(6016, len(x) - 127, 128):
        second.partial_fit(x[i : i + 128])
    for name, value in whole.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second.state_dict()[name])), name


@pytest.mark.parametrize("n", [0, 1, 2])
def test_small_batches(n):
    x, _ = planted(2048)
    dictionary, _ = trained(x)
    if n:
        report = dictionary.partial_fit(x[:n])
        assert report.rows == n
    assert dictionary.decode(dictionary.encode(x[:n])).shape == (n, 32)


def test_constant_rows_and_width_one_do_no_harm():
    for x in (torch.ones(2048, 32), torch.zeros(2048, 32), torch.randn(2048, 1)):
        dictionary, _ = trained(x, features=8, k=1)
        assert all(bool(t.isfinite().all()) for t in (dictionary.W_enc, dictionary.W_dec, dictionary.b_dec))


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
