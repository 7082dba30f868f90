"""Writes the pages of the reference that are made from the code: ``python docs/make_reference.py``."""

from pathlib import Path

import typer.main
from hydrophone.cli.app import app as client
from hydrophoned.runtime.cli import app as daemon
from hydrophoned.runtime.config import config_reference
from typer.testing import CliRunner

REFERENCE = Path(__file__).parent / "reference"
WIDTH = 100
CLI_HEAD = """# Command line

`hydrophone` is one command for both sides. `serve`, `config`, `dictionary` and `export` pass everything on to the
daemon's own command, `hydrophoned`, which takes the place of the process; the others ask a running daemon over its REST
API.

| exit status | meaning |
|---|---|
| 0 | well |
| 1 | the daemon says no: an unknown stream, a parameter it does not take; a daemon's command: it cannot be done |
| 2 | wrong usage or configuration, or a part of the installation is missing |
| 3 | no daemon answers |

| variable | meaning |
|---|---|
| `HYDROPHONE_URL` | address of the API, where `--url` is not given |
| `HYDROPHONE_CONFIG` | configuration file, where `--config` is not given |
| `HYDROPHONE_SECTION__FIELD` | a setting of the daemon, see [Configuration](config.md) |
| `HYDROPHONE_SOCKET` | socket of the daemon that `hydrophone.attach` looks for |
| `OMP_NUM_THREADS`, `OMP_WAIT_POLICY` | left as they are where set; else `daemon.threads` and `PASSIVE` |

On a terminal answers are coloured tables, elsewhere plain aligned text. With `--json` they are the API's JSON, which
[REST API](rest.md) describes. A value that is not known is `-`, in JSON null. Times are local, in JSON UTC.

This page is made from the commands' own help.
"""


def cli_reference() -> str:
    """The page ``docs/reference/cli.md``, in Markdown."""
    runner = CliRunner(env={"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"})
    passed_on = ("serve", "config", "dictionary", "export")
    own = [
        words
        for name, command in typer.main.get_command(client).commands.items()
        if name not in passed_on
        for words in ([name], *([name, below] for below in getattr(command, "commands", ())))
    ]
    parts = [CLI_HEAD]
    pages = [(daemon, ["serve"]), (daemon, ["config", "check"]), (daemon, ["config", "show"])]
    pages += [
        (daemon, ["config", "schema"]),
        *((daemon, ["dictionary", name]) for name in ("import", "export", "train", "assess", "compare")),
        (daemon, ["export"]),
    ]
    pages += [(client, words) for words in own]
    for app, words in pages:
        done = runner.invoke(app, [*words, "--help"], prog_name="hydrophone", terminal_width=WIDTH)
        if done.exit_code:
            raise RuntimeError(done.output)
        help_text = "\n".join(line.rstrip() for line in done.output.strip().splitlines())
        parts.append(f"## hydrophone {' '.join(words)}\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


PAGES = {"config.md": config_reference, "cli.md": cli_reference}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")
