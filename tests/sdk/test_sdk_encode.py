"""Positions, padding and phases from ids and masks, and batches that hold exactly the rows that went in."""

import numpy as np
import pytest
from hydrophone.encode import LARGE_BYTES, encode, read_text, tokens
from hydrophone.errors import InvalidOption
from hydrophone.forward import Columns, Forward
from hydrophone.requests import Assignment, Request
from hydrophone.streams import Stream
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.wire import FrameType, read_ipc_batch
from hypothesis import given, settings
from hypothesis import strategies as st


class Host:
    def __init__(self, values: object) -> None:
        self.values = np.asarray(values)

    def numpy(self) -> np.ndarray:
        return self.values


class Source:
    def __init__(
        self, stream: Stream, forward: Forward, batch: int, length: int, values: np.ndarray, *, dtype: str = "float32"
    ) -> None:
        self.stream, self.forward, self.batch, self.length, self._values = stream, forward, batch, length, values
        self.width, self.dtype, self.rows, self.nbytes, self.taken = (
            values.shape[1],
            dtype,
            batch * length,
            values.nbytes,
            0.0,
        )

    def columns(self) -> Columns:
        assert self.forward is not None
        return self.forward.columns(self.batch, self.length)

    def values(self) -> np.ndarray:
        return self._values


def make_stream(name: str = "s") -> Stream:
    return Stream(StreamId("m", "1", name), "f", 1)


def owners(count: int) -> Assignment:
    made = (Request(n + 1, f"r{n}", model="m", version="1", sample=1.0, attributes={}) for n in range(count))
    return Assignment(tuple(made), (0,) * count)


def raise_it(error: BaseException) -> None:
    raise error


def decode(items: list) -> list[tuple]:
    rows = []
    for item in items:
        payload = b"".join(bytes(piece) for piece in item.buffers)
        import pyarrow as pa

        batch = read_ipc_batch(pa.py_buffer(payload), item.stream.schema)
        batch.validate(full=True)
        values = batch.column("activation").flatten().to_numpy().reshape(batch.num_rows, -1)
        names = ("request", "sequence", "position", "phase", "token")
        columns = [batch.column(name).to_pylist() for name in names]
        rows += [(*row, *values[index].tolist()) for index, row in enumerate(zip(*columns, strict=True))]
    return rows


@st.composite
def masked_forwards(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    batch, past, length = draw(st.integers(1, 4)), draw(st.integers(0, 5)), draw(st.integers(1, 6))
    bits = draw(st.lists(st.booleans(), min_size=batch * (past + length), max_size=batch * (past + length)))
    return np.array(bits, np.int64).reshape(batch, past + length), past, length


@given(masked_forwards(), st.data())
@settings(deadline=None)
def test_rows_that_are_not_padding_arrive_with_the_count_of_those_before_them(
    case: tuple[np.ndarray, int, int], extra: st.DataObject
) -> None:
    mask, past, length = case
    batch = len(mask)
    forward = Forward()
    forward.batch, forward.length, forward.past, forward.assignment = batch, length, past, owners(batch)
    ids = np.arange(batch * length).reshape(batch, length) + 100
    values = np.arange(batch * length, dtype=np.float32).repeat(2).reshape(-1, 2)
    forward.ids, forward.mask = Host(ids), Host(mask)
    stream = make_stream()
    rows = decode(list(encode([Source(stream, forward, batch, length, values)], raise_it, 1 << 20)))
    phase = 1 if past and length == 1 else 0
    expected = [
        (element + 1, 0, int(mask[element, : past + column].sum()), phase, int(ids[element, column]))
        + (float(element * length + column),) * 2
        for element in range(batch)
        for column in range(length)
        if mask[element, past + column]
    ]
    assert rows == expected
    assert stream.padding == batch * length - len(expected)
    pieces = lambda found: [str(token) for token in found.tolist()]  # noqa: E731  one line says it
    got = {}
    for item in tokens(forward, pieces):
        for offset, piece in enumerate(item.body["pieces"]):
            got[item.body["request"], item.body["position"] + offset] = piece
    assert got == {(row[0], row[2]): str(row[4]) for row in expected}


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 40), st.integers(1, 3)), min_size=1, max_size=30))
@settings(deadline=None)
def test_captures_put_together_keep_their_order_and_rows(shapes: list[tuple[int, int, int]]) -> None:
    streams = [make_stream("a"), make_stream("b")]
    sources, expected, content = [], {"a": [], "b": []}, 0
    for which, length, batch in shapes:
        forward = Forward()
        forward.batch, forward.length, forward.assignment = batch, length, owners(batch)
        values = np.arange(content, content + batch * length, dtype=np.float32)[:, None]
        content += batch * length
        sources.append(Source(streams[which], forward, batch, length, values))
        expected["ab"[which]] += values[:, 0].tolist()
    items = list(encode(sources, raise_it, 1 << 20))
    for stream, name in zip(streams, "ab", strict=True):
        mine = [item for item in items if item.stream is stream]
        assert [row[-1] for row in decode(mine)] == expected[name]
        assert sum(item.rows for item in mine) == len(expected[name])


def one(length: int, width: int, stream: Stream) -> Source:
    forward = Forward()
    forward.batch, forward.length, forward.assignment = 1, length, owners(1)
    values = np.random.default_rng(0).random((length, width), np.float32)
    return Source(stream, forward, 1, length, values)


def test_small_captures_share_a_batch_and_large_ones_are_not_copied() -> None:
    stream = make_stream()
    small = [one(1, 64, stream) for _ in range(100)]
    large = one(LARGE_BYTES // 256, 64, stream)
    items = list(encode([*small, large], raise_it, 64 << 20))
    assert [item.rows for item in items] == [100, large.rows]
    address = large.values().ctypes.data
    assert address in {piece.address for piece in items[1].buffers}


def test_captures_beyond_the_frame_limit_are_sent_in_pieces() -> None:
    source = one(1000, 64, make_stream())
    items = list(encode([source], raise_it, 64 << 10))
    assert len(items) > 1
    assert all(item.nbytes <= 64 << 10 for item in items)
    assert [row[2] for row in decode(items)] == list(range(1000))


def test_one_bad_capture_does_not_stop_the_others() -> None:
    stream = make_stream()
    bad, good, seen = one(3, 4, stream), one(2, 4, stream), []
    bad.forward.mask = Host(np.ones((7, 7)))  # not of this batch
    items = list(encode([bad, good], seen.append, 1 << 20))
    assert [item.rows for item in items] == [2]
    assert stream.dropped == {"encode_error": 3}
    assert len(seen) == 1


def test_the_rows_go_even_if_the_tokenizer_fails() -> None:
    stream, seen = make_stream(), []
    source = one(2, 4, stream)
    source.forward.ids = Host([[1, 2]])

    def fails(ids: np.ndarray) -> list[str | None]:
        raise KeyError(7)

    items = list(encode([source], seen.append, 1 << 20, lambda _: fails))
    assert [item.type for item in items] == [FrameType.DATA]
    assert [type(error) for error in seen] == [KeyError]


def test_bfloat16_travels_as_its_bits() -> None:
    stream, source = make_stream(), one(2, 3, make_stream())
    bits = np.array([[1, 2, 3], [4, 5, 6]], np.uint16)
    source = Source(stream, source.forward, 1, 2, bits, dtype="bfloat16")
    assert [row[-3:] for row in decode(list(encode([source], raise_it, 1 << 20)))] == [(1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize("text", ["words", 7])
def test_text_options_that_are_not_known(text: object) -> None:
    with pytest.raises(InvalidOption, match="is none of"):
        read_text(text, object())  # type: ignore[arg-type]
