"""Running mean and scale of a stream, and the rule that sets attention-sink rows apart."""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from hydrophoned.learn.config import Normalise
from hydrophoned.learn.errors import InvalidConfig
from hydrophoned.learn.whitening import Covariance, Whitening

_TRANSFORMS: Final = 16
_CONSTANT: Final = 1e-30


class Affine(NamedTuple):
    """y = (x - mean) * scale, or, where there is a ``matrix`` [d, d], y = matrix (x - mean)."""

    mean: Tensor
    scale: float
    matrix: Tensor | None


class Normaliser:
    """y = (x - mean) * scale, so that rows have mean squared norm d.

    Mean and scale are running moments (Chan et al. 1983, pairwise update, in float64) until they are frozen: a
    dictionary is only valid for the transform it was learned under. Afterwards the moments of every ``check_rows``
    rows are compared with it; they replace it (:meth:`renew`) only when rows have left it far behind, and
    ``transforms`` records that: the row count and the mean and scale that were in force until then.

    With ``kind`` "whiten" or "control" x stands for whitened rows (:mod:`.whitening`) in all of this: mean, scale,
    ``transforms`` and what is renewed are theirs. The matrix is that of the control rows, given from outside, or of the
    rows taken in until they are frozen; it stays. Until then a normaliser that will whiten only scales.
    """

    def __init__(
        self,
        width: int,
        check_rows: int,
        device: torch.device,
        *,
        kind: Normalise = "scale",
        whitening: Whitening | None = None,
    ) -> None:
        self.check_rows, self.kind = check_rows, kind
        self.whitening = None if whitening is None else whitening.to(device)
        self._covariance = Covariance(width, device) if kind == "whiten" else None
        self.frozen = False
        self.seen = 0
        self.count = 0
        self._running_mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._spread = torch.zeros((), dtype=torch.float64, device=device)  # sum of squared distances from the mean
        self.transforms: list[tuple[int, Tensor, float]] = []
        self._mean = self._running_mean.float()
        self._scale = 1.0

    @property
    def mean(self) -> Tensor:
        """What is taken from a row (a whitened one, where rows are), float32 [d]."""
        return self._mean

    @property
    def scale(self) -> float:
        """The one factor that brings the mean squared norm of centred rows to d."""
        return self._scale

    def update(self, x: Tensor) -> None:
        """Take in rows x [n, d]; once frozen, only for the next check."""
        if not len(x):
            return
        if self.whitening is not None:
            x = self.whitening.apply(x)
        elif self.kind == "control":
            raise InvalidConfig("normalise = 'control' needs the whitening of control rows; none was given")
        if self._covariance is not None:
            self._covariance.update(x)
        rows = x.double()
        n, mean = len(rows), rows.mean(0)
        delta = mean - self._running_mean
        total = self.count + n
        self._spread += (rows - mean).square().sum() + delta.square().sum() * (self.count * n / total)
        self._running_mean += delta * (n / total)
        self.count = total
        self.seen += n
        if not self.frozen:
            self._derive()

    def freeze(self) -> None:
        """Keep mean and scale as they are, and whiten from here on where that is by the rows' own covariance."""
        if self._covariance is not None:
            self.whitening, variance = self._covariance.whitening()
            self._covariance = None
            self._mean = torch.zeros_like(self._mean)
            self._scale = _scale(len(self._mean), variance)
        self.frozen = True
        self._begin_check()

    def renew(self) -> tuple[Tensor, float] | None:
        """(shift [d], factor) of y' = (y - shift) * factor when the rows since the last check call for a new transform.

        They do when their variance is more than twice or less than half of what it was, or their mean has moved by more
        than half of the standard deviation. None otherwise, and before ``check_rows`` rows.
        """
        if not self.frozen or self.count < self.check_rows:
            return None
        if float(self._spread) < _CONSTANT * self.count:
            self._begin_check()
            return None
        old_mean, old_scale = self._mean, self._scale
        moved = float((self._running_mean.float() - old_mean).square().sum()) * old_scale**2 / len(old_mean)
        variance = float(self._spread) / self.count * old_scale**2 / len(old_mean)
        renewed = None
        if not 0.5 <= variance <= 2 or moved > 0.25:
            self._derive()
            self.transforms = [*self.transforms[1 - _TRANSFORMS :], (self.seen, old_mean, old_scale)]
            renewed = (self._mean - old_mean) * old_scale, self._scale / old_scale
        self._begin_check()
        return renewed

    def apply(self, x: Tensor) -> Tensor:
        """Normalised rows [n, d], float32."""
        if self.whitening is not None:
            x = self.whitening.apply(x)
        return (x - self._mean).mul_(self._scale)

    def invert(self, y: Tensor) -> Tensor:
        """Rows in the model's own scale, from normalised ones."""
        x = y / self._scale + self._mean
        return x if self.whitening is None else self.whitening.invert(x)

    def invert_difference(self, y: Tensor) -> Tensor:
        """Differences of rows in the model's own scale, from those of normalised ones."""
        x = y / self._scale
        return x if self.whitening is None else self.whitening.unmix(x)

    def affine(self) -> Affine:
        """The transform in force in one piece, as formats take it."""
        if self.whitening is None:
            return Affine(self._mean, self._scale, None)
        return Affine(self.whitening.invert(self._mean), 1.0, self.whitening.matrix * self._scale)

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        recorded = {}
        if self.transforms:
            seen, means, scales = zip(*self.transforms, strict=True)
            recorded = {
                "transforms.seen": torch.tensor(seen),
                "transforms.mean": torch.stack(means),
                "transforms.scale": torch.tensor(scales, dtype=torch.float64),
            }
        return {
            "running_mean": self._running_mean,
            "spread": self._spread,
            "count": self.count,
            "seen": self.seen,
            "frozen": int(self.frozen),
            "mean": self._mean,
            "scale": self._scale,
            **recorded,
            **_named("whitening", self.whitening),
            **_named("covariance", self._covariance),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict` of one of the same kind. Raises ValueError for another kind's."""
        self._load_whitening(state)
        self._running_mean.copy_(state["running_mean"])
        self._spread.copy_(state["spread"])
        self.count, self.seen, self.frozen = int(state["count"]), int(state["seen"]), bool(state["frozen"])
        self._mean = state["mean"].to(self._mean).clone()
        self._scale = float(state["scale"])
        self.transforms = []
        if "transforms.seen" in state:
            means = state["transforms.mean"].to(self._mean.device)
            columns = (state["transforms.seen"].tolist(), means, state["transforms.scale"].tolist())
            self.transforms = list(zip(*columns, strict=True))

    def _load_whitening(self, state: dict[str, Any]) -> None:
        whitening, covariance = (_of("whitening", state), _of("covariance", state))
        kind = "whitened" if whitening or covariance else "scaled"
        if (self.kind == "scale") != (kind == "scaled"):
            raise ValueError(f"the state is of rows that are {kind}, not of normalise = {self.kind!r}")
        self.whitening = Whitening.from_state(whitening, self._mean) if whitening else None
        if covariance and self._covariance is not None:
            self._covariance.load_state(covariance)
        else:
            self._covariance = None

    def _begin_check(self) -> None:
        self.count = 0
        self._running_mean.zero_()
        self._spread.zero_()

    def _derive(self) -> None:
        self._mean = self._running_mean.float()
        self._scale = _scale(len(self._mean), float(self._spread) / max(self.count, 1))


def _scale(width: int, variance: float) -> float:
    # a constant stream has no scale: leave it as it is rather than divide by zero
    return float((width / variance) ** 0.5) if variance > _CONSTANT else 1.0


def _named(name: str, part: Whitening | Covariance | None) -> dict[str, Any]:
    return {} if part is None else {f"{name}.{key}": value for key, value in part.state_dict().items()}


def _of(name: str, state: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


class SinkFilter:
    """Sets apart rows whose norm exceeds ``factor`` times the running median norm (attention sinks).

    In language models the first position and a few tokens have 25 to 150 times the median norm and most of the
    variance; they would dominate both gradient and fvu (Sun et al. 2024, "Massive Activations in LLMs"). The median
    is that of the last ``memory`` rows, sinks included.
    """

    def __init__(self, factor: float, device: torch.device, *, memory: int = 4096) -> None:
        self.factor = factor
        self.norms = torch.zeros(memory, device=device)
        self.seen = 0

    @property
    def median(self) -> float | None:
        """Running median norm, None before the first row."""
        known = min(self.seen, len(self.norms))
        return float(self.norms[:known].median()) if known else None

    def split(self, norms: Tensor) -> Tensor:
        """Bool [n]: which of the rows with these finite norms [n] are sinks; the median moves with them first."""
        slots = (torch.arange(len(norms), device=norms.device) + self.seen) % len(self.norms)
        self.norms[slots[-len(self.norms) :]] = norms[-len(self.norms) :]
        self.seen += len(norms)
        median = self.median
        return norms > self.factor * (median or 0.0)

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {"norms": self.norms, "seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.norms.copy_(state["norms"])
        self.seen = int(state["seen"])
