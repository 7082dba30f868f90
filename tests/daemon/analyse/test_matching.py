import subprocess
import sys

import numpy as np
import pytest
import torch
from hydrophoned.analyse import matching
from hydrophoned.analyse.active import Active
from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.halves import halves
from hydrophoned.analyse.matching import LEAST_FIRED, compare, each_others_best
from hydrophoned.learn.errors import WidthMismatch
from planted import codes_of, directions, sparse

N, F, D = 6000, 64, 32
REQUEST = torch.arange(N) // 50


def test_a_permuted_copy_is_found_whole():
    order = torch.randperm(F, generator=torch.Generator().manual_seed(3))
    z, W = sparse(N, F), directions(F, D)
    copy, V = 3 * z[:, order], 0.5 * W[order]  # neither the size of values nor the norm of decoder rows matters
    found = compare((codes_of(z), codes_of(copy)), (W, V), REQUEST)
    for way in (found.activation, found.decoder):
        assert torch.equal(order[way.partner], torch.arange(F))
        assert way.score.min() > 0.999
        assert (way.scores.pairs, way.scores.strong, way.scores.weak) == (F, 1.0, 1.0)
        assert way.shuffled.strong == 0
        assert way.random_pairs.strong <= 3 / F, "a random pair may be right by chance"
    assert found.same_partner == 1
    assert (found.rows, found.requests, found.rows_scored) == (N, N // 50, N // 2)


def test_unrelated_dictionaries_are_at_the_floor():
    codes = codes_of(sparse(N, F, seed=1)), codes_of(sparse(N, F, seed=2))
    found = compare(codes, (directions(F, D, 1), directions(F, D, 2)), REQUEST)
    for way in (found.activation, found.decoder):
        assert abs(way.scores.mean - way.shuffled.mean) < 0.06
        assert abs(way.scores.strong - way.shuffled.strong) < 0.02
    assert found.activation.scores.strong == found.activation.scores.weak == 0
    assert abs(found.activation.scores.mean) < 0.01
    assert found.activation.scores.chosen > 0.02, (
        "on the rows they were chosen on the best of many looks like something"
    )


def test_what_is_shared_is_told_from_what_is_not():
    z, W, V = sparse(N, F), directions(F, D), directions(F, D, 5)
    other = sparse(N, F, seed=9)
    other[:, : F // 2], V[: F // 2] = z[:, : F // 2], W[: F // 2]
    found = compare((codes_of(z), codes_of(other)), (W, V), REQUEST)
    assert found.activation.scores.strong == found.decoder.scores.strong == 0.5
    assert torch.equal(found.activation.partner[: F // 2], torch.arange(F // 2))
    assert found.activation.score[F // 2 :].nan_to_num().max() < 0.1


def alike_within_requests():
    """Independent codes where each row comes 30 times, as the tokens of a request resemble each other."""
    one, other = (sparse(200, 128, 0.2, seed).repeat_interleave(30, 0) for seed in (1, 2))
    return codes_of(one), codes_of(other)


def test_halves_of_requests_are_honest_where_halves_of_rows_are_not():
    codes, V = alike_within_requests(), (directions(128, D), directions(128, D, 1))
    rows = torch.arange(6000)
    honest = compare(codes, V, rows // 30).activation.scores
    fooled = compare(codes, V, rows).activation.scores
    assert honest.chosen > 0.15
    assert abs(honest.mean) < 0.03
    assert fooled.mean > 0.12, "the same rows are in both halves"


def test_nothing_is_said_of_features_that_hardly_fire():
    z = sparse(N, F)
    z[:, 5], z[:, 6], z[:, 7] = 0, 0, 1.5  # never, rarely, always alike
    z[:: N // 12, 6] = 1
    found = compare((codes_of(z), codes_of(z)), (directions(F, D), directions(F, D)), REQUEST)
    unknown = torch.tensor([5, 6, 7])
    for kept in found.compared:
        assert torch.equal(kept, torch.tensor([j for j in range(F) if j not in unknown]))
    for way in (found.activation, found.decoder):
        assert (way.partner[unknown] == -1).all()
        assert way.score[unknown].isnan().all()
        assert way.scores.strong == 1, "shares are of the features compared"


def test_without_a_feature_to_compare_everything_is_unknown():
    never = codes_of(torch.zeros(N, F), k=2)
    found = compare((never, codes_of(sparse(N, F))), (directions(F, D), directions(F, D)), REQUEST)
    for way in (found.activation, found.decoder):
        assert way.scores == way.shuffled == way.random_pairs == (0, None, None, None, None)
        assert (way.partner == -1).all()
    assert found.same_partner is None


def test_correlations_in_blocks_are_those_of_the_dense_codes(monkeypatch):
    monkeypatch.setattr(matching, "_BLOCK", 7 * 40)
    monkeypatch.setattr(matching, "_EXPANDED", 50)
    one, other = sparse(400, 23, 0.2, 1), sparse(400, 40, 0.1, 2)
    blocks = list(matching._correlations(Active.of(codes_of(one), 23), Active.of(codes_of(other), 40)))
    assert [start for start, _ in blocks] == [0, 7, 14, 21]
    expected = np.corrcoef(one.double().T, other.double().T)[:23, 23:]
    assert torch.cat([block for _, block in blocks]).numpy() == pytest.approx(expected, abs=1e-5)
    partner = torch.full((23,), -1)
    partner[[3, 20]] = torch.tensor([39, 0])
    score = matching.pair_correlations(Active.of(codes_of(one), 23), Active.of(codes_of(other), 40), partner)
    assert score[[3, 20]].numpy() == pytest.approx(expected[[3, 20], [39, 0]], abs=1e-6)
    assert int(score.isnan().sum()) == 21


def test_partners_are_each_others_best_and_alike_at_all():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.95, 0.2, 0.3], [-0.5, -0.1, -0.2]])
    blocks = [(0, scores[:2]), (2, scores[2:])]
    assert each_others_best(iter(blocks), 3, 3).tolist() == [-1, 0, -1]


def test_too_little_to_compare_is_said():
    codes, V = (codes_of(sparse(N, F)),) * 2, (directions(F, D),) * 2
    with pytest.raises(TooLittle, match="rows are of 1 requests; at least 2"):
        compare(codes, V, torch.zeros(N, dtype=torch.int64))
    few = codes_of(sparse(30, F))
    with pytest.raises(TooLittle, match=f"30 rows are too few.*{LEAST_FIRED} rows of each half"):
        compare((few, few), V, torch.arange(30))
    with pytest.raises(TooLittle, match="not of the same 6000 rows"):
        compare((few, codes[0]), V, REQUEST)
    with pytest.raises(WidthMismatch, match="width 32 and 8 cannot"):
        compare(codes, (V[0], directions(F, 8)), REQUEST)


def test_halves_are_of_whole_requests_and_follow_the_seed():
    request = torch.tensor([7, 7, 3, 3, 3, 9, 9, 1])
    first = halves(request, torch.Generator().manual_seed(0))
    for one in request.unique():
        assert len(first[request == one].unique()) == 1
    assert len(request[first].unique()) == 2
    assert torch.equal(first, halves(request, torch.Generator().manual_seed(0)))
    drawn = {tuple(halves(request, torch.Generator().manual_seed(seed)).tolist()) for seed in range(20)}
    assert len(drawn) > 1


LARGE = """
import resource, torch
from hydrophoned.analyse.matching import compare
from hydrophoned.learn.dictionary import Codes
F, n, k, d = 16384, 32768, 32, 16
g = torch.Generator().manual_seed(0)
def codes():
    index = torch.randint(0, F // k, (n, k), generator=g) + torch.arange(k) * (F // k)
    return Codes(index.int(), torch.rand(n, k, generator=g))
both, W = (codes(), codes()), torch.randn(2, F, d, generator=g)
few = Codes(both[0].index[:2000] % 64, both[0].value[:2000])
compare((few, few), (W[0, :64], W[1, :64]), torch.arange(2000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = compare(both, (W[0], W[1]), torch.arange(n))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(found.compared[0]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_memory_is_bounded_at_16384_features():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    kib, compared = map(int, done.stdout.split())
    assert compared > 15_000, "there was something to do"
    assert kib < 384 * 1024, "all correlations at once would be 1 GiB in float32"
