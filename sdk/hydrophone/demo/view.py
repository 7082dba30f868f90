"""The demo's live view: a rich panel on a terminal, one plain line every few seconds elsewhere."""

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hydrophone.cli.sparkline import sparkline
from hydrophone.demo.figures import Figures, shown

_MOST_BARS = 60
_PLAIN_EVERY_SECONDS = 5.0


class View(Protocol):
    """Shows messages and readings."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, message: str) -> None:
        """Show a message that stays."""

    def show(self, figures: Figures, fvus: Sequence[float], goal: int, site: str) -> None:
        """Show a reading on the way to ``goal`` tokens."""


def make_view(console: Console) -> View:
    """The live view on a terminal, plain lines elsewhere."""
    return LiveView(console) if console.is_terminal else PlainView()


class PlainView:
    """One line every few seconds, for logs and pipes."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def say(self, message: str) -> None:
        """Print a line."""
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()

    def show(self, figures: Figures, fvus: Sequence[float], goal: int, site: str) -> None:
        """Print a reading, at most one every few seconds."""
        del fvus, site
        if figures.seconds - self._last < _PLAIN_EVERY_SECONDS:
            return
        self._last = figures.seconds
        self.say(
            f"{figures.seconds:5.0f} s  tokens {figures.tokens:,}/{goal:,} ({shown(figures.model_tokens_per_s)}/s)  "
            f"rows received {figures.rows_received:,} dropped {figures.rows_dropped:,}  "
            f"learned {figures.rows_learned:,} ({shown(figures.learner_rows_per_s)}/s)  "
            f"fvu {shown(figures.fvu, '.3f')}  l0 {shown(figures.l0, '.1f')}  "
            f"dead {shown(figures.dead_fraction, '.1%')}  alive {shown(figures.features_alive)}"
        )


class LiveView:
    """A panel that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, message: str) -> None:
        """Print above the panel."""
        self._console.print(message, highlight=False)

    def show(self, figures: Figures, fvus: Sequence[float], goal: int, site: str) -> None:
        """Redraw the panel."""
        self._live.update(panel(figures, fvus, goal, site))


def panel(figures: Figures, fvus: Sequence[float], goal: int, site: str) -> Panel:
    """The live picture of one reading."""
    grid = Table.grid(padding=(0, 3), expand=True)
    for _ in range(4):
        grid.add_column(justify="right", style="dim", no_wrap=True)
        grid.add_column(justify="left", style="bold", no_wrap=True)
    dropped = Text(f"{figures.rows_dropped:,}", style="bold red" if figures.rows_dropped else "bold green")
    grid.add_row(
        *("model tokens/s", shown(figures.model_tokens_per_s), "rows received", f"{figures.rows_received:,}"),
        *("dropped", dropped, "learner rows/s", shown(figures.learner_rows_per_s)),
    )
    alive = f"{shown(figures.features_alive)} / {shown(figures.features)}"
    grid.add_row(
        *("fvu", shown(figures.fvu, ".3f"), "l0", shown(figures.l0, ".1f")),
        *("dead fraction", shown(figures.dead_fraction, ".1%"), "features alive", alive),
    )
    curve = Text.assemble(("fvu over time  ", "dim"), (sparkline(fvus[:: -(-len(fvus) // _MOST_BARS) or 1]), "cyan"))
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(ProgressBar(total=goal, completed=min(figures.tokens, goal)), f"{figures.tokens:,} / {goal:,} tokens")
    return Panel(
        Group(grid, curve, bar),
        title=f"[bold]hydrophone[/bold] listening at {site}",
        subtitle=f"{figures.seconds:.0f} s",
        border_style="cyan",
    )
