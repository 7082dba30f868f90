"""Picks the features whose top contexts plainly share something, and prints them.

A feature is told by the tokens it fires on: the share of its best examples (each from another request) whose token is
the same. To say more than "a frequent token", that share is set against how frequent the token is in the text itself.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from hydrophone.cli.screen import printable

_MIN_EXAMPLES = 5
_LEFT_CHARACTERS = 36  # so that the marked token stands in one column, within 80


class Telling(NamedTuple):
    """A feature, what its examples share, and the examples."""

    feature: int
    rate: float
    shared: str
    agreement: float
    examples: list[dict[str, Any]]


def most_telling(features: Iterable[tuple[dict[str, Any], list[dict[str, Any]]]], count: int) -> list[Telling]:
    """The ``count`` best of (feature, examples) pairs as the API gives them, at most one per shared token."""
    candidates = []
    for feature, examples in features:
        pieces = [piece for piece in map(firing_piece, examples) if piece is not None]
        if len(pieces) < _MIN_EXAMPLES:
            continue
        shared, times = Counter(_normal(piece) for piece in pieces).most_common(1)[0]
        candidates.append(Telling(feature["index"], feature["rate"] or 0.0, shared, times / len(pieces), examples))
    # what all examples share comes first; among those, words before marks and blanks, then the frequent ones
    candidates.sort(key=lambda c: (c.agreement, any(ch.isalnum() for ch in c.shared), c.rate), reverse=True)
    chosen: dict[str, Telling] = {}
    for candidate in candidates:
        chosen.setdefault(candidate.shared, candidate)
    return list(chosen.values())[:count]


def firing_piece(example: dict[str, Any]) -> str | None:
    """The token string the feature fired on, None where text was not kept."""
    context: list[str | None] | None = example["context"]
    return None if context is None else context[example["context_index"]]


def print_telling(console: Console, telling: list[Telling]) -> None:
    """Print each feature with three of its contexts, the firing token marked."""
    for one in telling:
        console.print(
            f"\n[bold cyan]feature {one.feature}[/]  fires on {one.rate:.2%} of rows  "
            f"{one.agreement:.0%} of its top contexts on [bold]{one.shared!r}[/]",
            highlight=False,
        )
        for example in one.examples[:3]:
            console.print(context_line(example), soft_wrap=False, no_wrap=True, overflow="ellipsis")


def context_line(example: dict[str, Any]) -> Text:
    """One context as a line, the firing token marked by colour and by brackets."""
    pieces = [_visible(piece) for piece in example["context"]]
    at = example["context_index"]
    return Text.assemble(
        (f"  {example['value']:7.2f}  ", "dim"),
        "".join(pieces[:at])[-_LEFT_CHARACTERS:].rjust(_LEFT_CHARACTERS),
        (f"[{pieces[at]}]", "bold black on yellow"),
        "".join(pieces[at + 1 :]),
    )


def _normal(piece: str) -> str:
    return piece.strip().lower() or _visible(piece)


def _visible(piece: str | None) -> str:
    return "·" if piece is None else printable(piece)
