import random

import pyarrow as pa
import pytest
from hydrophone_schemas import tables
from hydrophone_schemas.activations import DTYPES, MAX_WIDTH, activation_schema, read_schema
from hydrophone_schemas.errors import InvalidName, SchemaError
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.places import Address, parse_address, socket_candidates, user_socket
from hydrophone_schemas.wire import ipc_schema, read_ipc_schema
from hypothesis import given
from hypothesis import strategies as st


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}(:input|:output)?(\[[0-9]{1,3}\])?", fullmatch=True),
)
def test_stream_ids_come_back(model, version, site):
    assert StreamId.parse(str(StreamId(model, version, site))) == (model, version, site)


@pytest.mark.parametrize(
    "text",
    ["", "m", "m@1", "m/s", "@1/s", "m@/s", "m@1/", "m n@1/s", "m@1/s t", "m@1/s\n", "m\n@1/s", "é@1/s", "m@1/s:in"],
)
def test_what_is_no_stream_id_is_refused_and_shown(text):
    with pytest.raises(InvalidName, match=r"not valid|not of the form"):
        StreamId.parse(text)


@pytest.mark.parametrize(
    "address", [Address(path="/run/h.sock"), Address(host="127.0.0.1", port=8416), Address(host="localhost", port=0)]
)
def test_addresses_come_back(address):
    assert parse_address(str(address)) == address


def test_an_ipv6_address_is_read():
    assert parse_address("tcp:[::1]:8416") == Address(host="::1", port=8416)


@pytest.mark.parametrize("text", ["", "h", "h:", ":1", "h:x", "h:65536", "unix:", "/" + "x" * 200])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(SchemaError):
        parse_address(text)


def test_the_variable_names_the_only_socket(monkeypatch):
    monkeypatch.setenv("HYDROPHONE_SOCKET", "/x/y.sock")
    assert [str(path) for path in socket_candidates()] == ["/x/y.sock"]
    monkeypatch.delenv("HYDROPHONE_SOCKET")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert str(user_socket()) == "/run/user/7/hydrophone/ingest.sock"
    assert socket_candidates()[0] == user_socket()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 576, MAX_WIDTH])
def test_activation_schemas_come_back_through_a_message(width, dtype):
    assert read_schema(read_ipc_schema(ipc_schema(activation_schema(width, dtype)))) == (width, dtype)


def test_other_schemas_are_refused():
    good = activation_schema(4, "float32")
    for bad in (
        good.remove_metadata(),
        good.remove(0),
        good.append(pa.field("extra", pa.int32())),
        good.with_metadata({"hydrophone.dtype": "float16"}),
        good.with_metadata({"hydrophone.dtype": "float64"}),
        good.set(5, pa.field("time", pa.timestamp("ns"), nullable=False)),
        good.set(2, pa.field("position", pa.int32())),
        pa.schema([]),
    ):
        with pytest.raises(SchemaError):
            read_schema(bad)
    for width, dtype in ((0, "float32"), (MAX_WIDTH + 1, "float32"), (4, "int8")):
        with pytest.raises(SchemaError):
            activation_schema(width, dtype)


def fuzz_schemas(seed, count):
    generator = random.Random(seed)  # noqa: S311  a reproducible test
    good = ipc_schema(activation_schema(4, "float32"))
    for _ in range(count):
        payload = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            payload[generator.randrange(len(payload))] = generator.choice(
                [0, 1, 127, 128, 255, generator.randrange(256)]
            )
        try:
            width, dtype = read_schema(read_ipc_schema(bytes(payload)))
        except SchemaError:
            continue
        assert 1 <= width <= MAX_WIDTH
        assert dtype in DTYPES


def test_mutated_schema_messages_are_refused_or_schemas():
    fuzz_schemas(seed=1, count=2000)


@pytest.mark.long
def test_mutated_schema_messages_at_length():
    for seed in range(100, 120):
        fuzz_schemas(seed, 20_000)


def test_tables_have_distinct_columns():
    found = {name: schema for name, schema in vars(tables).items() if isinstance(schema, pa.Schema)}
    assert found
    for name, schema in found.items():
        assert len(set(schema.names)) == len(schema.names), name
