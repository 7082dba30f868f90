"""The product of rows with the encoder, by whichever library."""

import pytest
import torch
from hydrophoned.learn.kernels import product as module
from hydrophoned.learn.kernels.product import product


@pytest.fixture(params=["as chosen here", "oneDNN", "torch.mm"])
def library(request, monkeypatch):
    if request.param == "oneDNN" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    if request.param != "as chosen here":
        monkeypatch.setattr(module, "_by_onednn", lambda: request.param == "oneDNN")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("n", "d", "F"), [(1, 1, 1), (3, 64, 100), (70, 33, 513), (0, 8, 4)])
@pytest.mark.parametrize("part", [1, 4000, 1 << 24])
def test_product(monkeypatch, n, d, F, part):
    monkeypatch.setattr(module, "_PART", part)
    generator = torch.Generator().manual_seed(0)
    rows, encoder = torch.randn(n, d, generator=generator), torch.randn(F, d, generator=generator)
    out = torch.full((n, F), torch.nan)
    assert product(rows, encoder, out=out) is out
    torch.testing.assert_close(out, (rows.double() @ encoder.double().T).float(), rtol=1e-4, atol=1e-4)


def test_other_precisions_are_torchs_own():
    rows, encoder = torch.randn(5, 16), torch.randn(7, 16)
    for dtype in (torch.bfloat16, torch.float64):
        out = torch.empty(5, 7, dtype=dtype)
        product(rows.to(dtype), encoder.to(dtype), out=out)
        assert torch.equal(out, rows.to(dtype) @ encoder.to(dtype).T)


@pytest.mark.usefixtures("library")
def test_a_row_that_is_not_finite_spoils_no_other():
    rows, encoder = torch.randn(6, 16), torch.randn(40, 16)
    clean = product(rows, encoder, out=torch.empty(6, 40))
    rows[3, 2], rows[4] = torch.nan, torch.inf
    got = product(rows, encoder, out=torch.empty(6, 40))
    assert got[3].isnan().all()
    torch.testing.assert_close(got[[0, 1, 2, 5]], clean[[0, 1, 2, 5]])
