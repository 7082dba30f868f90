"""The daemon's own commands: ``hydrophoned serve``, ``config``, ``dictionary`` and ``export``.

Exit status: 0 well, 1 it cannot run (an address in use, a store it cannot open), 2 wrong usage or configuration.
"""

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from hydrophone_schemas import __version__
from hydrophone_schemas.tables import TABLES

from hydrophoned.runtime import logs, systemd
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.config import Config, config_path, load_config, load_with_origins
from hydrophoned.runtime.dictionary_cli import app as dictionary_app
from hydrophoned.runtime.errors import ConfigError
from hydrophoned.runtime.settings_page import as_document, as_toml

if TYPE_CHECKING:
    from hydrophoned.runtime.daemon import Ready

FAILED = 1
MISCONFIGURED = 2

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at the configuration.")
app.add_typer(config_app, name="config")
app.add_typer(dictionary_app, name="dictionary")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file; else $HYDROPHONE_CONFIG, else none.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Any setting; may be given several times."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Learn what a model's activations mean, while it runs."""
    if version:
        typer.echo(f"hydrophoned {__version__}")
        raise typer.Exit


@app.command()
def serve(
    *,
    config: ConfigFile = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the database and the checkpoints.")
    ] = None,
    socket: Annotated[str | None, typer.Option(metavar="PATH", help="Unix socket for producers, or 'none'.")] = None,
    tcp: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Loopback address for producers, beside the socket.")
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Loopback address of the API, or 'none'; port 0: a free one."),
    ] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(metavar="FORM", help="text or json.")] = None,
    parent_fd: Annotated[
        int | None, typer.Option(metavar="N", help="End when the other end of this pipe closes.")
    ] = None,
    ready_fd: Annotated[
        int | None, typer.Option(metavar="N", help="Write one line of JSON here once it listens.")
    ] = None,
    set_: Settings = None,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    flags: dict[str, dict[str, Any]] = {
        "daemon": {"data_dir": data_dir, "log_level": log_level, "log_format": log_format, "parent_fd": parent_fd},
        "ingest": {"socket": socket, "tcp": tcp},
        "http": {"address": http},
    }
    overrides = {
        name: {field: value for field, value in values.items() if value is not None} for name, values in flags.items()
    }
    for section, values in _assignments(set_).items():
        overrides.setdefault(section, {}).update(values)
    settings = _load(config, overrides)
    _check_descriptor("--parent-fd", settings.daemon.parent_fd)
    _check_descriptor("--ready-fd", ready_fd)
    logs.configure(settings.daemon.log_level, settings.daemon.log_format)
    os.umask(os.umask(0o077) | 0o077)  # what is learned, and text if a user sends it, is nobody else's to read
    prepare_numerics(settings.daemon.threads)
    raise typer.Exit(_run(settings, ready_fd))


def prepare_numerics(threads: int) -> None:
    """Set what torch's threads read when torch is imported, unless the user did; call it before that.

    Threads that spin while they wait, or more of them than asked for, would take the processor from the model.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@app.command()
def export(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write TABLE.parquet to; made if missing.")
    ],
    *,
    table: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this table; may be given several times.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin here: ISO 8601 with zone, or -7d; default the first row.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="End before here; default the last row.")] = None,
    config: ConfigFile = None,
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the database.")] = None,
    set_: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write tables of the store as Parquet, one file each, while no daemon runs on it."""
    from hydrophoned.store import ExportRange, StoreError, export_tables  # noqa: PLC0415  duckdb takes a while

    covered = None if since is until is None else ExportRange(_time("--since", since), _time("--until", until))
    unknown = [name for name in table or () if name not in TABLES]
    if unknown:
        raise typer.BadParameter(
            f"there is no table {unknown[0]!r}; there are {', '.join(TABLES)}", param_hint="--table"
        )
    overrides = _assignments(set_)
    if data_dir is not None:
        overrides.setdefault("daemon", {})["data_dir"] = data_dir
    database = Path(_load(config, overrides).daemon.data_dir) / "hydrophone.duckdb"
    os.umask(os.umask(0o077) | 0o077)  # as the store itself
    try:
        done = export_tables(database, directory, table or (), covered)
    except StoreError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from None
    if as_json:
        tables = [one._asdict() | {"file": str(one.file)} for one in done]
        typer.echo(json.dumps({"store": str(database), "tables": tables}, indent=1))
        return
    for one in done:
        typer.echo(f"{one.file}: {one.rows} rows, {one.bytes} bytes")


def _time(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    from hydrophoned.api.times import parse_time  # noqa: PLC0415  the API takes a while

    try:
        return parse_time(text, now_us())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


@config_app.command("check")
def check(config: ConfigFile = None, set_: Settings = None, as_json: AsJson = False) -> None:
    """Say whether the configuration is valid; exit status 2 and one line per problem if it is not."""
    _load(config, _assignments(set_), as_json=as_json)
    path = config_path(config)
    if as_json:
        typer.echo(json.dumps({"valid": True, "file": None if path is None else str(path), "problems": []}))
    else:
        typer.echo(f"the configuration is valid ({path or 'no file is named: environment and defaults only'})")


@config_app.command("show")
def show(config: ConfigFile = None, set_: Settings = None, as_json: AsJson = False) -> None:
    """Print the configuration in force, defaults included, as TOML; what is no default says where it comes from."""
    if as_json:
        typer.echo(json.dumps(as_document(_load(config, _assignments(set_), as_json=True)), indent=1))
        return
    try:
        typer.echo(as_toml(*load_with_origins(config, _assignments(set_))).rstrip("\n"))
    except ConfigError as error:
        raise _misconfigured(error, as_json=False) from None


@config_app.command("schema")
def schema(as_json: Annotated[bool, typer.Option("--json", hidden=True)] = False) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    del as_json  # it is JSON either way
    typer.echo(json.dumps(Config.model_json_schema(), indent=1, default=str))


def _assignments(given: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """``SECTION.FIELD=VALUE`` by section and field; the values are text, which the fields read."""
    found: dict[str, dict[str, Any]] = {}
    for one in given or ():
        name, equals, value = one.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot and section and field):
            raise typer.BadParameter(f"{one!r} is not SECTION.FIELD=VALUE, such as learn.k=32", param_hint="--set")
        found.setdefault(section, {})[field] = value
    return found


def _load(path: Path | None, overrides: dict[str, dict[str, Any]], *, as_json: bool = False) -> Config:
    try:
        return load_config(path, overrides)
    except ConfigError as error:
        raise _misconfigured(error, as_json=as_json) from None


def _misconfigured(error: ConfigError, *, as_json: bool) -> typer.Exit:
    problems = str(error).splitlines()
    if as_json:
        typer.echo(json.dumps({"valid": False, "problems": problems}))
    else:
        for problem in problems:
            typer.echo(f"error: {problem}", err=True)
    return typer.Exit(MISCONFIGURED)


def _check_descriptor(option: str, descriptor: int | None) -> None:
    if descriptor is None:
        return
    try:
        os.fstat(descriptor)
    except OSError:
        raise typer.BadParameter(f"{descriptor} is no open file descriptor", param_hint=option) from None


def _run(settings: Config, ready_fd: int | None) -> int:
    import uvloop  # noqa: PLC0415  torch comes with the runtime, which must follow prepare_numerics

    from hydrophoned.ingest.errors import IngestError  # noqa: PLC0415  as above
    from hydrophoned.learn.errors import LearnError  # noqa: PLC0415  as above
    from hydrophoned.runtime.daemon import run  # noqa: PLC0415  as above
    from hydrophoned.runtime.errors import RuntimeFailure  # noqa: PLC0415  as above
    from hydrophoned.store import StoreError  # noqa: PLC0415  as above

    def ready(listening: "Ready") -> None:
        where = ", ".join(address for address in (listening.socket, listening.tcp, listening.http) if address)
        systemd.notify("READY=1", f"STATUS=listening at {where}")
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w", encoding="utf-8", closefd=ready_fd > sys.stderr.fileno()) as pipe:
                pipe.write(json.dumps(listening._asdict() | {"version": __version__}) + "\n")

    try:
        return uvloop.run(run(settings, ready, inherited=systemd.inherited_sockets()))
    except (IngestError, LearnError, StoreError, RuntimeFailure) as error:
        typer.echo(f"error: {error}", err=True)
    except OSError as error:
        hint = ""
        if error.errno == errno.EADDRINUSE:
            hint = "; another daemon may run there: see hydrophone status, or choose another address with --http"
        typer.echo(f"error: {error}{hint}", err=True)
    return FAILED
