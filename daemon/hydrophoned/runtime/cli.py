"""The daemon's own commands: ``hydrophoned serve`` and ``hydrophoned config``."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hydrophoned.runtime import logs, systemd
from hydrophoned.runtime.config import Config, load_config
from hydrophoned.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hydrophoned.runtime.daemon import Ready

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
config_app = typer.Typer(no_args_is_help=True, help="Look at the configuration.")
app.add_typer(config_app, name="config")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file [default: $HYDROPHONE_CONFIG, else none].")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def serve(
    config: ConfigFile = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the database and the checkpoints.")] = None,
    socket: Annotated[Path | None, typer.Option(help="Unix socket for producers.")] = None,
    tcp: Annotated[str | None, typer.Option(help="HOST:PORT for producers, loopback only.")] = None,
    http: Annotated[str | None, typer.Option(help="HOST:PORT of the API, or 'none'.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    parent_fd: Annotated[int | None, typer.Option(help="End when the other end of this pipe closes.")] = None,
    ready_fd: Annotated[int | None, typer.Option(help="Write one JSON line here once it listens.")] = None,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    flags: dict[str, dict[str, Any]] = {
        "daemon": {
            "data_dir": data_dir,
            "log_level": log_level,
            "log_format": log_format,
            "parent_fd": parent_fd,
        },
        "ingest": {"socket": socket, "tcp": tcp},
        "http": {"address": http},
    }
    settings = _load(config, {name: _given(values) for name, values in flags.items()})
    logs.configure(settings.daemon.log_level, settings.daemon.log_format)
    # before torch is imported: a second OpenMP runtime, or threads that spin while they wait, slow the model down
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.daemon.threads))
    raise typer.Exit(_run(settings, ready_fd))


@config_app.command("check")
def check(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Say whether the configuration is valid; exit status 1 if it is not."""
    _load(config, {}, as_json=as_json)
    typer.echo(json.dumps({"valid": True}) if as_json else "the configuration is valid")


@config_app.command("show")
def show(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Print the configuration in force, defaults included."""
    settings = _load(config, {}, as_json=as_json).model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(settings, indent=1))
        return
    for section, values in settings.items():
        typer.echo(f"[{section}]")
        for name, value in values.items():
            typer.echo(f"# {name} is not set" if value is None else f"{name} = {json.dumps(value)}")
        typer.echo("")


@config_app.command("schema")
def schema(as_json: AsJson = False) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    del as_json  # it is JSON either way
    typer.echo(json.dumps(Config.model_json_schema(), indent=1))


def _load(path: Path | None, flags: dict[str, dict[str, Any]], *, as_json: bool = False) -> Config:
    try:
        return load_config(path, flags)
    except ConfigError as error:
        if as_json:
            typer.echo(json.dumps({"valid": False, "problems": str(error).splitlines()}))
        else:
            typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _run(settings: Config, ready_fd: int | None) -> int:
    import uvloop  # noqa: PLC0415  torch comes with the runtime, after the environment above

    from hydrophoned.ingest.errors import IngestError  # noqa: PLC0415
    from hydrophoned.learn.errors import LearnError  # noqa: PLC0415
    from hydrophoned.runtime.daemon import run  # noqa: PLC0415
    from hydrophoned.store import StoreError  # noqa: PLC0415

    def ready(listening: "Ready") -> None:
        systemd.notify("READY=1")
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w", encoding="utf-8") as pipe:
                pipe.write(json.dumps(listening._asdict()) + "\n")

    try:
        return uvloop.run(run(settings, ready, inherited=systemd.inherited_sockets()))
    except (IngestError, LearnError, StoreError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        return 1
