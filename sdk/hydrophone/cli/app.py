"""The commands of ``hydrophone``. Exit status: 0 well, 1 the daemon says no, 2 wrong usage, 3 no daemon answers."""

import os
import sys
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import typer

from hydrophone.cli import drift, show
from hydrophone.cli.asking import DEFAULT_URL, AsJson, Stream, Url, asking, print_answer
from hydrophone.demo.command import demo
from hydrophone.producer import VERSION

_NOT_READY: Final = 503
_PASS_ON: Final = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # what stands in brackets would be read as markup
    help="Listen inside running neural models.",
)
app.command("demo")(demo)
app.add_typer(drift.app, name="drift")

Since = Annotated[
    str | None, typer.Option(metavar="TIME", help="Begin here: ISO 8601 with zone, or -15m; default one hour back.")
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="End here; default the last closed window.")]
Sort = Literal["rate", "rate_low", "fired", "requests", "mean", "std", "max", "last_fired", "stability", "index"]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"hydrophone {VERSION}")
        raise typer.Exit


@app.command(context_settings=_PASS_ON, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Run the daemon. Its options: hydrophone serve --help."""
    _become_daemon("serve", context.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def config(context: typer.Context) -> None:
    """Check or show the daemon's configuration. Its commands: hydrophone config --help."""
    _become_daemon("config", context.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def dictionary(context: typer.Context) -> None:
    """Import, export or train dictionaries. Its commands: hydrophone dictionary --help."""
    _become_daemon("dictionary", context.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def export(context: typer.Context) -> None:
    """Write the store's tables as Parquet files. Its options: hydrophone export --help."""
    _become_daemon("export", context.args)


@app.command()
def status(*, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show how the daemon is: whether it is ready, what it costs, what it drops, its streams."""
    with asking(url) as api:
        answer = {
            "ready": api.get("/readyz", also=(_NOT_READY,)),
            "self": api.get("/v1/self"),
            "streams": api.get_all("/v1/streams")["items"],
        }
    print_answer(answer, show.status, as_json=as_json)


@app.command()
def streams(*, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the streams with their figures."""
    with asking(url) as api:
        answer = api.get_all("/v1/streams")
    print_answer(answer, show.streams, as_json=as_json)


@app.command()
def features(
    stream: Stream,
    *,
    sort: Annotated[Sort, typer.Option(help="Figure to sort by.")] = "rate",
    order: Annotated[Literal["asc", "desc"], typer.Option(help="Direction of the sort.")] = "desc",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Features to list at most.")] = 20,
    fired: Annotated[
        bool | None, typer.Option("--fired/--silent", help="Only features that fired, or that did not.")
    ] = None,
    min_rate: Annotated[float | None, typer.Option(help="Only features with at least this rate, 0..1.")] = None,
    max_rate: Annotated[float | None, typer.Option(help="Only features with at most this rate, 0..1.")] = None,
    since: Since = None,
    until: Until = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List features of a stream with their figures."""
    query: dict[str, Any] = {"sort": sort, "order": order, "limit": limit, "since": since, "until": until}
    query |= {"fired": fired, "min_rate": min_rate, "max_rate": max_rate}
    with asking(url) as api:
        answer = api.get(f"/v1/streams/{stream}/features", **query)
    print_answer(answer, show.features, as_json=as_json)


@app.command()
def feature(
    stream: Stream,
    index: Annotated[int, typer.Argument(min=0, metavar="INDEX", help="Index of the feature.")],
    *,
    examples: Annotated[int, typer.Option(min=1, max=100, help="Examples to show at most.")] = 8,
    since: Since = None,
    until: Until = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show one feature: its figures, its course, and the rows that fire it most."""
    base = f"/v1/streams/{stream}/features/{index}"
    with asking(url) as api:
        answer = api.get(base, since=since, until=until)
        answer["series"] = api.get_all(f"{base}/series", since=since, until=until)["items"]
        answer["examples"] = api.get(f"{base}/examples", limit=examples)["items"]
    print_answer(answer, show.feature, as_json=as_json)


@app.command()
def search(
    stream: Stream,
    *,
    label: Annotated[str | None, typer.Option(metavar="TEXT", help="Features whose label holds this.")] = None,
    token: Annotated[int | None, typer.Option(metavar="ID", help="Features that fire on this token id.")] = None,
    piece: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Features that fire on this token string, its spaces included.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Features of requests whose text holds this.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Features to list at most.")] = 10,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Find the features of a label, a token, a token string or a text: one of these."""
    given = {"label": label, "token": token, "piece": piece, "text": text}
    body = {name: value for name, value in given.items() if value is not None}
    if len(body) != 1:
        raise typer.BadParameter("give one of --label, --token, --piece and --text", param_hint="search")
    with asking(url) as api:
        answer = api.post(f"/v1/streams/{stream}/features:search", body | {"limit": limit})
    print_answer(answer, show.search, as_json=as_json)


@app.command()
def contrast(
    stream: Stream,
    a: Annotated[
        list[str],
        typer.Option("--a", metavar="NAME=VALUE", help="Attribute of the requests of set A; may be repeated."),
    ],
    *,
    b: Annotated[
        list[str] | None,
        typer.Option("--b", metavar="NAME=VALUE", help="Attribute of those of set B; by default all other requests."),
    ] = None,
    max_q: Annotated[float, typer.Option(min=0.0, max=1.0, help="Only features with at most this q-value.")] = 0.05,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Features to list at most.")] = 20,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Tell which features differ between two sets of requests; the unit is the request."""
    body = {"a": {"attributes": _attributes(a, "--a")}, "max_q": max_q, "limit": limit}
    if b:
        body["b"] = {"attributes": _attributes(b, "--b")}
    with asking(url) as api:
        answer = api.post(f"/v1/streams/{stream}/contrast", body)
    print_answer(answer, show.contrast, as_json=as_json)


def _attributes(given: list[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` pairs; ends the command where one is none."""
    pairs = [text.partition("=") for text in given]
    wrong = [text for text, (name, sign, _) in zip(given, pairs, strict=True) if not (name and sign)]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not NAME=VALUE, such as tenant=acme", param_hint=option)
    return {name: value for name, _, value in pairs}


@app.command()
def request(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the request.")],
    *,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show what is known of a request: rows, text where it was sent, outcomes."""
    with asking(url) as api:
        answer = api.get(f"/v1/requests/{quote(request_id, safe='')}")
    print_answer(answer, show.request, as_json=as_json)


def _become_daemon(command: str, arguments: list[str]) -> None:
    """Replace this process by the daemon, so that signals and the exit status are the daemon's own."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "hydrophoned", command, *arguments])  # noqa: S606  no shell is wanted
