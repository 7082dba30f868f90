"""Witnesses: the directions along which recent units are away from the reference, and what scores along them are worth.

A witness v is the mean of recent features less that of the half of the reference that features are made from, or that
with what may be chance taken off each coordinate (soft threshold), for changes of a few. The score of a unit with
features f is v f, less its mean and over its standard deviation under the other half of the reference, which v knows
nothing of.
"""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

BLOCK: Final = 16
CHUNK: Final = 128
"""Units that are worked on together."""
SHORT: Final = (8, 16, 32)
"""Units that a witness of each unit is the mean of."""
LONG: Final = (2, 8, 32, 128)
"""Blocks that a witness of each block is the mean of."""
_PER: Final = CHUNK // BLOCK
_LAST: Final = max(SHORT)
_RING: Final = max(LONG)
_REFRESH: Final = (1, 2, 4, 16)
"""Blocks after which a witness of each of ``LONG`` is made anew."""
_SOFT: Final = 2.0  # standard errors
_SKETCH: Final = 64
_TINY: Final = 1e-20
_ANEW: Final = tuple(
    (window, block) for window, after in zip(LONG[:-1], _REFRESH[:-1], strict=True) for block in range(0, _PER, after)
)
"""Window and block of the chunk of each witness made anew; the slowest comes last."""
_SERVES: Final = tuple(
    (*(_ANEW.index((window, block // after * after)) for window, after in zip(LONG[:-1], _REFRESH, strict=False)), -1)
    for block in range(_PER)
)
"""Which of these serves each block, by window."""


class Made(NamedTuple):
    """Witnesses, [k, 2 (y, y^2), 2 (dense, soft), d], with mean and standard deviation [k, 2, 2] of their scores."""

    witness: Tensor
    mean: Tensor
    deviation: Tensor


class Scores(NamedTuple):
    """``score`` [CHUNK, m] in standard deviations, NaN where there is no witness yet, and what they were made with.

    The first columns are of ``SHORT``; then those of y by window, dense and soft; then those of y^2.
    """

    score: Tensor
    away: Tensor  # [last + CHUNK, d]
    sketched: Tensor  # [last + CHUNK, r]
    means: Tensor  # [blocks, 2, d]
    made: Made


class Calibration:
    """Mean and variance of scores under ``values`` [2, n, d], features of one half of the reference.

    Variances are exact along witnesses that last. Along those of the last 32 units or fewer they are of 64 random
    combinations of the n units: errors of the one and the next take each other back, once the mean of 1 / chi-square is
    allowed for. They are multiplied by ``inflation``.
    """

    def __init__(self, values: Tensor, inflation: float, generator: torch.Generator) -> None:
        _, n, d = values.shape
        self.mean = values.mean(1)
        root = (values - self.mean[:, None]).mul_((inflation / n) ** 0.5)
        self._is_root = n < d
        self._matrix = root.transpose(1, 2).contiguous() if n < d else root.transpose(1, 2) @ root
        sketch = root
        if n > _SKETCH:
            signs = torch.randint(0, 2, (_SKETCH, n), generator=generator).float().mul_(2).sub_(1)
            sketch = signs.to(root.device) @ root / (_SKETCH - 2) ** 0.5
        self.sketch = sketch.transpose(1, 2).contiguous()  # [2, d, r]

    def deviation(self, witness: Tensor) -> Tensor:
        """Standard deviations [k, 2, m] of scores along witnesses [k, 2, m, d] that last."""
        if self._is_root:
            norm: Tensor = torch.linalg.vector_norm(_by_kind(witness, self._matrix), dim=3)
            return norm
        return (_by_kind(witness, self._matrix) * witness).sum(3).clamp_min_(0).sqrt_()

    def passing_deviation(self, witness: Tensor) -> Tensor:
        """The same along witnesses that do not."""
        norm: Tensor = torch.linalg.vector_norm(_by_kind(witness, self.sketch), dim=3)
        return norm


def _by_kind(witness: Tensor, matrix: Tensor) -> Tensor:
    """Products [k, 2, m, r] of witnesses [k, 2, m, d] with the matrix [d, r] of each kind."""
    k, _, m, d = witness.shape
    found = [witness[:, kind].reshape(k * m, d) @ matrix[kind] for kind in (0, 1)]
    return torch.stack([one.view(k, m, -1) for one in found], 1)


class Witnesses:
    """Those of a stream of features, from a ``mean`` [2, d] and a ``deviation`` [2, d] that nothing changed from."""

    columns: Final = len(SHORT) + 4 * len(LONG)
    lines: Final = len(SHORT) + 2 * len(LONG)
    """How many of the columns, the first ones, are of y."""
    memories: Final = (*SHORT, *(window * BLOCK for _ in range(2) for window in LONG for _ in range(2)))
    """Units that each column's witness is the mean of."""

    def __init__(self, mean: Tensor, deviation: Tensor, calibration: Calibration) -> None:
        self._mean, self._calibration = mean, calibration
        self._cut = _SOFT * deviation / BLOCK**0.5
        d = mean.shape[1]
        self.blocks = 0
        self._away, self._sketched = mean.new_zeros(_LAST, d), mean.new_zeros(_LAST, calibration.sketch.shape[2])
        self._ring = mean.new_zeros(_RING, 2, d)
        self._slowest = Made(mean.new_zeros(1, 2, 2, d), mean.new_full((1, 2, 2), torch.nan), mean.new_ones(1, 2, 2))
        unit, of = torch.arange(CHUNK)[:, None] + _LAST, torch.arange(_LAST + CHUNK)
        window = torch.tensor(SHORT)[:, None, None]
        self._window = window.to(mean.device)
        self._average = (((of < unit) & (of >= unit - window)) / window).to(mean)  # [short, CHUNK, last + CHUNK]
        self._serves = torch.tensor(_SERVES, device=mean.device)

    def of(self, values: Tensor) -> Scores:
        """Scores of features ``values`` [2, CHUNK, d] of the next units; nothing is kept of them (see :meth:`keep`)."""
        blocks = values.view(len(values), _PER, BLOCK, -1)
        away = values[0] - self._mean[0]
        sketched = torch.cat([self._sketched, away @ self._calibration.sketch[0]])
        away = torch.cat([self._away, away])
        means = (blocks.mean(2) - self._mean[:, None]).transpose(0, 1)
        made = self._made(means)
        short, long = self._short(values[0], away, sketched), self._long(blocks, made)
        return Scores(torch.cat([short, long], 1), away, sketched, means, made)

    def keep(self, scores: Scores) -> None:
        """Go on to the next chunk."""
        place = self.blocks % _RING
        self._ring[place : place + _PER] = scores.means
        self._away, self._sketched = scores.away[-_LAST:].clone(), scores.sketched[-_LAST:].clone()
        self._slowest = Made(*(part[-1:].clone() for part in scores.made))
        self.blocks += _PER

    def along(self, scores: Scores, place: int, column: int) -> Tensor:
        """The witness [d] of a column of y for the unit at ``place``, in whitened coordinates."""
        if column < len(SHORT):
            return self._average[column, place] @ scores.away
        window, soft = divmod(column - len(SHORT), 2)
        return scores.made.witness[self._serves[place // BLOCK, window], 0, soft]

    def _short(self, y: Tensor, away: Tensor, sketched: Tensor) -> Tensor:
        products = y @ away.T - away @ self._calibration.mean[0]
        own = (self._average * products).sum(2)
        deviation = torch.linalg.vector_norm(self._average @ sketched, dim=2)
        score = own / deviation.clamp_min_(_TINY)
        if self.blocks * BLOCK < _LAST:
            place = torch.arange(CHUNK, device=y.device) + self.blocks * BLOCK
            score = torch.where(place < self._window[..., 0], torch.nan, score)
        transposed: Tensor = score.T
        return transposed

    def _long(self, blocks: Tensor, made: Made) -> Tensor:
        witness = made.witness[self._serves].transpose(1, 2).flatten(2, 3)  # [block, kind, window and soft, d]
        mean, deviation = (part[self._serves].transpose(1, 2).flatten(2) for part in made[1:])
        own = blocks.transpose(0, 1) @ witness.transpose(2, 3)  # [block, kind, unit, ...]
        score = (own - mean[:, :, None]) / deviation[:, :, None]
        return score.transpose(1, 2).reshape(CHUNK, -1)

    def _made(self, means: Tensor) -> Made:
        """Witnesses of _ANEW, and the slowest."""
        place = torch.arange(-_RING, 0, device=means.device)
        before = LONG[-2]
        recent = torch.cat([self._ring[(place[-before:] + self.blocks) % _RING], means])
        sums = [recent[before + block - window : before + block].sum(0) for window, block in _ANEW]
        have = [min(self.blocks + block, window) for window, block in _ANEW]
        renews = self.blocks % _REFRESH[-1] == 0 or self.blocks < _RING
        if renews:
            sums.append(self._ring.sum(0))
            have.append(min(self.blocks, _RING))
        witness = self._soft(torch.stack(sums), means.new_tensor(have))
        deviation = torch.cat(
            [
                self._calibration.passing_deviation(witness[:_PER]),
                self._calibration.deviation(witness[_PER:]),
            ]
        )
        nothing = deviation < _TINY
        mean = (witness * self._calibration.mean[:, None]).sum(3).masked_fill_(nothing, torch.nan)
        made = Made(witness, mean, deviation.masked_fill_(nothing, 1.0))
        return made if renews else Made(*(torch.cat(parts) for parts in zip(made, self._slowest, strict=True)))

    def _soft(self, sums: Tensor, have: Tensor) -> Tensor:
        """Dense and soft witnesses [k, 2, 2, d] from sums [k, 2, d] of ``have`` [k] blocks."""
        have = have.clamp_min(1)[:, None, None]
        dense = sums / have
        cut = self._cut / have.sqrt()
        return torch.stack([dense, dense - dense.clamp(-cut, cut)], 2)

    def state_dict(self) -> dict[str, Any]:
        """State to go on exactly."""
        slowest = {f"slowest_{name}": value for name, value in self._slowest._asdict().items()}
        return {
            "blocks": self.blocks,
            "away": self._away,
            "sketched": self._sketched,
            "ring": self._ring.clone(),
        } | slowest

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.blocks = int(state["blocks"])
        for name in ("away", "sketched", "ring"):
            setattr(self, f"_{name}", state[name].to(self._ring).clone())
        self._slowest = Made(
            *(state[f"slowest_{name}"].to(own).clone() for name, own in self._slowest._asdict().items())
        )
