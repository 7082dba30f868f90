"""What the demo says of the change of its own text: when it was found, and which features it names."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.console import Console

from hydrophone.cli.screen import printable
from hydrophone.demo.daemon import DemoDaemon

_FEATURES = 5
_SURE = 0.1


class FoundDrift(NamedTuple):
    """A drift by number, its detector, and the request, counted from the stream's first, at which it was found.

    ``features`` are those named first: as the API gives them, each with ``pieces``, the tokens that it fires on most.
    """

    number: int
    detector: str
    request: int
    features: list[dict[str, Any]]


def found_drifts(daemon: DemoDaemon, stream: str) -> list[FoundDrift]:
    """The drifts of the stream, the first one first."""
    found = []
    listed = daemon.get("/v1/detections", stream=stream, limit=100)["items"]
    references = daemon.get(f"/v1/streams/{stream}/references", limit=100)["items"]
    units = {one["version"]: one["units"] * max(1, one["thin"]) for one in references}
    for one in sorted(listed, key=lambda entry: entry["number"]):
        detail = daemon.get(f"/v1/streams/{stream}/detections/{one['number']}")
        features = [feature for feature in detail["features"] if feature["q"] is not None and feature["q"] <= _SURE]
        named = [_with_pieces(daemon, stream, feature) for feature in features[:_FEATURES]]
        found.append(FoundDrift(one["number"], one["detector"], units[one["reference_version"]] + one["unit"], named))
    return found


def print_drifts(
    console: Console, drifts: Iterable[FoundDrift], *, before: str, kind: str, request: int | None
) -> None:
    """Print each drift beside the request at which the text turned from the kind ``before`` to ``kind``."""
    for one in drifts:
        when = ""
        if request is not None:
            since = one.request - request
            when = f": {since} requests after" if since >= 0 else f": {-since} requests [bold red]before[/]"
            when += f" the text turned from {before} to {kind}"
        console.print(
            f"\n[bold]drift {one.number}[/] found by {one.detector} at request {one.request:,}{when}", highlight=False
        )
        for feature in one.features:
            pieces = "  ".join(printable(repr(piece)) for piece in feature["pieces"])
            console.print(
                f"  feature {feature['index']:<6} in {feature['rate_before']:.0%} of requests before, "
                f"{feature['rate_after']:.0%} since   [dim]{pieces}[/]",
                highlight=False,
                soft_wrap=False,
                no_wrap=True,
                overflow="ellipsis",
            )


def _with_pieces(daemon: DemoDaemon, stream: str, feature: dict[str, Any]) -> dict[str, Any]:
    """The feature with the tokens of its top examples, each once."""
    at = feature["index_now"] if feature["index_now"] is not None else feature["index"]
    examples = daemon.get(f"/v1/streams/{stream}/features/{at}/examples")["items"]
    pieces = [one["context"][one["context_index"]] for one in examples if one["context"] is not None]
    return feature | {"pieces": list(dict.fromkeys(piece for piece in pieces if piece is not None))[:4]}
