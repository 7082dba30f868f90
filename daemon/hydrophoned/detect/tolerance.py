"""How far the mean of a score may be from what a finite reference says, so that a promised run length is kept.

A score's mean is known from n reference units, with a standard error. Where the score is along one direction for long,
its error is one number, and bets on the score bet on that number too: evidence that should not grow in the mean does.
What is taken off each score for that, the tolerance, is as large as keeps the mean number of false alarms, over
references, at what was promised, and no larger: 2 standard errors for 32 units, next to nothing for thousands.

Evidence of bets of size a on a score with mean delta and variance 1, restarted at each unit (Shiryaev-Roberts), is
close to the diffusion

    dR = (1 + a delta R) dt + a R dB,        R = 0 at first,

whose mean time to reach A is an integral (:func:`mean_run_length`); it is A where delta is 0.
"""

import math
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

_GRID: Final = 240
_ERRORS: Final = 41
_STEPS: Final = 10
_MOST: Final = 6.0  # standard errors


def mean_run_length(threshold: float, bet: float, drift: Tensor) -> Tensor:
    """Mean time for R to reach ``threshold`` under each ``drift`` delta [m] of the score; float64 [m].

    With c = 2 / a^2 and p = 2 delta / a it is the integral over x up to the threshold of
    x^-p exp(c / x) times that over y up to x of c y^(p - 2) exp(-c / y).
    """
    c = 2 / bet**2
    p = (2 * drift.double().cpu() / bet)[:, None]
    lowest = math.log(min(c / 60, threshold / 10))  # below, R grows by 1 a unit
    u = torch.linspace(lowest, math.log(threshold), _GRID, dtype=torch.float64)
    step, x = float(u[1] - u[0]), u.exp()
    inner = torch.logcumsumexp(math.log(c * step) + (p - 1) * u - c / x, 1)
    return x[0] + torch.trapezoid((c / x + (1 - p) * u + inner).exp(), dx=step, dim=1)


@lru_cache(maxsize=512)
def tolerance(threshold: float, bet: float, error: float, share: float) -> float:
    """The least t >= 0, in units of ``error``, that keeps false alarms at ``share`` of 1 / ``threshold`` a unit.

    ``error`` is the standard error of the score's mean, in standard deviations of the score: its mean less what is
    taken off is (z - t) ``error``, z normal over references.
    """
    z = torch.linspace(-3, 5, _ERRORS, dtype=torch.float64)
    weight = torch.softmax(-z.square() / 2, 0)

    def alarms(t: float) -> float:
        return float((weight / mean_run_length(threshold, bet, (z - t) * error)).sum()) * threshold

    low, high = 0.0, _MOST
    if alarms(low) <= share:
        return low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if alarms(middle) > share else (low, middle)
    return high


def taken_off(threshold: float, bet: float, memory: float, learnt: int, calibrated: int, share: float) -> float:
    """What to take off a score, in its standard deviations.

    The score is along the mean of the last ``memory`` units (infinite: along what does not change) less that of
    ``learnt`` units of the reference; its mean under the reference is that of ``calibrated`` other units. Its direction
    has two parts: the error of the mean of the ``learnt``, which is the same for good, and that of the ``memory``,
    which is another one after so many units. The first is bet on as above. The second makes evidence grow as a drift of
    a m / 2 n does, m the harmonic mean of memory and ``learnt`` by half. Or all of it is taken as the same for good:
    what is less suffices.
    """
    error = calibrated**-0.5
    for_good = tolerance(threshold, bet, error, share) * error
    if math.isinf(memory):
        return float(for_good)
    lasting = (memory / (memory + learnt)) ** 0.5 * error
    passing = bet * memory * learnt / (memory + learnt) / (2 * calibrated)
    return float(min(for_good, tolerance(threshold, bet, lasting, share) * lasting + passing))
