"""Which features of a dictionary come back in a twin: of the same settings, learned from a sample with another seed.

What a dictionary learns depends on its seed (Paulo and Belrose 2025, "Sparse autoencoders trained on the same data
learn different features"): a feature that two seeds agree on is of the data, one that they do not agree on may be of
the seed. The twin learns from the rows of half the requests, over and over; partners are chosen on the same rows, and
scored on the rows of the other half, which the twin has never seen (:mod:`.matching`).

The evidence is one-sided. A twin that is learned from few rows lacks much of what many rows teach, so a match says that
a feature is found again, and the absence of one says little. The fvu of both on the held-out rows tells how far the
twin is behind.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrophoned.analyse.halves import halves
from hydrophoned.analyse.matching import STRONG, WEAK, Matching, Scores, compare
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.sae import DictionaryConfig, SparseAutoencoder

KINDS: Final = ("stable", "weak", "unstable", "unknown")
STABLE, SIMILAR, UNSTABLE, UNKNOWN = range(len(KINDS))


class Seen(NamedTuple):
    """What a dictionary makes of rows: codes, decoder rows [F, d], and the squared error of each row, float32 [n]."""

    codes: Codes
    W_dec: Tensor
    error: Tensor


class Stability(NamedTuple):
    """What was found of each of F features, and from how much.

    ``kind`` int8 [F] is a place in ``KINDS``; ``correlation`` float64 [F] is that of a feature with its partner on
    the held-out rows, NaN where it has none or nothing is known. A feature is ``unknown`` when it fires on fewer than
    LEAST_FIRED rows of either half; ``compared`` are the others, and all shares are of them. The twin made ``passes``
    whole passes over ``rows_trained`` rows; ``rows_scored`` are held out. ``fvu`` and ``fvu_twin`` are the two
    dictionaries' fractions of variance unexplained on these; None of rows without variance.
    """

    kind: NDArray[np.int8]
    correlation: NDArray[np.float64]
    compared: int
    scores: Scores
    shuffled: Scores
    random_pairs: Scores
    rows_trained: int
    rows_scored: int
    requests: int
    passes: int
    fvu: float | None
    fvu_twin: float | None

    @property
    def rank(self) -> NDArray[np.float64]:
        """What features are sorted by, float64 [F]: the correlation; -1 where none was found, NaN of unknown ones."""
        lacking = (self.kind == UNSTABLE) & np.isnan(self.correlation)
        return np.where(lacking, -1.0, self.correlation)


def see(dictionary: SparseAutoencoder, y: Tensor, size: int) -> Seen:
    """Codes and errors of normalised rows y [n, d], ``size`` rows at a time."""
    parts, error = [], []
    for rows in torch.split(y, size):
        codes = dictionary.encode(rows, exact=True)
        error.append((dictionary.decode(codes) - rows).square().sum(1))
        parts.append(codes)
    both = Codes(torch.cat([one.index for one in parts]), torch.cat([one.value for one in parts]))
    return Seen(both, dictionary.W_dec, torch.cat(error))


def train_twin(
    y: Tensor,
    config: DictionaryConfig,
    *,
    passes: int,
    batch_rows: int,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[SparseAutoencoder, int]:
    """A dictionary of rows y [n, d], and how many whole passes over them it learned.

    ``stop`` is asked before each step whether to make do with what was learned so far.
    """
    generator = torch.Generator().manual_seed(seed)
    twin = SparseAutoencoder(config, generator=generator)
    twin.initialise(y)
    for number in range(passes):
        for some in torch.split(torch.randperm(len(y), generator=generator), batch_rows):
            if stop():
                return twin, number
            twin.partial_fit(y[some])
    return twin, passes


def stability(
    live: Seen,
    y: Tensor,
    request: Tensor,
    config: DictionaryConfig,
    *,
    passes: int,
    batch_rows: int = 512,
    seed: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Stability:
    """Learn a twin of the dictionary that saw ``live`` in rows y [n, d], and look for its features there.

    ``request`` int64 [n] is the number of the request of each row; ``config`` has the dictionary's settings, and
    ``seed`` should differ from its own. Raises TooLittle for too few rows or requests.
    """
    first = halves(request, torch.Generator().manual_seed(seed))
    twin, made = train_twin(y[first], config, passes=passes, batch_rows=batch_rows, seed=seed, stop=stop)
    other = see(twin, y, batch_rows)
    found = compare((live.codes, other.codes), (live.W_dec, other.W_dec), request, first=first, seed=seed)
    way = found.activation
    return Stability(
        _kinds(way, found.compared[0]),
        way.score.double().numpy(),
        len(found.compared[0]),
        way.scores,
        way.shuffled,
        way.random_pairs,
        int(first.sum()),
        found.rows_scored,
        found.requests,
        made,
        *(_fvu(y[~first], seen.error[~first]) for seen in (live, other)),
    )


def _kinds(way: Matching, compared: Tensor) -> NDArray[np.int8]:
    kind = np.full(len(way.score), UNKNOWN, dtype=np.int8)
    score = way.score[compared].numpy()
    # NaN, of those without a partner, is above neither
    kind[compared.numpy()] = np.where(score > STRONG, STABLE, np.where(score > WEAK, SIMILAR, UNSTABLE))
    return kind


def _fvu(y: Tensor, error: Tensor) -> float | None:
    variance = float((y - y.mean(0)).double().square().sum())
    return float(error.double().sum()) / variance if variance > 0 else None
