"""A small client of the daemon's REST API, on the standard library: JSON in, JSON out; bytes where these are wanted."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection
from typing import Any, Final

from hydrophone.errors import DaemonUnreachable, InvalidOption, RequestRefused

TIMEOUT_SECONDS: Final = 30.0
_LARGEST_ANSWER: Final = 256 << 20
_PAGE: Final = 1000


class RestClient:
    """Talks to the API at ``url``, such as ``http://127.0.0.1:8417`` or ``127.0.0.1:8417``; ``timeout`` in seconds.

    Raises :class:`InvalidOption` for a URL that is none of HTTP; and with each request :class:`DaemonUnreachable` when
    no daemon answers there, :class:`RequestRefused` (with the problem's own detail) when it says no.
    """

    def __init__(self, url: str, timeout: float = TIMEOUT_SECONDS) -> None:
        self.url = _read_url(url)
        self.timeout = timeout
        # no proxy: the daemon is local, and what is asked of it must not leave the machine
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, *, also: Collection[int] = (), **query: Any) -> Any:
        """The JSON document at ``path``; parameters that are None are left out.

        ``also`` are status codes whose answer is a document too, and no refusal.
        """
        given = {name: _parameter(value) for name, value in query.items() if value is not None}
        suffix = f"?{urllib.parse.urlencode(given)}" if given else ""
        return self._send(urllib.request.Request(self.url + quote_path(path) + suffix), also)  # noqa: S310  checked by _read_url

    def get_all(self, path: str, **query: Any) -> Any:
        """The list at ``path`` with the items of all its pages; its ``next`` is null."""
        page = self.get(path, limit=_PAGE, **query)
        items = page["items"]
        while page["next"] is not None:
            page = self.get(path, limit=_PAGE, cursor=page["next"], **query)
            items += page["items"]
        return page | {"items": items}

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a JSON ``body``."""
        return self._send(self._with_body("POST", path, body), ())

    def put(self, path: str, body: Any) -> Any:
        """The JSON answer to a JSON ``body`` that takes the place of what is at ``path``."""
        return self._send(self._with_body("PUT", path, body), ())

    def post_bytes(self, path: str, body: bytes, kind: str) -> bytes:
        """The answer, of the media type ``kind``, to a ``body`` of the same type."""
        headers = {"Content-Type": kind, "Accept": kind}
        return self._open(urllib.request.Request(self.url + quote_path(path), data=body, headers=headers), ())  # noqa: S310  checked by _read_url

    def _with_body(self, method: str, path: str, body: Any) -> urllib.request.Request:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return urllib.request.Request(self.url + quote_path(path), data=data, headers=headers, method=method)  # noqa: S310  checked by _read_url

    def _send(self, request: urllib.request.Request, also: Collection[int]) -> Any:
        request.add_header("Accept", "application/json")
        body = self._open(request, also)
        try:
            return json.loads(body)
        except ValueError:
            raise DaemonUnreachable(
                f"what answers at {self.url} is no Hydrophone daemon: it sends no JSON. "
                "Give the daemon's address: --url or $HYDROPHONE_URL"
            ) from None

    def _open(self, request: urllib.request.Request, also: Collection[int]) -> bytes:
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                body: bytes = answer.read(_LARGEST_ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                body = error.read(_LARGEST_ANSWER)
                if error.code not in also:
                    raise _refused(error.code, body) from None
        except OSError as error:
            raise DaemonUnreachable(
                f"no daemon answers at {self.url} ({getattr(error, 'reason', error)}). "
                "Start one with: hydrophone serve. If it listens elsewhere, give its address: --url or $HYDROPHONE_URL"
            ) from None
        return body


def quote_path(path: str) -> str:
    """``path`` with what is not allowed in one percent-encoded; slashes and what is encoded already stay.

    >>> quote_path("/v1/streams/m@1/a b[0]/features")
    '/v1/streams/m@1/a%20b[0]/features'
    """
    return urllib.parse.quote(path, safe="/@:%[]~!$&'()*+,;=")


def _read_url(url: str) -> str:
    """``url`` with its scheme and without a slash at the end."""
    full = url if "://" in url else f"http://{url}"
    parts = urllib.parse.urlsplit(full)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidOption(f"{url!r} is not the address of an API, such as http://127.0.0.1:8417")
    return full.rstrip("/")


def _parameter(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _refused(status: int, body: bytes) -> RequestRefused:
    """The error for a problem document (RFC 9457); where the body is none, for its beginning."""
    try:
        problem = json.loads(body)
        lines = [problem.get("detail") or problem.get("title") or "the daemon refuses"]
        lines += [f"{one['location']} {one['name']}: {one['message']}" for one in problem.get("errors", [])]
    except (ValueError, AttributeError, KeyError, TypeError):
        lines = [body.decode(errors="replace")[:200]]
    return RequestRefused(f"{status}: " + "\n".join(line for line in lines if line))
