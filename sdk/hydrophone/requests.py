"""Which request a forward pass belongs to.

In order: the innermost ``tap.request()`` scope of the running context (a context variable, so that threads, asyncio
tasks and ``asyncio.to_thread`` each see their own); else the request that began the KV cache which the forward
continues; else a new request for each batch element. Passes under :func:`pause` belong to none.
"""

import itertools
import secrets
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from hydrophone.errors import InvalidOption
from hydrophone.sampling import Sampler

AttributeValue = str | int | float | bool

_MAX_TEXT: Final = 1024
"""Characters of an id or of an attribute's text that are kept."""
_MAX_ATTRIBUTES: Final = 64
_MAX_INT: Final = 1 << 63


class Request:
    """One inference call; ``number`` is the producer's own, ``announced`` the session that sent its REQUEST frame."""

    __slots__ = ("announced", "attributes", "id", "model", "number", "sample", "started", "version")

    def __init__(
        self, number: int, request_id: str, *, model: str, version: str, sample: float, attributes: dict[str, Any]
    ) -> None:
        self.number = number
        self.id = request_id
        self.model = model
        self.version = version
        self.sample = sample
        self.attributes = attributes
        self.started = time.time_ns() // 1000
        self.announced: object = None

    def body(self) -> dict[str, Any]:
        """Payload of its REQUEST frame."""
        return {
            "request": self.number,
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "started": self.started,
            "attributes": self.attributes,
            "sample": self.sample,
        }


class Assignment(NamedTuple):
    """For each batch element its request and its sequence in that request; both empty when not sampled."""

    requests: tuple[Request, ...]
    sequences: tuple[int, ...]

    @property
    def batch(self) -> int:
        """Number of batch elements."""
        return len(self.requests)


UNSAMPLED: Final = Assignment((), ())


class Numbering:
    """Numbers requests within a producer and names those that the user did not name."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.renew()

    def renew(self) -> None:
        """Take a new prefix for ids, as a forked child must."""
        self._prefix = secrets.token_hex(5)

    def next(self) -> int:
        """The next number, from 1."""
        return next(self._numbers)

    def name(self, number: int) -> str:
        """An id for a request without one."""
        return f"{self._prefix}-{number}"


class Scope:
    """What ``with tap.request(...)`` yields: ``id`` of the request (the first one when several were given)."""

    def __init__(self, book: "RequestBook", ids: Sequence[str] | None, attributes: dict[str, Any]) -> None:
        self.book = book
        self.parent = _SCOPE.get()
        self.sampled = book.sampler.draw()
        self.sample = book.sampler.rate
        self.requests = tuple(book.request(text, self.sample, attributes) for text in ids or (None,))

    @property
    def id(self) -> str:
        """The request's id."""
        return self.requests[0].id

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all requests of the scope, one unless a list was given."""
        return tuple(request.id for request in self.requests)

    def assign(self, batch: int) -> Assignment | None:
        """Requests of ``batch`` sequences; None if they cannot be shared out evenly."""
        if not self.sampled:
            return UNSAMPLED
        share, rest = divmod(batch, len(self.requests))
        if rest or not share:
            return None
        return Assignment(
            tuple(request for request in self.requests for _ in range(share)), tuple(range(share)) * len(self.requests)
        )


_SCOPE: ContextVar[Scope | None] = ContextVar("hydrophone_request", default=None)


_PAUSED: ContextVar[bool] = ContextVar("hydrophone_paused", default=False)


@contextmanager
def pause() -> Iterator[None]:
    """Let no tap listen to forward passes of the running context, nor count them; other threads are heard."""
    token = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(token)


def paused() -> bool:
    """Whether the running context is inside :func:`pause`."""
    return _PAUSED.get()


class _Cached(NamedTuple):
    reference: weakref.ref[Any]
    assignment: Assignment
    batch: int
    length: int


class RequestBook:
    """Assigns the forward passes of one tap to requests; safe to use from several threads."""

    def __init__(self, model: str, version: str, sampler: Sampler, numbering: Numbering) -> None:
        self.model = model
        self.version = version
        self.sampler = sampler
        self._numbering = numbering
        self._caches: dict[int, _Cached] = {}

    def request(self, request_id: str | None, sample: float, attributes: dict[str, Any]) -> Request:
        """A new request."""
        number = self._numbering.next()
        name = self._numbering.name(number) if request_id is None else request_id
        return Request(number, name, model=self.model, version=self.version, sample=sample, attributes=attributes)

    @contextmanager
    def scope(self, request_id: object, attributes: dict[str, Any]) -> Iterator[Scope]:
        """The scope of a request; raises :class:`InvalidOption` if an id or attribute cannot be used."""
        scope = Scope(self, read_ids(request_id), read_attributes(attributes))
        token = _SCOPE.set(scope)
        try:
            yield scope
        finally:
            _SCOPE.reset(token)

    def current(self) -> Scope | None:
        """The innermost scope of this book in the running context."""
        scope = _SCOPE.get()
        while scope is not None and scope.book is not self:
            scope = scope.parent
        return scope

    def assign(self, batch: int, cache: object | None = None, past: int = 0) -> Assignment | None:
        """Requests of a forward of ``batch`` sequences that continues ``cache``, where ``past`` positions are filled.

        None if the ids given by the user do not fit the batch.
        """
        scope = self.current()
        if scope is not None:
            return scope.assign(batch)
        if cache is not None and past > 0 and (known := self._known(cache, batch)) is not None:
            return known
        if self.sampler.draw():
            sample = self.sampler.rate
            return Assignment(tuple(self.request(None, sample, {}) for _ in range(batch)), (0,) * batch)
        return UNSAMPLED

    def remember(self, cache: object, assignment: Assignment, batch: int, length: int) -> None:
        """Let later forwards that continue ``cache``, now ``length`` long, belong to ``assignment``.

        The cache is not kept alive.
        """
        key = id(cache)
        known = self._caches.get(key)
        try:
            reference = known.reference if known is not None else weakref.ref(cache, self._forget(key))
        except TypeError:  # legacy tuples of tensors cannot be followed: each forward is a request
            return
        self._caches[key] = _Cached(reference, assignment, batch, length)

    def length(self, cache: object) -> int:
        """Positions filled in ``cache`` as far as its forwards have been seen."""
        known = self._caches.get(id(cache))
        return known.length if known is not None and known.reference() is cache else 0

    def _known(self, cache: object, batch: int) -> Assignment | None:
        known = self._caches.get(id(cache))
        if known is None or known.reference() is not cache or known.batch != batch:
            return None
        return known.assignment

    def _forget(self, key: int) -> Callable[[weakref.ref[Any]], None]:
        caches = self._caches

        def forget(reference: weakref.ref[Any]) -> None:
            known = caches.get(key)
            if known is not None and known.reference is reference:
                del caches[key]

        return forget


def read_ids(request_id: object) -> list[str] | None:
    """The id or ids of a request as given by the user; raises :class:`InvalidOption`."""
    if request_id is None:
        return None
    ids = list(request_id) if isinstance(request_id, (list, tuple)) else [request_id]
    if not ids or not all(isinstance(text, (str, int)) and str(text) for text in ids):
        raise InvalidOption(f"request id {request_id!r} is neither a non-empty string nor a list with one per sequence")
    return [str(text)[:_MAX_TEXT] for text in ids]


def read_attributes(attributes: dict[str, Any]) -> dict[str, AttributeValue]:
    """Attributes as sent: text (at most 1024 characters), numbers and booleans as they are, all else as its text.

    Of more than 64 the first 64.
    """
    first = list(attributes.items())[:_MAX_ATTRIBUTES]
    return {str(name)[:_MAX_TEXT]: _plain(value) for name, value in first}


def _plain(value: object) -> AttributeValue:
    if isinstance(value, (bool, float)) or (isinstance(value, int) and -_MAX_INT <= value < _MAX_INT):
        return value
    return str(value)[:_MAX_TEXT]
