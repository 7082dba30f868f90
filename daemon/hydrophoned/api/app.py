"""The aiohttp application: every endpoint, what stands before them, and what ends with them."""

import json
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from aiohttp import web
from hydrophone_schemas.rest import JSON_TYPE

from hydrophoned.api import (
    codes,
    daemon,
    dictionaries,
    drift,
    features,
    labels,
    questions,
    requests,
    splits,
    stability,
    streams,
)
from hydrophoned.api.backend import Backend
from hydrophoned.api.endpoint import Call, Endpoint, Raw
from hydrophoned.api.guard import add_security_headers, host_check, time_limit
from hydrophoned.api.openapi import openapi
from hydrophoned.api.problems import problems
from hydrophoned.api.reads import Reads

MAX_BODY_BYTES: Final = 16 << 20
REQUEST_TIMEOUT_S: Final = 30.0
KEEPALIVE_TIMEOUT_S: Final = 30.0


async def _get_openapi(call: Call) -> Raw:
    """The document that describes this API."""
    return Raw(call.request.app[_DOCUMENT], JSON_TYPE)


# what is below a stream comes before the stream itself, whose pattern is the widest
ENDPOINTS: Final = (
    *daemon.ENDPOINTS,
    Endpoint("GET", "/openapi.json", _get_openapi, "This API as an OpenAPI 3.1 document", "daemon"),
    *dictionaries.ENDPOINTS,
    *features.ENDPOINTS,
    *labels.ENDPOINTS,
    *splits.ENDPOINTS,
    *stability.ENDPOINTS,
    *codes.ENDPOINTS,
    *questions.ENDPOINTS,
    *drift.ENDPOINTS,
    *streams.ENDPOINTS,
    *requests.ENDPOINTS,
)
_DOCUMENT: Final = web.AppKey("openapi", bytes)


def create_app(
    backend: Backend,
    *,
    allowed_hosts: Iterable[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    read_workers: int = 2,
    read_waiting: int = 32,
) -> web.Application:
    """The API over ``backend``.

    ``allowed_hosts`` are names beside those of loopback that a Host header may hold. ``read_workers`` queries run at a
    time, ``read_waiting`` more may wait.
    """
    reads = Reads(workers=read_workers, waiting=read_waiting)
    app = web.Application(
        middlewares=[problems, host_check(allowed_hosts), time_limit(request_timeout_s)],
        client_max_size=max_body_bytes,
    )
    app[_DOCUMENT] = json.dumps(openapi(ENDPOINTS, backend.version)).encode()
    for endpoint in ENDPOINTS:
        handler = partial(_serve, endpoint, backend, reads)
        if endpoint.method == "GET":
            app.router.add_get(endpoint.route, handler)  # and HEAD
        else:
            app.router.add_route(endpoint.method, endpoint.route, handler)
    app.on_response_prepare.append(add_security_headers)
    app.on_cleanup.append(_closer(reads))
    return app


def create_runner(app: web.Application) -> web.AppRunner:
    """A runner of ``app`` with this API's limits on connections; set it up, and give it a site to listen on."""
    return web.AppRunner(
        app, keepalive_timeout=KEEPALIVE_TIMEOUT_S, access_log=None, handle_signals=False, shutdown_timeout=5.0
    )


async def _serve(endpoint: Endpoint, backend: Backend, reads: Reads, request: web.Request) -> web.StreamResponse:
    return await endpoint.serve(request, backend=backend, reads=reads)


def _closer(reads: Reads) -> Callable[[Any], Awaitable[None]]:
    async def close(_: Any) -> None:
        await reads.close()

    return close
