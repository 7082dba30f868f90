"""The ``hydrophone`` command."""

import sys


def main() -> None:
    """Run the command line; without its libraries, say how to get them."""
    try:
        from hydrophone.cli.app import app  # noqa: PLC0415  needs the extra `cli`
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.stderr.write(f"the command line needs {missing}: pip install 'hydrophone[cli]'\n")
        raise SystemExit(2) from None
    app(prog_name="hydrophone")
