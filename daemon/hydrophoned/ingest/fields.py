"""Checks of the fields of control frames: type, range and size, with errors that name field, value and expectation."""

import math
from typing import Any, Final

from hydrophone_schemas.errors import InvalidName, WireError
from hydrophone_schemas.names import check_name, check_site
from hydrophone_schemas.wire import ErrorCode

MAX_TEXT: Final = 1024
"""Characters of a text field."""
MAX_ENTRIES: Final = 64
"""Entries of a map of attributes, labels or drop reasons."""
MAX_COUNTERS: Final = 256
"""Entries of a map of counters."""
MAX_PIECES: Final = 1 << 20
"""Token strings in one TOKENS frame."""
MAX_INT: Final = (1 << 63) - 1
"""Largest integer, unless the field says otherwise."""
_SHOWN: Final = 80


def wrong(field: str, value: Any, expected: str) -> WireError:
    """The error of a field."""
    if isinstance(value, dict | list | bytes | str) and len(value) > _SHOWN:
        shown = f"{type(value).__name__} of length {len(value)}"
    else:
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return WireError(ErrorCode.BAD_FIELD, f"field {field!r} is {shown}; expected {expected}")


def integer(body: dict[str, Any], field: str, low: int = 0, high: int = MAX_INT, *, default: int | None = None) -> int:
    """An integer within [low, high]."""
    value = body.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise wrong(field, value, f"an integer in {low}..{high}")
    return value


def share(body: dict[str, Any], field: str, *, default: float | None = None) -> float:
    """A number in 0..1."""
    value = body.get(field, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise wrong(field, value, "a number in 0..1")
    return float(value)


def text(body: dict[str, Any], field: str, *, default: str | None = None, longest: int = MAX_TEXT) -> str:
    """A string of at most ``longest`` characters; not empty unless there is a default."""
    value = body.get(field, default)
    shortest = 1 if default is None else 0
    if not isinstance(value, str) or not shortest <= len(value) <= longest:
        raise wrong(field, value, f"a string of {shortest}..{longest} characters")
    return value


def texts(body: dict[str, Any], field: str, most: int) -> list[str]:
    """A list of at most ``most`` strings; absent means none."""
    value = body.get(field, [])
    if not isinstance(value, list) or len(value) > most:
        raise wrong(field, value, f"a list of at most {most} strings")
    for entry in value:
        if not isinstance(entry, str) or len(entry) > MAX_TEXT:
            raise wrong(field, entry, f"strings of at most {MAX_TEXT} characters")
    return value


def name(body: dict[str, Any], field: str) -> str:
    """A model name or version."""
    try:
        return check_name(field, text(body, field))
    except InvalidName as error:
        raise WireError(ErrorCode.BAD_FIELD, f"field {field!r}: {error}") from None


def site(body: dict[str, Any], field: str) -> str:
    """A canonical site."""
    try:
        return check_site(text(body, field))
    except InvalidName as error:
        raise WireError(ErrorCode.BAD_FIELD, f"field {field!r}: {error}") from None


def binary(body: dict[str, Any], field: str, shortest: int, longest: int) -> bytes:
    """Bytes of a length within [shortest, longest]."""
    value = body.get(field)
    if not isinstance(value, bytes) or not shortest <= len(value) <= longest:
        raise wrong(field, value, f"{shortest}..{longest} bytes")
    return value


def scalars(body: dict[str, Any], field: str, *, nil: bool) -> dict[str, Any]:
    """A map of at most 64 names to text, finite numbers, booleans and, with ``nil``, nil; absent means empty."""
    value = body.get(field, {})
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        raise wrong(field, value, f"a map of at most {MAX_ENTRIES} entries")
    for key, entry in value.items():
        if not isinstance(key, str) or not 1 <= len(key) <= MAX_TEXT:
            raise wrong(field, key, f"names of 1..{MAX_TEXT} characters")
        if not _is_scalar(entry, nil=nil):
            expected = f"text of at most {MAX_TEXT} characters, a finite number, a 64-bit integer or a boolean"
            raise wrong(f"{field}.{key[:_SHOWN]}", entry, expected)
    return value


def counts(body: dict[str, Any], field: str, most: int) -> dict[str, int]:
    """A map of at most ``most`` names to numbers from 0; absent means empty."""
    value = body.get(field, {})
    if not isinstance(value, dict) or len(value) > most:
        raise wrong(field, value, f"a map of at most {most} entries")
    for key in value:
        if not isinstance(key, str) or not 1 <= len(key) <= MAX_TEXT:
            raise wrong(field, key, f"names of 1..{MAX_TEXT} characters")
        integer(value, key)
    return value


def pieces(body: dict[str, Any], field: str) -> list[str | None]:
    """A list of token strings or nil."""
    value = body.get(field)
    if not isinstance(value, list) or len(value) > MAX_PIECES:
        raise wrong(field, value, f"a list of at most {MAX_PIECES} strings or nil")
    for piece in value:
        if piece is not None and (not isinstance(piece, str) or len(piece) > MAX_TEXT):
            raise wrong(field, piece, f"strings of at most {MAX_TEXT} characters, or nil")
    return value


def _is_scalar(value: Any, *, nil: bool) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return -MAX_INT - 1 <= value <= MAX_INT
    if isinstance(value, float):
        return math.isfinite(value)
    return nil and value is None
