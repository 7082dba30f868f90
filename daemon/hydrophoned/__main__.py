"""``python -m hydrophoned`` and the ``hydrophoned`` command."""

from hydrophoned.runtime.cli import app


def main() -> None:
    """Run the command line."""
    app(prog_name="hydrophoned")


if __name__ == "__main__":
    main()
