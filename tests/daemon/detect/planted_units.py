"""Units of a made stream, as they were and changed in known ways."""

import torch
from torch import Tensor

WIDTH = 32


def units(count: int, generator: torch.Generator, *, tails: float = 0.0) -> Tensor:
    """[count, WIDTH] far from 0, with a falling spectrum in directions of their own; heavier ``tails`` than normal."""
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99))).Q
    x = torch.randn(count, WIDTH, generator=generator)
    if tails:
        x *= torch.exp(tails * torch.randn(count, 1, generator=generator))
    return 5.0 + (x * torch.arange(1, WIDTH + 1) ** -0.5) @ basis


def shifted(x: Tensor, by: float) -> Tensor:
    """All coordinates' means moved by ``by`` of their standard deviations."""
    return x + by * x.std(0)


def spread(x: Tensor, factor: float) -> Tensor:
    """A quarter of the coordinates ``factor`` times as wide."""
    wide = torch.ones(x.shape[1])
    wide[::4] = factor
    return x.mean(0) + (x - x.mean(0)) * wide


def contaminated(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Some units replaced by others, far away along one direction."""
    others = x.mean(0) + 4 * x.std(0) * torch.ones(x.shape[1])
    odd = torch.rand(len(x), generator=generator) < share
    return torch.where(odd[:, None], others + 0.1 * torch.randn(x.shape, generator=generator), x)


def alarms_of(make, seeds, *, run_length: float, reference: int = 600, times: int = 10, **kind) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """Alarms in units that did not change, and how many units those were."""
    alarms = watched = 0
    for seed in seeds:
        generator = torch.Generator().manual_seed(1000 + seed)
        detector = make(units(reference, generator, **kind), run_length=run_length, generator=generator)
        for _ in range(times):
            alarms += len(detector.update(units(int(run_length), generator, **kind)))
            watched += int(run_length)
    return alarms, watched


def delays_of(make, change, seeds, *, run_length: float, reference: int = 600) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Median delay in units, and the share of seeds where the alarm is before any of the same stream unchanged."""
    delays, earlier = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(2000 + seed)
        known = units(reference, generator)
        before, after = units(200, generator), units(2_000, generator)
        first = []
        for stream in (change(after), after):
            detector = make(known, run_length=run_length, generator=torch.Generator().manual_seed(seed))
            detector.update(before)
            found = [one.unit - 199 for one in detector.update(stream) if one.unit >= 200]
            first.append(found[0] if found else 10**9)
        delays.append(first[0])
        earlier.append(first[0] < first[1])
    return sorted(delays)[len(delays) // 2], sum(earlier) / len(earlier)
