"""What keeps the API safe by default: who may ask, for how long, and what the answers say about themselves."""

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from hydrophoned.api.errors import Refused

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "hydrophone",
}


def host_check(allowed: Iterable[str]) -> Middleware:
    """Middleware that answers only requests whose Host is a loopback name or one of ``allowed``.

    A web page can point a name of its own at 127.0.0.1 (DNS rebinding) and then read what answers there; the Host
    header gives it away.
    """
    names = LOOPBACK_NAMES | {name.lower() for name in allowed}

    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if _name(host) not in names:
            raise Refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                "misdirected",
                f"Host {host!r} is not one of {', '.join(sorted(names))}: ask by one of these",
            )
        return await handler(request)

    return check_host


def time_limit(seconds: float) -> Middleware:
    """Middleware that gives a request, its body included, at most ``seconds``."""

    @web.middleware
    async def limit_time(request: web.Request, handler: Handler) -> web.StreamResponse:
        async with asyncio.timeout(seconds):
            return await handler(request)

    return limit_time


async def add_security_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Headers of every answer."""
    response.headers.update(SECURITY_HEADERS)
    response.headers.add("Vary", "Accept")


def _name(host: str) -> str:
    """The name in a Host header, without its port and in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower().removesuffix(".")
