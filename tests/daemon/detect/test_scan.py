import math

import pytest
import torch
from hydrophoned.detect.errors import InsufficientReference, ReferenceMismatch
from hydrophoned.detect.scan import ScanDetector
from hydrophoned.detect.scan_windows import Groups, Tails, Windows
from planted_units import WIDTH, alarms_of, contaminated, delays_of, shifted, spread, units


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tails", [0.0, 0.5])
@pytest.mark.parametrize("reference", [150, 1_000])
def test_alarms_on_nothing_are_as_rare_as_promised(tails, reference):
    alarms, watched = alarms_of(ScanDetector, range(12), run_length=500, reference=reference, tails=tails)
    promised = watched / 500
    assert alarms <= promised + 2.3 * promised**0.5
    assert alarms > 0, "a detector that never raises has no power either"


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda x: shifted(x, 0.5), 64),
        (lambda x: shifted(x, 2.0), 16),
        (lambda x: spread(x, 2.0), 128),
        (lambda x: contaminated(x, 0.1, generator(5)), 64),
    ],
    ids=["shift", "large shift", "spread", "contamination"],
)
def test_changes_are_found_soon(change, most):
    delay, earlier = delays_of(ScanDetector, change, range(7), run_length=5_000)
    assert delay <= most
    assert earlier >= 0.8


def test_where_nothing_changes_alarms_are_no_earlier_than_the_twins():
    _, earlier = delays_of(ScanDetector, lambda x: x, range(3), run_length=500)
    assert earlier == 0


def test_the_window_tells_about_when_a_change_began():
    detector = ScanDetector(units(1_000, generator(1)), run_length=20_000, generator=generator(2))
    assert detector.update(units(1_600, generator(3))) == []
    found = detector.update(shifted(units(1_000, generator(4)), 0.35))[0]
    assert abs(found.began - 1_600) <= max(64, found.unit - 1_600)
    assert found.unit % 16 == 15, "told of the last unit of a block"


def test_a_longer_promise_has_a_higher_threshold_also_beyond_what_is_drawn():
    known = units(400, generator())
    thresholds = [
        ScanDetector(known, run_length=length, generator=generator()).threshold for length in (100, 3_000, 100_000, 1e6)
    ]
    assert thresholds == sorted(set(thresholds))
    assert thresholds[-1] - thresholds[-2] == pytest.approx(math.log(10), rel=0.8)


def test_windows_are_sums_of_the_latest_blocks():
    sums = torch.randn(40, Groups(3, 2).features, generator=generator())
    windows = Windows(Groups(3, 2), 4, sums.device)
    found = torch.cat([windows.add(part) for part in torch.split(sums, 7)])
    for block, window in [(0, 0), (7, 3), (20, 2), (39, 3)]:
        expected = Groups(3, 2).statistics(sums[block + 1 - 2**window : block + 1].sum(0)[None] / 2 ** (window / 2))[0]
        torch.testing.assert_close(found[block, window], expected)
    assert bool(found[:7, 3].isneginf().all()), "a window that is not full says nothing"
    assert bool(found[7:].isfinite().all())


def test_tails_put_statistics_of_any_size_on_one_scale():
    drawn = torch.distributions.Exponential(1.0)
    torch.manual_seed(0)
    statistics = drawn.sample((8, 2_000, 1, 7)) * torch.tensor([1, 1e3, 1e-3, 5, 5, 5, 1e6]) + 3
    excess = (statistics - Tails.of(statistics).begin) / Tails.of(statistics).excess
    share = (excess > 2.0).float().mean((0, 1, 2))
    torch.testing.assert_close(share, torch.full((7,), 0.1 * math.exp(-2.0)), rtol=0.2, atol=0.0)


def test_wide_units_are_projected():
    wide = torch.randn(300, 200, generator=generator()) @ torch.randn(200, 200, generator=generator(1))
    detector = ScanDetector(wide, run_length=2_000, generator=generator(), projections=20)
    fresh = torch.randn(128, 200, generator=generator(2)) @ torch.randn(200, 200, generator=generator(1))
    assert detector.update(fresh) == []
    assert detector.update(shifted(fresh, 1.0)) != []


def test_more_coordinates_than_units():
    known = torch.randn(80, 300, generator=generator())
    detector = ScanDetector(known, run_length=2_000, generator=generator())
    assert detector.update(torch.randn(500, 300, generator=generator(1))) == []
    assert detector.update(torch.randn(100, 300, generator=generator(2)) + 1) != []


def test_coordinates_that_do_not_vary_raise_nothing():
    known = units(400, generator(1))
    known[:, 3], known[:, 4] = 1e6, 0.0
    same = units(1_000, generator(2))
    same[:, 3], same[:, 4] = 1e6 + 0.06, 0.0  # one step of float32 away
    detector = ScanDetector(known, run_length=20_000, generator=generator())
    assert detector.update(same) == []
    assert math.isfinite(detector.statistic)


def test_references_that_do_not_do():
    with pytest.raises(InsufficientReference, match="63 finite units of 64: 64"):
        ScanDetector(
            units(64, generator()).index_fill_(0, torch.tensor([3]), torch.nan), run_length=9, generator=generator()
        )
    with pytest.raises(InsufficientReference, match="all 64 units of the reference are the same"):
        ScanDetector(torch.ones(64, WIDTH), run_length=9, generator=generator())
    lone = torch.ones(64, WIDTH)
    lone[5] = 2.0
    raised = 0
    for seed in range(6):  # in whichever half the one that varies is
        try:
            ScanDetector(lone, run_length=9, generator=generator(seed)).update(torch.ones(100, WIDTH))
        except InsufficientReference as error:
            assert "one half of the reference are all the same" in str(error)  # noqa: PT017  not always raised
            raised += 1
    assert 0 < raised < 6
    with pytest.raises(ValueError, match="run_length is 0"):
        ScanDetector(units(64, generator()), run_length=0, generator=generator())


def test_a_state_of_another_width_is_refused():
    one = ScanDetector(units(64, generator()), run_length=9, generator=generator())
    other = ScanDetector(units(64, generator())[:, :5], run_length=9, generator=generator())
    with pytest.raises(ReferenceMismatch, match=f"width {WIDTH}; those of the reference have 5"):
        other.load_state(one.state_dict())


@pytest.mark.long
@pytest.mark.parametrize("run_length", [2_000, 20_000])
def test_long_promises_hold(run_length):
    alarms, watched = alarms_of(ScanDetector, range(20), run_length=run_length, reference=2_000, times=20)
    promised = watched / run_length
    assert alarms <= promised
    assert alarms >= promised / 5, "no more careful than five times the promise"
