"""The commands of ``hydrophone dictionary``: other tools' formats, training on files, and judging.

Exit status: 0 well, 1 a file that cannot be read or written, 2 wrong usage. torch is imported once a command runs.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hydrophoned.analyse.errors import AnalysisError
from hydrophoned.formats.errors import FormatError
from hydrophoned.learn.errors import InvalidConfig, LearnError

if TYPE_CHECKING:
    from hydrophoned.learn.offline import Progress as Report
    from hydrophoned.runtime.quality_view import Page

FAILED: Final = 1
WRONG_USAGE: Final = 2
_PLAIN_EVERY_SECONDS: Final = 2.0

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Import, export, train and judge dictionaries.",
)
To = Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write; it must not hold anything yet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Source = Annotated[
    Path, typer.Argument(metavar="SOURCE", help="A dictionary's folder, or a stream's folder of checkpoints.")
]
Files = Annotated[
    list[Path], typer.Argument(metavar="FILE", help="Rows: .npy, .parquet, or Arrow IPC (.arrow, .arrows).")
]
Column = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the rows; else 'activation', or the only possible one."),
]
Requests = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Column that names each row's request; else runs of rows stand for them."),
]
MostRows = Annotated[int, typer.Option(min=0, help="Most rows to take, in runs spread over the files; 0: all.")]
SinkNormFactor = Annotated[
    float, typer.Option(help="Rows of more than this many times the median norm are set apart; inf: none.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]


class FormatName(StrEnum):
    """Formats of dictionaries, as on the command line."""

    hydrophone = "hydrophone"
    saelens = "saelens"
    sparsify = "sparsify"
    dictionary_learning = "dictionary_learning"


class VariantName(StrEnum):
    """Variants of dictionaries, as on the command line."""

    topk = "topk"
    batchtopk = "batchtopk"
    matryoshka = "matryoshka"
    jumprelu = "jumprelu"
    gated = "gated"
    l1 = "l1"


class NormaliseName(StrEnum):
    """What makes rows comparable, as on the command line."""

    scale = "scale"
    whiten = "whiten"
    control = "control"


class DeviceName(StrEnum):
    """Devices, as on the command line."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.command("import")
def bring_in(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the files of a dictionary.")],
    *,
    to: To,
    form: Annotated[FormatName | None, typer.Option("--format", help="Its format; else told from the files.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Active latents per row, where the files do not say.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a dictionary of SAELens, sparsify or dictionary_learning one that can learn on here."""
    with _failing():
        from hydrophoned.runtime import dictionaries  # noqa: PLC0415  brings torch

        done = dictionaries.bring_in(source, to, form=form and form.value, k=k)
    _tell(done, f"imported {_kind(done)} from {done['format']} to {to}", as_json=as_json)


@app.command("export")
def give_out(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Folder of a dictionary, of a version, or of a stream's checkpoints."),
    ],
    *,
    form: Annotated[FormatName, typer.Option("--format", help="Format to write.")],
    to: To,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Refuse one of a model with another fingerprint.")
    ] = None,
    site: Annotated[str | None, typer.Option(metavar="SITE", help="Refuse one of another site.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a dictionary for another tool; the normaliser is folded in, so that it takes rows as the model has them."""
    with _failing():
        from hydrophoned.runtime import dictionaries, versions  # noqa: PLC0415  brings torch

        wanted = versions.Origin(fingerprint, site)
        done = dictionaries.give_out(source, to, form=form.value, wanted=wanted)
    _tell(done, f"exported {_kind(done)} as {form.value} to {to}", as_json=as_json)


@app.command()
def train(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Rows: .npy, .parquet, or Arrow IPC (.arrow, .arrows).")
    ],
    *,
    to: To,
    variant: Annotated[VariantName, typer.Option(help="Kind of dictionary.")] = VariantName.topk,
    features: Annotated[int, typer.Option(min=0, help="Latents; 0: 8 times the row width.")] = 0,
    k: Annotated[int, typer.Option(min=1, help="Active latents per row, half the row width at most.")] = 32,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows of a training step.")] = 512,
    passes: Annotated[int, typer.Option(min=1, help="Times that the files are gone through.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of the rows; else 'activation', or the only possible one."),
    ] = None,
    sink_norm_factor: Annotated[
        float, typer.Option(help="Rows of more than this many times the median norm are set apart; inf: none.")
    ] = 5.0,
    holdout: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of each file's rows, at its end, to score and not to learn.")
    ] = 0.1,
    normalise: Annotated[
        NormaliseName,
        typer.Option(
            help="Make rows comparable by one scale, or whiten them by their own covariance or control rows'."
        ),
    ] = NormaliseName.scale,
    control: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows that show what is of no interest; of the same width.")
    ] = None,
    device: Annotated[DeviceName, typer.Option(help="Where to compute; auto: on a GPU if any.")] = DeviceName.auto,
    as_json: AsJson = False,
) -> None:
    """Learn a dictionary of the rows in files, and score it on rows that it has not seen."""
    if not sink_norm_factor > 0:
        raise typer.BadParameter(f"{sink_norm_factor} is not above 0", param_hint="--sink-norm-factor")
    if (control is None) == (normalise is NormaliseName.control):
        raise typer.BadParameter("--normalise control and --control FILE go together", param_hint="--normalise")
    with _failing(), _view() as view:
        from hydrophoned.runtime import dictionaries  # noqa: PLC0415  brings torch

        options = dictionaries.TrainOptions(
            variant.value,
            features,
            k,
            batch_rows,
            passes,
            seed,
            column,
            sink_norm_factor,
            holdout,
            normalise=normalise.value,
            control=control,
            device=device.value,
        )
        done = dictionaries.train(paths, to, options, view)
    held = done["holdout"]
    lines = [
        f"trained {_kind(done)} on {done['rows_learned']:,} rows to {to}",
        f"set apart: {done['rows_sink']:,} sink rows, {done['rows_skipped'] + done['rows_quarantined']:,} not finite",
        f"held out: {held['rows']:,} rows, fvu {_figure(held['fvu'])}, l0 {_figure(held['l0'])}",
    ]
    if normalise is not NormaliseName.scale:
        by = "control rows" if control else "rows of their own"
        lines.append(
            f"whitened by {done['whitening_rows']:,} {by}; of the rows as they were: fvu {_figure(held['fvu_raw'])}"
        )
    _tell(done, "\n".join(lines), as_json=as_json)


@app.command()
def assess(
    source: Source,
    paths: Files,
    *,
    labels: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of a label, 0/1 or boolean: is it absorbed or split?"),
    ] = None,
    requests: Requests = None,
    column: Column = None,
    rows: MostRows = 65_536,
    sink_norm_factor: SinkNormFactor = 5.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Judge a dictionary by rows that it has not learned, beside principal components."""
    _check_factor(sink_norm_factor)
    with _failing():
        from hydrophoned.runtime import dictionary_quality, quality_view  # noqa: PLC0415  brings torch

        options = dictionary_quality.QualityOptions(column, labels, requests, rows, sink_norm_factor, seed)
        done = dictionary_quality.assess(source, paths, options)
    _show(done, quality_view.assessed, as_json=as_json)


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(metavar="A", help="A dictionary's folder, or a stream's of checkpoints.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="Another one's, of rows of the same width.")],
    paths: Files,
    *,
    requests: Requests = None,
    column: Column = None,
    rows: MostRows = 65_536,
    sink_norm_factor: SinkNormFactor = 5.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Say which features of one dictionary come back in another, by what they do on the same rows."""
    _check_factor(sink_norm_factor)
    with _failing():
        from hydrophoned.runtime import dictionary_quality, quality_view  # noqa: PLC0415  brings torch

        options = dictionary_quality.QualityOptions(column, None, requests, rows, sink_norm_factor, seed)
        done = dictionary_quality.compare(one, other, paths, options)
    _show(done, quality_view.compared, as_json=as_json)


# -- showing ----------------------------------------------------------------------------------------------------------


class _View:
    """Shows progress on standard error: a bar on a terminal, a plain line every other second elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  not needed where nothing is trained
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415  as above

        console = Console(stderr=True)
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console) if console.is_terminal else None
        self._task = self.bar.add_task("", total=None) if self.bar else None
        self._last = float("-inf")

    def __call__(self, now: float, total: int, report: "Report") -> None:
        rate = None if report.rows_per_second is None else round(report.rows_per_second)
        dead = None if report.dead_fraction is None else 100 * report.dead_fraction
        line = f"{_count(rate)} rows/s  fvu {_figure(report.fvu)}  l0 {_figure(report.l0)}  dead {_figure(dead)} %"
        if self.bar is not None and self._task is not None:
            self.bar.update(self._task, total=total, completed=report.rows_seen, description=line)
        elif now - self._last >= _PLAIN_EVERY_SECONDS or report.rows_seen >= total:
            self._last = now
            sys.stderr.write(f"{report.rows_seen:,} of {total:,} rows  {line}\n")


@contextmanager
def _view() -> Iterator[_View]:
    view = _View()
    if view.bar is None:
        yield view
        return
    with view.bar:
        yield view


@contextmanager
def _failing() -> Iterator[None]:
    """End the command with a message and its status for what a user can mend."""
    try:
        yield
    except InvalidConfig as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(WRONG_USAGE) from None
    except (AnalysisError, FormatError, LearnError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from None


def _tell(done: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(done, indent=1))
        return
    typer.echo(text)
    for note in done["notes"]:
        typer.echo(f"note: {note}")


def _show(done: dict[str, Any], view: Callable[["Page", dict[str, Any]], None], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(done, indent=1))
        return
    from hydrophoned.runtime.quality_view import Page  # noqa: PLC0415  brings rich

    page = Page()
    view(page, done)
    for note in done["notes"]:
        page.line(f"note: {note}")


def _check_factor(factor: float) -> None:
    if not factor > 0:
        raise typer.BadParameter(f"{factor} is not above 0", param_hint="--sink-norm-factor")


def _kind(done: dict[str, Any]) -> str:
    k = "" if done["k"] is None else f", k {done['k']}"
    return f"a {done['variant']} dictionary of {done['features']:,} features (width {done['width']:,}{k})"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
