"""Rows from files: every kind gives the same rows, in bounded memory, and what is wrong is named."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hydrophone_schemas.activations import activation_schema
from hydrophoned.formats.errors import UnreadableRows
from hydrophoned.formats.rows import RowSource, open_rows

N, D = 1000, 7
ROWS = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


def fixed(rows, kind=None):
    values = pa.array(rows.reshape(-1), kind)
    return pa.FixedSizeListArray.from_arrays(values, rows.shape[1])


def table(rows):
    return pa.table({"id": np.arange(len(rows)), "activation": fixed(rows)})


def write_npy(path, rows):
    np.save(path, rows)


def write_parquet(path, rows):
    pa.parquet.write_table(table(rows), path, row_group_size=300)


def write_file(path, rows):
    with pa.ipc.new_file(path, table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=170)


def write_stream(path, rows):
    with pa.ipc.new_stream(path, table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=170)


def write_lists(path, rows):
    lists = pa.array(list(rows), pa.list_(pa.float32()))
    pa.parquet.write_table(pa.table({"vector": lists, "text": ["x"] * len(rows)}), path)


KINDS = {
    "x.npy": write_npy,
    "x.parquet": write_parquet,
    "x.arrow": write_file,
    "x.arrows": write_stream,
    "l.parquet": write_lists,
}


@pytest.fixture(params=KINDS)
def path(request, tmp_path):
    KINDS[request.param](tmp_path / request.param, ROWS)
    return tmp_path / request.param


def test_every_kind_gives_its_rows(path):
    file = open_rows(path)
    assert (file.rows, file.width) == (N, D)
    batches = list(file.read(0, N, 128))
    assert max(len(batch) for batch in batches) <= 128
    np.testing.assert_array_equal(np.concatenate(batches), ROWS)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (1, 2), (299, 301), (300, 600), (169, 171), (5, 999), (999, N)])
def test_a_part_is_that_part(path, start, stop):
    batches = list(open_rows(path).read(start, stop, 64))
    np.testing.assert_array_equal(np.concatenate([np.empty((0, D), np.float32), *batches]), ROWS[start:stop])


def test_rows_that_are_not_finite_or_null_are_counted_and_left_out(tmp_path):
    rows = ROWS.copy()
    rows[3, 2], rows[500, 0] = np.nan, np.inf
    np.save(tmp_path / "x.npy", rows)
    source = RowSource([tmp_path / "x.npy"], column=None, holdout=0, batch_rows=100)
    kept = np.concatenate(list(source.training()))
    assert source.rows_skipped == 2
    np.testing.assert_array_equal(kept, np.delete(ROWS, [3, 500], axis=0))
    lists = pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float32()))
    pa.parquet.write_table(pa.table({"v": lists}), tmp_path / "x.parquet")
    source = RowSource([tmp_path / "x.parquet"], column=None, holdout=0, batch_rows=100)
    assert np.concatenate(list(source.training())).tolist() == [[1, 2]]
    assert source.rows_skipped == 2


def test_a_null_among_fixed_lists_leaves_the_others_in_their_place(tmp_path):
    lists = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    with pa.ipc.new_file(tmp_path / "x.arrow", pa.schema({"v": lists.type})) as writer:
        writer.write_batch(pa.record_batch({"v": lists}))
    (batch,) = open_rows(tmp_path / "x.arrow").read(0, 3, 10)
    np.testing.assert_array_equal(batch, [[1, 2], [np.nan, np.nan], [3, 4]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_what_it_means(tmp_path, dtype):
    halves = torch.from_numpy(ROWS[:20]).to(getattr(torch, dtype))
    kind = activation_schema(D, dtype).field("activation").type
    bits = halves.view(torch.uint16).numpy() if dtype == "bfloat16" else halves.numpy()
    schema = pa.schema({"activation": kind}, metadata={"hydrophone.dtype": dtype})
    with pa.ipc.new_stream(tmp_path / "x.arrows", schema) as writer:
        writer.write_batch(pa.record_batch([fixed(bits).cast(kind)], schema=schema))
    (batch,) = open_rows(tmp_path / "x.arrows").read(0, 20, 100)
    np.testing.assert_array_equal(batch, halves.float().numpy())


def test_the_held_out_share_of_each_file_is_its_end_and_never_trained_on(tmp_path):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((100 * (number + 1), 2), number, np.float32))
    paths = [tmp_path / f"{number}.npy" for number in range(3)]
    source = RowSource(paths, column=None, holdout=0.25, batch_rows=50)
    training, held = np.concatenate(list(source.training())), np.concatenate(list(source.held_out()))
    assert [int((training[:, 0] == number).sum()) for number in range(3)] == [75, 150, 225]
    assert [int((held[:, 0] == number).sum()) for number in range(3)] == [25, 50, 75]
    assert source.training_rows == 450
    first = [int(batch[0, 0]) for batch in itertools.islice(source.training(), 6)]
    assert first == [0, 1, 2, 0, 1, 2], "files take turns"


def test_files_of_differing_width_are_named(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    np.save(tmp_path / "b.npy", ROWS[:, :3])
    with pytest.raises(UnreadableRows, match=r"b\.npy has rows of width 3; .*a\.npy has 7"):
        RowSource([tmp_path / "a.npy", tmp_path / "b.npy"], column=None, holdout=0, batch_rows=9)


def test_lists_of_differing_length_are_named(tmp_path):
    pa.parquet.write_table(pa.table({"v": [[1.0, 2.0], [3.0]]}), tmp_path / "x.parquet")
    with pytest.raises(UnreadableRows, match=r"x\.parquet: a row of column 'v' has 1 elements, the first has 2"):
        list(open_rows(tmp_path / "x.parquet").read(0, 2, 10))


def test_the_column_is_named_where_there_are_several(tmp_path):
    both = pa.table({"a": fixed(ROWS), "b": fixed(ROWS * 2), "n": np.arange(N)})
    pa.parquet.write_table(both, tmp_path / "x.parquet")
    with pytest.raises(UnreadableRows, match=r"a, b: name one with --column"):
        open_rows(tmp_path / "x.parquet")
    np.testing.assert_array_equal(next(open_rows(tmp_path / "x.parquet", "b").read(0, N, N)), ROWS * 2)
    with pytest.raises(UnreadableRows, match=r"no column 'n' of lists of floats; its columns are a \(fixed"):
        open_rows(tmp_path / "x.parquet", "n")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.arange(6), "holds int64"),
        (np.zeros(6, np.float32), r"shape \(6,\)"),
        (np.zeros((2, 3, 4), np.float32), r"shape \(2, 3, 4\)"),
        (np.zeros((3, 0), np.float32), "width 0"),
        (np.array([{}]), "cannot be read"),
    ],
)
def test_an_array_that_is_not_rows_is_refused(tmp_path, rows, message):
    np.save(tmp_path / "x.npy", rows, allow_pickle=True)
    with pytest.raises(UnreadableRows, match=message):
        open_rows(tmp_path / "x.npy")


def test_what_is_no_file_of_rows_is_refused(path, tmp_path):
    data = path.read_bytes()
    for size in (0, 5, len(data) // 2):
        path.write_bytes(data[:size])
        with pytest.raises(UnreadableRows, match=path.name):
            list(open_rows(path).read(0, N, 100))
    with pytest.raises(UnreadableRows, match=r"x\.csv: the ending is none of"):
        open_rows(tmp_path / "x.csv")
    with pytest.raises(UnreadableRows, match=r"none\.npy cannot be read"):
        open_rows(tmp_path / "none.npy")
