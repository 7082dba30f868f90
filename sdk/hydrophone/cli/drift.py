"""``hydrophone drift``: the watch over a stream, one of its drifts, and another reference."""

from typing import Annotated, Any, Final, Literal

import typer
from typer.core import TyperGroup

from hydrophone.cli import show_drift
from hydrophone.cli.asking import DEFAULT_URL, AsJson, Stream, Url, asking, print_answer

_LATEST: Final = 8


class _Streams(TyperGroup):
    """Takes a stream in the place of a command, and shows its watch."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and "--help" not in args[:1]:
            args = ["status", *args]
        rest: list[str] = super().parse_args(ctx, args)
        return rest


app = typer.Typer(
    cls=_Streams,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show the watch over a stream for drift: hydrophone drift STREAM. Or one of these commands.",
)


@app.command()
def status(
    stream: Stream,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Drifts to list at most.")] = _LATEST,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show the watch over a stream (drift STREAM does so, too): state, reference, detectors, budget, latest drifts."""
    with asking(url) as api:
        answer = api.get(f"/v1/streams/{stream}/drift")
        answer["detections"] = api.get("/v1/detections", stream=stream, limit=limit)["items"]
    print_answer(answer, show_drift.status, as_json=as_json)


@app.command()
def show(
    stream: Stream,
    number: Annotated[int, typer.Argument(min=1, metavar="NUMBER", help="Number of the drift.")],
    *,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show one drift: since when, which features changed, which requests carry it, where it is concentrated."""
    with asking(url) as api:
        answer = api.get(f"/v1/streams/{stream}/detections/{number}")
    print_answer(answer, show_drift.detection, as_json=as_json)


@app.command()
def rebaseline(
    stream: Stream,
    *,
    source: Annotated[
        Literal["next", "recent"], typer.Option(help="The requests that come from now on, or the latest ones.")
    ] = "next",
    name: Annotated[str, typer.Option(help="Name of the reference, such as that of a deploy.")] = "default",
    units: Annotated[
        int | None, typer.Option(min=1, help="With recent: how many of the latest; default all that are held.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Compare a stream with another reference from now on."""
    body = {"name": name, "source": source, "units": units}
    with asking(url) as api:
        answer = api.post(f"/v1/streams/{stream}/references", body)
    print_answer(answer, show_drift.watch, as_json=as_json)
