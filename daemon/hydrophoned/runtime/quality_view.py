"""How the answers of ``hydrophone dictionary assess`` and ``compare`` look."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

_UNKNOWN: Final = "-"
_PLAIN_WIDTH: Final = 160

Answer = dict[str, Any]


class Page:
    """Prints lines and tables to standard output: ruled and coloured on a terminal, plain and not cut elsewhere."""

    def __init__(self) -> None:
        terminal = Console().is_terminal
        self.console = Console(highlight=False, soft_wrap=True, width=None if terminal else _PLAIN_WIDTH)
        self._apart = False

    def line(self, text: str, style: str = "") -> None:
        """One line."""
        self._part()
        self.console.print(text, style=style, markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """``rows`` under ``columns``: the first to the left, figures to the right."""
        if self.console.is_terminal:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        else:
            self._apart = True
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for place, column in enumerate(columns):
            table.add_column(column, justify="right" if place else "left", style="" if place else "cyan", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._part()
        self.console.print(table)
        self._apart = not self.console.is_terminal

    def _part(self) -> None:
        if self._apart:
            self.console.print()
        self._apart = False


def assessed(page: Page, answer: Answer) -> None:
    """How good one dictionary is."""
    quality = answer["quality"]
    page.line(f"{_dictionary(answer)} in {answer['source']}", "bold")
    page.line(_rows(answer))
    page.line(
        f"fvu {_figure(quality['fvu'])}, l0 {quality['l0']:.1f}, {_share(quality['dead_fraction'])} of features fired "
        "on no row"
    )
    page.line(f"{quality['components']} principal components instead: fvu {_figure(quality['pca_fvu'])}")
    rows = [[f"{one['kept']}", _figure(one["fvu"]), _figure(one["pca_fvu"])] for one in quality["by_count"]]
    page.table(("features kept of a row", "fvu", "fvu of as many components"), rows)
    page.table(("fires on", "features"), _density(answer))
    if answer["label"] is not None:
        _labelled(page, answer)


def compared(page: Page, answer: Answer) -> None:
    """Which features of one dictionary come back in another."""
    for name in ("one", "other"):
        page.line(f"{_dictionary(answer[name])} in {answer[name]['source']}", "bold")
    page.line(_rows(answer))
    page.line(f"{_grouped(answer)}; matched on half of them, scored on {answer['rows_scored']:,} rows of the others")
    floors = {"activation": "rows shuffled", "decoder": "directions drawn at random"}
    rows = []
    for name, title in (("activation", "correlation of values"), ("decoder", "cosine of decoder rows")):
        way = answer[name]
        rows.append(_scores(title, way))
        rows.append(_scores(f"  floor: {floors[name]}", way["floors"]["shuffled"]))
        rows.append(_scores("  floor: random pairs", way["floors"]["random_pairs"]))
    page.table(("matched by", "pairs", f"above {answer['strong']}", f"above {answer['weak']}", "mean"), rows)
    own, its = answer["compared"]
    page.line(
        f"shares are of the {own:,} of {answer['one']['features']:,} features that fire on {answer['least_fired']} "
        f"rows or more of each half (of the other dictionary's {its:,} of {answer['other']['features']:,}); of the "
        "rest nothing is known"
    )
    page.line(f"both name the same partner for {_share(answer['same_partner'])} of features that both match")


def _labelled(page: Page, answer: Answer) -> None:
    label = answer["label"]
    page.line(f"label {label['column']}", "bold")
    unlabelled = f"; {label['rows_unlabelled']:,} have none" if label["rows_unlabelled"] else ""
    page.line(f"true on {label['positive']:,} of {label['rows']:,} rows{unlabelled}")
    page.line(
        f"{_grouped(answer)}, {label['requests']:,} in all; chosen on half of them, scored on {label['rows_scored']:,} "
        f"rows of the others, true on {label['positive_scored']:,}"
    )
    aurocs = label["aurocs"]
    told = [
        ("probe", aurocs["probe"]),
        ("mean difference", aurocs["mean_difference"]),
        ("best neuron", aurocs["best_neuron"]),
        *((f"feature {one['feature']}", one["auroc"]) for one in label["mains"]),
    ]
    page.table(("tells the label", "AUROC"), [[name, f"{value:.3f}"] for name, value in told])
    floors = (
        ("found", ""),
        ("random_direction", "  floor: random direction"),
        ("permuted_labels", "  floor: permuted"),
    )
    rows = [
        [
            title or "found",
            f"{one['called']:,}",
            f"{one['silent']:,}",
            _share(one["silent_share"]),
            f"{one['absorbed']:,.4g}",
            _share(one["absorbed_share"]),
        ]
        for name, title in floors
        for one in [label[name]]
    ]
    page.table(("rows", "called true", "silent", "of those called", "absorbed", "of the silent"), rows)
    if label["absorbers"]:
        largest = ", ".join(f"{feature} ({rows:,} rows)" for feature, rows in label["largest"])
        more = ", ..." if label["absorbers"] > len(label["largest"]) else ""
        page.line(f"absorbed by features {largest}{more}")
    _split(page, label)


def _split(page: Page, label: Answer) -> None:
    own, null = label["splitting"], label["splitting_permuted"]
    page.line(
        f"split over {_features(own)} (F1 with 1, 2, ...: "
        f"{', '.join(f'{value:.3f}' for value in own['f1'])}; calling every row: {own['f1_of_all_called']:.3f})"
    )
    page.line(f"  floor: permuted {_features(null)} (F1 {', '.join(f'{value:.3f}' for value in null['f1'])})")


def _dictionary(kind: Answer) -> str:
    k = "" if kind["k"] is None else f", k {kind['k']}"
    return f"a {kind['variant']} dictionary of {kind['features']:,} features (width {kind['width']:,}{k})"


def _rows(answer: Answer) -> str:
    return (
        f"{answer['rows']:,} rows of the {answer['rows_in_files']:,} in {', '.join(answer['files'])}; set apart: "
        f"{answer['rows_sink']:,} sink rows, {answer['rows_skipped']:,} not finite"
    )


def _grouped(answer: Answer) -> str:
    if answer["request_column"] is not None:
        return f"requests by column {answer['request_column']}"
    return f"no requests named: runs of {answer['rows_of_a_run']} consecutive rows stand for them"


def _density(answer: Answer) -> list[list[str]]:
    counts = answer["quality"]["density"] or []
    edges = [f"{100 * edge:g} %" for edge in answer["density_edges"]]
    names = [
        "no row",
        f"below {edges[0]} of rows",
        *(f"{low} to {high}" for low, high in pairwise(edges)),
    ]
    return [[name, f"{count:,}"] for name, count in zip([*names, f"{edges[-1]} or more"], counts, strict=True)]


def _scores(title: str, scores: Answer) -> list[str]:
    shares = [_share(scores[name]) for name in ("strong", "weak")]
    return [title, f"{scores['pairs']:,}", *shares, _figure(scores["mean"])]


def _figure(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:z.3f}"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.1f} %"


def _features(split: Answer) -> str:
    count = split["features"]
    return f"{_UNKNOWN if count is None else count} {'feature' if count == 1 else 'features'}"
