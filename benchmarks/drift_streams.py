"""Streams of units for the drift benchmark: five on which nothing changes, and ten changes of one of them.

Units have width 576. Rows of a language model are those of dictionary_data.py (layer 15 of SmolLM2 over the text that
every CPython has), sink rows left out; code is the class watched, prose the other one. All units of a stream are drawn
independently and with replacement from one pool, so that they are exchangeable with those of a reference drawn from it.

``gauss``     Gaussian, its spectrum a power law (the i-th eigenvalue 1 / i), axes turned at random
``t4``        the same directions, each row divided by its own root of chi-square over 4: elliptical t with 4 degrees
``rows``      one row of each request: rows of code, drawn one by one
``tokens``    requests of 48 tokens of code, one after the other in the text; the unit is the request's mean
``requests``  the same of requests that differ: 4 to 128 tokens, log-uniform, and half of them prose
"""

import functools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import dictionary_data
import torch
from hydrophone.demo.corpus import builtin_documents
from torch import Tensor

LAYER, LENGTH = 15, dictionary_data.LENGTH
WIDTH = 576
TOKENS = 48
Draw = Callable[[int, torch.Generator], Tensor]
Change = Callable[[Tensor, int, torch.Generator], Tensor]
"""Changed units of units [n, d], the first of which comes so many units after the change."""


class LanguageModel(NamedTuple):
    """Rows of stretches of 128 tokens, and what is needed to average over parts of them in two look-ups.

    ``rows`` [s, 128, d] float16; ``sums`` [s, 129, d] and ``counts`` [s, 129] of the usable rows before a position;
    ``of_kind`` the stretches of each kind of text, ``usable`` their rows that are no sinks, as places in s x 128.
    ``mean`` [d] and ``covariance`` [d, d] are those of the usable rows of code.
    """

    rows: Tensor
    sums: Tensor
    counts: Tensor
    of_kind: dict[str, Tensor]
    usable: dict[str, Tensor]
    mean: Tensor
    covariance: Tensor

    def drawn_rows(self, n: int, generator: torch.Generator, kind: str = "code") -> Tensor:
        """Rows [n, d] of text of a kind."""
        usable = self.usable[kind]
        return self.rows.view(-1, WIDTH)[usable[torch.randint(len(usable), (n,), generator=generator)]].float()

    def drawn_requests(self, stretch: Tensor, length: Tensor, generator: torch.Generator) -> Tensor:
        """Means [n, d] of ``length`` tokens in a row of each of n stretches, from a place at random."""
        start = (torch.rand(len(stretch), generator=generator) * (LENGTH + 1 - length)).long()
        count = self.counts[stretch, start + length] - self.counts[stretch, start]
        total = self.sums[stretch, start + length] - self.sums[stretch, start]
        return total / count.clamp_min(1)[:, None]

    def drawn_stretches(self, n: int, generator: torch.Generator, kind: str = "code") -> Tensor:
        """Stretches [n] of text of a kind."""
        of_kind = self.of_kind[kind]
        return of_kind[torch.randint(len(of_kind), (n,), generator=generator)]


@functools.cache
def language_model(folder: Path, count: int) -> LanguageModel:
    """The model's rows, ``count`` of them; made before processes are, they share it."""
    found, documents = dictionary_data.cached(LAYER, "builtin", count, folder, print)
    texts = builtin_documents()
    random.Random(0).shuffle(texts)  # noqa: S311  the order in which dictionary_data numbers them
    kinds = [texts[number].kind for number in documents[::LENGTH]]
    rows = torch.from_numpy(found.reshape(-1, LENGTH, WIDTH).copy())
    norms = rows.float().norm(dim=2)
    usable = norms <= dictionary_data.SINK_FACTOR * norms.median()
    sums = torch.zeros(len(rows), LENGTH + 1, WIDTH)
    torch.cumsum(rows.float() * usable[..., None], 1, out=sums[:, 1:])
    counts = torch.zeros(len(rows), LENGTH + 1, dtype=torch.int64)
    counts[:, 1:] = usable.cumsum(1)
    of_kind = {kind: torch.tensor([i for i, one in enumerate(kinds) if one == kind]) for kind in ("code", "prose")}
    places = torch.arange(rows.shape[0] * LENGTH).view(-1, LENGTH)
    chosen = {kind: places[which][usable[which]] for kind, which in of_kind.items()}
    code = rows.view(-1, WIDTH)[chosen["code"]].float()
    return LanguageModel(rows, sums, counts, of_kind, chosen, code.mean(0), code.T.cov())


@functools.cache
def _axes() -> Tensor:
    """Root of a covariance with a power-law spectrum, [d, d]."""
    turned, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(576)))
    return turned * torch.arange(1, WIDTH + 1).float().rsqrt()[:, None]


def _gauss(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, WIDTH, generator=generator) @ _axes()


def _t4(n: int, generator: torch.Generator) -> Tensor:
    chi_square = torch.randn(n, 4, generator=generator).square().sum(1)
    return _gauss(n, generator) * (4 / chi_square).sqrt()[:, None]


def null_streams(model: LanguageModel) -> dict[str, Draw]:
    """The five streams on which nothing changes."""

    def tokens(n: int, generator: torch.Generator) -> Tensor:
        return model.drawn_requests(model.drawn_stretches(n, generator), torch.full((n,), TOKENS), generator)

    def requests(n: int, generator: torch.Generator) -> Tensor:
        is_prose = torch.rand(n, generator=generator) < 0.5
        code, prose = (model.drawn_stretches(n, generator, kind) for kind in ("code", "prose"))
        length = (4 * (LENGTH / 4) ** torch.rand(n, generator=generator)).long()
        return model.drawn_requests(torch.where(is_prose, prose, code), length, generator)

    return {"gauss": _gauss, "t4": _t4, "rows": model.drawn_rows, "tokens": tokens, "requests": requests}


def neighbours(model: LanguageModel) -> Draw:
    """Rows as they come: 48 of each request, one after the other. They are no units: what happens if taken for such."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        count = -(-n // TOKENS)
        stretch = model.drawn_stretches(count, generator)
        start = torch.randint(LENGTH + 1 - TOKENS, (count,), generator=generator)
        rows = model.rows[stretch[:, None], start[:, None] + torch.arange(TOKENS)].float()
        usable = model.counts[stretch[:, None], start[:, None] + torch.arange(1, TOKENS + 1)]
        usable = usable - model.counts[stretch[:, None], start[:, None] + torch.arange(TOKENS)]
        rows = rows.view(-1, WIDTH)[usable.view(-1) > 0][:n]
        return rows if len(rows) == n else torch.cat([rows, draw(n - len(rows), generator)])

    return draw


def changes(model: LanguageModel, seed: int) -> dict[str, Change]:
    """Ten changes of ``rows``. Direction, coordinates and planes are drawn anew for each seed.

    sigma is the standard deviation of rows along the direction, or of the coordinate. The means shift by so many; 5%
    of the coordinates do, or have twice the variance; 20 pairs of coordinates, centred and of equal deviation, are
    turned by a right angle; 10% of the rows, or all, are of prose; the ramp is a shift that takes 2,000 rows to sigma.
    """
    generator = torch.Generator().manual_seed(seed)
    deviation = model.covariance.diagonal().sqrt()
    direction = torch.randn(WIDTH, generator=generator)
    direction /= direction.norm()
    along = direction * (direction @ model.covariance @ direction).sqrt()
    some = torch.randperm(WIDTH, generator=generator)[: WIDTH // 20]
    wider = torch.ones(WIDTH)
    wider[some] = math.sqrt(2)
    first, second = torch.randperm(WIDTH, generator=generator)[:40].view(2, 20)

    def shifted(by: Tensor) -> Change:
        return lambda x, _age, _generator: x + by

    def coordinates(sigma: float) -> Change:
        return shifted(torch.zeros(WIDTH).index_copy(0, some, sigma * deviation[some]))

    def rotation(x: Tensor, _age: int, _generator: torch.Generator) -> Tensor:
        z = (x - model.mean) / deviation
        turned = z.clone()
        turned[:, first], turned[:, second] = -z[:, second], z[:, first]
        return turned * deviation + model.mean

    def others(share: float) -> Change:
        def change(x: Tensor, _age: int, generator: torch.Generator) -> Tensor:
            other = torch.rand(len(x), 1, generator=generator) < share
            return torch.where(other, model.drawn_rows(len(x), generator, "prose"), x)

        return change

    def ramp(x: Tensor, age: int, _generator: torch.Generator) -> Tensor:
        return x + along * ((age + torch.arange(len(x)) + 1) / 2000).clamp_max(1)[:, None]

    return {
        "mean_0.25": shifted(0.25 * along),
        "mean_0.5": shifted(0.5 * along),
        "mean_1": shifted(along),
        "coordinates_0.25": coordinates(0.25),
        "coordinates_0.5": coordinates(0.5),
        "variance": lambda x, _age, _generator: (x - model.mean) * wider + model.mean,
        "rotation": rotation,
        "contamination": others(0.1),
        "swap": others(1.0),
        "ramp": ramp,
    }


CHANGES = (
    "mean_0.25",
    "mean_0.5",
    "mean_1",
    "coordinates_0.25",
    "coordinates_0.5",
    "variance",
    "rotation",
    "contamination",
    "swap",
    "ramp",
)
