"""Endpoints, declared once: path, query, body and answer; from the declaration come validation, answers and OpenAPI."""

import asyncio
import difflib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import pyarrow as pa
from aiohttp import web
from hydrophone_schemas.rest import (
    ARROW_TYPE,
    JSON_TYPE,
    FieldProblem,
    Format,
    RestModel,
    StreamStatus,
)
from pydantic import Field, ValidationError

from hydrophoned.api.arrow import as_dicts, as_table, stream_bytes
from hydrophoned.api.backend import Backend
from hydrophoned.api.errors import Refused
from hydrophoned.api.etags import is_known, tag_of
from hydrophoned.api.negotiation import choose
from hydrophoned.api.problems import not_found, parameter_problem
from hydrophoned.api.reads import Reads

MAX_INDEX: Final = 2**31 - 1
MAX_ID: Final = 2**63 - 1

PATH_PARAMETERS: Final = {
    # a stream id has one slash, which may also come as %2F
    "stream": (
        r"(?:(?!%2F)[^/])+(?:/|%2F)(?:(?!%2F)[^/])+",
        "id of the stream, name@version/site; its slash may be written as it is or as %2F",
    ),
    "index": (r"[^/]+", "index of the feature, 0..F-1"),
    "version": (r"[^/]+", "number of the dictionary's version"),
    "feature_id": (r"[^/]+", "id of the feature, which stays with it across versions"),
    "number": (r"[^/]+", "number of the drift, from 1; it counts those of the stream"),
    "id": (r"[^/]+", "id of the request, percent-encoded: any character may stand in it"),
}
"""Pattern and description of every path parameter."""


class NoQuery(RestModel):
    """Takes no query parameters."""


class FormatQuery(RestModel):
    """The form of a list."""

    format: Format | None = Field(
        default=None, description="json or arrow (an Arrow IPC stream); overrides the Accept header"
    )


class PageQuery(FormatQuery):
    """One page of a list."""

    limit: int = Field(default=100, ge=1, le=10_000, description="items per page")
    cursor: str | None = Field(default=None, max_length=500, description="'next' of the page before")


@dataclass(frozen=True)
class One:
    """An answer that is one object; with ``tagged`` it is not sent to a client that has just this already."""

    model: RestModel
    status: int = HTTPStatus.OK
    tagged: bool = False


@dataclass(frozen=True)
class Listing:
    """An answer that is a page of a list; ``about`` are the page's fields besides ``items`` and ``next``."""

    items: pa.Table | Sequence[RestModel]
    next: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """An answer in a form of its own."""

    body: bytes
    content_type: str
    status: int = HTTPStatus.OK


@dataclass(frozen=True)
class Download:
    """An answer that is a file: ``nbytes`` bytes, which ``chunks`` reads from the disk, known to clients by ``tag``."""

    tag: str
    nbytes: int
    name: str
    content_type: str
    chunks: Callable[[], Iterator[bytes]]


Answer = One | Listing | Raw | Download


@dataclass(frozen=True)
class Call:
    """One validated call of an endpoint."""

    request: web.Request
    backend: Backend
    reads: Reads
    query: Any
    body: Any

    @property
    def path(self) -> Mapping[str, str]:
        """Decoded path parameters."""
        return self.request.match_info

    def stream(self) -> StreamStatus:
        """The stream named in the path; raises Refused (404)."""
        return self.known_stream(self.path["stream"])

    def known_stream(self, name: str) -> StreamStatus:
        """The stream of the id ``name``; raises Refused (404)."""
        status = self.backend.stream(name)
        if status is None:
            known = [stream.id for stream in self.backend.streams()]
            raise not_found("stream-not-found", f"there is no stream {name!r}", difflib.get_close_matches(name, known))
        return status

    def number(self, name: str) -> int:
        """The whole number from 0 in the path under ``name``; raises Refused (400)."""
        text = self.path[name]
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_ID)) and int(text) <= MAX_ID):
            raise parameter_problem(name, "path", f"{text!r} is not a whole number from 0")
        return int(text)

    def index(self, status: StreamStatus) -> int:
        """The feature index in the path; raises Refused (400, 404)."""
        text = self.path["index"]
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_INDEX)) and int(text) <= MAX_INDEX):
            raise parameter_problem("index", "path", f"{text!r} is not the index of a feature: a whole number from 0")
        if status.features is not None and int(text) >= status.features:
            raise not_found(
                "feature-not-found",
                f"there is no feature {text}: {status.id} has {status.features} features, 0 to {status.features - 1}",
            )
        return int(text)


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    ``answer`` is the model of the JSON answer; ``item``, for a list, that of its items, whose fields are the columns of
    the Arrow answer. ``consumes`` are the media types of a body; JSON is read as ``body``, others come as bytes.
    ``problems`` are the statuses it may answer besides those that every endpoint may, ``also`` those besides ``status``
    that are no problem.
    """

    method: str
    path: str
    handle: Callable[[Call], Awaitable[Answer]]
    summary: str
    tag: str
    answer: type[RestModel] | None = None
    item: type[RestModel] | None = None
    query: type[RestModel] = NoQuery
    body: type[RestModel] | None = None
    consumes: tuple[str, ...] = ()
    produces: str = JSON_TYPE
    status: int = HTTPStatus.OK
    also: tuple[int, ...] = ()
    problems: tuple[int, ...] = ()
    stability: str = "stable"

    @property
    def path_parameters(self) -> list[str]:
        """Names of the parameters in the path, in order."""
        return [part.partition("}")[0] for part in self.path.split("{")[1:]]

    @property
    def route(self) -> str:
        """The path as aiohttp's router takes it."""
        route = self.path
        for name in self.path_parameters:
            route = route.replace(f"{{{name}}}", f"{{{name}:{PATH_PARAMETERS[name][0]}}}")
        return route

    @property
    def media_types(self) -> list[str]:
        """Media types of the answer, the preferred one first."""
        return [self.produces, *([ARROW_TYPE] if self.item else [])]

    async def serve(self, request: web.Request, *, backend: Backend, reads: Reads) -> web.Response:
        """Validate, handle, and answer in the form that was asked for; raises Refused."""
        query = self._read_query(request)
        form = self._form(request, query)
        body = await self._read_body(request)
        answer = await self.handle(Call(request, backend, reads, query, body))
        if isinstance(answer, Download):
            return _tagged(request, answer.tag) or _sent(answer)
        if isinstance(answer, One):
            payload, status = answer.model.model_dump_json().encode(), answer.status
        elif isinstance(answer, Listing):
            payload, status = await reads.run(partial(self._render, answer, form)), HTTPStatus.OK
        else:
            payload, status, form = answer.body, answer.status, answer.content_type
        tag = tag_of(payload) if isinstance(answer, One) and answer.tagged else None
        if tag is not None and (known := _tagged(request, tag)):
            return known
        response = web.Response(body=payload, status=status, headers={"Content-Type": form})
        if tag is not None:
            response.etag = tag
        if isinstance(answer, Listing) and answer.next is not None:
            response.headers["Link"] = f'<{request.rel_url.update_query(cursor=answer.next)}>; rel="next"'
        return response

    def _render(self, listing: Listing, form: str) -> bytes:
        assert self.item is not None  # noqa: S101  a Listing comes from an endpoint that declares its item
        assert self.answer is not None  # noqa: S101  as above
        if form == ARROW_TYPE:
            return stream_bytes(as_table(listing.items, self.item), listing.next, listing.about)
        items = listing.items
        if isinstance(items, pa.Table):
            items = as_dicts(as_table(items, self.item))
        page = self.answer.model_validate({"items": items, "next": listing.next, **listing.about})
        return page.model_dump_json().encode()

    def _form(self, request: web.Request, query: RestModel) -> str:
        asked = getattr(query, "format", None)
        if asked is not None:
            return ARROW_TYPE if asked is Format.ARROW else JSON_TYPE
        accept = ",".join(request.headers.getall("Accept", []))
        form = choose(accept, self.media_types)
        if form is None:
            offers = ", ".join(self.media_types)
            raise Refused(
                HTTPStatus.NOT_ACCEPTABLE,
                "not-acceptable",
                f"Accept: {accept} asks for none of what there is: {offers}",
            )
        return form

    def _read_query(self, request: web.Request) -> RestModel:
        known = self.query.model_fields
        errors, values = [], {}
        for name in dict.fromkeys(request.query):
            given = request.query.getall(name)
            if name not in known:
                errors.append(FieldProblem(location="query", name=name, message=_unknown(name, list(known))))
            elif len(given) > 1:
                errors.append(FieldProblem(location="query", name=name, message="is given more than once"))
            else:
                values[name] = given[0]
        if errors:
            unknown = any(error.name not in known for error in errors)
            raise Refused(
                HTTPStatus.BAD_REQUEST,
                "unknown-parameter" if unknown else "invalid-parameter",
                "; ".join(f"query parameter {error.name!r} {error.message}" for error in errors),
                errors=errors,
            )
        try:
            return self.query.model_validate_strings(values)
        except ValidationError as error:
            raise Refused(
                HTTPStatus.BAD_REQUEST,
                "invalid-parameter",
                "; ".join(f"query parameter {found.name!r}: {found.message}" for found in _fields(error, "query")),
                errors=_fields(error, "query"),
            ) from None

    async def _read_body(self, request: web.Request) -> Any:
        if not self.consumes:
            return None
        if request.content_type not in self.consumes or "Content-Type" not in request.headers:
            given = request.headers.get("Content-Type", "none")
            raise Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                f"the body's Content-Type is {given}; {request.path} reads {', '.join(self.consumes)}",
                headers={"Accept-Post": ", ".join(self.consumes)},
            )
        raw = await request.read()
        if request.content_type != JSON_TYPE or self.body is None:
            return raw
        try:
            return self.body.model_validate_json(raw)
        except ValidationError as error:
            found = _fields(error, "body")
            if error.errors()[0]["type"] == "json_invalid":
                detail = f"the body is not JSON: {found[0].message}"
                raise Refused(HTTPStatus.BAD_REQUEST, "malformed-body", detail, errors=found) from None
            detail = "; ".join(f"{item.name}: {item.message}" for item in found)
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-body", detail, errors=found) from None


def _tagged(request: web.Request, tag: str) -> web.Response | None:
    """The answer to a client that has what ``tag`` names already."""
    if not is_known(",".join(request.headers.getall("If-None-Match", [])), tag):
        return None
    response = web.Response(status=HTTPStatus.NOT_MODIFIED)
    response.etag = tag
    return response


def _sent(file: Download) -> web.Response:
    async def parts() -> AsyncIterator[bytes]:
        chunks = file.chunks()
        while (part := await asyncio.to_thread(next, chunks, None)) is not None:
            yield part

    headers = {
        "Content-Type": file.content_type,
        "Content-Length": str(file.nbytes),
        "Content-Disposition": f'attachment; filename="{file.name}"',
    }
    response = web.Response(body=parts(), headers=headers)
    response.etag = file.tag
    return response


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"is not known; did you mean {near[0]!r}?"
    return f"is not known; there are {', '.join(known)}" if known else "is not known; there are none here"


def _fields(error: ValidationError, location: str) -> list[FieldProblem]:
    """The first twenty things wrong, without the values given: a body may hold what must not be logged or echoed."""
    return [
        FieldProblem(
            location=location,
            name=".".join(str(part) for part in found["loc"]) or "body",
            message=found["msg"].removeprefix("Value error, "),
        )
        for found in error.errors(include_url=False, include_input=False, include_context=False)[:20]
    ]
