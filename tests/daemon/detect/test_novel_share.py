import math

import pytest
import torch
from hydrophoned.detect.detector import Guarantee
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.novel_share import NovelShare
from hydrophoned.detect.novelty import NoveltyScorer
from hydrophoned.testing import check_detector


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def ranks(n):
    """p-values of n reference units."""
    return (torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))[:, None]


def of_reference(n, scores, generator):
    """p-values of ``scores`` among those of n reference units, drawn from the same uniform distribution."""
    ordered = torch.rand(n, generator=generator, dtype=torch.float64).sort().values
    return ((1 + n - torch.searchsorted(ordered, scores)).double() / (n + 1))[:, None]


def stream(units, generator, share=0.0):
    """Scores of which ``share`` are above all."""
    scores = torch.rand(units, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(units, generator=generator) < share, 2.0, scores)


def detector(n=1000, run_length=2000.0, level=0.01):
    return NovelShare(ranks(n), run_length=run_length, level=level)


# -- nothing changes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [150, 2000])
def test_the_run_length_is_as_promised_however_small_the_reference(n):
    streams, watched, run_length, alarms = 60, 10_000, 2000.0, 0
    for seed in range(streams):
        g = drawn(seed)
        alarms += len(detector(n, run_length).update(of_reference(n, stream(watched, g), g)))
    wanted = streams * watched / run_length
    assert alarms <= wanted + 2 * math.sqrt(wanted)
    assert alarms > wanted / 5


def test_the_run_length_is_as_promised_on_scored_units():
    streams, watched, run_length, alarms = 10, 4000, 500.0, 0
    for seed in range(streams):
        x = torch.randn(300 + watched, 6, generator=drawn(seed)) * torch.arange(1, 7) ** -0.5
        scorer = NoveltyScorer(x[:300], generator=drawn(seed))
        share = NovelShare(scorer.reference_p[:, None], run_length=run_length, level=0.02)
        alarms += len(share.update(scorer.update(x[300:]).p[:, None]))
    wanted = streams * watched / run_length
    assert alarms <= wanted + 2 * math.sqrt(wanted)


def test_evidence_less_the_number_of_units_has_mean_zero():
    g, watched, total = drawn(0), 40, 0.0
    for _ in range(3000):
        share = detector(50, 1e12, 0.1)
        share.update(of_reference(50, stream(watched, g), g))
        total += share._restarted[0]  # the others' tails are too heavy to be averaged
    assert total / 3000 == pytest.approx(watched, rel=0.05)


# -- something does ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "most"), [(0.05, 400), (0.1, 150), (0.4, 25)])
def test_a_larger_share_is_found(share, most):
    delays, began = [], []
    for seed in range(20):
        g = drawn(seed)
        changed = torch.cat((stream(500, g), stream(2000, g, share)))
        found = [one for one in detector(run_length=10_000.0).update(of_reference(1000, changed, g)) if one.unit >= 500]
        delays.append(found[0].unit - 499 if found else 2000)
        began += [abs(found[0].began - 500)] if found else []
    assert sorted(delays)[10] <= most
    assert sorted(began)[len(began) // 2] <= 100


def test_a_smaller_share_is_none():
    assert detector(run_length=100.0).update(torch.full((5000, 1), 0.5)) == []


def test_a_share_that_stays_larger_is_found_again():
    g = drawn(0)
    found = detector().update(of_reference(1000, stream(2000, g, 0.2), g))
    assert len(found) > 5
    assert found[0].statistic >= found[0].threshold == 2000


def test_what_has_changed_does_not_count_as_usual():
    share = detector()
    share.update(torch.full((300, 1), 0.5))
    assert share.share == pytest.approx(10 / 1300)
    share.update(torch.zeros(200, 1))
    assert share.share < 0.02
    assert share.novel == 200


# -- contract ---------------------------------------------------------------------------------------------------------


def test_it_is_a_detector():
    def same(n, generator):
        return torch.rand(n, 1, generator=generator)

    def changed(n, generator):
        new = torch.rand(n, 1, generator=generator) < 0.1
        return torch.where(new, 0.0, torch.rand(n, 1, generator=generator))

    check_detector(lambda: detector(run_length=1000.0), same, changed)
    assert NovelShare.guarantee is Guarantee.RUN_LENGTH


def test_units_without_a_p_value_are_left_out():
    share = detector()
    assert share.update(torch.full((500, 1), float("nan"))) == []
    assert (share.units, share.left_out, share.novel) == (0, 500, 0)


def test_it_needs_a_reference_with_novel_units():
    with pytest.raises(InsufficientReference, match=r"50 p-values is 0\.01.*100 units"):
        NovelShare(ranks(50), run_length=1000)
    missing = torch.full((40, 1), float("nan"))
    share = NovelShare(torch.cat((ranks(1000), missing)), run_length=1000)
    assert share.share == 10 / 1000


def test_what_does_not_fit_is_named():
    with pytest.raises(ReferenceMismatch, match=r"\[5\]"):
        detector().update(torch.zeros(5))
    with pytest.raises(ReferenceMismatch, match="400"):
        detector().load_state(detector(400).state_dict())
    with pytest.raises(ValueError, match=r"0\.5"):
        detector(run_length=0.5)
    with pytest.raises(ValueError, match="level is 2"):
        detector(level=2)
