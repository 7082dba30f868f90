"""What the commands share that ask a daemon: their options, and how an answer or a refusal ends."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from hydrophone_schemas.places import DEFAULT_HTTP

from hydrophone.cli.screen import Screen
from hydrophone.errors import DaemonUnreachable, InvalidOption, RequestRefused
from hydrophone.rest_client import RestClient

REFUSED: Final = 1
WRONG_USAGE: Final = 2
UNREACHABLE: Final = 3
DEFAULT_URL: Final = f"http://{DEFAULT_HTTP}"

Url = Annotated[str, typer.Option("--url", envvar="HYDROPHONE_URL", metavar="URL", help="Address of the daemon's API.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as the API gives it.")]
Stream = Annotated[str, typer.Argument(metavar="STREAM", help="Id of a stream, name@version/site.")]


@contextmanager
def asking(url: str) -> Iterator[RestClient]:
    """The API at ``url``; its errors end the command with a message and their exit status."""
    try:
        yield RestClient(url)
    except InvalidOption as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None
    except (DaemonUnreachable, RequestRefused) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(UNREACHABLE if isinstance(error, DaemonUnreachable) else REFUSED) from None


def print_answer(answer: Any, form: Callable[[Screen, Any], None], *, as_json: bool) -> None:
    """Show ``answer`` in its form, or as JSON."""
    if as_json:
        typer.echo(json.dumps(answer, indent=1))
    else:
        form(Screen(), answer)
