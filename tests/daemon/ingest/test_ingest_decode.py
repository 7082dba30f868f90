"""Arrow messages to rows: what is valid comes through bit for bit, and nothing else comes through at all."""

import random
import struct

import numpy as np
import pyarrow as pa
import pytest
from hydrophone_schemas.activations import activation_schema
from hydrophone_schemas.errors import WireError
from hydrophone_schemas.wire import BatchEncoder
from hydrophoned.ingest.decode import decode_rows
from hydrophoned.ingest.layout import record_batch_layout
from hypothesis import given
from hypothesis import strategies as st
from ingest_peer import WIDTH, message, record_batch

DTYPES = ("float32", "float16", "bfloat16")


def decode(payload, *, width=WIDTH, dtype="float32"):
    return decode_rows(pa.py_buffer(payload), width, dtype, lambda number: (number + 1000) % (1 << 62))


def refused(payload, match, **options):
    with pytest.raises(WireError, match=match) as caught:
        decode(payload, **options)
    assert caught.value.code == "bad_batch"


@given(count=st.integers(0, 70), width=st.integers(1, 20), dtype=st.sampled_from(DTYPES), start=st.integers(0, 5))
def test_rows_are_what_was_sent(count, width, dtype, start):
    batch = record_batch(count + start, width=width, dtype=dtype).slice(start)
    rows = decode(message(batch), width=width, dtype=dtype)
    sent = batch.column("activation").flatten().to_numpy(zero_copy_only=False).reshape(count, width)
    assert rows.activation.tobytes() == sent.tobytes()
    assert rows.activation.shape == (count, width)
    assert rows.position.tolist() == batch["position"].to_pylist()
    assert rows.token.tolist() == [-1 if token is None else token for token in batch["token"].to_pylist()]
    assert rows.time.tolist() == batch["time"].cast(pa.int64()).to_pylist()
    assert rows.request.tolist() == [number + 1000 for number in batch["request"].to_pylist()]
    assert (rows.dtype, rows.count) == (dtype, count)


def test_activations_are_not_copied():
    payload = pa.py_buffer(message(record_batch()))
    rows = decode_rows(payload, WIDTH, "float32", lambda number: number)
    assert payload.address <= rows.activation.ctypes.data < payload.address + payload.size


def test_requests_of_a_batch_are_mapped_each():
    batch = record_batch(5, request=np.array([7, 2, 7, 3, 2]))
    assert decode(message(batch)).request.tolist() == [1007, 1002, 1007, 1003, 1002]


def test_nan_and_infinity_pass():
    batch = record_batch(2)
    values = np.array([np.nan, np.inf] * WIDTH, np.float32)
    items = pa.Array.from_buffers(pa.float32(), len(values), [None, pa.py_buffer(values)])
    activation = pa.Array.from_buffers(batch.schema.field("activation").type, 2, [None], children=[items])
    assert not np.isfinite(decode(message(batch.set_column(6, batch.schema.field(6), activation))).activation).any()


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"position": [0, -1, 2]}, "'position' has values from -1 to 2"),
        ({"phase": [0, 1, 2]}, "'phase' has values from 0 to 2; expected 0..1"),
        ({"time": [0, -5, 1]}, "'time' has values from -5"),
        ({"time": [0, 1 << 62, 1]}, "'time' has values"),
    ],
)
def test_values_out_of_range_are_refused(columns, match):
    refused(message(record_batch(3, **columns)), match)


@pytest.mark.parametrize("column", ["request", "sequence", "position", "phase", "time"])
def test_nulls_are_refused(column):
    batch = record_batch(3)
    index = batch.schema.get_field_index(column)
    nulled = pa.array([None] * 3, batch.schema.field(column).type)
    schema = batch.schema.set(index, pa.field(column, nulled.type))
    arrays = [nulled if i == index else array for i, array in enumerate(batch.columns)]
    refused(message(pa.RecordBatch.from_arrays(arrays, schema=schema)), f"'{column}' has 3 nulls")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compression_is_refused_before_anything_is_decompressed(codec):
    if not pa.Codec.is_available(codec):
        pytest.skip(f"pyarrow was built without {codec}")
    batch = record_batch(2000)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(batch)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    reader.read_next_message()
    refused(reader.read_next_message().serialize().to_pybytes(), "compressed")


def test_other_messages_are_refused():
    refused(bytes(activation_schema(WIDTH, "float32").serialize()), "kind 1")
    refused(b"", "no room")
    refused(message(record_batch())[:-8], "body should have")
    refused(message(record_batch()) + bytes(8), "body should have")
    refused(message(pa.record_batch({"x": [1, 2, 3]})), "nodes")


@pytest.mark.parametrize("options", [{"width": WIDTH * 2}, {"width": WIDTH // 2}, {"dtype": "float16"}])
def test_rows_of_another_form_than_the_channel_are_refused_or_too_large(options):
    # the bytes of a float32 batch would do for float16 rows: the slack of the size check decides for large ones
    payload = message(record_batch(20_000))
    refused(payload, "expected|need", **options)


def test_few_rows_cannot_keep_much_memory():
    batch = record_batch(3)
    huge = message(record_batch(40_000))
    size = struct.unpack_from("<i", message(batch), 4)[0]
    small = bytearray(message(batch)[: 8 + size])
    body_length = len(message(batch)) - 8 - size
    place = small.index(struct.pack("<q", body_length))
    struct.pack_into("<q", small, place, body_length + len(huge) // 8 * 8)
    refused(bytes(small) + message(batch)[8 + size :] + huge[: len(huge) // 8 * 8], "do not need")


def mutations(payload, generator):
    """A message with a few bytes changed, numbers replaced, or a piece cut out, mostly in its metadata."""
    changed = bytearray(payload)
    head = struct.unpack_from("<i", payload, 4)[0] + 8
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(min(head, len(changed)) if generator.random() < 0.9 else len(changed))
        kind = generator.randrange(4)
        if kind == 0:
            changed[place] = generator.randrange(256)
        elif kind == 1:
            value = generator.choice([0, 1, -1, 7, 8, 1 << 31, -(1 << 31), 1 << 62, -(1 << 63), (1 << 63) - 1, 1 << 40])
            place = place // 8 * 8
            changed[place : place + 8] = struct.pack("<q", value)
        elif kind == 2:
            changed[place] ^= 1 << generator.randrange(8)
        else:
            del changed[place : place + generator.randint(1, 16)]
            changed += bytes(generator.randint(0, 16))
    return bytes(changed)


def fuzz(seed, count):
    generator = random.Random(seed)  # noqa: S311  a reproducible test
    compared = 0
    for number in range(count):
        dtype = generator.choice(DTYPES)
        batch = record_batch(generator.choice([0, 1, 3, 17]), dtype=dtype)
        payload = mutations(message(batch), generator)
        try:
            rows = decode(payload, dtype=dtype)
        except WireError as error:
            assert error.code == "bad_batch", (seed, number)  # noqa: PT017  either outcome is right
            continue
        layout = record_batch_layout(memoryview(payload))
        assert rows.count == layout.rows
        assert rows.nbytes <= len(payload) + 8 * rows.count, (seed, number)
        try:
            # what was accepted lies within its bytes, so that Arrow can be trusted with it
            read = pa.ipc.read_record_batch(pa.py_buffer(payload), batch.schema)
        except (pa.ArrowException, OSError):
            continue  # Arrow verifies parts of the metadata, too, that rows do not depend on
        read.validate()
        compared += 1
        if read.num_rows:
            assert read["activation"].flatten().to_numpy(zero_copy_only=False).tobytes() == rows.activation.tobytes()
    return compared


def test_mutated_batches_are_refused_or_read_as_arrow_reads_them():
    assert fuzz(seed=1, count=1500) > 20, "the mutations are too wild to show that anything is still read"


@pytest.mark.long
def test_mutated_batches_at_length():
    for seed in range(100, 140):
        fuzz(seed, 20_000)


def test_the_encoder_of_a_slice_writes_only_the_slice():
    batch = record_batch(10_000).slice(5_000, 3)
    assert sum(map(len, BatchEncoder(batch.schema).encode(batch))) < 1500
