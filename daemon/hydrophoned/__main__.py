"""``python -m hydrophoned`` and the ``hydrophoned`` command."""

import sys

MISSING = 2


def main() -> None:
    """Run the command line; where the daemon's libraries are not installed, say how to get them."""
    try:
        from hydrophoned.runtime.cli import app  # noqa: PLC0415  needs the extra `daemon`

        app(prog_name="hydrophoned")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("hydrophone"):
            raise
        sys.stderr.write(f"error: the daemon needs {error.name}: pip install 'hydrophone[daemon]'\n")
        raise SystemExit(MISSING) from None


if __name__ == "__main__":
    main()
