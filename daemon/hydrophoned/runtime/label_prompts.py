"""What a language model is asked for a label, and what is read from its answer."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from hydrophoned.analyse.pieces import CLASSES, plain
from hydrophoned.analyse.rules import Predicate, Rule

MAX_LABEL: Final = 500
_MAX_WORDS: Final = 32

SYSTEM: Final = (
    "You name features of a neural network. A feature fires on some tokens of a text. You see texts in which the token "
    "on which it fires is marked <<so>>, and others in which it does not fire on the marked token. Say what the "
    "feature responds to, in at most twelve words, as specifically as the texts allow."
)

_FORM: Final = (
    'Answer with JSON and nothing else: {"label": "...", "words": [...], "classes": [...]}. "words" are the words or '
    f'signs on which it fires, whatever their case, at most {_MAX_WORDS}; "classes" are those of the following on all '
    f"of whose tokens it fires: {', '.join(CLASSES)}. Leave both empty if what it fires on cannot be told from the "
    "marked token alone."
)


class Shown(NamedTuple):
    """A row as it is shown: token strings around it, the place of its own among them, and the activation."""

    pieces: Sequence[str | None]
    place: int
    value: float


class Answer(NamedTuple):
    """A label, and the rule that checks it where the model gave words or classes."""

    text: str
    rule: Rule | None


def question(top: Sequence[Shown], drawn: Sequence[Shown], silent: Sequence[Shown]) -> str:
    """The question about one feature: its ``top`` rows, ``drawn`` ones of all that fire, and ``silent`` ones."""
    parts = [
        "It fires most on:",
        *(_line(row) for row in top),
        "It also fires on, drawn at random:",
        *(_line(row) for row in drawn),
        "It does not fire on:",
        *(_line(row) for row in silent),
        _FORM,
    ]
    return "\n".join(parts)


def read_answer(text: str) -> Answer | None:
    """What a model answered; None where no label can be read.

    >>> read_answer('Sure: {"label": "digits", "words": [], "classes": ["digits"]}').rule.text()
    'token is digits'
    """
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        given = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        return None
    label = given.get("label")
    if not isinstance(label, str) or not label.strip():
        return None
    words = _texts(given.get("words"))[:_MAX_WORDS]
    classes = [name for name in _texts(given.get("classes")) if name in CLASSES]
    clauses = []
    if classes:
        clauses.append((Predicate("token", (), tuple(classes)),))
    if words:
        clauses.append((Predicate("word", tuple(dict.fromkeys(word.strip().casefold() for word in words))),))
    return Answer(" ".join(label.split())[:MAX_LABEL], Rule(tuple(clauses)) if clauses else None)


def _texts(given: Any) -> list[str]:
    return [one for one in given if isinstance(one, str) and one.strip()] if isinstance(given, list) else []


def _line(row: Shown) -> str:
    marked = [f"<<{_piece(piece)}>>" if place == row.place else _piece(piece) for place, piece in enumerate(row.pieces)]
    return "- " + json.dumps("".join(marked), ensure_ascii=False)


def _piece(piece: str | None) -> str:
    return "?" if piece is None else plain(piece)
