"""How good a dictionary is on given rows, beside what as many principal components would do."""

from typing import NamedTuple

import torch
from torch import Tensor

from hydrophoned.analyse.errors import TooLittle
from hydrophoned.analyse.pca import MOST_WIDTH, Components
from hydrophoned.learn.assessment import density
from hydrophoned.learn.dictionary import Codes, Dictionary

LEAST_ROWS = 64
"""Fewest rows that a dictionary is judged by."""


class Explained(NamedTuple):
    """The fvu with the ``kept`` largest values of each row, and with as many principal components; None if unknown."""

    kept: int
    fvu: float | None
    pca_fvu: float | None


class Quality(NamedTuple):
    """Of ``rows`` rows. ``dead_fraction`` is the share of features that fired on none of them.

    ``by_count`` goes over 1, 2, 4, ... features of a row up to the width of the codes. ``pca_fvu`` is that of
    ``components`` components, as many as features are active in a row, on the mean.
    ``density`` has the number of features by the share of rows that they fire on, see
    :data:`hydrophoned.learn.assessment.DENSITY_EDGES`.
    """

    rows: int
    features: int
    fvu: float | None
    l0: float
    dead_fraction: float
    components: int
    pca_fvu: float | None
    by_count: tuple[Explained, ...]
    density: list[int] | None


class Assessor:
    """Takes in rows with their codes and says how good the dictionary is; holds sums, and no row."""

    def __init__(self, dictionary: Dictionary, *, device: torch.device | None = None) -> None:
        device = device or torch.device("cpu")
        self.dictionary = dictionary
        self.rows = self.active = 0
        self.fired = torch.zeros(dictionary.features, dtype=torch.int64, device=device)
        self._errors: dict[int, float] = {}
        self._total = torch.zeros(dictionary.width, dtype=torch.float64, device=device)
        self._square = 0.0
        self._components = Components(dictionary.width, device) if dictionary.width <= MOST_WIDTH else None

    def add(self, x: Tensor, codes: Codes, request: Tensor) -> None:
        """Take in rows x [n, d] with their ``codes`` and the numbers int64 [n] of their requests.

        Principal components of requests with even numbers are scored on the others, and the other way round.
        """
        width = codes.value.shape[1]
        self.rows += len(x)
        active = codes.value > 0
        self.active += int(active.sum())
        self.fired += torch.bincount(codes.index[active].long(), minlength=len(self.fired))
        self._total += x.double().sum(0)
        self._square += float(x.double().square().sum())
        if self._components is not None:
            for half in (0, 1):
                self._components.add(x[request % 2 == half], half)
        value, order = codes.value.sort(dim=1, descending=True)
        index = codes.index.gather(1, order)
        for count in sorted({*(1 << power for power in range(width.bit_length())), width}):
            kept = Codes(index[:, :count].contiguous(), value[:, :count].contiguous())
            error = float((self.dictionary.decode(kept) - x).double().square().sum())
            self._errors[count] = self._errors.get(count, 0.0) + error

    def result(self) -> Quality:
        """What was found. Raises TooLittle before LEAST_ROWS rows."""
        n, F = self.rows, self.dictionary.features
        if n < LEAST_ROWS:
            raise TooLittle(f"{n} rows are too few to judge a dictionary by: at least {LEAST_ROWS} are needed")
        variance = self._square - float(self._total.square().sum()) / n
        # of rows that are all alike the variance is rounding
        fvu = {m: error / variance if variance > 1e-9 * self._square else None for m, error in self._errors.items()}
        l0 = self.active / n
        components = max(1, round(l0))
        counts = [*fvu, components]
        pca = self._components.fvu(counts) if self._components is not None else [None] * len(counts)
        return Quality(
            rows=n,
            features=F,
            fvu=fvu[max(fvu)],
            l0=l0,
            dead_fraction=int((self.fired == 0).sum()) / F,
            components=components,
            pca_fvu=pca[-1],
            by_count=tuple(Explained(m, one, rival) for (m, one), rival in zip(fvu.items(), pca, strict=False)),
            density=density(self.fired, n),
        )
