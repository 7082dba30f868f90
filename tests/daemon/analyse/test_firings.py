"""Firings drawn from a sample: only real ones, uniformly, or evenly from weak to strong."""

import numpy as np
import pytest
from hydrophoned.analyse.firings import firings
from hydrophoned.learn.code_sample import CodedRows

FEATURE = 7


def sample(values: np.ndarray, k: int = 3) -> CodedRows:
    """Rows of which row i has feature 7 at values[i] (0: not active) among others."""
    n = len(values)
    index = np.tile(np.array([3, FEATURE, 9], np.int32), (n, 1))[:, :k]
    value = np.ones((n, k), np.float32)
    value[:, 1] = values
    row = np.arange(n)
    return CodedRows(index, value, row, *(row.astype(np.int32) for _ in range(4)), row * 1000)


def test_only_rows_on_which_the_feature_is_active():
    values = np.where(np.arange(400) % 4 == 0, np.arange(400) + 1.0, 0.0)
    found = firings(sample(values), FEATURE, limit=1000, in_bands=False)
    assert (found.rows, found.fired) == (400, 100)
    assert sorted(found.row.tolist()) == list(range(0, 400, 4))
    np.testing.assert_array_equal(found.value, values[found.row])
    assert (np.diff(found.value) <= 0).all()
    assert firings(sample(values), 8, limit=10, in_bands=True).row.size == 0


@pytest.mark.parametrize(("limit", "parts"), [(12, [3, 3, 3, 3]), (3, [0, 1, 1, 1]), (1, [0, 0, 0, 1])])
def test_bands_are_quarters_of_the_firings_and_have_equal_parts(limit, parts):
    values = np.random.default_rng(0).lognormal(0, 2, 2000)
    found = firings(sample(values), FEATURE, limit=limit, in_bands=True)
    assert np.bincount(found.band, minlength=5)[1:].tolist() == parts
    edges = np.quantile(values, [0.25, 0.5, 0.75])
    np.testing.assert_array_equal(found.band, np.searchsorted(edges, found.value.astype(np.float64)) + 1)


def test_equal_values_still_fall_into_four_quarters():
    found = firings(sample(np.ones(40)), FEATURE, limit=40, in_bands=True)
    assert np.bincount(found.band, minlength=5)[1:].tolist() == [10, 10, 10, 10]


def test_random_firings_are_drawn_uniformly():
    values = np.arange(1, 201, dtype=float)
    drawn = [firings(sample(values), FEATURE, limit=20, in_bands=False, seed=seed).value for seed in range(200)]
    # the mean of 4000 values drawn uniformly from 1..200 is 100.5 with a standard error of 0.91 at most
    assert abs(np.concatenate(drawn).mean() - 100.5) < 4 * 0.91
    assert all(len(set(values.tolist())) == 20 for values in drawn)
