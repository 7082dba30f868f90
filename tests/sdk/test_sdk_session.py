"""The producer's state machine against a model daemon that loses connections, forgets, and refuses."""

import numpy as np
import pyarrow as pa
import pytest
from hydrophone.requests import Request
from hydrophone.session import GREETING_TIMEOUT, MAX_BACKOFF, Flushed, Hangup, Outgoing, Refused, Session, State
from hydrophone.streams import Stream
from hydrophone_schemas.errors import WireError
from hydrophone_schemas.names import StreamId
from hydrophone_schemas.wire import SEQUENCED, Frame, FrameReceiver, FrameType, encode_control
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule


def frame(kind: FrameType, body: dict[str, object], channel: int = 0) -> Frame:
    return FrameReceiver(expect_preamble=False).feed(encode_control(kind, body, channel=channel))[0]


def new_session() -> Session:
    ids = iter(range(1, 1_000_000))
    return Session({"name": "test"}, new_id=lambda: next(ids).to_bytes(16, "little"), random=lambda: 0.5)


def stream(channel: int = 1) -> Stream:
    made = Stream(StreamId("m", "1", f"site{channel}"), "f", channel)
    made.shape(2, "float32")
    return made


def request(number: int) -> Request:
    return Request(number, f"r{number}", model="m", version="1", sample=1.0, attributes={})


def data(of: Stream, content: int, owner: Request) -> Outgoing:
    payload = pa.py_buffer(np.array([content, owner.number], np.uint64))
    return Outgoing(FrameType.DATA, stream=of, buffers=[payload], rows=1, requests=(owner,))


class Peer:
    """What a daemon remembers: per producer the highest sequence, its requests, and what it took in."""

    def __init__(self) -> None:
        self.received: dict[bytes, int] = {}
        self.requests: set[tuple[bytes, int]] = set()
        self.taken: list[int] = []
        self.refused: set[int] = set()
        self.begin()

    def begin(self) -> None:
        self.receiver = FrameReceiver()
        self.opened: set[int] = set()
        self.producer = b""
        self.flushes: list[int] = []

    def feed(self, pieces: list[object]) -> None:
        for piece in pieces:
            for got in self.receiver.feed(memoryview(piece).cast("B")):
                self.take(got)

    def take(self, got: Frame) -> None:
        if got.type is FrameType.HELLO:
            self.producer = got.control()["producer"]
            self.received.setdefault(self.producer, 0)
        elif got.type is FrameType.OPEN:
            self.opened.add(got.channel)
        elif got.type is FrameType.FLUSH:
            self.flushes.append(got.control()["token"])
        if got.type in SEQUENCED:
            if got.sequence <= self.received[self.producer]:
                return
            assert got.sequence == self.received[self.producer] + 1, "a gap"
            self.received[self.producer] = got.sequence
        if got.type is FrameType.REQUEST:
            self.requests.add((self.producer, got.control()["request"]))
        elif got.type is FrameType.DATA:
            assert got.channel in self.opened, "DATA before OPEN"
            content, owner = np.frombuffer(got.payload, np.uint64).tolist()
            assert (self.producer, owner) in self.requests, "rows of a request that was not announced"
            if got.channel not in self.refused:
                self.taken.append(content)

    def welcome(self) -> Frame:
        return frame(FrameType.WELCOME, {"protocol": 1, "max_frame": 1 << 20, "received": self.received[self.producer]})


class Sessions(RuleBasedStateMachine):
    """Whatever happens to connections: nothing twice, nothing lost but what a forgetful daemon had acknowledged."""

    @initialize()
    def begin(self) -> None:
        self.session, self.peer, self.now = new_session(), Peer(), 0.0
        self.streams = [stream(1), stream(2)]
        self.owners = [request(number) for number in range(1, 6)]
        self.content = 0
        self.submitted: list[int] = []
        self.forgotten = False
        self.connected = False

    @rule(which=st.integers(0, 1), owner=st.integers(0, 4))
    def submit(self, which: int, owner: int) -> None:
        self.content += 1
        self.submitted.append(self.content)
        self.session.submit(data(self.streams[which], self.content, self.owners[owner]))

    @precondition(lambda self: not self.connected and self.session.state is State.AWAY)
    @rule()
    def connect(self) -> None:
        self.session.connected(self.now)
        self.connected = True
        self.peer.begin()

    @precondition(lambda self: self.connected)
    @rule(frames=st.integers(1, 6))
    def write(self, frames: int) -> None:
        for _ in range(frames):
            self.peer.feed(self.session.outgoing())

    @precondition(lambda self: self.connected and self.session.state is State.GREETING and self.peer.producer)
    @rule()
    def greet(self) -> None:
        for event in self.session.frame(self.peer.welcome()):
            assert isinstance(event, Hangup)
            assert self.forgotten
            self.lose()

    @precondition(lambda self: self.connected and self.session.state is State.LIVE)
    @rule()
    def acknowledge(self) -> None:
        self.session.frame(frame(FrameType.ACK, {"received": self.peer.received[self.peer.producer]}))

    @precondition(lambda self: self.connected)
    @rule()
    def lose(self) -> None:
        self.session.disconnected(self.now)
        self.connected = False
        assert self.now < self.session.retry_at <= self.now + MAX_BACKOFF

    @precondition(lambda self: not self.connected)
    @rule()
    def restart_daemon_without_memory(self) -> None:
        self.peer.received.clear()
        self.peer.requests.clear()
        self.forgotten = True

    @invariant()
    def bytes_are_counted(self) -> None:
        if hasattr(self, "session"):
            items = [*self.session._sent, *self.session._queue]
            assert self.session.pending_bytes == sum(item.nbytes for item in items)

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        for _ in range(3):  # a forgetful daemon takes one reconnect more
            if not self.connected:
                self.connect()
            if self.session.state is State.GREETING:
                self.write(1)
                self.greet()
        assert self.session.state is State.LIVE
        self.session.flush(7)
        while pieces := self.session.outgoing():
            self.peer.feed(pieces)
        self.acknowledge()
        assert self.session.unacknowledged == self.session.pending_bytes == 0
        assert self.peer.flushes == [7]
        if self.forgotten:  # what it had received before it forgot may come again, what it acknowledged may not
            assert set(self.peer.taken) == set(self.submitted)
        else:
            assert self.peer.taken == self.submitted


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def live(session: Session, peer: Peer) -> None:
    session.connected(0.0)
    peer.feed(session.outgoing())
    session.frame(peer.welcome())


@pytest.fixture
def pair() -> tuple[Session, Peer]:
    session, peer = new_session(), Peer()
    live(session, peer)
    return session, peer


def test_backoff_doubles_up_to_its_bound_and_starts_again_after_a_welcome() -> None:
    session = new_session()
    waits = []
    for _ in range(9):
        session.disconnected(10.0)
        waits.append((session.retry_at - 10.0) / 0.75)  # random() is 0.5 here
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])
    live(session, Peer())
    assert not session.failing


def test_the_greeting_has_a_deadline() -> None:
    session = new_session()
    session.connected(3.0)
    assert session.deadline == 3.0 + GREETING_TIMEOUT


def test_flush_is_written_after_what_was_submitted_before_it_and_before_what_follows(
    pair: tuple[Session, Peer],
) -> None:
    session, peer = pair
    of, owner = stream(), request(1)
    session.submit(data(of, 1, owner))
    session.flush(5)
    session.submit(data(of, 2, owner))
    while not peer.flushes:
        peer.feed(session.outgoing())
    assert peer.taken == [1]
    assert session.frame(frame(FrameType.FLUSHED, {"token": 5})) == [Flushed(5)]


def test_an_unanswered_flush_is_asked_again_after_a_reconnect(pair: tuple[Session, Peer]) -> None:
    session, peer = pair
    session.flush(5)
    peer.feed(session.outgoing())
    session.disconnected(0.0)
    peer.begin()
    live(session, peer)
    peer.feed(session.outgoing())
    assert peer.flushes == [5]


def test_rows_of_a_refused_stream_are_dropped_under_the_code_and_tried_again_on_the_next_connection(
    pair: tuple[Session, Peer],
) -> None:
    session, peer = pair
    of, owner = stream(), request(1)
    session.submit(data(of, 1, owner))
    while pieces := session.outgoing():
        peer.feed(pieces)
    error = {"code": "stream_conflict", "detail": "other weights", "fatal": False}
    assert session.frame(frame(FrameType.ERROR, error, channel=1)) == [Refused(of, "stream_conflict", "other weights")]
    session.submit(data(of, 2, owner))
    assert session.outgoing() == []
    assert of.dropped == {"stream_conflict": 1}
    session.disconnected(0.0)
    peer.begin()
    live(session, peer)
    session.submit(data(of, 3, owner))
    while pieces := session.outgoing():
        peer.feed(pieces)
    assert peer.taken == [1, 3]


def test_a_fatal_error_hangs_up(pair: tuple[Session, Peer]) -> None:
    events = pair[0].frame(frame(FrameType.ERROR, {"code": "shutting_down", "detail": "bye", "fatal": True}))
    assert isinstance(events[-1], Hangup)


@pytest.mark.parametrize("received", [99, -1, "1", None, True])
def test_an_acknowledgement_of_what_was_not_sent_breaks_the_protocol(
    pair: tuple[Session, Peer], received: object
) -> None:
    with pytest.raises(WireError):
        pair[0].frame(frame(FrameType.ACK, {"received": received}))


def test_what_cannot_be_encoded_is_counted_and_leaves_no_gap(pair: tuple[Session, Peer]) -> None:
    session, peer = pair
    session.submit(Outgoing(FrameType.OUTCOME, body={"labels": {"x": "y" * (5 << 20)}}))
    session.submit(data(stream(), 1, request(1)))
    while pieces := session.outgoing():
        peer.feed(pieces)
    assert peer.taken == [1]
    assert session.counters["frames_unencodable"] == 1


def test_goodbye_comes_last(pair: tuple[Session, Peer]) -> None:
    session, peer = pair
    session.submit(data(stream(), 1, request(1)))
    session.bye()
    while pieces := session.outgoing():
        peer.feed(pieces)
    assert peer.taken == [1]
    assert session.state is State.CLOSED
