"""Questions to a daemon, from Python: each method is one call of its REST API, and gives the JSON it answers."""

import os
from typing import Any

from hydrophone_schemas.places import DEFAULT_HTTP

from hydrophone.rest_client import TIMEOUT_SECONDS, RestClient

Document = dict[str, Any]


class Client:
    """Asks the daemon whose API is at ``url``: by default ``$HYDROPHONE_URL``, else ``http://127.0.0.1:8417``.

        client = hydrophone.Client()
        client.features("smollm2@1/model.layers.15", sort="stability", limit=20)["items"]

    Parameters are those of the endpoints, and documents are as docs/reference/rest.md describes them: a list has
    ``items``, and ``next``, the cursor of the next page, or None. What is unknown is None. Rows may be arrays, tensors
    or lists. ``timeout`` is in seconds. Each call raises :class:`DaemonUnreachable` when no daemon answers, and
    :class:`RequestRefused`, with the problem's own words, when it says no.
    """

    def __init__(self, url: str | None = None, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._rest = RestClient(url or os.environ.get("HYDROPHONE_URL") or DEFAULT_HTTP, timeout)

    @property
    def url(self) -> str:
        """Address of the API."""
        return self._rest.url

    # -- streams and features -----------------------------------------------------------------------------------

    def streams(self) -> Document:
        """All streams, with their live figures."""
        return self._get("/v1/streams")

    def features(self, stream: str, **query: Any) -> Document:
        """A page of a stream's features over a range of windows: ``sort``, ``since``, ``limit`` and so on."""
        return self._get(_of(stream, "features"), **query)

    def feature(self, stream: str, index: int, **query: Any) -> Document:
        """One feature over a range of windows, with its id."""
        return self._get(_of(stream, f"features/{index}"), **query)

    def examples(self, stream: str, index: int, **query: Any) -> Document:
        """The rows that activated a feature most: ``limit``, and ``context``, token strings to either side."""
        return self._get(_of(stream, f"features/{index}/examples"), **query)

    def neighbours(self, stream: str, index: int, **query: Any) -> Document:
        """Features near one, ``by`` cosine or correlation."""
        return self._get(_of(stream, f"features/{index}/neighbours"), **query)

    def partners(self, stream: str, index: int, **query: Any) -> Document:
        """Features that fire together with one, ``by`` npmi or count."""
        return self._get(_of(stream, f"features/{index}/partners"), **query)

    def firings(self, stream: str, index: int, **query: Any) -> Document:
        """Rows on which a feature fired, ``by`` band (weak ones, too) or random, of a uniform sample."""
        return self._get(_of(stream, f"features/{index}/firings"), **query)

    def versions(self, stream: str, **query: Any) -> Document:
        """A page of the published versions of a stream's dictionary, the newest first."""
        return self._get(_of(stream, "versions"), **query)

    # -- questions ----------------------------------------------------------------------------------------------

    def search(self, stream: str, **body: Any) -> Document:
        """Features by one of ``label``, ``token``, ``piece``, ``text`` and ``rows``."""
        return self._ask(stream, "features:search", body)

    def inspect(self, stream: str, **body: Any) -> Document:
        """Which features fire in a ``request``, or in ``rows`` [n, d], how strongly, and where."""
        return self._ask(stream, "inspect", body)

    def contrast(self, stream: str, a: Document, b: Document | None = None, **body: Any) -> Document:
        """Features that differ between two sets of traffic, ``a`` and ``b`` (by default all other requests)."""
        return self._ask(stream, "contrast", {"a": a, "b": b} | body)

    def probe(self, stream: str, name: str, **body: Any) -> Document:
        """Find, and store under ``name``, the few features that tell one of ``outcomes``, ``tokens`` and ``pieces``."""
        return self._ask(stream, "probes", {"name": name} | body)

    def rerank(self, stream: str, **body: Any) -> Document:
        """Requests in order of a stored ``probe``, or features in order of ``outcomes``."""
        return self._ask(stream, "rerank", body)

    def encode(self, stream: str, rows: Any) -> Document:
        """Codes of rows [n, d]."""
        return self._ask(stream, "encode", {"rows": rows})

    def decode(self, stream: str, codes: list[Document]) -> Document:
        """Rows of codes, each ``{"index": [...], "value": [...]}``."""
        return self._ask(stream, "decode", {"codes": codes})

    # -- labels -------------------------------------------------------------------------------------------------

    def labels(self, stream: str, **query: Any) -> Document:
        """A page of the labels in force: ``source``, ``min_score``, ``text``, ``index`` and so on."""
        return self._get(_of(stream, "labels"), **query)

    def set_label(self, stream: str, index: int, text: str, *, author: str | None = None) -> Document:
        """Give a feature a label by hand, in place of the one it was given by hand before. It is stored on return."""
        body: Document = self._rest.put(_of(stream, f"features/{index}/label"), {"text": text, "author": author})
        return body

    # -- drift and novelty --------------------------------------------------------------------------------------

    def drift(self, stream: str) -> Document:
        """The watch over a stream: ``state``, ``budget`` and ``novelty``; references and detectors in ``strata``."""
        return self._get(_of(stream, "drift"))

    def references(self, stream: str, **query: Any) -> Document:
        """A page of what a stream was compared with, the latest first."""
        return self._get(_of(stream, "references"), **query)

    def rebaseline(
        self, stream: str, source: str = "next", *, name: str = "default", units: int | None = None
    ) -> Document:
        """Compare a stream with the ``next`` requests or the most ``recent`` ones from now on; gives the watch then."""
        return self._ask(stream, "references", {"source": source, "name": name, "units": units})

    def detections(self, **query: Any) -> Document:
        """A page of the drifts that were found, the latest first: ``stream``, ``since``, ``until`` and so on."""
        return self._get("/v1/detections", **query)

    def detection(self, stream: str, number: int) -> Document:
        """One drift, with the features that changed, the requests that carry it, and where it is concentrated."""
        return self._get(_of(stream, f"detections/{number}"))

    def novelty(self, stream: str, **query: Any) -> Document:
        """A page of the requests unlike those of the reference, the latest first, and their share."""
        return self._get(_of(stream, "novelty"), **query)

    def novelty_clusters(self, stream: str) -> Document:
        """The latest of these in groups that resemble each other."""
        return self._ask(stream, "novelty:clusters", {})

    # -- stability ----------------------------------------------------------------------------------------------

    def find_stability(self, stream: str, **body: Any) -> Document:
        """Have a twin of the dictionary learned (``passes``, ``seconds``, ``seed``); returns once it has begun."""
        return self._ask(stream, "stability", body)

    def stability(self, stream: str, **query: Any) -> Document:
        """How far that is, in ``state``, and a page of the latest answer, stable features first."""
        return self._get(_of(stream, "stability"), **query)

    # -- inside -------------------------------------------------------------------------------------------------

    def _get(self, path: str, **query: Any) -> Document:
        document: Document = self._rest.get(path, **query)
        return document

    def _ask(self, stream: str, path: str, body: Document) -> Document:
        given = {name: _plain(value) for name, value in body.items() if value is not None}
        document: Document = self._rest.post(_of(stream, path), given)
        return document


def _of(stream: str, path: str) -> str:
    return f"/v1/streams/{stream}/{path}"


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists."""
    return value.tolist() if hasattr(value, "tolist") else value
