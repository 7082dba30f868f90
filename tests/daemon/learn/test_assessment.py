import pytest
import torch
from hydrophoned.learn.assessment import DENSITY_EDGES, as_numbers, assess, density
from hydrophoned.learn.dictionary import Codes


class Axes:
    """A dictionary of the axes: what the m largest coordinates explain is known."""

    def decode(self, codes):
        return torch.zeros(len(codes.index), 6).scatter_add_(1, codes.index.long(), codes.value)


def test_fvu_by_count_keeps_the_largest_values_of_each_row():
    y = torch.rand(500, 6, generator=torch.Generator().manual_seed(0))
    value, index = y.topk(5, dim=1)
    shuffled = torch.tensor([3, 0, 4, 2, 1])
    found = assess(Axes(), Codes(index[:, shuffled].int(), value[:, shuffled]), y, 7)
    variance = float((y - y.mean(0)).square().sum())
    left = y.sort(dim=1, descending=True).values.square()
    assert [count for count, _ in found.fvu_by_count] == [1, 2, 4, 5]
    for count, fvu in found.fvu_by_count:
        assert fvu == pytest.approx(float(left[:, count:].sum()) / variance, rel=1e-5)
    assert (found.time, found.rows, found.l0) == (7, 500, 5.0)
    assert as_numbers(found)["fvu_by_count"][0][0] == 1


def test_rows_that_do_not_vary_have_no_fvu():
    codes = Codes(torch.zeros(4, 2, dtype=torch.int32), torch.zeros(4, 2))
    found = assess(Axes(), codes, torch.ones(4, 6), 0)
    assert found.fvu_by_count is None
    assert found.l0 == 0
    assert as_numbers(found)["fvu_by_count"] is None


def test_density_counts_features_by_how_often_they_fire():
    fired = torch.tensor([0, 0, 1, 9, 10, 99, 100_000, 1_000_000])
    counts = density(fired, 1_000_000)
    assert counts == [2, 2, 2, 0, 0, 0, 2]
    assert len(counts) == len(DENSITY_EDGES) + 2
    assert density(fired, 0) is None
