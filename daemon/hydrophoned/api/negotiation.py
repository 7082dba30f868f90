"""Which form an answer takes: ``format=`` first, then the Accept header with its q-values."""

from collections.abc import Sequence


def choose(accept: str | None, offers: Sequence[str]) -> str | None:
    """The offered media type that ``accept`` likes best, the first offer among equals; None if it takes none of them.

    >>> choose("application/json;q=0.5, application/vnd.apache.arrow.stream",
    ...        ["application/json", "application/vnd.apache.arrow.stream"])
    'application/vnd.apache.arrow.stream'
    >>> choose("text/html", ["application/json"]) is None
    True
    """
    if accept is None or not accept.strip():
        return offers[0]
    ranges = [parsed for part in accept.split(",") if (parsed := _parse(part)) is not None]
    best, best_quality = None, 0.0
    for offer in offers:
        quality = _quality(offer, ranges)
        if quality > best_quality:
            best, best_quality = offer, quality
    return best


def _parse(part: str) -> tuple[str, float] | None:
    """(media range, quality); None for what is not a media range."""
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    if media.count("/") != 1:
        return None
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = min(1.0, max(0.0, float(value)))
            except ValueError:
                return None
    return media, quality


def _quality(offer: str, ranges: list[tuple[str, float]]) -> float:
    """Quality of the most specific range that covers ``offer``; 0 if none does."""
    for wanted in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for media, quality in ranges:
            if media == wanted:
                return quality
    return 0.0
