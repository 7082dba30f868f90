"""Classes of token strings that people recognise at once: digits, line ends, words, brackets.

A piece is the string of one token. Tokenizers mark a leading space and a line end with letters of their own where they
are asked for tokens and not for text; ``plain`` takes these marks back.
"""

from collections.abc import Callable
from typing import Final

_MARKS: Final = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n", "\u0109": "\t"})
_OPENING, _CLOSING, _QUOTES = frozenset("([{"), frozenset(")]}"), frozenset("\"'`\u2018\u2019\u201c\u201d")
_OPERATORS: Final = frozenset("+-*/%=<>!&|^~@")
# fmt: off
_KEYWORDS: Final = frozenset({
    "and", "as", "assert", "async", "await", "break", "case", "catch", "class", "const", "continue", "def",
    "default", "del", "do", "elif", "else", "enum", "except", "export", "extends", "false", "finally", "fn",
    "for", "from", "function", "global", "if", "impl", "import", "in", "include", "interface", "is", "lambda",
    "let", "match", "new", "nil", "none", "nonlocal", "not", "null", "or", "pass", "private", "protected",
    "public", "raise", "return", "self", "static", "struct", "super", "switch", "this", "throw", "true", "try",
    "typedef", "undefined", "use", "using", "var", "void", "while", "with", "yield",
})
# fmt: on
"""Of Python, C, JavaScript and Rust."""


def plain(piece: str) -> str:
    r"""``piece`` with a tokenizer's marks as the characters they stand for.

    >>> plain("\u0120the"), plain("\u010a")
    (' the', '\n')
    """
    return piece.translate(_MARKS)


def word(piece: str) -> str | None:
    """What a piece says whatever its case and the spaces around it; None where it is nothing but whitespace.

    >>> word(" Return"), word("("), word("  ")
    ('return', '(', None)
    """
    return plain(piece).strip().casefold() or None


def _only(characters: frozenset[str]) -> Callable[[str], bool]:
    return lambda text: bool(text.strip()) and set(text.strip()) <= characters


def _is_line_end(text: str) -> bool:
    return "\n" in text and not text.strip()


def _is_punctuation(text: str) -> bool:
    stripped = text.strip()
    return bool(stripped) and not any(character.isalnum() for character in stripped)


CLASSES: Final[dict[str, Callable[[str], bool]]] = {
    "digits": lambda text: text.strip().isdecimal(),
    "line end": _is_line_end,
    "whitespace": lambda text: bool(text) and not text.strip(),
    "punctuation": _is_punctuation,
    "opening bracket": _only(_OPENING),
    "closing bracket": _only(_CLOSING),
    "bracket": _only(_OPENING | _CLOSING),
    "quote": _only(_QUOTES),
    "operator": _only(_OPERATORS),
    "capitalised": lambda text: text.strip()[:1].isupper(),
    "upper case": lambda text: len(text.strip()) > 1 and text.strip().isalpha() and text.isupper(),
    "start of a word": lambda text: text[:1] == " " and text[1:].isalpha(),
    "inside of a word": lambda text: text.isalpha(),
    "word of code": lambda text: text.strip() in _KEYWORDS,
    "name with underscores": lambda text: "_" in text and any(character.isalnum() for character in text),
}
"""Name of each class, and whether a text is of it. A piece may be of several."""


def classes(piece: str) -> tuple[str, ...]:
    """Names of the classes that ``piece`` is of.

    >>> classes("7"), classes(" Return")
    (('digits',), ('capitalised', 'start of a word'))
    """
    text = plain(piece)
    return tuple(name for name, holds in CLASSES.items() if holds(text))
