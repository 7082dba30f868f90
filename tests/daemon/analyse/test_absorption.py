import math

import pytest
import torch
from hydrophoned.analyse import absorption as module
from hydrophoned.analyse.absorption import absorption
from hydrophoned.analyse.active import Active
from hydrophoned.analyse.errors import LabelsAlike, TooLittle
from hydrophoned.analyse.halves import halves
from planted import ABSORBERS, MAINS, codes_of, labelled, sparse


def of(planted, **changes):
    return absorption(*planted._replace(**changes)[:5])


def test_planted_absorbers_are_found():
    planted = labelled()
    found = of(planted)
    scored = ~halves(planted.request, torch.Generator().manual_seed(0))
    hidden = int((planted.hidden & scored).sum())
    assert {one.feature for one in found.mains} == set(range(MAINS))
    assert found.aurocs.probe > 0.99
    assert abs(found.found.called - found.positive_scored) <= 0.02 * found.positive_scored
    assert abs(found.found.silent - hidden) <= 0.03 * hidden
    assert found.found.absorbed_share > 0.95
    assert found.absorbers == ABSORBERS
    assert {feature for feature, _ in found.largest} == set(range(MAINS, MAINS + ABSORBERS))
    assert sum(rows for _, rows in found.largest) == found.found.absorbed
    assert (found.rows, found.requests) == (6000, 150)
    assert found.positive == int(planted.label.sum())
    assert found.positive_scored == int((planted.label & scored).sum())


def test_nothing_is_absorbed_along_a_random_direction_or_of_permuted_labels():
    found = of(labelled())
    assert found.random_direction.silent == found.found.silent
    assert found.random_direction.absorbed_share < 0.1 * found.found.absorbed_share
    assert found.permuted_labels.called == found.found.called
    assert found.permuted_labels.absorbed_share < 0.05


def test_rows_that_the_codes_leave_out_are_silent_but_not_absorbed():
    found = of(labelled(absorbed=False))
    assert found.found.silent_share > 0.12
    assert found.found.absorbed_share < 0.05
    assert not found.largest or found.largest[0][1] <= 3


def test_without_silent_rows_shares_are_unknown_not_nought():
    planted = labelled()
    value = planted.codes.value.clone()
    index = planted.codes.index.clone()
    index[:, -1], value[:, -1] = 0, planted.label.float()
    value[:, :-1].masked_fill_(index[:, :-1] == 0, 0)  # main feature 0 fires exactly where the label is
    found = of(planted, codes=planted.codes._replace(index=index, value=value)).found
    assert found.silent == found.absorbed == 0
    assert found.silent_share == 0
    assert found.absorbed_share is None


def test_the_probe_is_scored_on_requests_that_it_has_not_seen():
    """Rows of noise, nearly as wide as there are: the probe knows those it was trained on by heart, and no others."""
    g = torch.Generator().manual_seed(0)
    x, label = torch.randn(400, 300, generator=g), torch.rand(400, generator=g) < 0.5
    codes, W = codes_of(sparse(400, 50)), torch.randn(50, 300, generator=g)
    found = absorption(x, codes, W, label, torch.arange(400) // 4)
    assert abs(found.aurocs.probe - 0.5) < 0.12
    assert abs(found.aurocs.mean_difference - 0.5) < 0.12
    assert max(one.auroc_chosen for one in found.mains) > 0.53
    assert abs(sum(one.auroc for one in found.mains) / 3 - 0.5) < 0.05
    assert found.splitting.features is None
    first = halves(torch.arange(400) // 4, torch.Generator().manual_seed(0))
    probe = module.fit_probe(x[first], label[first])
    assert module.auroc(probe.logits(x[first]), label[first]) == 1


def test_rivals_are_told_beside_the_features():
    found = of(labelled())
    assert found.aurocs.mean_difference > 0.9
    assert 0.5 < found.aurocs.best_neuron < found.aurocs.probe
    planted = labelled()
    x = planted.x.clone()
    x[:, 7] = -5.0 * planted.label
    assert of(planted, x=x).aurocs.best_neuron == 1, "a neuron that falls tells it as well as one that rises"


def test_scale_of_rows_and_norm_of_decoder_rows_do_not_matter():
    planted = labelled(n=4000)
    value = planted.codes.value * 0.1
    scaled = of(planted, x=100 * planted.x + 7, codes=planted.codes._replace(value=value), W_dec=1000 * planted.W_dec)
    plain = of(planted)
    assert scaled.found.silent == pytest.approx(plain.found.silent, abs=2)
    assert scaled.found.absorbed == pytest.approx(plain.found.absorbed, abs=2)


def test_labels_of_whole_requests_are_dealt_to_requests():
    request = torch.arange(1200) // 30
    label = torch.rand(40, generator=torch.Generator().manual_seed(1))[request] < 0.5
    first = halves(request, torch.Generator().manual_seed(0))
    dealt = module._permuted(label, request, first, torch.Generator().manual_seed(2))
    assert not torch.equal(dealt, label)
    for one in range(40):
        assert len(dealt[request == one].unique()) == 1
    assert int(dealt[first].sum()) == int(label[first].sum()), "each half keeps its own"
    mixed = label.clone()
    mixed[0] = ~mixed[0]
    dealt = module._permuted(mixed, request, first, torch.Generator().manual_seed(2))
    assert any(len(dealt[request == one].unique()) == 2 for one in range(40))
    assert int(dealt[first].sum()) == int(mixed[first].sum())


def test_the_same_seed_gives_the_same_answer():
    planted = labelled(n=3000)
    assert of(planted) == of(planted)
    assert absorption(*planted[:5], seed=1).mains != of(planted).mains


def test_what_cannot_be_told_is_said():
    planted = labelled(n=3000)
    with pytest.raises(LabelsAlike, match="the label is true on all 3000 rows"):
        of(planted, label=torch.ones(3000, dtype=torch.bool))
    with pytest.raises(LabelsAlike, match="false on all"):
        of(planted, label=torch.zeros(3000, dtype=torch.bool))
    with pytest.raises(TooLittle, match="no row has the label"):
        of(planted._replace(x=planted.x[:0], codes=codes_of(torch.zeros(0, 9), k=2)), label=planted.label[:0])
    once = torch.zeros(3000, dtype=torch.bool)
    once[:40] = True  # one request
    with pytest.raises(TooLittle, match=r"true on (0|40) of the \d+ rows to (choose|score) on"):
        of(planted, label=once)
    with pytest.raises(TooLittle, match="1 requests"):
        of(planted, request=torch.zeros(3000, dtype=torch.int64))


def test_active_pairs_say_what_dense_codes_say():
    z = sparse(50, 20, 0.2)
    z[:, 3] = 2.0
    active = Active.of(codes_of(z, k=15), 20)
    assert torch.equal(active.dense(), z)
    assert torch.equal(active.fired(), (z > 0).sum(0))
    mean, deviation = active.moments()
    assert mean.float().tolist() == pytest.approx(z.mean(0).tolist(), abs=1e-6)
    assert deviation.float().tolist() == pytest.approx(z.std(0, correction=0).tolist(), abs=1e-6)
    assert float(deviation[3]) == 0
    some, rows = torch.tensor([7, 2]), torch.arange(50) % 3 == 0
    assert torch.equal(active.of_features(some).of_rows(rows).dense(), z[rows][:, some])
    shuffled = active.shuffled(torch.Generator().manual_seed(0))
    assert (shuffled.row.diff() >= 0).all()
    assert not torch.equal(shuffled.dense(), z)
    assert sorted(map(tuple, shuffled.dense().tolist())) == sorted(map(tuple, z.tolist()))
    assert math.isclose(float(shuffled.value.sum()), float(z.sum()), rel_tol=1e-6)
