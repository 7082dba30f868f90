"""Rows from files, streamed: NumPy (.npy, mapped into memory), Parquet, and Arrow IPC as a file or a stream.

In Arrow and Parquet a row is a list of floats in one column; hydrophone's own ``activation`` column, in bfloat16 too,
is one. However large a file is, memory holds some batches of it. Rows that are null or not finite are counted and left
out.

Rows near each other in a file are often alike. Each pass over the training rows can therefore take a file's parts in
another order: of a NumPy array any batch, of an Arrow file its record batches, of Parquet its row groups; an Arrow
stream, which has no index, is read from its beginning.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, islice, pairwise, repeat
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from hydrophone_schemas.activations import DTYPE_KEY, MAX_WIDTH
from numpy.typing import NDArray

from hydrophoned.formats.errors import UnreadableRows

Array = NDArray[np.float32]
_COLUMN: Final = "activation"


class RowFile(NamedTuple):
    """One file: ``rows`` rows of ``width`` elements; ``read(start, stop, size)`` gives float32 [up to size, width].

    Null rows come as NaN. Reading raises :class:`UnreadableRows`. ``starts`` are the rows, rising from 0, from which
    reading can begin without going through those before; None where it can from any.
    """

    path: Path
    rows: int
    width: int
    read: Callable[[int, int, int], Iterator[Array]]
    starts: Sequence[int] | None

    def parts(self, end: int, size: int) -> list[tuple[int, int]]:
        """The rows before ``end``, cut where reading can begin: parts of ``size`` rows, or as few more as can be."""
        cuts = [0]
        for start in range(0, end, size) if self.starts is None else self.starts:
            if cuts[-1] + size <= start < end:
                cuts.append(start)
        return list(pairwise([*cuts, end])) if end else []


class RowSource:
    """Several files of one width; the last ``holdout`` of each file's rows is set apart. Counts what it leaves out.

    With a ``seed`` each pass over the training rows takes every file's parts in an order of its own, else in the
    file's.
    """

    def __init__(
        self, paths: list[Path], *, column: str | None, holdout: float, batch_rows: int, seed: int | None = None
    ) -> None:
        self.files = [open_rows(path, column) for path in paths]
        self.batch_rows = batch_rows
        self._random = None if seed is None else np.random.default_rng(seed)
        self.rows_skipped = 0
        self.width = self.files[0].width
        for file in self.files:
            if file.width != self.width:
                raise UnreadableRows(
                    f"{file.path} has rows of width {file.width}; {self.files[0].path} has {self.width}. "
                    "A dictionary is of one width: train one for each."
                )
        self._ends = [file.rows - int(file.rows * holdout) for file in self.files]

    @property
    def training_rows(self) -> int:
        """Rows of one pass, those that will be left out included."""
        return sum(self._ends)

    def training(self) -> Iterator[Array]:
        """One pass: a batch of each file in turn, so that files of different contents are mixed."""
        waiting = [self._finite(self._mixed(file, end)) for file, end in zip(self.files, self._ends, strict=True)]
        while waiting:
            going = []
            for batches in waiting:
                first = list(islice(batches, 1))
                yield from first
                if first:
                    going.append(batches)
            waiting = going

    def held_out(self) -> Iterator[Array]:
        """The rows that training never sees."""
        for file, end in zip(self.files, self._ends, strict=True):
            yield from self._finite(file.read(end, file.rows, self.batch_rows))

    def _mixed(self, file: RowFile, end: int) -> Iterator[Array]:
        """The rows of ``file`` before ``end``, part by part."""
        if self._random is None:
            return file.read(0, end, self.batch_rows)
        parts = file.parts(end, self.batch_rows)
        order = self._random.permutation(len(parts)).tolist()
        mixed = (parts[number] for number in order)
        return chain.from_iterable(file.read(start, stop, self.batch_rows) for start, stop in mixed)

    def _finite(self, batches: Iterator[Array]) -> Iterator[Array]:
        for batch in batches:
            good = np.isfinite(batch).all(axis=1)
            self.rows_skipped += int(len(batch) - good.sum())
            if good.any():
                yield batch if good.all() else batch[good]


def open_rows(path: Path, column: str | None = None) -> RowFile:
    """A file of rows, told by its ending: .npy, .parquet, .arrow, .arrows, .feather or .ipc.

    ``column`` names the column of an Arrow or Parquet file; without it ``activation``, or the only one with lists of
    floats. Raises :class:`UnreadableRows`.
    """
    kinds = {".npy": _numpy, ".parquet": _parquet} | dict.fromkeys((".arrow", ".arrows", ".feather", ".ipc"), _ipc)
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UnreadableRows(f"{path}: the ending is none of {', '.join(kinds)}, which tell what is in a file")
    with _reading(path):
        file = kind(path, column)
    if not 1 <= file.width <= MAX_WIDTH:
        raise UnreadableRows(f"{path} has rows of width {file.width}, outside 1..{MAX_WIDTH}")
    return file


# -- NumPy ------------------------------------------------------------------------------------------------------------


def _numpy(path: Path, _: str | None) -> RowFile:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        shape = getattr(rows, "shape", "?")
        raise UnreadableRows(f"{path} holds {rows.dtype} of shape {shape}, not rows: floats of shape [n, d]")

    def read(start: int, stop: int, size: int) -> Iterator[Array]:
        for place in range(start, stop, size):
            yield np.array(rows[place : min(place + size, stop)], dtype=np.float32)

    return RowFile(path, len(rows), rows.shape[1], read, None)


# -- Arrow and Parquet ------------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """A column of lists: its name, how its floats are stored, and the width where the type has one."""

    name: str
    bfloat16: bool
    width: int | None


def _ipc(path: Path, column: str | None) -> RowFile:
    def batches(first: int, _size: int) -> Iterator[pa.RecordBatch]:
        with _opened(path) as (reader, indexed):
            if indexed:
                yield from (reader.get_batch(number) for number in range(first, reader.num_record_batches))
            else:
                yield from islice(reader, first, None)

    with _opened(path) as (reader, indexed):
        found = _find_column(path, reader.schema, column)
    return _listed(path, found, [batch.num_rows for batch in batches(0, 0)], batches, indexed=indexed)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, bool]]:
    """A reader of record batches, and whether it has an index of them."""
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:  # no footer: a stream
            source.seek(0)
            reader = None
        yield (pa.ipc.open_stream(source), False) if reader is None else (reader, True)


def _parquet(path: Path, column: str | None) -> RowFile:
    with pa.parquet.ParquetFile(path) as file:
        found, counts = _find_column(path, file.schema_arrow, column), file.metadata
        sizes = [counts.row_group(number).num_rows for number in range(counts.num_row_groups)]

    def batches(first: int, size: int) -> Iterator[pa.RecordBatch]:
        with pa.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(size, row_groups=list(range(first, len(sizes))), columns=[found.name])

    return _listed(path, found, sizes, batches, indexed=True)


def _listed(
    path: Path,
    column: _Column,
    sizes: list[int],
    batches: Callable[[int, int], Iterator[pa.RecordBatch]],
    *,
    indexed: bool,
) -> RowFile:
    """A file in pieces of ``sizes`` rows: ``batches(first, size)`` gives record batches, from piece ``first`` on.

    Where the file is ``indexed`` that takes no reading of the pieces before.
    """
    starts = list(accumulate(sizes, initial=0))
    rows = starts.pop()

    def parts(start: int, stop: int, size: int) -> Iterator[pa.Array]:
        if start >= stop:
            return
        first = bisect_right(starts, start) - 1
        place = starts[first]
        for batch in batches(first, size):
            if place >= stop:
                return
            for offset in range(max(start - place, 0), min(stop - place, batch.num_rows), size):
                yield batch.column(column.name).slice(offset, min(size, stop - place - offset))
            place += batch.num_rows

    width = column.width
    if width is None:  # the lists' own length says it: that of the first that is not null
        lengths = (one for part in parts(0, rows, 1024) for one in part.value_lengths().drop_null()[:1].to_pylist())
        width = next(lengths, None)
        if width is None:
            raise UnreadableRows(f"{path}: column {column.name!r} has no row")

    def read(start: int, stop: int, size: int) -> Iterator[Array]:
        with _reading(path):
            for part in parts(start, stop, size):
                yield _as_rows(path, column, part, width)

    return RowFile(path, rows, width, read, starts if indexed else [0])


def _find_column(path: Path, schema: pa.Schema, wanted: str | None) -> _Column:
    brain = (schema.metadata or {}).get(DTYPE_KEY) == b"bfloat16"
    able = {field.name: field.type for field in schema if _is_rows(field.type, brain=brain and field.name == _COLUMN)}
    name = wanted or (_COLUMN if _COLUMN in able else next(iter(able), None))
    if name is None or name not in able:
        raise UnreadableRows(
            f"{path} has no column {wanted or _COLUMN!r} of lists of floats; its columns are "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}"
        )
    if wanted is None and name != _COLUMN and len(able) > 1:
        raise UnreadableRows(
            f"{path} has several columns of lists of floats, {', '.join(able)}: name one with --column"
        )
    kind = able[name]
    fixed = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    return _Column(name, brain and name == _COLUMN and pa.types.is_uint16(kind.value_type), fixed)


def _is_rows(kind: pa.DataType, *, brain: bool) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return lists and (pa.types.is_floating(kind.value_type) or (brain and pa.types.is_uint16(kind.value_type)))


def _as_rows(path: Path, column: _Column, part: pa.Array, width: int) -> Array:
    """Lists as float32 [n, width]; null ones as NaN."""
    valid = np.asarray(part.is_valid())
    present = part.drop_null()
    lengths = np.asarray(present.value_lengths())
    if (lengths != width).any():
        wrong = int(lengths[lengths != width][0])
        raise UnreadableRows(f"{path}: a row of column {column.name!r} has {wrong} elements, the first has {width}")
    values = present.flatten().to_numpy(zero_copy_only=False)
    if column.bfloat16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    rows: Array = np.full((len(part), width), np.nan, dtype=np.float32)
    rows[valid] = values.reshape(-1, width)
    return rows


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the libraries say of a damaged file, with its name."""
    try:
        yield
    except UnreadableRows:
        raise
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise UnreadableRows(f"{path} cannot be read: {error}") from error


def passes(make: Callable[[], Iterator[Any]], count: int) -> Iterator[Any]:
    """What ``make`` gives, ``count`` times over."""
    return chain.from_iterable(one() for one in repeat(make, count))
