import pytest
import torch
from hydrophoned.analyse import quality as module
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.pca import Components
from hydrophoned.analyse.quality import Assessor
from hydrophoned.learn import assessment
from hydrophoned.learn.dictionary import Codes

N, D = 3000, 12


class Axes:
    """A dictionary of the axes, away from the origin."""

    width, features, k = D, D, 4

    def encode(self, x):
        value, index = (x - 3).topk(self.k, dim=1)
        return Codes(index.int(), value.clamp_min(0))

    def decode(self, codes):
        return torch.full((len(codes.index), D), 3.0).scatter_add_(1, codes.index.long(), codes.value)


def rows(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(N, D, generator=g) * (torch.rand(N, D, generator=g) < 0.3)
    x[:, 5] = 0
    return x + 3


REQUEST = torch.arange(N) // 30


def judged(x, size=N, request=REQUEST):
    dictionary = Axes()
    assessor = Assessor(dictionary)
    for part, of in zip(x.split(size), request.split(size), strict=True):
        assessor.add(part, dictionary.encode(part), of)
    return assessor.result()


def test_figures_are_those_of_all_rows_at_once_however_they_are_split():
    x, dictionary = rows(), Axes()
    expected = assessment.assess(dictionary, dictionary.encode(x), x, 0)
    for size in (N, 700):
        found = judged(x, size)
        assert [one.kept for one in found.by_count] == [1, 2, 4]
        assert [one.fvu for one in found.by_count] == pytest.approx([fvu for _, fvu in expected.fvu_by_count], rel=1e-4)
        assert found.fvu == found.by_count[-1].fvu
        assert found.l0 == pytest.approx(expected.l0)
        assert found.dead_fraction == 1 / D
        assert sum(found.density) == D
        assert found.density[0] == 1
        assert (found.rows, found.features) == (N, D)
        assert found.components == round(found.l0)
    assert judged(x, 700).pca_fvu == pytest.approx(judged(x).pca_fvu, rel=1e-4)


def test_components_are_those_of_the_other_half():
    x = rows() @ torch.randn(D, D, generator=torch.Generator().manual_seed(1)) + 100
    first = REQUEST % 2 == 0
    error = variance = 0.0
    for own, other in ((x[first], x[~first]), (x[~first], x[first])):
        basis = torch.linalg.svd(own.double() - own.double().mean(0), full_matrices=False)[2][:4]
        left = other.double() - own.double().mean(0)
        error += float((left - left @ basis.T @ basis).square().sum())
        variance += float((other.double() - other.double().mean(0)).square().sum())
    components = Components(D, torch.device("cpu"))
    for part, half in zip(x.split(500), first.split(500), strict=True):
        components.add(part[half], 0)
        components.add(part[~half], 1)
    found = components.fvu([0, 4, D, D + 1])
    assert found[1] == pytest.approx(error / variance, rel=1e-4)
    assert found[2] == pytest.approx(0, abs=1e-4)
    assert found[0] is None
    assert found[3] is None


def test_components_of_noise_explain_nothing_on_the_other_half():
    x = torch.randn(120, 100, generator=torch.Generator().manual_seed(0))
    components = Components(100, torch.device("cpu"))
    components.add(x[:60], 0)
    components.add(x[60:], 1)
    (found,) = components.fvu([30])
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    assert float(values[30:].sum() / values.sum()) < 0.5, "on their own rows they would seem to explain half"
    assert found > 0.65


def test_what_is_not_known_is_none(monkeypatch):
    alike = judged(torch.full((N, D), 3.5))
    assert alike.fvu is None
    assert alike.pca_fvu is None
    assert alike.by_count[0] == (1, None, None)
    one_request = judged(rows(), request=torch.zeros(N, dtype=torch.int64))
    assert one_request.pca_fvu is None
    assert one_request.fvu is not None
    monkeypatch.setattr(module, "MOST_WIDTH", D - 1)
    wide = judged(rows())
    assert wide.pca_fvu is None
    assert wide.fvu is not None


def test_too_few_rows_are_said():
    with pytest.raises(TooLittle, match="63 rows are too few to judge a dictionary by: at least 64"):
        judged(rows()[:63], request=REQUEST[:63])
    with pytest.raises(TooLittle, match=r"^0 rows"):
        Assessor(Axes()).result()
