"""Where answers are shown: colour and tables on a terminal, plain aligned text elsewhere."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNKNOWN: Final = "-"
Row = Sequence[str | Text]


class Screen:
    """Prints lines and tables. On anything but a terminal nothing is coloured, wrapped or cut."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)

    def line(self, *parts: str | Text | tuple[str, str]) -> None:
        """One line of ``parts``: plain, or (text, style)."""
        text = Text.assemble(*parts)
        if self.console.is_terminal:
            self.console.print(text)
        else:
            self._write(text.plain)

    def table(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """``rows`` under ``columns``; a column whose name ends in ``>`` is aligned to the right."""
        if self.console.is_terminal:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for column in columns:
                right = column.endswith(">")
                table.add_column(column.rstrip(">"), justify="right" if right else "left", no_wrap=right)
            for row in rows:
                table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
            self.console.print(table)
            return
        cells = [[column.rstrip(">") for column in columns], *([str(cell) for cell in row] for row in rows)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
        for row in cells:
            aligned = [
                cell.rjust(width) if column.endswith(">") else cell.ljust(width)
                for cell, width, column in zip(row, widths, columns, strict=True)
            ]
            self._write("  ".join(aligned).rstrip())

    def _write(self, text: str) -> None:
        self.console.file.write(text + "\n")


def number(value: float | None, form: str = ",") -> str:
    """``value`` in ``form``; what is not known is shown as such, and not as 0."""
    return UNKNOWN if value is None else format(value, form)


def size(count: int | None) -> str:
    """Bytes with their unit.

    >>> size(3 << 20), size(12), size(None)
    ('3.0 MiB', '12 B', '-')
    """
    if count is None:
        return UNKNOWN
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {unit}"
    return f"{count} B"


def moment(text: str | None) -> str:
    """A time of the API as the terminal shows it: local, to the second."""
    if text is None:
        return UNKNOWN
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(since: str, until: str) -> str:
    """How long it is from one time of the API to another, in its two largest units.

    >>> duration("2026-01-01T00:00:00Z", "2026-01-02T03:04:05Z")
    '1 d 3 h'
    """
    start, end = (datetime.fromisoformat(text).astimezone(UTC) for text in (since, until))
    return span(max(0.0, (end - start).total_seconds()))


def span(seconds: float | None) -> str:
    """Seconds in their two largest units, without what is 0.

    >>> span(90 * 60), span(30 * 86400), span(0.2), span(None)
    ('1 h 30 min', '30 d', '0 s', '-')
    """
    if seconds is None:
        return UNKNOWN
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{count} {unit}" for place, (count, unit) in enumerate(parts[:2]) if count or not place)


def printable(text: str) -> str:
    r"""``text`` with line ends shown and other control characters replaced: a model's text must not steer a terminal.

    >>> printable("a\n\tb\x1b[2J")
    'a⏎→b�[2J'
    """
    shown = text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "→")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)
