"""How long units go on resembling their neighbours."""

import math

import torch
from torch import Tensor

_PROJECTIONS = 16
_WINDOW = 5.0


def autocorrelation_time(x: Tensor, *, generator: torch.Generator) -> float | None:
    """Integrated autocorrelation time of units x [n, d] in order of time, in units: 1 where they are exchangeable.

    tau = 1 + 2 sum_h rho(h), of the projections on 16 random directions of standardised coordinates, their
    autocorrelations averaged; the sum ends at the first lag beyond 5 tau (Sokal 1997, "Monte Carlo methods in
    statistical mechanics", section 3). None for fewer than 32 units or units that do not vary.
    """
    n, d = x.shape
    if n < 32:
        return None
    spread = x.std(0)
    varying = spread > 0
    if not bool(varying.any()):
        return None
    standard = (x[:, varying] - x[:, varying].mean(0)) / spread[varying]
    directions = torch.randn(standard.shape[1], _PROJECTIONS, generator=generator) / d**0.5
    series = (standard @ directions).double()
    series -= series.mean(0)
    size = 1 << math.ceil(math.log2(2 * n))
    spectrum = torch.fft.rfft(series, size, dim=0).abs().square()
    lagged = torch.fft.irfft(spectrum, size, dim=0)[: n // 2]
    rho = (lagged / lagged[0].clamp_min(1e-300)).mean(1)
    # of n independent units each rho(h) is -1/n on average, since their own mean was taken out
    rho[1:] += 1 / n
    tau = 1.0
    for lag in range(1, len(rho)):
        tau += 2 * float(rho[lag])
        if lag >= _WINDOW * tau:
            break
    return max(tau, 1.0)
