"""Detectors of alibi-detect, river, frouros and evidently, behind one small interface: a reference, then a trace.

Each is given a reference of n units. ``..._whitened`` and all that watch a norm or train a classifier get units
whitened by us with the first half of the reference (Ledoit-Wolf), and compare with the second half: the rows that a
whitening was fitted on look unlike all others once whitened. What is not like for like:

- MMDDriftOnline and LSDDDriftOnline (window 32, as in their examples) and MMDStreaming take one row per call. Their
  statistics of a whole stream are computed here at once, with the kernel and the reference that the peer's own object
  has chosen; that they are the same numbers is checked on the first rows of each run (``check``). Speeds are of the
  peers' own calls.
- Thresholds are set by us afterwards, so that all have the same measured run length: alibi-detect's bootstrap, which
  takes 10 to 30 seconds for each reference, is left out (but for figures of its own promise).
- River's detectors and IncrementalKSTest watch one number: the squared norm of the whitened unit, in standard
  deviations from its mean over the second half, which they see before the stream. ADWIN and PageHinkley have no
  statistic to compare afterwards and are run at several settings.
- Evidently's domain classifier (``embedding_drift_methods.model``) judges windows of 256 units.
"""

import contextlib
import importlib.metadata
import io
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from drift_protocol import Alarms, Scores, Trace, scores
from torch import Tensor

PACKAGES = ("alibi-detect", "river", "frouros", "evidently")
WINDOW = 32
BLOCK = 224
"""Rows whose kernel values are computed at once."""
JUDGED = 256
"""Units in evidently's window."""


class Peer(Protocol):
    """A detector with its reference."""

    def trace(self, x: Tensor) -> Trace:
        """What it makes of a stream x [n, d] that begins after the reference."""
        ...

    def feed(self, x: Tensor) -> list[float]:
        """The peer's own calls, one row after the other; its statistic after each, where it has one."""
        ...


Make = Callable[[Tensor, int], Peer]


def installed() -> dict[str, str]:
    """Versions of the packages that are there."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class Whitening:
    """Whitening fitted on half of a reference [n, d], with Ledoit and Wolf's shrinkage; ``rest`` is the other half."""

    def __init__(self, reference: Tensor) -> None:
        half = len(reference) // 2
        x = reference[:half].double()
        self.mean = x.mean(0)
        centred = x - self.mean
        covariance = centred.T @ centred / half
        d = len(covariance)
        target = covariance.diagonal().mean() * torch.eye(d, dtype=torch.float64)
        apart = (covariance - target).square().sum()
        noise = (centred.square().sum(1).square().sum() / half - covariance.square().sum()) / half
        share = (noise / apart).clamp(0, 1)
        values, vectors = torch.linalg.eigh((1 - share) * covariance + share * target)
        self.root = ((vectors * values.rsqrt()) @ vectors.T).float()
        self.mean = self.mean.float()
        self.rest = self(reference[half:])
        squared = self.rest.square().sum(1)
        self._norm = squared.mean(), squared.std()

    def __call__(self, x: Tensor) -> Tensor:
        """Whitened units [n, d]."""
        return (x - self.mean) @ self.root

    def norm(self, x: Tensor) -> Tensor:
        """Squared norm [n] of whitened units, in standard deviations from the mean over the other half."""
        mean, deviation = self._norm
        return (self(x).square().sum(1) - mean) / deviation


# -- the kernel statistics of a whole stream -------------------------------------------------------------------------


def _rolling_mean(values: Tensor, window: int) -> Tensor:
    """Means [n - window + 1, ...] over ``window`` entries of [n, ...] that follow each other, in float64."""
    sums = torch.cat([torch.zeros_like(values[:1]), values]).double().cumsum(0)
    return (sums[window:] - sums[:-window]) / window


def _squared_mmd(kernel: Callable[[Tensor, Tensor], Tensor], reference: Tensor, within: float, rows: Tensor) -> Tensor:
    """Unbiased squared MMD [n - WINDOW + 1] of each window of rows [n, d] from a reference, ``within`` its own part."""
    n, lags = len(rows), WINDOW - 1
    across, new, ended = torch.zeros(n), torch.zeros(n), torch.zeros(n)
    for start in range(0, n, BLOCK):
        some = rows[start : start + BLOCK]
        across[start : start + BLOCK] = kernel(reference, some).mean(0)
        first = max(0, start - lags)
        lag = torch.arange(start, start + len(some)) - torch.arange(first, start + len(some))[:, None]
        pairs = kernel(rows[first : start + len(some)], some) * ((lag > 0) & (lag <= lags))
        new[start : start + BLOCK] = pairs.sum(0)
        ended[first : start + len(some)] += pairs.sum(1)
    ended = torch.cat([torch.zeros(WINDOW), ended[: n - WINDOW]])
    inside = (new.double().cumsum(0) - ended.double().cumsum(0))[lags:]
    return within + 2 * inside / (WINDOW * lags) - 2 * _rolling_mean(across, WINDOW)


class AlibiMmd:
    """alibi-detect's MMDDriftOnline."""

    def __init__(self, reference: Tensor, seed: int, *, whiten: bool, run_length: float = 0) -> None:
        self.whitening = Whitening(reference) if whiten else None
        self._own = _alibi(
            "MMDDriftOnline", reference if self.whitening is None else self.whitening.rest, seed, run_length
        )

    def trace(self, x: Tensor) -> Trace:
        """Squared MMD after each row."""
        own = self._own._detector  # noqa: SLF001  its kernel and reference are nowhere else
        rows = torch.cat([own.x_ref[own.init_test_inds], self._given(x)])
        reference = own.x_ref[own.ref_inds]
        return scores(_squared_mmd(own.kernel, reference, own.k_xx_sub_sum, rows)[1:], WINDOW)

    def feed(self, x: Tensor) -> list[float]:
        """Its own calls."""
        return [self._own.predict(row)["data"]["test_stat"] for row in self._given(x).numpy()]

    @property
    def threshold(self) -> float:
        """Its own, after the first window."""
        return float(self._own._detector.thresholds[-1])  # noqa: SLF001  not told otherwise

    def _given(self, x: Tensor) -> Tensor:
        return x if self.whitening is None else self.whitening(x)


class AlibiLsdd:
    """alibi-detect's LSDDDriftOnline."""

    def __init__(self, reference: Tensor, seed: int, *, whiten: bool) -> None:
        self.whitening = Whitening(reference) if whiten else None
        self._own = _alibi("LSDDDriftOnline", reference if self.whitening is None else self.whitening.rest, seed, 0)

    def trace(self, x: Tensor) -> Trace:
        """LSDD after each row."""
        own = self._own._detector  # noqa: SLF001  its kernel and reference are nowhere else
        rows = torch.cat([own.x_ref_eff[own.init_test_inds], own._normalize(self._given(x))])  # noqa: SLF001  the same
        near = torch.cat([own.kernel(some, own.kernel_centers) for some in rows.split(1024)])
        apart = own.c2s - _rolling_mean(near, WINDOW)[1:].float()
        return scores(((apart @ own.H_lam_inv) * apart).sum(1), WINDOW)

    def feed(self, x: Tensor) -> list[float]:
        """Its own calls."""
        return [self._own.predict(row)["data"]["test_stat"] for row in self._given(x).numpy()]

    def _given(self, x: Tensor) -> Tensor:
        return x if self.whitening is None else self.whitening(x)


def _alibi(name: str, reference: Tensor, seed: int, run_length: float) -> Any:
    """One of its detectors; with a bootstrap too small for its own thresholds where it promises nothing."""
    logging.getLogger("alibi_detect").setLevel(logging.ERROR)
    from alibi_detect import cd

    torch.manual_seed(seed)
    kind = getattr(cd, name)
    with contextlib.redirect_stdout(io.StringIO()):
        return kind(
            reference.numpy(),
            ert=run_length or 100,
            window_size=WINDOW,
            backend="pytorch",
            n_bootstraps=5000 if run_length else 200,
            verbose=False,
        )


class FrourosMmd:
    """Frouros' MMDStreaming on whitened rows; its kernel's width, for which it has no rule, is alibi-detect's rule."""

    def __init__(self, reference: Tensor, seed: int) -> None:  # noqa: ARG002  all are made alike
        from frouros.detectors.data_drift import MMDStreaming
        from frouros.utils.kernels import rbf_kernel

        self.whitening = Whitening(reference)
        rest = self.whitening.rest
        self._gamma = 1 / float(torch.pdist(rest).square().median())
        width = (0.5 / self._gamma) ** 0.5
        self._own = MMDStreaming(window_size=WINDOW, kernel=partial(rbf_kernel, sigma=width))
        self._own.fit(X=rest.double().numpy())

    def trace(self, x: Tensor) -> Trace:
        """Squared MMD after each row, from the 32nd on."""
        rest = self.whitening.rest
        within = float(self._own.mmd._expected_k_xx)  # noqa: SLF001  no other name for it
        found = _squared_mmd(self._kernel, rest, within, self.whitening(x))
        return scores(torch.cat([torch.full((WINDOW - 1,), -torch.inf), found]), WINDOW)

    def feed(self, x: Tensor) -> list[float]:
        """Its own calls."""
        found = [self._own.update(value=row)[0] for row in self.whitening(x).double().numpy()]
        return [-math.inf if one is None else float(one.distance) for one in found]

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y).square_().mul_(-self._gamma).exp_()


# -- one number per unit -----------------------------------------------------------------------------------------------


class River:
    """One of river's detectors on the norm, at each of several settings of its one parameter."""

    def __init__(self, reference: Tensor, seed: int, *, kind: str) -> None:
        from river import drift

        self.whitening = Whitening(reference)
        self._known = self.whitening.norm(reference[len(reference) // 2 :]).tolist()
        makes: dict[str, list[Callable[[], Any]]] = {
            "adwin": [partial(drift.ADWIN, delta=10.0**-power) for power in (0.1, 0.5, 1, 1.5, 2, 2.7, 4)],
            "page_hinkley": [
                partial(drift.PageHinkley, threshold=float(threshold))
                for threshold in (10, 20, 35, 50, 70, 100, 140, 200, 280, 400, 560, 800)
            ],
            "kswin": [partial(drift.KSWIN, seed=seed, alpha=0.0)],
        }
        self._kind, self._makes = kind, makes[kind]

    def trace(self, x: Tensor) -> Trace:
        """Alarms at each setting, or for KSWIN the p-value."""
        values = self.whitening.norm(x).tolist()
        if self._kind == "kswin":
            own, found = self._begun(0), []
            for value in values:
                own.update(value)
                found.append(-own.p_value)
            return scores(torch.tensor(found, dtype=torch.float64), 70)
        return Alarms([self._alarms(number, values) for number in range(len(self._makes))])

    def feed(self, x: Tensor) -> list[float]:
        """Its own calls, at the second of the settings."""
        own = self._begun(min(1, len(self._makes) - 1))
        for value in self.whitening.norm(x).tolist():
            own.update(value)
        return []

    def _begun(self, number: int) -> Any:
        own = self._makes[number]()
        for value in self._known:
            own.update(value)
        return own

    def _alarms(self, number: int, values: list[float]) -> list[int]:
        own, found = self._begun(number), []
        for place, value in enumerate(values):
            own.update(value)
            if own.drift_detected:
                found.append(place)
        return found


class FrourosKs:
    """Frouros' IncrementalKSTest on the norm, window 64."""

    def __init__(self, reference: Tensor, seed: int) -> None:  # noqa: ARG002  all are made alike
        from frouros.detectors.data_drift import IncrementalKSTest

        self.whitening = Whitening(reference)
        self._own = IncrementalKSTest(window_size=64)
        self._own.fit(X=self.whitening.norm(reference[len(reference) // 2 :]).double().numpy())

    def trace(self, x: Tensor) -> Trace:
        """The statistic after each unit, from the 64th on."""
        self._own.X_queue.clear()
        self._own.num_instances = 0
        return scores(torch.tensor(self.feed(x)), 64)

    def feed(self, x: Tensor) -> list[float]:
        """Its own calls."""
        found = [self._own.update(value=value)[0] for value in self.whitening.norm(x).tolist()]
        return [-math.inf if one is None else float(one.statistic) for one in found]


class Evidently:
    """Evidently's domain classifier on whitened rows, windows of 256."""

    def __init__(self, reference: Tensor, seed: int) -> None:  # noqa: ARG002  all are made alike
        import pandas as pd
        from evidently.legacy.metrics.data_drift.embedding_drift_methods import model

        self.whitening = Whitening(reference)
        self._own, self._frame = model(), pd.DataFrame
        self._columns = [str(number) for number in range(reference.shape[1])]

    def trace(self, x: Tensor) -> Trace:
        """The area under the curve after each window."""
        found = torch.full((len(x),), -math.inf, dtype=torch.float64)
        found[JUDGED - 1 :: JUDGED] = torch.tensor(self.feed(x[: len(x) // JUDGED * JUDGED]), dtype=torch.float64)
        return scores(found, 0)

    def feed(self, x: Tensor) -> list[float]:
        """Its own calls, one for each window."""
        windows = self.whitening(x).split(JUDGED)
        return [float(self._own(self._as_frame(window), self._as_frame(self.whitening.rest))[0]) for window in windows]

    def _as_frame(self, x: Tensor) -> Any:
        return self._frame(x.numpy(), columns=self._columns)


MAKES: dict[str, Make] = {
    "alibi_mmd": partial(AlibiMmd, whiten=False),
    "alibi_mmd_whitened": partial(AlibiMmd, whiten=True),
    "alibi_lsdd": partial(AlibiLsdd, whiten=False),
    "alibi_lsdd_whitened": partial(AlibiLsdd, whiten=True),
    "frouros_mmd_whitened": FrourosMmd,
    "frouros_ks_norm": FrourosKs,
    "river_adwin_norm": partial(River, kind="adwin"),
    "river_page_hinkley_norm": partial(River, kind="page_hinkley"),
    "river_kswin_norm": partial(River, kind="kswin"),
    "evidently_classifier_whitened": Evidently,
}
SLOW = ("frouros_ks_norm", "river_kswin_norm", "evidently_classifier_whitened")
"""Those whose own calls make their traces, and take long: they are given fewer streams."""


def peers() -> dict[str, Make]:
    """Those whose packages are installed."""
    there = {name.partition("-")[0] for name in installed()}
    return {name: make for name, make in MAKES.items() if name.partition("_")[0] in there}


def check(reference: Tensor, x: Tensor) -> None:
    """That the statistics computed at once are those that the peers' own calls give, over rows x [n, d]."""
    for name, make in peers().items():
        if not name.startswith(("alibi", "frouros_mmd")):
            continue
        trace, fed = make(reference, 0).trace(x), make(reference, 0).feed(x)
        assert isinstance(trace, Scores)
        apart = (torch.from_numpy(trace.values) - torch.tensor(fed)).nan_to_num(0, 0, 0).abs().max()
        spread = torch.tensor([one for one in fed if one > -math.inf]).std()
        if not apart <= 1e-3 * spread:
            raise SystemExit(f"{name}: statistics computed at once differ from its own by {apart}, of {spread}")
