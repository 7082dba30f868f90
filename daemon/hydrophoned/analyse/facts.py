"""What is known of each row besides its code, as columns of few values: what rules are made of."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrophoned.analyse.pieces import CLASSES, classes, word
from hydrophoned.learn.code_sample import CodedRows

ATTRIBUTE: Final = "attribute:"
"""What the name of a request attribute's field begins with."""
MAX_ATTRIBUTES: Final = 16
MAX_ATTRIBUTE_VALUES: Final = 64
"""Attributes with more values, such as a user's id, are left out: what they would say is not about the feature."""
PHASES: Final = ("prompt", "decode")


class Field(NamedTuple):
    """One field of n rows: ``code`` int32 [n] is the place of the row's value in ``values``.

    The value at place 0 is None, for what is unknown. ``places`` finds a value (with its type, for True is not 1).
    ``classes`` bool [V, C] says of which of the C classes each value is; it is None where values have none.
    """

    values: tuple[Any, ...]
    places: dict[tuple[type, Any], int]
    code: NDArray[np.int32]
    classes: NDArray[np.bool_] | None = None

    def take(self, chosen: NDArray[Any]) -> "Field":
        """Rows ``chosen``."""
        return self._replace(code=self.code[chosen])


class Facts(NamedTuple):
    """Fields by name, and the number of each row's request, int64 [n], among ``requests`` of them.

    ``token`` (ids), ``word``, ``previous`` (the piece before) and ``previous word``, ``position`` (pairs of first and
    last), ``phase``, and ``attribute:NAME``. Rows of no known request have one of their own.
    """

    fields: dict[str, Field]
    request: NDArray[np.int64]
    requests: int

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.request)

    def take(self, chosen: NDArray[Any]) -> "Facts":
        """Rows ``chosen`` (integers or bool)."""
        fields = {name: field.take(chosen) for name, field in self.fields.items()}
        return Facts(fields, self.request[chosen], self.requests)


def facts(
    rows: CodedRows,
    *,
    strings: Mapping[int, str] | None = None,
    previous: Sequence[str | None] | None = None,
    attributes: Mapping[str, Sequence[Any]] | None = None,
) -> Facts:
    """What is known of ``rows``.

    ``strings`` gives the string of a token id, ``previous`` [n] the string of the token before each row, ``attributes``
    by name the value [n] that each row's request has; what is not known may be absent or None.
    """
    strings = strings or {}
    fields: dict[str, Field] = {}
    tokens, code = np.unique(rows.token, return_inverse=True)
    if (tokens >= 0).any():
        values = [int(token) if token >= 0 else None for token in tokens]
        token = _field(values, code, strings.get)
        fields["token"] = token
        if strings:
            fields["word"] = _coarser(token, lambda value: word(strings[value]) if value in strings else None)
    if previous is not None:
        known, place = _places(previous)
        before = _field(known, place, lambda value: value)
        fields["previous"] = before
        fields["previous word"] = _coarser(before, word)
    fields["position"] = _positions(rows.position)
    fields["phase"] = _field(list(PHASES), np.clip(rows.phase, 0, 1))
    for name, given in list((attributes or {}).items())[:MAX_ATTRIBUTES]:
        known, place = _places(given)
        if 1 < len(known) <= MAX_ATTRIBUTE_VALUES:
            fields[ATTRIBUTE + name] = _field(known, place)
    alone = rows.request < 0
    request = rows.request.astype(np.int64)
    request[alone] = -1 - np.arange(int(alone.sum()))
    known_requests, number = np.unique(request, return_inverse=True)
    return Facts(fields, number, len(known_requests))


def _places(given: Sequence[Hashable]) -> tuple[list[Any], NDArray[np.int64]]:
    """Distinct values in the order they come in, and the place of each."""
    place: dict[tuple[type, Hashable], int] = {}
    code = np.array([place.setdefault((type(value), value), len(place)) for value in given], dtype=np.int64)
    return [value for _, value in place], code


def _field(values: Sequence[Any], code: NDArray[Any], string: Callable[[Any], str | None] | None = None) -> Field:
    """A field whose unknown value, None, is moved to place 0; ``string`` gives the piece that a value stands for."""
    known = np.array([value is not None for value in values])
    moved = (np.cumsum(known) * known).astype(np.int32)
    every = (None, *(value for value in values if value is not None))
    table = None
    if string is not None:
        pieces = [None if value is None else string(value) for value in every]
        if any(piece is not None for piece in pieces):
            names = list(CLASSES)
            table = np.zeros((len(every), len(names)), dtype=np.bool_)
            for place, piece in enumerate(pieces):
                for name in classes(piece) if piece is not None else ():
                    table[place, names.index(name)] = True
    places = {(type(value), value): place for place, value in enumerate(every) if place}
    return Field(every, places, moved[code], table)


def _coarser(field: Field, value_of: Callable[[Any], Any]) -> Field:
    """``field`` with the values that ``value_of`` gives of its own."""
    values, place = _places([None if value is None else value_of(value) for value in field.values])
    return _field(values, place[field.code])


def position_level(position: int) -> int:
    """Which of the ranges 0, 1, 2 to 3, 4 to 7 and so on ``position`` is in, from 0."""
    return position.bit_length()


def level_range(level: int) -> tuple[int, int]:
    """First and last position of a level.

    >>> [level_range(level) for level in range(4)]
    [(0, 0), (1, 1), (2, 3), (4, 7)]
    """
    return (0, 0) if level == 0 else (1 << (level - 1), (1 << level) - 1)


def _positions(position: NDArray[np.int32]) -> Field:
    found, place = np.unique(position, return_inverse=True)
    level = np.array([position_level(max(int(one), 0)) for one in found])
    levels, number = np.unique(level, return_inverse=True)
    return _field([level_range(int(one)) for one in levels], number[place])
