"""What ``hydrophone dictionary assess`` and ``compare`` do: a dictionary's quality on the rows of files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hydrophoned.analyse.absorption import absorption
from hydrophoned.analyse.matching import LEAST_FIRED, STRONG, WEAK, Matching
from hydrophoned.analyse.matching import compare as match
from hydrophoned.analyse.quality import Assessor
from hydrophoned.formats.columns import read_labels, read_requests
from hydrophoned.formats.errors import FormatError, UnreadableRows
from hydrophoned.formats.exchange import Exchange, remarks, to_dictionary
from hydrophoned.formats.rows import RowFile, open_rows
from hydrophoned.learn.assessment import DENSITY_EDGES
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.normaliser import SinkFilter
from hydrophoned.runtime.dictionaries import open_dictionary

_BATCH: Final = 1024
_LONGEST_RUN: Final = 256
_LEAST_RUNS: Final = 16


class QualityOptions(NamedTuple):
    """Options of both commands. ``rows`` are taken at most, 0 means all; ``labels`` and ``requests`` name columns."""

    column: str | None = None
    labels: str | None = None
    requests: str | None = None
    rows: int = 0
    sink_norm_factor: float = 5.0
    seed: int = 0


def assess(source: Path, paths: list[Path], options: QualityOptions) -> dict[str, Any]:
    """How well the dictionary in ``source`` does on the rows in ``paths``, and what became of a label in it."""
    exchange = open_dictionary(source)
    dictionary = to_dictionary(exchange)
    sample = Sample(paths, {source: exchange.width}, options)
    labels = read_labels(paths, options.labels) if options.labels else None
    assessor = Assessor(dictionary)
    kept: list[tuple[Tensor, Codes, Tensor, Tensor]] = []
    for x, number, request in sample.batches():
        codes = dictionary.encode(x, exact=True)
        assessor.add(x, codes, request)
        if labels is not None:
            label = torch.from_numpy(labels[number.numpy()])
            some = label >= 0
            kept.append((x[some], Codes(codes.index[some], codes.value[some]), label[some] == 1, request[some]))
    quality = assessor.result()
    about = {"source": str(source), **_kind(exchange), **sample.told(), "quality": plain(quality)}
    about["density_edges"] = list(DENSITY_EDGES)
    about["label"] = None
    if labels is not None:
        x, codes, label, request = _joined(kept)
        found = absorption(x, codes, dictionary.W_dec, label, request, seed=options.seed)
        unlabelled = quality.rows - found.rows
        about["label"] = {"column": options.labels, "rows_unlabelled": unlabelled, **plain(found)}
    return about | {"notes": remarks(exchange)}


def compare(one: Path, other: Path, paths: list[Path], options: QualityOptions) -> dict[str, Any]:
    """Which features of the dictionary in ``one`` come back in ``other``, by the rows in ``paths``."""
    exchanges = [open_dictionary(source) for source in (one, other)]
    left, right = (to_dictionary(exchange) for exchange in exchanges)
    sample = Sample(paths, {one: left.width, other: right.width}, options)
    codes: tuple[list[Codes], list[Codes]] = ([], [])
    requests = []
    for x, _, request in sample.batches():
        for dictionary, parts in zip((left, right), codes, strict=True):
            parts.append(dictionary.encode(x, exact=True))
        requests.append(request)
    if not requests:
        raise UnreadableRows(
            f"the files hold no row to compare by: {sample.rows_sink} were sinks and {sample.rows_skipped} not finite"
        )
    both = (_together(codes[0]), _together(codes[1]))
    found = match(both, (left.W_dec, right.W_dec), torch.cat(requests), seed=options.seed)
    ways = {"activation": found.activation, "decoder": found.decoder}
    return {
        "one": {"source": str(one), **_kind(exchanges[0])},
        "other": {"source": str(other), **_kind(exchanges[1])},
        **sample.told(),
        "rows_scored": found.rows_scored,
        "requests": found.requests,
        "seed": found.seed,
        "compared": [len(some) for some in found.compared],
        "least_fired": LEAST_FIRED,
        "strong": STRONG,
        "weak": WEAK,
        **{name: _figures(way) for name, way in ways.items()},
        "same_partner": found.same_partner,
        "matches": {
            "compared": found.compared[0].tolist(),
            **{name: {"partner": _partners(way), "score": plain(way.score)} for name, way in ways.items()},
        },
        "notes": [],
    }


# -- rows -------------------------------------------------------------------------------------------------------------


class Sample:
    """Rows of files for a judgement: spread evenly over them in runs, without sink rows and rows that are not finite.

    The rule for sink rows is that of training. Without a column of requests, rows are grouped in runs of consecutive
    rows, which is told. ``widths`` has the row width of each dictionary by its folder. Raises FormatError.
    """

    def __init__(self, paths: list[Path], widths: dict[Path, int], options: QualityOptions) -> None:
        self.files = [open_rows(path, options.column) for path in paths]
        self._check(widths)
        self.options = options
        self.rows_in_files = sum(file.rows for file in self.files)
        most = min(options.rows or self.rows_in_files, self.rows_in_files)
        self.share = most / max(self.rows_in_files, 1)
        self.run = max(1, min(_LONGEST_RUN, most // _LEAST_RUNS))
        name = options.requests
        self.requests = None if name is None else torch.from_numpy(read_requests(paths, name))
        self.rows = self.rows_sink = self.rows_skipped = 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows float32 [n, d], their numbers in the files one after the other, and those of their requests."""
        sinks = SinkFilter(self.options.sink_norm_factor, torch.device("cpu"))
        place = runs = 0
        for file in self.files:
            for x, number, run in self._taken(file, runs):
                norms = x.norm(dim=1)
                finite = norms.isfinite() & x.isfinite().all(1)
                sink = torch.zeros_like(finite)
                sink[finite] = sinks.split(norms[finite])
                kept = finite & ~sink
                self.rows_skipped += int((~finite).sum())
                self.rows_sink += int(sink.sum())
                self.rows += int(kept.sum())
                if bool(kept.any()):
                    whole = number[kept] + place
                    yield x[kept], whole, run[kept] if self.requests is None else self.requests[whole]
            place += file.rows
            runs += -(-file.rows // self.run)

    def told(self) -> dict[str, Any]:
        """What was taken, for the answer."""
        return {
            "files": [file.path.name for file in self.files],
            "rows_in_files": self.rows_in_files,
            "rows": self.rows,
            "rows_sink": self.rows_sink,
            "rows_skipped": self.rows_skipped,
            "request_column": self.options.requests,
            "rows_of_a_run": None if self.options.requests else self.run,
        }

    def _taken(self, file: RowFile, runs: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows of every so many runs, their numbers in the file, and the number of the run."""
        start = 0
        for batch in file.read(0, file.rows, _BATCH):
            number = np.arange(start, start + len(batch))
            run = number // self.run + runs
            kept = np.floor((run + 1) * self.share) > np.floor(run * self.share)
            start += len(batch)
            if kept.any():
                rows = torch.from_numpy(np.ascontiguousarray(batch[kept]))
                yield rows, torch.from_numpy(number[kept]), torch.from_numpy(run[kept])

    def _check(self, widths: dict[Path, int]) -> None:
        for source, width in widths.items():
            for file in self.files:
                if file.width != width:
                    raise FormatError(
                        f"{file.path} has rows of width {file.width}; the dictionary {source} takes {width}. "
                        "Give rows of the site that it was learned at."
                    )


def _joined(parts: list[tuple[Tensor, Codes, Tensor, Tensor]]) -> tuple[Tensor, Codes, Tensor, Tensor]:
    x, codes, label, request = zip(*parts, strict=True)
    return torch.cat(x), _together(codes), torch.cat(label), torch.cat(request)


def _together(parts: Sequence[Codes]) -> Codes:
    return Codes(torch.cat([one.index for one in parts]), torch.cat([one.value for one in parts]))


# -- telling ----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Named tuples as dicts, tensors as lists; what is not a number as None."""
    if isinstance(value, Tensor):
        return [None if one != one else one for one in value.tolist()]  # noqa: PLR0124  NaN is what is not itself
    if hasattr(value, "_asdict"):
        return {name: plain(one) for name, one in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


def _figures(way: Matching) -> dict[str, Any]:
    floors = {"shuffled": plain(way.shuffled), "random_pairs": plain(way.random_pairs)}
    return {**plain(way.scores), "floors": floors}


def _partners(way: Matching) -> list[int | None]:
    return [None if one < 0 else one for one in way.partner.tolist()]


def _kind(exchange: Exchange) -> dict[str, Any]:
    return {"variant": exchange.variant, "features": exchange.features, "width": exchange.width, "k": exchange.k}
