"""``drift.compare``: two samples of rows on this machine, without a stream and without a running daemon."""

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hydrophone_schemas.activations import DTYPE_KEY
from hydrophone_schemas.comparison import Comparison, CoordinateChanges, Distance, Separation
from numpy.typing import NDArray

from hydrophone.errors import DaemonNotFound, InvalidArray, InvalidOption

__all__ = ["Comparison", "CoordinateChanges", "Distance", "Separation", "compare"]


def compare(
    reference: Any,
    current: Any,
    *,
    groups: str | tuple[Any, Any] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> Comparison:
    """Compare units ``reference`` [n, d] with ``current`` [m, d]: whether, how far and where they differ.

    Each is a NumPy array, a torch tensor, or an Arrow table or record batch. Of a table, the coordinates are its column
    of lists of numbers of one length (``activation`` if there are several); else they are its columns of numbers. A
    unit with a value that is null or not finite is left out.

    Units have to be exchangeable while nothing changes, as one row of each request is. Where they resemble each other
    in groups, as the rows of a request do, ``groups`` are the ids of each unit's group, (of the reference, of the
    current sample), or the name of a column that both tables have: groups are then exchanged as wholes.

    What is drawn at random is drawn by ``seed``: the ``permutations``, and the units that are looked at where there are
    too many. Raises :class:`InvalidArray` for samples that cannot be read, do not fit, or are too few to tell anything;
    :class:`InvalidOption` for other arguments; :class:`DaemonNotFound` where ``hydrophone[daemon]``, whose analyses do
    the work, is not installed.
    """
    if permutations < 1:
        raise InvalidOption(f"permutations={permutations!r}: at least 1 is needed, 999 for p-values down to 0.001")
    samples = _read(reference, groups, "reference"), _read(current, groups, "current")
    of = _groups(groups, samples)
    names = samples[0].names
    if names != samples[1].names and names is not None and samples[1].names is not None:
        odd = sorted(set(names) ^ set(samples[1].names)) or "their order"
        raise InvalidArray(f"the tables' columns of numbers differ: {odd}")
    analyse = _installed()
    try:
        found = analyse(samples[0].x, samples[1].x, groups=of, permutations=permutations, seed=seed)
    except ValueError as error:
        raise InvalidArray(str(error)) from error
    return found._replace(names=names)


class _Sample(NamedTuple):
    """Units ``x`` float32 [n, d]; of a table, the ``names`` of its columns and its ``groups``."""

    x: NDArray[np.float32]
    names: tuple[str, ...] | None = None
    groups: NDArray[Any] | None = None


def _installed() -> Callable[..., Comparison]:
    entries = importlib.metadata.entry_points(group="hydrophone.daemon", name="compare")
    if not entries:
        raise DaemonNotFound("drift.compare needs the daemon's analyses: pip install 'hydrophone[daemon]'")
    try:
        found: Callable[..., Comparison] = next(iter(entries)).load()
    except ImportError as error:
        raise DaemonNotFound(
            f"drift.compare needs the daemon's dependencies ({error}): pip install 'hydrophone[daemon]'"
        ) from error
    return found


def _read(sample: Any, groups: Any, what: str) -> _Sample:
    if isinstance(sample, (pa.Table, pa.RecordBatch)):
        table = pa.Table.from_batches([sample]) if isinstance(sample, pa.RecordBatch) else sample
        return _of_table(table, groups if isinstance(groups, str) else None, what)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(sample, torch.Tensor):
        sample = sample.detach().cpu().float().numpy()
    try:
        x = np.asarray(sample)
    except (TypeError, ValueError) as error:
        raise InvalidArray(f"{what} is a {type(sample).__name__}, which cannot be read as an array: {error}") from error
    if x.ndim != 2 or x.dtype.kind not in "fiu":
        raise InvalidArray(f"{what} has shape {x.shape} and dtype {x.dtype}: expected numbers of shape [n, d]")
    with np.errstate(over="ignore"):  # becomes Inf, and is left out as that
        return _Sample(x.astype(np.float32))


# -- tables -----------------------------------------------------------------------------------------------------------


def _of_table(table: pa.Table, group: str | None, what: str) -> _Sample:
    if group is not None and group not in table.column_names:
        raise InvalidOption(f"groups={group!r}: {what} has no such column; it has {', '.join(table.column_names)}")
    ids = None if group is None else np.asarray(table.column(group).to_pylist())
    if group is not None and table.column(group).null_count:
        raise InvalidArray(
            f"column {group!r} of {what} is null in {table.column(group).null_count} units: whose are they?"
        )
    lists = [field.name for field in table.schema if _is_list(field.type)]
    if lists:
        if len(lists) > 1 and "activation" not in lists:
            raise InvalidArray(
                f"{what} has {len(lists)} columns of lists, {', '.join(lists)}: leave one, or name one activation"
            )
        name = lists[0] if len(lists) == 1 else "activation"
        bfloat = (table.schema.metadata or {}).get(DTYPE_KEY) == b"bfloat16"
        return _Sample(_lists(table.column(name), name, bfloat=bfloat), None, ids)
    columns = [field.name for field in table.schema if field.name != group and _is_number(field.type)]
    if not columns:
        raise InvalidArray(f"{what} has no column of lists and none of numbers: {table.schema.to_string()}")
    x = np.stack([_floats(table.column(name)) for name in columns], 1)
    return _Sample(x, tuple(columns), ids)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_list(kind: pa.DataType) -> bool:
    listed = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(listed and _is_number(kind.value_type))


def _floats(column: Any) -> NDArray[np.float32]:
    """Numbers of an Arrow array, null as NaN."""
    return np.asarray(pc.cast(column, pa.float32(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float32)


def _lists(column: pa.ChunkedArray, name: str, *, bfloat: bool) -> NDArray[np.float32]:
    """Rows [n, d] of a column of lists; those that are null, or hold a null, hold NaN."""
    whole = column.combine_chunks()
    known = whole.drop_null()
    widths = pc.list_value_length(known).unique().to_pylist()
    if len(widths) > 1:
        raise InvalidArray(
            f"column {name!r} has lists of {len(widths)} lengths: a coordinate has to be known of every unit"
        )
    values = known.flatten()
    if bfloat and pa.types.is_uint16(values.type):
        plain = (np.asarray(values).astype(np.uint32) << 16).view(np.float32)
    else:
        plain = _floats(values)
    x = np.full((len(whole), widths[0] if widths else 0), np.nan, dtype=np.float32)
    x[np.asarray(whole.is_valid())] = plain.reshape(len(known), -1)
    return x


def _groups(groups: Any, samples: tuple[_Sample, _Sample]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """The ids of each sample's groups; None where none are given."""
    if groups is None:
        return None
    if isinstance(groups, str):
        found = samples[0].groups, samples[1].groups
        if found[0] is None or found[1] is None:
            raise InvalidOption(
                f"groups={groups!r} names a column, but the samples are not both Arrow tables: give the ids"
            )
        return found[0], found[1]
    if not isinstance(groups, (tuple, list)) or len(groups) != len(samples):
        raise InvalidOption("groups is neither a column's name nor (ids of the reference, ids of the current sample)")
    ids = tuple(_host(one) for one in groups)
    for one, sample, what in zip(ids, samples, ("reference", "current"), strict=True):
        if one.shape != (len(sample.x),):
            raise InvalidOption(
                f"groups of {what} have shape {one.shape}: expected one id for each of {len(sample.x)} units"
            )
    return ids[0], ids[1]


def _host(ids: Any) -> NDArray[Any]:
    if isinstance(ids, (pa.Array, pa.ChunkedArray)):
        return np.asarray(ids.to_pylist())
    torch = sys.modules.get("torch")
    return np.asarray(ids.detach().cpu() if torch is not None and isinstance(ids, torch.Tensor) else ids)
