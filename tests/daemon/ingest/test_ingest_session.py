"""The session against a model of what a producer may do, and every field against what it must not hold."""

import math

import msgpack
import numpy as np
import pytest
from hydrophone_schemas.errors import WireError
from hydrophone_schemas.wire import HEADER, FrameType, encode_control
from hydrophoned.ingest.producers import ProducerRegistry
from hydrophoned.ingest.session import IngestSession
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from ingest_peer import PRODUCER, RecordingSink, data, decoded, frames, hello, open_stream, record_batch, request


class Line:
    """A session without a socket."""

    def __init__(self, sink=None, producers=None, **options):
        self.sink = sink or RecordingSink()
        self.session = IngestSession(self.sink, producers or ProducerRegistry(), self, **options)

    def say(self, *parts):
        """The daemon's reaction and the frames it sends."""
        reaction = self.session.receive(frames(b"".join(parts)), now=9)
        return reaction, decoded(reaction.send)

    def greeted(self, *parts):
        self.say(hello(), *parts)
        return self


def errors(sent):
    return [(body["code"], channel, body["sequence"]) for kind, channel, body in sent if kind is FrameType.ERROR]


def acks(sent):
    return [body["received"] for kind, _, body in sent if kind is FrameType.ACK]


def test_welcome_says_what_the_producer_must_know():
    sink = RecordingSink()
    sink.covered = 7
    _, [(kind, _, body)] = Line(sink, http="http://127.0.0.1:8417", max_frame=1 << 20).say(hello())
    assert kind is FrameType.WELCOME
    assert body.pop("daemon")
    assert body == {
        "protocol": 1,
        "capabilities": [],
        "max_frame": 1 << 20,
        "received": 0,
        "durable": 7,
        "http": "http://127.0.0.1:8417",
    }


def test_one_ack_for_all_frames_of_a_chunk():
    line = Line().greeted(open_stream())
    _, sent = line.say(request(1), data(2), data(3), encode_control(FrameType.PING, {"token": 1}))
    assert acks(sent) == [3]


def test_what_came_before_a_fatal_fault_is_acknowledged_before_it_is_told():
    line = Line().greeted(open_stream())
    reaction, sent = line.say(request(1), data(2), hello(), data(3))
    assert [kind for kind, _, _ in sent] == [FrameType.ACK, FrameType.ERROR]
    assert acks(sent) == [2]
    assert reaction.close
    assert len(line.sink.rows) == 1


def test_a_refused_channel_is_told_once_and_its_rows_are_counted():
    line = Line().greeted(open_stream(1), request(1))
    reaction, sent = line.say(open_stream(2, width=4), data(2, record_batch(width=4), channel=2), data(3))
    assert errors(sent) == [("width_mismatch", 2, 0)]
    assert not reaction.close
    assert acks(sent) == [3]
    assert line.sink.counters == {"errors_width_mismatch": 1, "frames_refused": 1}
    assert len(line.sink.rows) == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"fingerprint": "other"}, "stream_conflict"),
        ({"schema": b"nonsense"}, "bad_schema"),
        ({"schema": b""}, "bad_field"),
        ({"site": "no site"}, "bad_field"),
        ({"model": "a/b"}, "bad_field"),
        ({"version": None}, "bad_field"),
        ({"fingerprint": 5}, "bad_field"),
    ],
)
def test_an_open_that_cannot_be_taken_refuses_its_channel_only(fields, code):
    line = Line().greeted(open_stream(1))
    reaction, sent = line.say(open_stream(2, **fields), data(1, channel=2))
    assert errors(sent) == [(code, 2, 0)]
    assert not reaction.close
    assert line.sink.counters["frames_refused"] == 1


def test_a_channel_can_be_opened_anew():
    line = Line().greeted(open_stream(1, fingerprint=7), request(1))
    line.say(open_stream(1), data(2))
    assert len(line.sink.rows) == 1


def test_a_bad_batch_is_told_and_the_connection_lives_on():
    line = Line().greeted(open_stream(), request(1))
    reaction, sent = line.say(data(2, record_batch(phase=[0, 5, 0])), data(3))
    assert errors(sent) == [("bad_batch", 1, 2)]
    assert not reaction.close
    assert acks(sent) == [3]
    assert len(line.sink.rows) == 1


def test_rows_of_an_unknown_request_come_through_and_are_counted():
    line = Line().greeted(open_stream(), request(1))
    line.say(data(2, record_batch(4, request=np.array([1, 9, 9, 1]))))
    ((_, rows),) = line.sink.rows
    assert rows.request.tolist() == [1001, -1, -1, 1001]
    assert line.sink.counters == {"rows_of_unknown_request": 2}


def test_tokens_outcomes_and_reports_reach_the_sink():
    line = Line().greeted(open_stream(), request(1, attributes={"user": "a", "n": 3, "x": 0.5, "b": True}))
    report = {"streams": [{"stream": "m@1/layers.0", "fires": 3, "dropped": {"buffer_full": 2}}], "future": 1}
    line.say(
        encode_control(
            FrameType.TOKENS, {"request": 1, "sequence": 0, "position": 4, "pieces": ["a", None]}, sequence=2
        ),
        encode_control(
            FrameType.OUTCOME,
            {"id": "r1", "model": "m", "labels": {"ok": None}, "time": 5, "source": "sdk"},
            sequence=3,
        ),
        encode_control(FrameType.REPORT, report),
    )
    assert line.sink.tokens == [(1001, 0, 4, ["a", None])]
    assert line.sink.outcomes == [("r1", "m", {"ok": None}, 5, "sdk")]
    assert line.sink.reports[0][1]["streams"] == [{"stream": "m@1/layers.0", "fires": 3, "dropped": {"buffer_full": 2}}]
    (spec,) = line.sink.requests
    assert (spec.id, spec.producer, spec.attributes["x"]) == ("r1", PRODUCER.hex(), 0.5)
    assert not line.sink.counters


LONG = "x" * 2000
BODIES = {
    FrameType.HELLO: {"protocol": 1, "producer": PRODUCER, "name": "n", "pid": 1, "sdk": "0", "capabilities": []},
    FrameType.REQUEST: {
        "request": 1,
        "id": "r",
        "model": "m",
        "version": "1",
        "started": 5,
        "sample": 1.0,
        "attributes": {},
    },
    FrameType.TOKENS: {"request": 1, "sequence": 0, "position": 0, "pieces": []},
    FrameType.OUTCOME: {"id": "r", "model": "m", "labels": {}, "time": 5, "source": "s"},
    FrameType.REPORT: {"time": 1, "sample": 1.0, "buffer_bytes": 0, "counters": {}, "streams": []},
    FrameType.FLUSH: {"token": 1},
    FrameType.PING: {"token": 1},
}
BAD = {
    FrameType.HELLO: {
        "protocol": [None, -1, "1", True],
        "producer": [None, b"short", "x" * 16, b"x" * 17],
        "name": [5, LONG],
        "pid": [-1, "1"],
        "sdk": [7, LONG],
        "capabilities": ["x", [1], ["x"] * 65],
    },
    FrameType.REQUEST: {
        "request": [-1, None, 1.5],
        "id": ["", None, LONG, b"r"],
        "model": ["", "a b", None, "x" * 101],
        "version": ["a/b", 1],
        "started": [-1, 1 << 62, 0.5],
        "sample": [-0.1, 1.1, math.nan, "1", True],
        "attributes": [
            [],
            {"x": math.nan},
            {"x": math.inf},
            {"x": []},
            {"x": LONG},
            {"x": None},
            {"x": 1 << 63},
            {str(i): i for i in range(65)},
            {"": 1},
            {LONG: 1},
        ],
    },
    FrameType.TOKENS: {
        "request": [None, -1],
        "sequence": [-1, 1 << 16],
        "position": [-1, 1 << 31],
        "pieces": [None, "abc", [1], [LONG], [b"x"]],
    },
    FrameType.OUTCOME: {
        "id": ["", 1],
        "model": ["a b", 5],
        "labels": [None, [], {"x": {}}, {"x": math.inf}, {"x": -(1 << 63) - 1}],
        "time": [-1, None, 1 << 62],
        "source": [None, LONG],
    },
    FrameType.REPORT: {
        "time": [-1, "now"],
        "sample": [2, None],
        "buffer_bytes": [-1, 1.0],
        "counters": [[], {"a": -1}, {"a": "b"}, {str(i): 0 for i in range(257)}],
        "streams": [
            {},
            [1],
            [{}],
            [{"stream": "s", "fires": -1}],
            [{"stream": "s", "dropped": []}],
            [{"stream": "s", "dropped": {"r": 0.5}}],
        ],
    },
    FrameType.FLUSH: {"token": [None, -1, "1", 1 << 63]},
    FrameType.PING: {"token": [None, -1]},
}
CASES = [(kind, name, value) for kind, entries in BAD.items() for name, values in entries.items() for value in values]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_each_field_is_checked_and_named(kind, name, value):
    line = Line() if kind is FrameType.HELLO else Line().greeted()
    try:
        raw = encode_control(kind, BODIES[kind] | {name: value}, sequence=1)
    except OverflowError:  # an integer that msgpack cannot carry need not be refused
        return
    reaction, sent = line.say(raw)
    (error,) = [body for kind, _, body in sent if kind is FrameType.ERROR]
    assert error["code"] == "bad_field"
    inner = isinstance(value, dict | list) and value
    assert inner or f"'{name}" in error["detail"]
    assert "expected" in error["detail"] or "not valid" in error["detail"]
    assert not reaction.close
    assert not [*line.sink.requests, *line.sink.tokens, *line.sink.outcomes, *line.sink.reports]


@pytest.mark.parametrize("kind", [kind for kind in BODIES if kind is not FrameType.HELLO])
def test_the_good_bodies_are_taken(kind):
    line = Line().greeted()
    _, sent = line.say(encode_control(kind, BODIES[kind], sequence=1))
    assert not errors(sent)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x81\x01\x02",
        msgpack.packb([1]),
        msgpack.packb({"token": 1}) + b"\x00",
        b"\x91" * 5000 + b"\xc0",
        b"\x81\xa5token" + b"\x91" * 2000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff" * 4000,
        b"\x81\xa5token\xa1\xff",
        b"\x81\xa5token\xd6\xff\xff\xff\xff",
    ],
    ids=["empty", "c1", "key", "list", "rest", "deep", "deep value", "huge lists", "not utf-8", "truncated ext"],
)
def test_bad_msgpack_ends_the_connection(payload):
    line = Line().greeted()
    reaction, sent = line.say(HEADER.pack(FrameType.PING, 0, 0, len(payload), 0) + payload)
    assert [code for code, _, _ in errors(sent)] == ["bad_frame"]
    assert reaction.close


@pytest.mark.parametrize("sequence", [0, 1 << 63, (1 << 64) - 1])
def test_sequences_out_of_range_are_refused(sequence):
    line = Line().greeted()
    reaction, sent = line.say(request(sequence))
    assert [code for code, _, _ in errors(sent)] == ["bad_frame"]
    assert reaction.close


def test_too_many_channels_and_channel_zero_are_refused():
    reaction, sent = Line(max_channels=2).greeted(open_stream(1), open_stream(2)).say(open_stream(3))
    assert errors(sent) == [("too_many", 3, 0)]
    assert reaction.close
    _, sent = Line().greeted().say(open_stream(0))
    assert errors(sent) == [("unexpected", 0, 0)]


def test_bye_is_answered_with_the_last_ack():
    reaction, sent = Line().greeted(open_stream(), request(1)).say(data(2), encode_control(FrameType.BYE, {}))
    assert acks(sent) == [2]
    assert reaction.close
    assert not errors(sent)


def test_an_error_of_the_daemon_is_handed_to_the_shell_and_told():
    line = Line().greeted(open_stream(), request(1))
    line.sink.fault = MemoryError("none left")
    reaction, sent = line.say(data(2), data(3))
    assert reaction.fault is line.sink.fault
    assert errors(sent) == [("internal", 1, 2)]
    assert reaction.close


class Producing(RuleBasedStateMachine):
    """A producer that numbers its frames, loses connections at any point, and sends again what was not received."""

    @initialize()
    def start(self):
        self.sink, self.producers = RecordingSink(), ProducerRegistry()
        self.line = None
        self.sent = {}  # sequence -> position of the row in it
        self.taken = []  # sequences the daemon ought to have handed on, in order
        self.acknowledged = self.given_up = self.repeated = 0

    def connected(self):
        return self.line is not None

    @precondition(lambda self: self.line is None)
    @rule()
    def connect(self):
        self.line = Line(self.sink, self.producers)
        _, sent = self.line.say(hello(), open_stream())
        self.acknowledged = sent[0][2]["received"]
        assert self.acknowledged == max(self.taken, default=0)

    def put(self, sequences):
        batches = [data(number, record_batch(1, position=[number])) for number in sequences]
        reaction, sent = self.line.say(*batches)
        for number in sequences:
            last = max(self.taken, default=0)
            if number > last:
                self.given_up += number - last - 1
                self.taken.append(number)
            else:
                self.repeated += 1
        assert acks(sent) == ([max(self.taken)] if sequences else [])
        assert not reaction.close
        assert not errors(sent)

    @precondition(connected)
    @rule(count=st.integers(1, 4))
    def send(self, count):
        first = max(self.taken, default=0) + 1
        self.put(range(first, first + count))

    @precondition(connected)
    @rule(back=st.integers(1, 5), count=st.integers(1, 8))
    def send_again(self, back, count):
        first = max(1, max(self.taken, default=0) + 1 - back)
        self.put(range(first, first + count))

    @precondition(connected)
    @rule(gap=st.integers(1, 3))
    def give_up_some(self, gap):
        self.put([max(self.taken, default=0) + 1 + gap])

    @precondition(connected)
    @rule()
    def lose_the_connection(self):
        self.line.session.disconnected()
        self.line = None

    @precondition(connected)
    @rule()
    def connect_while_the_old_connection_is_half_dead(self):
        old = self.line
        self.line = None
        new = Line(self.sink, self.producers)
        reaction, _ = new.say(hello(), open_stream())
        assert reaction.superseded is old
        old.session.disconnected()
        assert next(iter(self.producers)).connection is new
        self.line = new

    @rule()
    def restart_the_daemon(self):
        state = self.producers.state_dict()
        self.producers = ProducerRegistry()
        self.producers.load_state(msgpack.unpackb(msgpack.packb(state)))
        self.line = None

    @rule()
    def everything_came_through_once_and_in_order(self):
        assert [rows.position[0] for _, rows in self.sink.rows] == self.taken
        assert self.sink.counters["frames_missing"] == self.given_up
        assert self.sink.counters["frames_duplicate"] == self.repeated


Producing.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestProducing = Producing.TestCase


def test_wire_error_of_a_frame_names_itself():
    with pytest.raises(WireError, match="not a map"):
        frames(HEADER.pack(FrameType.PING, 0, 0, 1, 0) + b"\x01")[0].control()
