import pytest
import torch
from hydrophoned.analyse.active import Active
from hydrophoned.analyse.splitting import GAIN, splitting
from planted import codes_of, sparse

N, F = 6000, 40
LABEL = torch.rand(N, generator=torch.Generator().manual_seed(7)) < 0.3


def split_over(parts, *, right=1.0, seed=0):
    """Each row with the label has one of the first ``parts`` features, in a share ``right`` of the cases."""
    g = torch.Generator().manual_seed(seed)
    z = sparse(N, F, seed=seed + 1)
    z[:, :parts] = 0
    which = torch.randint(0, parts, (N,), generator=g)
    rows = LABEL & (torch.rand(N, generator=g) < right)
    z[rows, which[rows]] = 1 + torch.rand(int(rows.sum()), generator=g)
    return z


def found_in(z, label=LABEL):
    first = torch.arange(N) % 2 == 0
    active = Active.of(codes_of(z), F)
    return splitting(active.of_rows(first), active.of_rows(~first), (label[first], label[~first]))


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_planted_number_of_parts_is_found(parts):
    found = found_in(split_over(parts))
    assert found.features == parts
    assert found.f1[parts - 1] == 1
    assert len(found.f1) == parts + 1
    assert found.f1[-1] - found.f1[-2] < GAIN
    assert (found.rows, found.positive) == (N // 2, int(LABEL[1::2].sum()))


def test_f1_is_what_the_parts_can_have():
    found = found_in(split_over(3))
    expected = [2 * share / (share + 1) for share in (1 / 3, 2 / 3, 1)]
    assert list(found.f1[:3]) == pytest.approx(expected, abs=0.03)


def test_a_second_feature_that_says_the_same_does_not_count():
    z = split_over(1)
    z[:, 1] = z[:, 0] * 2
    assert found_in(z).features == 1


def test_features_that_know_nothing_of_the_label_are_unknown():
    found = found_in(sparse(N, F))
    assert found.features is None
    share = float(LABEL[1::2].double().mean())
    assert found.f1_of_all_called == pytest.approx(2 * share / (1 + share))
    assert max(found.f1) < found.f1_of_all_called + GAIN


def test_permuted_labels_are_split_over_nothing():
    dealt = LABEL[torch.randperm(N, generator=torch.Generator().manual_seed(1))]
    assert found_in(split_over(3), dealt).features is None
