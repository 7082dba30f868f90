"""Errors as documents: RFC 9457, one shape for all of them."""

import logging
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from hydrophone_schemas.rest import PROBLEM_TYPE, PROBLEM_URN, FieldProblem, Problem

from hydrophoned.api.errors import Refused, Unavailable
from hydrophoned.store import QueryTimeout, StoreClosed

_log = logging.getLogger(__name__)

PROBLEMS: Final = {
    "invalid-parameter": "A parameter is not valid",
    "unknown-parameter": "A parameter is not known",
    "invalid-cursor": "A cursor cannot be used",
    "malformed-body": "The body cannot be read",
    "malformed-request": "The request cannot be read",
    "not-found": "There is nothing here",
    "stream-not-found": "There is no such stream",
    "feature-not-found": "There is no such feature",
    "version-not-found": "There is no such version",
    "version-not-kept": "The version's weights are not kept",
    "request-not-found": "There is no such request",
    "label-not-found": "There is no such label",
    "probe-not-found": "There is no such probe",
    "detection-not-found": "There is no such drift",
    "method-not-allowed": "The method is not allowed here",
    "not-acceptable": "The answer has no such form",
    "no-dictionary": "The stream has no dictionary yet",
    "ambiguous-model": "Several models used this request id",
    "too-little": "There is too little to answer from",
    "not-of-requests": "The probe is not of requests",
    "labelling-in-progress": "Features are being labelled already",
    "stability-in-progress": "A twin is being learned already",
    "not-watched": "The stream is not watched",
    "insufficient-reference": "The requests do not do for a reference",
    "label-endpoint-off": "No model may be asked for labels",
    "body-too-large": "The body is too large",
    "unsupported-media-type": "The body's type is not read here",
    "misdirected": "The Host header does not name this daemon",
    "invalid-body": "The body is not valid",
    "too-many-rows": "There are too many rows in one call",
    "internal": "An internal error",
    "unavailable": "The daemon cannot answer now",
    "busy": "Too many queries are in progress",
    "query-timeout": "The query took too long",
    "request-timeout": "The request took too long",
}
"""Title of every problem, by name."""

_ROUTING: Final = {
    HTTPStatus.NOT_FOUND: "not-found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method-not-allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body-too-large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported-media-type",
}


def problem_response(request: web.Request, refused: Refused, *, log_id: str | None = None) -> web.Response:
    """The problem document of ``refused``."""
    document = Problem(
        type=PROBLEM_URN + refused.name,
        title=PROBLEMS[refused.name],
        status=refused.status,
        detail=refused.detail,
        instance=request.path,
        errors=list(refused.errors),
        id=log_id,
    )
    return web.Response(
        status=refused.status,
        body=document.model_dump_json().encode(),
        content_type=PROBLEM_TYPE,
        headers=refused.headers,
    )


def parameter_problem(name: str, location: str, message: str) -> Refused:
    """400: one parameter is not valid."""
    return Refused(
        HTTPStatus.BAD_REQUEST,
        "invalid-parameter",
        f"{location} parameter {name!r}: {message}",
        errors=[FieldProblem(location=location, name=name, message=message)],
    )


def not_found(name: str, detail: str, near: Sequence[str] = ()) -> Refused:
    """404, naming near matches where there are some."""
    return Refused(HTTPStatus.NOT_FOUND, name, f"{detail}; near matches: {', '.join(near)}" if near else detail)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong behind it into a problem document; what was not foreseen is logged with an id."""
    log_id = None
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001  nothing may reach the client in another shape
        refused = _foreseen(request, error)
        if refused is None:
            log_id = secrets.token_hex(8)
            _log.exception("internal error %s in %s %s", log_id, request.method, request.path)
            refused = Refused(
                HTTPStatus.INTERNAL_SERVER_ERROR, "internal", f"the daemon's log has the cause under the id {log_id}"
            )
    return problem_response(request, refused, log_id=log_id)


def _foreseen(request: web.Request, error: Exception) -> Refused | None:
    """What an error says to the client; None if nobody thought of it."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, QueryTimeout):
        return Unavailable(f"{error}; ask for a shorter range or a smaller page", name="query-timeout")
    if isinstance(error, StoreClosed):
        return Unavailable("the daemon is shutting down")
    if isinstance(error, TimeoutError):
        detail = "the request was not answered in time; see /v1/self for what is slow"
        return Unavailable(detail, name="request-timeout")
    return _from_aiohttp(request, error) if isinstance(error, web.HTTPException) else None


def _from_aiohttp(request: web.Request, error: web.HTTPException) -> Refused:
    """What aiohttp itself refuses: no route, another method, a body beyond the limit."""
    name = _ROUTING.get(HTTPStatus(error.status))
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        detail = f"{request.method} is not allowed on {request.path}; allowed are {allowed}"
        return Refused(error.status, "method-not-allowed", detail, headers={"Allow": allowed})
    if name == "not-found":
        detail = f"there is no {request.path}; / lists where to begin and /openapi.json everything there is"
        return Refused(error.status, name, detail)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Refused(error.status, "body-too-large", "the body is larger than this daemon accepts")
    return Refused(error.status, name or "malformed-request", error.text or error.reason)
