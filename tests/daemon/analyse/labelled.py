"""Rows of made-up text with features that are known."""

from typing import NamedTuple

import numpy as np
from hydrophoned.analyse.facts import Facts, facts
from hydrophoned.analyse.firing import Firing
from hydrophoned.learn.code_sample import CodedRows

WORDS = [
    "the", "of", "and", "to", "in", "is", "for", "that", "on", "with", "as", "by", "this", "it", "from", "be",
    "an", "are", "at", "which", "or", "not", "have", "was", "can", "if", "will", "then", "when", "return",
    "class", "value", "name", "file", "path", "list", "error", "time", "data", "open", "read", "write", "Key",
    "Type", "Index", "Model", "Node",
]  # fmt: skip
PIECES = [
    *(str(digit) for digit in range(10)),
    *("\n", "\n\n", "\n    "),
    *(".", ",", ":", "(", ")", '"', " =", "_"),
    *(f" {word}" for word in WORDS),
    *("the", "The", "ing", "ed", "tion", "s"),
]


class Text(NamedTuple):
    """Rows of requests of ``length`` tokens each, of which each piece has a frequency; attributes by request."""

    rows: CodedRows
    strings: dict[int, str]
    previous: list[str | None]
    attributes: dict[str, list]

    def facts(self, **options) -> Facts:
        given = {"strings": self.strings, "previous": self.previous, "attributes": self.attributes}
        return facts(self.rows, **(given | options))

    def piece(self) -> np.ndarray:
        return np.array([PIECES[token] for token in self.rows.token], dtype=object)

    def with_features(self, fires: np.ndarray) -> "Text":
        """Codes in which feature f is active where ``fires`` [n, F]."""
        n, features = fires.shape
        index = np.broadcast_to(np.arange(features, dtype=np.int32), (n, features))
        return self._replace(rows=self.rows._replace(index=index, value=fires.astype(np.float32)))


def text(*, requests: int = 200, length: int = 60, seed: int = 0) -> Text:
    random = np.random.default_rng(seed)
    weight = random.dirichlet(np.full(len(PIECES), 2.0))
    n = requests * length
    token = random.choice(len(PIECES), n, p=weight).astype(np.int32)
    position = np.tile(np.arange(length, dtype=np.int32), requests)
    request = np.repeat(np.arange(requests), length)
    previous = [PIECES[token[row - 1]] if position[row] else None for row in range(n)]
    language = random.choice(["de", "en", "fr"], requests)
    tier = random.integers(0, 2, requests).astype(bool)
    rows = CodedRows(
        np.zeros((n, 1), np.int32),
        np.zeros((n, 1), np.float32),
        request,
        np.zeros(n, np.int32),
        position,
        (position >= length // 2).astype(np.int32),
        token,
        np.zeros(n, np.int64),
    )
    attributes = {"language": language[request].tolist(), "paid": tier[request].tolist()}
    return Text(rows, dict(enumerate(PIECES)), previous, attributes)


def noisy(wanted: np.ndarray, random: np.random.Generator, *, on: float = 0.95, off: float = 0.0005) -> np.ndarray:
    """A feature that fires on a share ``on`` of the rows ``wanted``, and on a share ``off`` of the others."""
    return random.random(len(wanted)) < np.where(wanted, on, off)


def firing(text: Text) -> Firing:
    return Firing.of(text.rows, text.rows.index.shape[1])
