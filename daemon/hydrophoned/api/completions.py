"""Asks an OpenAI-compatible endpoint: the one place from which text can leave the process."""

import asyncio
import json
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from hydrophoned.api.errors import EndpointFailed

_MAX_ANSWER_BYTES: Final = 1 << 20
_MAX_TOKENS: Final = 400
_LONGEST_PAUSE_S: Final = 10.0
_FULL: Final = (429, 503)


class Completions:
    """``POST {url}/chat/completions`` with ``model``; an async context.

    ``key`` is sent as a bearer token. Redirects are not followed, and proxies of the environment not used: what is sent
    goes to ``url`` and nowhere else.
    """

    def __init__(self, url: str, model: str, *, key: str | None, timeout_s: float) -> None:
        self._url, self._model = url.rstrip("/") + "/chat/completions", model
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._timeout = ClientTimeout(total=timeout_s)

    async def __aenter__(self) -> Self:
        self._session = ClientSession(headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, system: str, question: str) -> str:
        """The answer's text; raises EndpointFailed.

        An endpoint that is full is asked once more, after the time it names.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
        }
        status, pause, answer = await self._post(body)
        if status in _FULL and pause is not None:
            await asyncio.sleep(pause)
            status, _, answer = await self._post(body)
        if status != 200:
            passing = status in _FULL or status >= 500
            raise EndpointFailed(f"{self._url} answered with status {status}: {_shortened(answer)}", passing=passing)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise EndpointFailed(f"{self._url} gave no chat completion: {_shortened(answer)}", passing=True)
        return content

    async def _post(self, body: dict[str, Any]) -> tuple[int, float | None, Any]:
        """Status, seconds to wait before another try (None where that is too long), and the answer."""
        try:
            async with self._session.post(self._url, json=body, allow_redirects=False) as response:
                raw = await _read(response)
                return response.status, _pause(response.headers.get("Retry-After")), raw
        except TimeoutError:
            raise EndpointFailed(f"{self._url} did not answer within {self._timeout.total:g} s", passing=True) from None
        except ClientError as error:
            raise EndpointFailed(f"{self._url} cannot be asked: {error}", passing=True) from None


async def _read(response: ClientResponse) -> Any:
    """The answer as JSON, else as text; at most a megabyte of it."""
    raw = bytearray()
    async for part in response.content.iter_any():
        raw += part
        if len(raw) > _MAX_ANSWER_BYTES:
            raise EndpointFailed(f"{response.url} answered with more than {_MAX_ANSWER_BYTES} bytes", passing=True)
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", errors="replace")


def _pause(header: str | None) -> float | None:
    """Seconds that ``Retry-After`` asks for, one where it says nothing; None for a date, or for too long."""
    if header is None:
        return 1.0
    try:
        seconds = float(header)
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _LONGEST_PAUSE_S else None


def _shortened(answer: Any) -> str:
    text = str(answer)
    return text if len(text) <= 300 else text[:300] + "..."
