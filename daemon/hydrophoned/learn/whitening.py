"""Whitening: a linear map under which some rows vary equally in every direction.

A dictionary spends its latents on what varies most. Under a few wide directions (a token's position, a device's drift)
it never comes to what is small and sparse; whitened, the wide ones are no wider than the others (Donhauser et al. 2024,
"Towards scientific discovery with dictionary learning"). The rows may be the stream's own, or control rows that show
what is of no interest.
"""

from typing import Any, Final

import torch
from torch import Tensor

from hydrophoned.learn.config import WHITENING_ROWS

MOST_CONDITION: Final = 1e4
"""Most that the largest eigenvalue of a covariance may exceed the smallest, once lifted."""
_LIFT: Final = 0.02  # of the median eigenvalue
_CONSTANT: Final = 1e-30


class Whitening:
    """w = A (x - centre), with A = ``matrix`` float32 [d, d], symmetric; made from ``rows`` rows."""

    def __init__(self, centre: Tensor, matrix: Tensor, rows: int) -> None:
        self.centre, self.matrix, self.rows = centre, matrix, rows
        self._inverse: Tensor | None = None

    @property
    def remark(self) -> str | None:
        """What a user should know of it, None where all is well."""
        width = len(self.centre)
        if self.rows >= WHITENING_ROWS * width:
            return None
        return (
            f"whitened by {self.rows:,} rows of width {width:,}: fewer than {WHITENING_ROWS * width:,} "
            f"({WHITENING_ROWS} per element) tell the small directions badly"
        )

    def apply(self, x: Tensor) -> Tensor:
        """Whitened rows [n, d], float32."""
        return (x - self.centre) @ self.matrix.T

    def invert(self, w: Tensor) -> Tensor:
        """Rows as they were, from whitened ones [n, d] or [d]."""
        return self.unmix(w) + self.centre

    def unmix(self, w: Tensor) -> Tensor:
        """Differences of rows as they were, from whitened ones [n, d] or [d]: A^-1 w."""
        if self._inverse is None:
            self._inverse = torch.linalg.inv(self.matrix.double()).to(self.matrix.dtype)
        return w @ self._inverse.T

    def to(self, device: torch.device) -> "Whitening":
        """The same on ``device``."""
        return Whitening(self.centre.to(device), self.matrix.to(device), self.rows)

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {"centre": self.centre, "matrix": self.matrix, "rows": self.rows}

    @classmethod
    def from_state(cls, state: dict[str, Any], like: Tensor) -> "Whitening":
        """That of a :meth:`state_dict`, for rows of the width and device of ``like`` [d]. Raises ValueError."""
        d = len(like)
        if state["centre"].shape != (d,) or state["matrix"].shape != (d, d):
            raise ValueError(f"the whitening matrix is {list(state['matrix'].shape)}, not [{d}, {d}]")
        return cls(state["centre"].to(like).clone(), state["matrix"].to(like).clone(), int(state["rows"]))


class Covariance:
    """Running mean [d] and covariance [d, d] (Chan et al. 1983, pairwise update), in float64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._spread = torch.zeros(width, width, dtype=torch.float64, device=device)  # sum of products of deviations

    def update(self, x: Tensor) -> None:
        """Take in rows x [n, d]."""
        if not len(x):
            return
        rows = x.double()
        n, mean = len(rows), rows.mean(0)
        rows, delta, total = rows - mean, mean - self.mean, self.count + n
        self._spread.addmm_(rows.T, rows).addr_(delta, delta, alpha=self.count * n / total)
        self.mean += delta * (n / total)
        self.count = total

    def whitening(self) -> tuple[Whitening, float]:
        """A = (covariance + epsilon I)^-1/2, the symmetric root (ZCA), and the whitened rows' variance, some d.

        epsilon is 2% of the median eigenvalue, and more where the condition number would exceed ``MOST_CONDITION``:
        what varies little, or not at all, is not blown up without bound. Rows that do not vary are left as they are.
        """
        covariance = self._spread / max(self.count, 1)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0)
        least, most = float(values[0]), float(values[-1])
        if most <= _CONSTANT:
            identity = torch.eye(len(values), device=values.device)
            return Whitening(self.mean.float(), identity, self.count), most * len(values)
        lift = max(_LIFT * float(values.median()), (most - MOST_CONDITION * least) / (MOST_CONDITION - 1))
        matrix = ((vectors * (values + lift).rsqrt()) @ vectors.T).float()
        return Whitening(self.mean.float(), matrix, self.count), float((values / (values + lift)).sum())

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        return {"mean": self.mean, "spread": self._spread, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.mean.copy_(state["mean"])
        self._spread.copy_(state["spread"])
        self.count = int(state["count"])
