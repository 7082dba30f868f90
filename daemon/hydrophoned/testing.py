"""Checks that every implementation of a contract must pass; for our own tests and for those who write another one.

from hydrophoned.testing import check_dictionary
check_dictionary(lambda: MyDictionary(width=32, features=128, k=4), width=32)
"""

import resource
import sys
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from hydrophoned.learn.dictionary import Codes, Dictionary, StepReport
from hydrophoned.learn.errors import WidthMismatch

__all__ = ["check_dictionary"]

_BATCH: Final = 128


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
