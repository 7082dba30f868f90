"""Control rows in a file, for the rows of a stream or of files to be whitened by."""

from pathlib import Path
from typing import Any, NamedTuple

from hydrophoned.formats.errors import UnreadableRows
from hydrophoned.formats.rows import RowSource
from hydrophoned.learn.control import whiten_by
from hydrophoned.learn.whitening import Whitening

_BATCH_ROWS = 4096


class ControlFile(NamedTuple):
    """What a file of control rows gives: the whitening, and what was left out of it."""

    whitening: Whitening
    report: dict[str, Any]


def read_control(path: Path, width: int, *, column: str | None = None, sink_norm_factor: float) -> ControlFile:
    """The whitening by the rows in ``path``, which must be of ``width``; sink rows and rows not finite are left out.

    Raises FormatError for a file that cannot be read or is of another width, LearnError for too few rows.
    """
    source = RowSource([path], column=column, holdout=0, batch_rows=_BATCH_ROWS)
    if source.width != width:
        raise UnreadableRows(
            f"{path} has control rows of width {source.width}; the rows to whiten have {width}. Capture control rows "
            "at the same site."
        )
    found = whiten_by(source.training(), width, sink_norm_factor=sink_norm_factor)
    skipped = source.rows_skipped + found.rows_quarantined
    report = {
        "file": path.name,
        "rows": found.whitening.rows,
        "rows_sink": found.rows_sink,
        "rows_skipped": skipped,
    }
    return ControlFile(found.whitening, report)
