"""Frames: however the bytes are split, the same frames come out; and what is no frame is refused."""

import random

import pyarrow as pa
import pytest
from hydrophone_schemas.errors import WireError
from hydrophone_schemas.wire import (
    HEADER,
    MAX_CONTROL_BYTES,
    PREAMBLE,
    SEQUENCED,
    BatchEncoder,
    FrameReceiver,
    FrameType,
    decode_control,
    encode_control,
    ipc_schema,
    read_ipc_batch,
    read_ipc_schema,
)
from hypothesis import given
from hypothesis import strategies as st

FRAMES = st.tuples(
    st.sampled_from(FrameType),
    st.integers(0, 65535),
    st.integers(0, (1 << 64) - 1),
    st.one_of(st.binary(max_size=60), st.integers(0, 200_000).map(lambda size: bytes(i % 251 for i in range(size)))),
)


def raw(frames):
    return PREAMBLE + b"".join(
        HEADER.pack(kind, 0, channel, len(payload), sequence) + payload for kind, channel, sequence, payload in frames
    )


@given(st.lists(FRAMES, max_size=6), st.randoms(use_true_random=False))
def test_any_split_gives_the_same_frames(sent, cuts):
    data = raw(sent)
    receiver, found, start = FrameReceiver(), [], 0
    while start < len(data):
        room = receiver.buffer()
        count = min(len(room), len(data) - start, cuts.choice([1, 7, 16, 100, 5000, 1 << 20]))
        room[:count] = data[start : start + count]
        found += receiver.received(count)
        start += count
        assert len(room) > 0
    assert [(f.type, f.channel, f.sequence, f.payload.to_pybytes()) for f in found] == sent
    assert not receiver.partial


@given(st.lists(FRAMES, min_size=1, max_size=4), st.integers(0, 50))
def test_frames_before_a_fault_are_not_lost(sent, size):
    receiver = FrameReceiver()
    data = raw(sent) + HEADER.pack(77, 0, 0, 0, 0)
    found = []
    with pytest.raises(WireError) as caught:  # noqa: PT012  in which piece it is seen depends on their size
        for start in range(0, len(data), size or len(data)):
            found += receiver.feed(data[start : start + (size or len(data))])
    found += receiver.before_fault
    assert caught.value.code == "unknown_type"
    assert len(found) == len(sent)


def test_payloads_are_independent_of_each_other_and_of_the_receiver():
    receiver = FrameReceiver(expect_preamble=False)
    frames = receiver.feed(raw([(FrameType.DATA, 1, 1, b"a" * 9), (FrameType.DATA, 1, 2, b"b" * 9)])[8:])
    receiver.feed(raw([(FrameType.DATA, 1, 3, b"c" * 70_000)])[8:])
    assert [frame.payload.to_pybytes() for frame in frames] == [b"a" * 9, b"b" * 9]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1", "bad_preamble"),
        (PREAMBLE[:-1] + b"\x02", "bad_preamble"),
        (b"\x00", "bad_preamble"),
        (PREAMBLE + HEADER.pack(0, 0, 0, 0, 0), "unknown_type"),
        (PREAMBLE + HEADER.pack(1, 0x80, 0, 0, 0), "bad_frame"),
        (PREAMBLE + HEADER.pack(FrameType.DATA, 0, 0, 2049, 0), "frame_too_large"),
        (PREAMBLE + HEADER.pack(FrameType.PING, 0, 0, 2049, 0), "frame_too_large"),
    ],
)
def test_what_is_no_frame_is_refused(sent, code):
    with pytest.raises(WireError) as caught:
        FrameReceiver(max_frame=2048).feed(sent)
    assert caught.value.code == code


def test_control_frames_are_bounded_however_large_data_may_be():
    with pytest.raises(WireError, match="frame_too_large"):
        FrameReceiver(expect_preamble=False).feed(HEADER.pack(FrameType.PING, 0, 0, MAX_CONTROL_BYTES + 1, 0))
    with pytest.raises(WireError, match="frame_too_large"):
        encode_control(FrameType.TOKENS, {"pieces": ["x" * 1000] * 5000})


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5))
def test_control_payloads_come_back(body):
    (frame,) = FrameReceiver(expect_preamble=False).feed(encode_control(FrameType.REPORT, body, channel=3, sequence=9))
    assert (frame.control(), frame.channel, frame.sequence) == (body, 3, 9)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_map_or_a_wire_error(payload):
    try:
        assert isinstance(decode_control(payload), dict)
    except WireError as error:
        assert error.code == "bad_frame"  # noqa: PT017  either outcome is right


def fuzz(seed, count):
    """Streams of valid frames with a few bytes changed: frames or a wire error, and never more memory than arrived."""
    generator = random.Random(seed)  # noqa: S311  a reproducible test
    good = [
        encode_control(kind, {"token": 1, "labels": {"a": [1, {"b": "c"}]}}, channel=1, sequence=3)
        for kind in FrameType
    ]
    for _ in range(count):
        data = bytearray(PREAMBLE + b"".join(generator.choices(good, k=5)))
        for _ in range(generator.randint(0, 5)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        receiver = FrameReceiver(max_frame=1 << 16)
        try:
            for frame in receiver.feed(bytes(data)):
                frame.control()
        except WireError:
            continue


def test_mutated_streams_never_raise_anything_else():
    fuzz(seed=1, count=2000)


@pytest.mark.long
def test_mutated_streams_at_length():
    for seed in range(100, 120):
        fuzz(seed, 50_000)


def test_batches_of_one_schema_come_back_and_are_not_copied():
    schema = pa.schema([("x", pa.int64())])
    encoder = BatchEncoder(schema)
    values = pa.array(range(10_000), pa.int64())
    buffers = encoder.encode(pa.record_batch([values], schema=schema))
    assert values.buffers()[1].address in {buffer.address for buffer in buffers}
    assert read_ipc_batch(pa.py_buffer(b"".join(buffers)), schema)["x"].equals(values)
    assert read_ipc_schema(ipc_schema(schema)).equals(schema)


def test_only_what_is_resent_is_numbered():
    assert {FrameType.REQUEST, FrameType.DATA, FrameType.TOKENS, FrameType.OUTCOME} == SEQUENCED
