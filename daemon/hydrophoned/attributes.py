"""What the latest requests are like, as their producers said: written as requests are opened, read by the learners."""

from collections.abc import Collection, Mapping

CAPACITY = 50_000
MAX_TEXT = 200
MOST = 8
"""Attributes of a request that are known here; further ones, by their names, are in the store alone."""


class RequestAttributes:
    """Attributes of the latest ``capacity`` requests that have any, as text.

    Those called ``names`` are kept, and with ``others`` further ones, up to 8 of a request.

    One thread writes; any thread may read meanwhile.
    """

    def __init__(self, names: Collection[str], capacity: int = CAPACITY, *, others: bool = False) -> None:
        self.names = frozenset(names)
        self._others = others
        self._capacity = capacity
        self._known: dict[int, dict[str, str]] = {}

    def add(self, key: int, attributes: Mapping[str, str | float | bool]) -> None:
        """The request ``key`` was opened with ``attributes``; the one opened longest ago gives way to it."""
        wanted = [name for name in attributes if name in self.names]
        if self._others:
            wanted += sorted(name for name in attributes if name not in self.names)[: max(0, MOST - len(wanted))]
        kept = {
            name: text
            for name in wanted
            if (text := attribute_text(attributes[name]))  # an empty text is as none
        }
        if kept:
            self._known[key] = kept
            if len(self._known) > self._capacity:
                del self._known[next(iter(self._known))]

    def of(self, key: int) -> Mapping[str, str]:
        """Attributes of a request by name; empty where none is known."""
        return self._known.get(key, {})


def attribute_text(value: str | float | bool) -> str:
    """A value as text, cut after 200 characters; ``true`` and ``false`` as in JSON.

    >>> attribute_text(True), attribute_text(7), attribute_text("eu")
    ('true', '7', 'eu')
    """
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text[:MAX_TEXT]
