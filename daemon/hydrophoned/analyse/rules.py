"""Rules that say on which rows a feature fires: checked by machine, read by people.

A rule holds where any of its clauses does; a clause holds where all of its predicates do; a predicate holds where a
field of the row has one of some values, or a value of one of some classes. As JSON:

    {"any": [[{"field": "token", "in": [28, 29], "classes": ["digits"]}, {"field": "position", "in": [[0, 0]]}]]}
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hydrophoned.analyse.errors import BadRule
from hydrophoned.analyse.facts import ATTRIBUTE, Facts, level_range, position_level
from hydrophoned.analyse.pieces import CLASSES, plain

FIELDS: Final = ("token", "word", "previous", "previous word", "position", "phase")
SHOWN: Final = 8
"""Values of a predicate that its text shows; the others are counted."""
_NAMES: Final = {"previous": "the token before", "previous word": "the word before"}


class Predicate(NamedTuple):
    """``field`` has a value of ``values``, or one that is of a class of ``classes``."""

    field: str
    values: tuple[Any, ...] = ()
    classes: tuple[str, ...] = ()

    def chosen(self, facts: Facts) -> NDArray[np.bool_]:
        """Bool [V]: for which of the field's values in ``facts`` it holds."""
        field = facts.fields[self.field]
        chosen = np.zeros(len(field.values), dtype=np.bool_)
        known = (field.places.get((type(value), value)) for value in self.values)
        chosen[[place for place in known if place is not None]] = True
        if self.classes and field.classes is not None:
            names = list(CLASSES)
            chosen |= field.classes[:, [names.index(name) for name in self.classes]].any(1)
        return chosen

    def apply(self, facts: Facts) -> NDArray[np.bool_]:
        """Bool [n]: on which rows it holds; on none where the field is not known."""
        field = facts.fields.get(self.field)
        if field is None:
            return np.zeros(facts.rows, dtype=np.bool_)
        return self.chosen(facts)[field.code]

    def text(self, strings: Mapping[int, str]) -> str:
        """The predicate in words."""
        name = self.field.removeprefix(ATTRIBUTE)
        parts = [" or ".join(self.classes)] if self.classes else []
        shown = [_shown(self.field, value, strings) for value in self.values[:SHOWN]]
        if len(self.values) == 1:
            parts.append(shown[0])
        elif self.values:
            more = len(self.values) - len(shown)
            parts.append(f"one of {', '.join(shown)}{f' and {more} more' if more else ''}")
        return f"{_NAMES.get(name, name)} is {' or '.join(parts)}"


class Rule(NamedTuple):
    """``clauses`` of predicates, see the module."""

    clauses: tuple[tuple[Predicate, ...], ...]

    def apply(self, facts: Facts) -> NDArray[np.bool_]:
        """Bool [n]: the rows on which it says that the feature fires."""
        holds = np.zeros(facts.rows, dtype=np.bool_)
        for clause in self.clauses:
            part = np.ones(facts.rows, dtype=np.bool_)
            for predicate in clause:
                part &= predicate.apply(facts)
            holds |= part
        return holds

    def text(self, strings: Mapping[int, str] | None = None) -> str:
        """The rule in words; tokens without a string are shown by their id."""
        return "; or ".join(
            " and ".join(predicate.text(strings or {}) for predicate in clause) for clause in self.clauses
        )

    def to_json(self) -> str:
        """The rule as JSON text."""
        clauses = [
            [
                {"field": predicate.field}
                | ({"in": list(predicate.values)} if predicate.values else {})
                | ({"classes": list(predicate.classes)} if predicate.classes else {})
                for predicate in clause
            ]
            for clause in self.clauses
        ]
        return json.dumps({"any": clauses}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A rule of :meth:`to_json`, or written by hand; raises BadRule."""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadRule(f"the rule is not JSON: {error}") from None
        clauses = given.get("any") if isinstance(given, dict) and set(given) == {"any"} else None
        if not isinstance(clauses, list) or not clauses or not all(isinstance(c, list) and c for c in clauses):
            raise BadRule('a rule is {"any": [[predicate, ...], ...]} with at least one predicate in each list')
        return cls(tuple(tuple(_predicate(one) for one in clause) for clause in clauses))


def _predicate(given: Any) -> Predicate:
    if not isinstance(given, dict) or not {"field"} < set(given) <= {"field", "in", "classes"}:
        raise BadRule(f'{given!r} is no predicate: it has "field", and "in" or "classes" or both')
    name, values, classes = given["field"], given.get("in", []), given.get("classes", [])
    if not isinstance(name, str) or (name not in FIELDS and not name.startswith(ATTRIBUTE)):
        raise BadRule(f"there is no field {name!r}; there are {', '.join(FIELDS)} and {ATTRIBUTE}NAME")
    if not isinstance(values, list) or not isinstance(classes, list) or not (values or classes):
        raise BadRule(f"the predicate on {name} needs a list of values in 'in', or of classes in 'classes'")
    unknown = [one for one in classes if one not in CLASSES]
    if unknown:
        raise BadRule(f"there is no class {unknown[0]!r}; there are {', '.join(CLASSES)}")
    if name == "position":
        values = [_position(value) for value in values]
    elif not all(isinstance(value, str | int | float) for value in values):
        raise BadRule(f"values of {name} are texts, numbers or true and false")
    return Predicate(name, tuple(values), tuple(classes))


def _position(value: Any) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(end, int) for end in value):
        first, last = value
        if level_range(position_level(max(first, 0))) == (first, last):
            return first, last
    raise BadRule(f"{value!r} is no range of positions: they are [0, 0], [1, 1], [2, 3], [4, 7], [8, 15] and so on")


def _shown(field: str, value: Any, strings: Mapping[int, str]) -> str:
    if field == "position":
        first, last = value
        return str(first) if first == last else f"{first} to {last}"
    if field == "token":
        return json.dumps(plain(strings[value]), ensure_ascii=False) if value in strings else str(value)
    if field == "phase":
        return str(value)
    return json.dumps(plain(value) if isinstance(value, str) else value, ensure_ascii=False)
