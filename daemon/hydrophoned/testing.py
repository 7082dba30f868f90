"""Checks that every implementation of a contract must pass; for our own tests and for those who write another one.

from hydrophoned.testing import check_detector, check_dictionary
check_dictionary(lambda: MyDictionary(width=32, features=128, k=4), width=32)
check_detector(lambda: MyDetector(reference, run_length=1_000), same, changed)
"""

import resource
import sys
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from hydrophoned.detect.detector import Detection, Guarantee
from hydrophoned.detect.errors import ReferenceMismatch
from hydrophoned.detect.fired import Fired
from hydrophoned.learn.dictionary import Codes, Dictionary, StepReport
from hydrophoned.learn.errors import WidthMismatch

__all__ = ["check_detector", "check_dictionary"]

_BATCH: Final = 128
_SPLITS: Final = (1, 7, 100, 1000)
_STANDARD_ERRORS: Final = 4  # of the number of false alarms


def check_dictionary(make: Callable[[], Dictionary], *, width: int, rows: int = 20_000) -> None:
    """Check a :class:`~hydrophoned.learn.dictionary.Dictionary`; ``make`` makes new ones, all alike.

    Holds it to the contract: shapes and dtypes; codes that do not depend on how rows are split; a decoder that is
    linear in the code; steps that learn rows with structure and stay finite on rows without; a state that goes on
    exactly; errors that name a wrong width; memory that does not grow with rows. Raises AssertionError that says what
    does not hold. Takes some seconds; ``rows`` are learned in it several times over.
    """
    if not __debug__:
        raise RuntimeError("run this without python -O, which leaves assertions out")
    generator = torch.Generator().manual_seed(0)
    x = _planted(rows, width, generator)
    dictionary = _started(make, x)
    _check_codes(dictionary, x[:300])
    _check_learning(make, x)
    _check_state(make, x)
    _check_odd_rows(make, x, generator)
    _check_memory(dictionary, x)


def check_detector(
    make: Callable[[], Any],
    same: Callable[[int, torch.Generator], Any],
    changed: Callable[[int, torch.Generator], Any],
    *,
    units: int = 1_500,
) -> None:
    """Check a :class:`~hydrophoned.detect.detector.Detector`; ``make`` makes new ones, all alike.

    ``same`` draws units like those of the reference that ``make`` has, and ``changed`` draws others, that ``units`` of
    them have to raise an alarm: tensors [n, d] or :class:`~hydrophoned.detect.fired.Fired`, of n units.

    Holds it to the contract: quiet on units that have not changed, as often as it promises; the same result however
    units are split into batches; evidence that begins anew after a detection; units that are not finite left out,
    counted, and of no consequence; a state that goes on exactly; an error that names a wrong width; memory that does
    not grow with units. Raises AssertionError that says what does not hold. ``units`` are watched in it several times
    over, and as many as four times the promised run length.
    """
    if not __debug__:
        raise RuntimeError("run this without python -O, which leaves assertions out")
    generator = torch.Generator().manual_seed(0)
    before, after = same(units, generator), changed(units, generator)
    _check_quiet(make(), same, generator)
    _check_alarms(make, before, after)
    _check_batches(make, before, after)
    _check_detector_state(make, before, after)
    if isinstance(before, Tensor):
        _check_left_out(make, before, after, generator)
        _check_width(make(), before.shape[1])
        _check_arithmetic(make(), before, after)
    _check_detector_memory(make(), before)


def _planted(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Sums of a few directions each, of mean squared norm ``width``."""
    atoms = torch.nn.functional.normalize(torch.randn(2 * width, width, generator=generator), dim=1)
    on = torch.rand(rows, 2 * width, generator=generator) < 3 / (2 * width)
    x = (on * (0.5 + torch.rand(rows, 2 * width, generator=generator))) @ atoms
    return x * (width / x.square().sum(1).mean()).sqrt()


def _started(make: Callable[[], Dictionary], x: Tensor) -> Dictionary:
    dictionary = make()
    initialise = getattr(dictionary, "initialise", None)  # not part of the contract: some need no first rows
    if initialise is not None:
        initialise(x[:2048])
    return dictionary


def _check_codes(dictionary: Dictionary, x: Tensor) -> None:
    codes = dictionary.encode(x)
    assert isinstance(codes, Codes), f"encode returns {type(codes).__name__}, not Codes"
    assert codes.index.dtype is torch.int32, f"index is {codes.index.dtype}, not int32"
    assert codes.value.dtype is x.dtype, f"value is {codes.value.dtype}, rows are {x.dtype}"
    assert codes.index.shape == codes.value.shape, f"index {codes.index.shape}, value {codes.value.shape}"
    assert len(codes.index) == len(x), f"{len(codes.index)} codes of {len(x)} rows"
    assert int(codes.index.min()) >= 0, f"index {int(codes.index.min())} is negative"
    assert int(codes.index.max()) < dictionary.features, f"index {int(codes.index.max())} of {dictionary.features}"
    assert bool((codes.value >= 0).all()), f"value {float(codes.value.min())} is negative"
    rebuilt = dictionary.decode(codes)
    assert rebuilt.shape == x.shape, f"rows {x.shape} are rebuilt as {rebuilt.shape}"
    parts = [dictionary.decode(dictionary.encode(part)) for part in torch.split(x, 77)]
    away = (torch.cat(parts) - rebuilt).norm(dim=1) > 1e-2 * rebuilt.norm(dim=1)
    assert float(away.float().mean()) < 0.02, "codes depend on how rows are split into batches"
    nothing = Codes(codes.index, torch.zeros_like(codes.value))
    twice = Codes(codes.index, codes.value * 2)
    bias = dictionary.decode(nothing)
    torch.testing.assert_close(dictionary.decode(twice) - bias, 2 * (rebuilt - bias), rtol=1e-4, atol=1e-4)
    empty = dictionary.decode(dictionary.encode(x[:0]))
    assert empty.shape == (0, x.shape[1]), f"no rows are rebuilt as {empty.shape}"


def _fvu(dictionary: Dictionary, x: Tensor) -> float:
    error = dictionary.decode(dictionary.encode(x)) - x
    return float(error.square().sum() / (x - x.mean(0)).square().sum())


def _learn(dictionary: Dictionary, x: Tensor) -> StepReport | None:
    report = None
    for batch in torch.split(x, _BATCH):
        report = dictionary.partial_fit(batch)
    return report


def _check_learning(make: Callable[[], Dictionary], x: Tensor) -> None:
    dictionary = _started(make, x)
    before = _fvu(dictionary, x[-1000:])
    report = _learn(dictionary, x[:-1000])
    after = _fvu(dictionary, x[-1000:])
    assert after < 0.8 * before, f"fvu of rows not learned went from {before:.3f} to {after:.3f}"
    assert report is not None
    assert report.rows > 0, "the report is of no rows"
    assert 0 <= float(report.dead_fraction) <= 1, f"dead_fraction is {float(report.dead_fraction)}"
    assert float(report.l0) >= 0, f"l0 is {float(report.l0)}"


def _check_state(make: Callable[[], Dictionary], x: Tensor) -> None:
    half = len(x) // (2 * _BATCH) * _BATCH
    whole, first, second = _started(make, x), _started(make, x), make()
    _learn(whole, x[: 2 * half])
    _learn(first, x[:half])
    load: Any = getattr(second, "load_state", None)
    assert load is not None, "there is no load_state for what state_dict gives"
    load({name: value.clone() if isinstance(value, Tensor) else value for name, value in first.state_dict().items()})
    source, target = getattr(first, "generator", None), getattr(second, "generator", None)
    if source is not None and target is not None:  # its state is its owner's
        target.set_state(source.get_state())
    _learn(second, x[half : 2 * half])
    mine, theirs = whole.state_dict(), second.state_dict()
    assert mine.keys() == theirs.keys(), f"state differs in {sorted(mine.keys() ^ theirs.keys())}"
    for name, value in mine.items():
        same = torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name]))
        assert same, f"{name} is not the same after saving and loading halfway"


def _check_odd_rows(make: Callable[[], Dictionary], x: Tensor, generator: torch.Generator) -> None:
    width = x.shape[1]
    dictionary = _started(make, x)
    try:
        dictionary.encode(torch.zeros(3, width + 1))
    except WidthMismatch as error:
        assert str(width + 1) in str(error), f"the error does not name the width {width + 1}: {error}"
    else:
        raise AssertionError(f"rows of width {width + 1} were taken by a dictionary of width {width}")
    for odd in (torch.zeros(256, width), torch.ones(256, width), torch.randn(1, width, generator=generator)):
        dictionary.partial_fit(odd)
    noise = torch.randn(2048, width, generator=generator)
    _learn(dictionary, noise)
    for name, value in dictionary.state_dict().items():
        finite = not isinstance(value, Tensor) or bool(value.isfinite().all())
        assert finite, f"{name} is not finite after rows of zeros, of ones and of noise"


def _check_memory(dictionary: Dictionary, x: Tensor) -> None:
    _learn(dictionary, x)
    before = _peak_bytes()
    for _ in range(5):
        _learn(dictionary, x)
    grown = _peak_bytes() - before
    held = sum(value.nbytes for value in dictionary.state_dict().values() if isinstance(value, Tensor))
    assert grown <= max(held, 32 << 20), f"{5 * len(x)} more rows took {grown} more bytes"


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# -- detectors --------------------------------------------------------------------------------------------------------


def _part(units: Any, start: int, stop: int) -> Any:
    """Units ``start`` to ``stop`` of a tensor or of Fired."""
    if isinstance(units, Tensor):
        return units[start:stop]
    offsets = units.offsets[start : stop + 1]
    return Fired(offsets - offsets[0], units.feature[int(offsets[0]) : int(offsets[-1])])


def _count(units: Any) -> int:
    return len(units) if isinstance(units, Tensor) else int(units.units)


def _watch(detector: Any, *streams: Any, size: int = 256) -> list[Detection]:
    """Detections in all of ``streams``, one after the other, in batches of ``size``."""
    return [
        found
        for stream in streams
        for start in range(0, _count(stream), size)
        for found in detector.update(_part(stream, start, min(start + size, _count(stream))))
    ]


def _check_quiet(detector: Any, same: Callable[[int, torch.Generator], Any], generator: torch.Generator) -> None:
    assert isinstance(detector.guarantee, Guarantee), f"guarantee is {detector.guarantee!r}"
    budget = detector.false_alarm_budget
    assert budget > 0, f"false_alarm_budget is {budget}: it is a number of units"
    assert (detector.units, detector.left_out) == (0, 0), "a new detector has watched units"
    statistic = detector.statistic
    nothing = detector.update(_part(same(1, generator), 0, 0))
    assert nothing == [], f"no units raised {nothing}"
    assert detector.statistic == statistic, "no units changed the statistic"
    if detector.guarantee is Guarantee.NONE:
        return
    watched, alarms = 0, 0
    while watched < 4 * budget:
        alarms += len(_watch(detector, same(1_000, generator)))
        watched += 1_000
    wanted = watched / budget
    most = wanted + _STANDARD_ERRORS * wanted**0.5
    assert alarms <= most, f"{alarms} alarms in {watched} units that had not changed, where {wanted:.1f} are promised"


def _check_alarms(make: Callable[[], Any], before: Any, after: Any) -> None:
    detector = make()
    early = len(_watch(detector, before))
    found: list[Detection] = []
    for place in range(_count(after)):
        found = detector.update(_part(after, place, place + 1))
        if found:
            break
    assert found, f"{_count(after)} changed units raised nothing"
    one = found[0]
    assert one.unit == _count(before) + place, f"the alarm at unit {_count(before) + place} is told of unit {one.unit}"
    assert one.statistic >= one.threshold, f"a statistic of {one.statistic} reached a threshold of {one.threshold}"
    assert one.began is None or 0 <= one.began <= one.unit, f"the change at unit {one.unit} began at {one.began}"
    assert detector.statistic < detector.threshold, "after a detection the evidence does not begin anew"
    again = _watch(detector, after)
    assert len(again) > early, "the change stays, and no second alarm is raised"


def _check_batches(make: Callable[[], Any], before: Any, after: Any) -> None:
    whole = _watch(make(), before, after, size=_count(before) + _count(after))
    for size in _SPLITS:
        detector = make()
        parts = _watch(detector, before, after, size=size)
        assert detector.units == _count(before) + _count(after), f"in batches of {size}, {detector.units} were watched"
        same = [one.unit for one in parts] == [one.unit for one in whole]
        assert same, f"alarms depend on how units are split into batches, as of {size}"
        statistics = [[one.statistic for one in found] for found in (parts, whole)]
        torch.testing.assert_close(*(torch.tensor(one) for one in statistics), rtol=1e-2, atol=1e-3)


def _check_detector_state(make: Callable[[], Any], before: Any, after: Any) -> None:
    # just before an alarm, when all that it is raised by is state
    first_alarm = next(one.unit for one in _watch(make(), before, after) if one.unit > _count(before))
    cut = first_alarm - _count(before) - 1
    whole, first, second = make(), make(), make()
    for detector in (whole, first):
        _watch(detector, before, _part(after, 0, cut))
    second.load_state(_copied(first.state_dict()))
    alarms, loaded = (_watch(detector, _part(after, cut, _count(after))) for detector in (whole, second))
    assert alarms == loaded, "alarms are not the same after saving and loading"
    mine, theirs = _flat(whole.state_dict()), _flat(second.state_dict())
    assert mine.keys() == theirs.keys(), f"state differs in {sorted(mine.keys() ^ theirs.keys())}"
    for name, value in mine.items():
        assert _alike(value, theirs[name]), f"{name} is not the same after saving and loading"


def _alike(mine: Any, theirs: Any) -> bool:
    """Whether two values of a state are the same, NaN being like NaN."""
    if not isinstance(mine, Tensor):
        return bool(mine == theirs)
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    return bool(((mine == theirs) | (mine.isnan() & theirs.isnan())).all())


def _flat(state: Any, name: str = "state") -> dict[str, Any]:
    """Tensors and plain values of a state by their places in it."""
    if isinstance(state, dict | list | tuple):
        parts = state.items() if isinstance(state, dict) else enumerate(state)
        return {key: value for part, inside in parts for key, value in _flat(inside, f"{name}.{part}").items()}
    assert isinstance(state, Tensor | int | float | str | None), f"{name} is a {type(state).__name__}"
    return {name: state}


def _copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [_copied(value) for value in state]
    return state.clone() if isinstance(state, Tensor) else state


def _check_left_out(make: Callable[[], Any], before: Tensor, after: Tensor, generator: torch.Generator) -> None:
    clean = torch.cat([before, after])
    with_odd = clean.repeat_interleave(2, 0)[: len(clean) + len(clean) // 10]
    odd = torch.zeros(len(with_odd), dtype=torch.bool)
    odd[torch.randperm(len(with_odd), generator=generator)[: len(with_odd) - len(clean)]] = True
    with_odd[~odd] = clean
    with_odd[odd, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(len(with_odd))[: int(odd.sum())]
    detector, other = make(), make()
    expected, found = _watch(detector, clean), _watch(other, with_odd)
    assert other.left_out == int(odd.sum()), f"{other.left_out} units were left out, {int(odd.sum())} are not finite"
    assert other.units == len(clean), f"{other.units} units were watched, {len(clean)} are finite"
    place = (~odd).nonzero()[:, 0].tolist()
    told, right = [one.unit for one in found], [place[one.unit] for one in expected]
    assert told == right, f"with units that are not finite among them, alarms are at {told[:5]}, not at {right[:5]}"


def _check_width(detector: Any, width: int) -> None:
    try:
        detector.update(torch.zeros(3, width + 1))
    except ReferenceMismatch as error:
        assert str(width + 1) in str(error), f"the error does not name the width {width + 1}: {error}"
    else:
        raise AssertionError(f"units of width {width + 1} were taken by a detector for width {width}")


def _check_arithmetic(detector: Any, same: Tensor, after: Tensor) -> None:
    for odd in (torch.zeros(64, same.shape[1]), same[:64] * 1e30, same[:64] * 1e-30):
        _watch(detector, odd)
        statistic = detector.statistic
        assert abs(statistic) < float("inf"), (
            f"the statistic is {statistic} after units as large as {float(odd.max()):g}"
        )
    found = _watch(detector, same, after)
    assert any(one.unit >= 192 + len(same) for one in found), "after zeros and large numbers a change raises nothing"


def _check_detector_memory(detector: Any, same: Any) -> None:
    _watch(detector, same)
    before, held = _peak_bytes(), _held(detector)
    for _ in range(5):
        _watch(detector, same)
    units = 5 * _count(same)
    assert _held(detector) <= max(2 * held, 1 << 16), f"{units} more units made the state {_held(detector)} bytes large"
    grown = _peak_bytes() - before
    assert grown <= max(held, 32 << 20), f"{units} more units took {grown} more bytes"


def _held(detector: Any) -> int:
    return sum(value.nbytes for value in _flat(detector.state_dict()).values() if isinstance(value, Tensor))
