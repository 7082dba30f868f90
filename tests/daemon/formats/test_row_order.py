"""The order of training rows: every pass its own, of the same rows, in parts that each kind of file can be cut into."""

import numpy as np
import pyarrow as pa
import pytest
from hydrophoned.formats.rows import RowSource, open_rows
from test_rows import KINDS, ROWS, N, fixed, table

SIZE = 64


def source(path, seed=1, holdout=0.25):
    return RowSource([path], column=None, holdout=holdout, batch_rows=SIZE, seed=seed)


def numbers(batches):
    """Which rows these are, in their order."""
    place = {row.tobytes(): number for number, row in enumerate(ROWS)}
    return [place[row.tobytes()] for batch in batches for row in batch]


@pytest.fixture(params=KINDS)
def path(request, tmp_path):
    KINDS[request.param](tmp_path / request.param, ROWS)
    return tmp_path / request.param


def test_each_pass_has_every_training_row_once_in_an_order_of_its_own(path):
    one = source(path)
    batches = [list(one.training()) for _ in range(3)]
    assert all(len(batch) <= SIZE for pass_ in batches for batch in pass_)
    passes = [numbers(pass_) for pass_ in batches]
    assert all(sorted(found) == list(range(750)) for found in passes)
    assert [numbers(source(path).training())] == passes[:1], "the seed decides"
    assert numbers(one.held_out()) == list(range(750, N))
    assert numbers(source(path, seed=None).training()) == list(range(750))
    whole = path.name in ("x.arrows", "l.parquet")
    # a stream can only be read from its beginning, and this Parquet file has one row group
    assert len({tuple(found) for found in passes}) == (1 if whole else 3)


def test_rows_that_lie_together_are_spread_over_the_pass(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    order = np.array(numbers(source(tmp_path / "x.npy", holdout=0).training()))
    assert abs(np.corrcoef(order, np.arange(N))[0, 1]) < 0.6
    assert (np.diff(order) == 1).mean() > 0.9, "rows of one part stay together: the shuffle buffer parts them"


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([500, 500], [(0, 500), (500, 900)]),
        ([10] * 100, [(start, min(start + 70, 900)) for start in range(0, 900, 70)]),
        ([1000], [(0, 900)]),
        ([0, 300, 0, 600, 100], [(0, 300), (300, 900)]),
        ([60, 60, 880], [(0, 120), (120, 900)]),
    ],
)
def test_a_file_is_cut_between_its_record_batches_into_parts_of_a_batch_or_more(tmp_path, sizes, parts):
    with pa.ipc.new_file(tmp_path / "x.arrow", table(ROWS).schema) as writer:
        start = 0
        for size in sizes:
            part = ROWS[start : start + size]
            writer.write_batch(pa.record_batch({"id": np.arange(size), "activation": fixed(part)}))
            start += size
    file = open_rows(tmp_path / "x.arrow")
    assert file.parts(900, SIZE) == parts
    assert file.parts(0, SIZE) == []
    for begin, end in parts:
        np.testing.assert_array_equal(np.concatenate(list(file.read(begin, end, SIZE))), ROWS[begin:end])
    assert sorted(numbers(source(tmp_path / "x.arrow", holdout=0.1).training())) == list(range(900))


def test_a_part_of_an_indexed_file_is_read_without_those_before_it(tmp_path, monkeypatch):
    KINDS["x.arrow"](tmp_path / "x.arrow", ROWS)
    file = open_rows(tmp_path / "x.arrow")
    assert list(file.starts) == [0, 170, 340, 510, 680, 850]
    asked = []
    plain = pa.ipc.open_file

    class Watched:
        def __init__(self, given):
            self.reader = plain(given)
            self.num_record_batches = self.reader.num_record_batches

        def get_batch(self, number):
            asked.append(number)
            return self.reader.get_batch(number)

    monkeypatch.setattr(pa.ipc, "open_file", Watched)
    list(file.read(700, 800, SIZE))
    assert asked[0] == 4
    assert set(asked) <= {4, 5}
