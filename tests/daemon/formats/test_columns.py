import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydrophoned.formats.columns import read_labels, read_requests
from hydrophoned.formats.errors import UnreadableRows


def written(path, **columns):
    """A file of these columns in two record batches, beside rows of floats."""
    n = len(next(iter(columns.values())))
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * n, np.float32)), 2)
    table = pa.table({"activation": rows, **columns})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
        return path
    make = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
def test_labels_are_true_false_or_unknown_across_files(tmp_path, suffix):
    one = written(tmp_path / f"one{suffix}", hit=pa.array([True, None, False]))
    other = written(tmp_path / f"other{suffix}", hit=pa.array([0, 1, None, 1], pa.int32()))
    assert read_labels([one, other], "hit").tolist() == [1, -1, 0, 0, 1, -1, 1]
    floats = written(tmp_path / f"floats{suffix}", hit=pa.array([0.0, 1.0]))
    assert read_labels([floats], "hit").tolist() == [0, 1]


def test_requests_are_numbered_by_what_names_them(tmp_path):
    one = written(tmp_path / "one.parquet", request=["b", "b", "a"])
    other = written(tmp_path / "other.arrow", request=pa.array(["a", "c"], pa.large_string()))
    assert read_requests([one, other], "request").tolist() == [0, 0, 1, 1, 2], "one name is one request in all files"
    numbers = written(tmp_path / "numbers.parquet", request=pa.array([1 << 40, 7, 7], pa.int64()))
    narrow = written(tmp_path / "narrow.parquet", request=pa.array([7], pa.int32()))
    assert read_requests([numbers, narrow], "request").tolist() == [0, 1, 1, 1]
    mixed = read_requests([numbers, written(tmp_path / "text.arrows", request=["7"])], "request")
    assert mixed.tolist() == [0, 1, 1, 1]


def test_what_is_no_label_is_said(tmp_path):
    path = written(tmp_path / "a.parquet", hit=[0, 7], name=["x", "y"])
    with pytest.raises(UnreadableRows, match="column 'hit' holds 7; a label is a boolean, or 0 and 1"):
        read_labels([path], "hit")
    with pytest.raises(UnreadableRows, match="column 'name' is of string; a label"):
        read_labels([path], "name")
    with pytest.raises(UnreadableRows, match="no column 'mist'; its columns are activation, hit, name"):
        read_labels([path], "mist")
    nan = written(tmp_path / "nan.parquet", hit=[0.0, float("nan")])
    with pytest.raises(UnreadableRows, match="holds nan"):
        read_labels([nan], "hit")


def test_what_names_no_requests_is_said(tmp_path):
    path = written(tmp_path / "a.arrow", request=pa.array(["a", None]))
    with pytest.raises(UnreadableRows, match="null in 1 rows"):
        read_requests([path], "request")
    with pytest.raises(UnreadableRows, match="names no requests"):
        read_requests([path], "activation")


def test_files_without_columns_and_damaged_ones_are_said(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(UnreadableRows, match="has no columns beside its rows, so none 'hit'"):
        read_labels([tmp_path / "a.npy"], "hit")
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"neither one nor the other")
        with pytest.raises(UnreadableRows, match="cannot be read"):
            read_labels([tmp_path / name], "hit")
