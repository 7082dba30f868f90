import pytest
import torch
from hydrophoned.detect import covariance
from hydrophoned.detect.covariance import Whitening


def drawn(n, d, seed=0):
    """Units far from 0, with a falling spectrum and correlated coordinates."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99)) * torch.arange(1, d + 1) ** -0.5
    return 50 + torch.randn(n, d, generator=generator) @ mixing.T


def test_many_units_of_few_coordinates_are_whitened_alike():
    whitening = Whitening.fit(drawn(20_000, 12))
    w = whitening.apply(drawn(20_000, 12, seed=1))
    torch.testing.assert_close(w.mean(0), torch.zeros(12), atol=0.05, rtol=0)
    torch.testing.assert_close(w.T.cov(), torch.eye(12), atol=0.06, rtol=0)
    assert 0 <= whitening.rho < 0.01


def test_units_of_independent_coordinates_are_shrunk_all_the_way():
    x = torch.randn(200, 100, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 101)
    whitening = Whitening.fit(x)
    assert whitening.rho > 0.9
    torch.testing.assert_close(whitening.apply(x).std(0), torch.ones(100), atol=0.1, rtol=0)


def test_shrinkage_is_that_of_the_paper():
    """b^2 and d^2 of Ledoit & Wolf 2004 from their definitions, unit by unit."""
    x = drawn(60, 9).double()
    z = (x - x.mean(0)) / (x - x.mean(0)).square().mean(0).sqrt()
    c = z.T @ z / 60
    away = (c - c.trace() / 9 * torch.eye(9)).square().sum()
    error = sum((torch.outer(one, one) - c).square().sum() for one in z) / 60**2
    assert Whitening.fit(x.float()).rho == pytest.approx(float(error / away), rel=1e-4)


@pytest.mark.parametrize(("n", "d"), [(40, 300), (250, 300), (64, 65), (2, 5)])
def test_more_coordinates_than_units(n, d):
    whitening = Whitening.fit(drawn(n, d))
    fresh = whitening.apply(drawn(500, d, seed=1))
    assert fresh.isfinite().all()
    assert whitening.rows == n
    assert float(fresh.abs().max()) < 1e3


def test_the_map_is_the_same_whether_kept_as_a_matrix_or_as_a_few_vectors():
    x = drawn(60, 130)
    few, many = Whitening.fit(x), Whitening.fit(x)
    vectors, gains, gain = few._root
    many._root = gain * torch.eye(130) + (vectors * gains) @ vectors.T
    torch.testing.assert_close(few.apply(x), many.apply(x), atol=1e-3, rtol=1e-3)


def test_very_wide_units_are_whitened_by_some_of_them(monkeypatch):
    monkeypatch.setattr(covariance, "MOST_SPAN", 100)
    whitening = Whitening.fit(drawn(400, 150))
    assert whitening._root[0].shape[1] <= 100 if isinstance(whitening._root, tuple) else True
    variance = whitening.apply(drawn(400, 150, seed=1)).var(0)
    assert 0.3 < float(variance.mean()) < 3


def test_coordinates_that_do_not_vary_count_as_the_median_one_does():
    x = drawn(300, 20)
    x[:, 3], x[:, 7] = 1e6, 0.0
    whitening = Whitening.fit(x)
    same = whitening.apply(x)
    assert same.isfinite().all()
    assert float(same[:, [3, 7]].abs().max()) < 1e-3
    moved = x.clone()
    moved[:, 7] += x.std(0).median()
    assert 0.5 < float(whitening.apply(moved)[:, 7].mean()) < 2


def test_units_that_are_all_the_same_are_only_centred():
    x = torch.full((10, 4), 3.0)
    torch.testing.assert_close(Whitening.fit(x).apply(x + 2), torch.full((10, 4), 2.0))


def test_coordinates_that_repeat_each_other_are_not_blown_up():
    x = drawn(5_000, 6)
    whitening = Whitening.fit(torch.cat([x, x, x[:, :1] + x[:, 1:2]], 1))
    fresh = drawn(500, 6, seed=1)
    w = whitening.apply(torch.cat([fresh, fresh, fresh[:, :1] + fresh[:, 1:2]], 1))
    assert float(w.var(0).max()) < 2


@pytest.mark.parametrize(("n", "d"), [(500, 20), (30, 100)])
def test_directions_lead_back_to_raw_ones(n, d):
    x = drawn(n, d)
    whitening = Whitening.fit(x)
    directions = torch.randn(d, 3, generator=torch.Generator().manual_seed(2))
    along = whitening.apply(x) @ directions
    torch.testing.assert_close((x - whitening.centre) @ whitening.unwhitened(directions), along, atol=2e-2, rtol=1e-3)


def test_units_that_are_far_away_stay_finite():
    whitening = Whitening.fit(drawn(200, 16))
    assert whitening.apply(torch.full((2, 16), 3e38)).isfinite().all()
