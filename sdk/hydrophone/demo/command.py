"""The ``hydrophone demo`` command."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hydrophone.demo.errors import DemoError
from hydrophone.demo.run import Options, run_demo
from hydrophone.errors import HydrophoneError


def demo(
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to run through the model.")] = 60_000,
    site: Annotated[str | None, typer.Option(help="Site to listen at [default: the middle block].")] = None,
    features: Annotated[int, typer.Option(min=1, help="Features of the dictionary.")] = 4608,
    k: Annotated[int, typer.Option(min=1, help="Active features per row.")] = 32,
    model: Annotated[str | None, typer.Option(help="Your own model: a directory or hub name.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Your own text; may be given several times.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Exit at the end instead of serving on.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the final figures here as JSON.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Keep the daemon's data here [default: removed].")] = None,
    http: Annotated[str, typer.Option(help="Address of the API; port 0 chooses a free one.")] = "127.0.0.1:8417",
    seed: Annotated[int, typer.Option(help="Seed of the order of texts.")] = 0,
    show: Annotated[int, typer.Option(min=0, help="Features to print at the end.")] = 12,
) -> None:
    """Listen to a real language model live: learn its features while it runs, then show what they fire on."""
    options = Options(
        tokens=tokens,
        site=site,
        features=features,
        k=k,
        model=model,
        text=tuple(text or ()),
        once=once,
        report=report,
        data_dir=data_dir,
        http=http,
        seed=seed,
        show=show,
    )
    console = Console()
    try:
        run_demo(options, console)
    except (DemoError, HydrophoneError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
