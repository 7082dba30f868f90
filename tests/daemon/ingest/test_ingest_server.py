"""The server against peers that are well, ill, hostile and absent."""

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest
from hydrophone_schemas.wire import HEADER, PREAMBLE, FrameType, data_header, encode_control
from hydrophoned.ingest.connection import GREETING_SECONDS, LINGER_SECONDS
from hydrophoned.ingest.errors import CannotListen
from hydrophoned.ingest.producers import ProducerRegistry
from hydrophoned.ingest.server import IngestServer
from ingest_peer import Limits, RecordingSink, data, hello, open_stream, record_batch, request, until


async def ended_with(peer, code):
    """The connection ends, and the last thing said is this fatal error."""
    kind, _, body = (await peer.end())[-1]
    assert kind is FrameType.ERROR
    assert (body["code"], body["fatal"]) == (code, True)
    return body["detail"]


def test_rows_travel_from_bytes_to_the_sink(harness):
    async def test():
        peer = await harness.connect()
        welcome = await peer.greet(open_stream(), request(1), data(2))
        assert welcome["http"] == "http://127.0.0.1:1"
        assert (await peer.until(FrameType.OPENED))["stream"] == "m@1/layers.0"
        while (await peer.until(FrameType.ACK))["received"] < 2:
            pass
        ((key, rows),) = harness.sink.rows
        assert key == 100
        assert rows.request.tolist() == [1001] * 3

    harness.run(test)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_preamble"),
        (os.urandom(4096).replace(b"H", b"h"), "bad_preamble"),
        (PREAMBLE + HEADER.pack(99, 0, 0, 0, 0), "unknown_type"),
        (PREAMBLE + HEADER.pack(FrameType.HELLO, 1, 0, 0, 0), "bad_frame"),
        (PREAMBLE + HEADER.pack(FrameType.HELLO, 0, 0, 3, 0) + b"\xc1\xc1\xc1", "bad_frame"),
        (PREAMBLE + HEADER.pack(FrameType.DATA, 0, 0, (1 << 20) + 1, 1), "frame_too_large"),
        (PREAMBLE + HEADER.pack(FrameType.HELLO, 0, 0, 0xFFFFFFFF, 0), "frame_too_large"),
        (PREAMBLE + hello(protocol=2), "protocol_version"),
        (PREAMBLE + data(1), "unexpected"),
        (PREAMBLE + hello() + hello(), "unexpected"),
        (PREAMBLE + hello() + encode_control(FrameType.ACK, {}), "unexpected"),
        (PREAMBLE + hello() + data(1, channel=7), "unexpected"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_told_why_and_the_others_go_on(harness, sent, code):
    async def test():
        peer = await harness.connect()
        peer.send(sent)
        await ended_with(peer, code)
        assert harness.sink.counters[f"errors_{code}"] == 1
        await harness.healthy()

    harness.run(test)


def test_who_does_not_greet_is_shut_out(harness):
    async def test():
        peer = await harness.connect()
        peer.send(PREAMBLE[:3])
        await until(lambda: harness.server.connections)
        harness.clock.now += GREETING_SECONDS - 1
        harness.server.check()
        assert not harness.sink.counters
        harness.clock.now += 2
        harness.server.check()
        assert "no HELLO" in await ended_with(peer, "timeout")
        assert harness.sink.counters["connections_timed_out"] == 1

    harness.run(test)


def test_half_a_frame_then_silence_is_a_timeout_but_idleness_is_not(harness):
    async def test():
        idle, stuck = await harness.connect(), await harness.connect()
        await idle.greet(producer=b"i" * 16)
        await stuck.greet(open_stream(), request(1), data(2)[:-5])
        while (await stuck.until(FrameType.ACK))["received"] < 1:
            pass
        harness.clock.now += 31
        harness.server.check()
        assert "nothing followed" in await ended_with(stuck, "timeout")
        idle.send(encode_control(FrameType.PING, {"token": 5}))
        assert await idle.until(FrameType.PONG) == {"token": 5}

    harness.run(test)


def test_the_end_of_a_peer_within_a_frame_is_counted(harness):
    async def test():
        peer = await harness.connect()
        await peer.greet(data(1)[:40])
        peer.close()
        await harness.count("connections_cut")
        await harness.healthy()

    harness.run(test)


def test_a_peer_that_never_reads_is_cut(harness):
    async def test():
        peer = await harness.connect()
        await peer.greet()
        ping = encode_control(FrameType.PING, {"token": 1 << 62}) * 4096

        async def flood():
            while True:
                peer.send(ping)
                await peer.writer.drain()

        with pytest.raises(ConnectionError):
            await flood()
        assert harness.sink.counters["connections_unread"] == 1
        await harness.healthy()

    harness.run(test)


def test_a_peer_that_does_not_read_its_last_frames_does_not_stay(harness):
    async def test():
        peer = await harness.connect()
        await peer.greet()
        pongs = encode_control(FrameType.PING, {"token": 1 << 62}) * 20_000
        peer.send(pongs + encode_control(FrameType.BYE, {}))
        (connection,) = harness.server._open
        await until(lambda: connection.closed)
        assert harness.server.connections == 1
        harness.clock.now += LINGER_SECONDS + 1
        harness.server.check()
        await harness.empty()

    harness.run(test)


def test_one_connection_too_many_is_refused(harness):
    async def test():
        first = await harness.connect()
        await first.greet()
        refused = await harness.connect()
        assert "max_connections" in await ended_with(refused, "too_many")
        assert harness.sink.counters["connections_rejected"] == 1
        first.close()
        refused.close()
        await harness.empty()
        await harness.healthy()

    harness.run(test, max_connections=1)


def test_the_newer_connection_of_a_producer_wins_and_resumes(harness):
    async def test():
        old, new = await harness.connect(), await harness.connect()
        await old.greet(open_stream(), request(1), data(2))
        while (await old.until(FrameType.ACK))["received"] < 2:
            pass
        assert (await new.greet())["received"] == 2
        await ended_with(old, "superseded")
        new.send(open_stream(), data(2), data(3))
        while (await new.until(FrameType.ACK))["received"] < 3:
            pass
        assert len(harness.sink.rows) == 2
        assert harness.sink.counters == {"connections_superseded": 1, "frames_duplicate": 1}

    harness.run(test)


def test_two_producers_may_send_the_same_stream(harness):
    async def test():
        first, second = await harness.connect(), await harness.connect()
        await first.greet(open_stream(), request(1), data(2), producer=b"a" * 16)
        await second.greet(open_stream(), request(1), data(2), producer=b"b" * 16)
        for peer in (first, second):
            while (await peer.until(FrameType.ACK))["received"] < 2:
                pass
        (one, first_rows), (other, second_rows) = harness.sink.rows
        assert one == other
        assert {*first_rows.request} != {*second_rows.request}, "each has its own request 1"

    harness.run(test)


def test_an_error_of_the_daemon_ends_one_connection_and_is_logged(harness, caplog):
    async def test():
        peer = await harness.connect()
        harness.sink.fault = RuntimeError("a defect")
        await peer.greet(open_stream(), request(1), data(2))
        await ended_with(peer, "internal")
        harness.sink.fault = None
        await harness.healthy()
        assert "a defect" in caplog.text
        again = await harness.connect()
        assert (await again.greet())["received"] == 2, "what the daemon failed on does not come again for ever"

    harness.run(test)


def test_flushes_that_wait_share_the_next_one(harness):
    async def test():
        peer = await harness.connect()
        harness.sink.may_flush.clear()
        await peer.greet(*(encode_control(FrameType.FLUSH, {"token": token}) for token in range(5)))
        await until(lambda: harness.sink.flushes)
        peer.send(*(encode_control(FrameType.FLUSH, {"token": token}) for token in range(5, 9)))
        peer.send(encode_control(FrameType.PING, {"token": 1}))
        await peer.until(FrameType.PONG)
        harness.sink.may_flush.set()
        assert [(await peer.until(FrameType.FLUSHED))["token"] for _ in range(9)] == list(range(9))
        assert harness.sink.flushes == 2

    harness.run(test)


def test_a_flush_that_fails_is_told(harness):
    async def test():
        peer = await harness.connect()
        harness.sink.fault = RuntimeError("the store is full")
        await peer.greet(encode_control(FrameType.FLUSH, {"token": 3}))
        error = await peer.until(FrameType.ERROR)
        assert (error["code"], error["fatal"]) == ("flush_failed", False)
        assert harness.sink.counters["flushes_failed"] == 1

    harness.run(test)


def test_more_flushes_than_may_wait_end_the_connection(harness):
    async def test():
        peer = await harness.connect()
        harness.sink.may_flush.clear()
        await peer.greet(*(encode_control(FrameType.FLUSH, {"token": token}) for token in range(3000)))
        await ended_with(peer, "too_many")

    harness.run(test)


def test_closing_tells_every_peer_and_leaves_no_socket(harness):
    async def test():
        peer = await harness.connect()
        await peer.greet()
        await harness.server.close()
        await ended_with(peer, "shutting_down")

    harness.run(test)
    assert not harness.path.exists()


def test_closing_waits_for_no_peer_that_hangs(harness):
    async def test():
        peer = await harness.connect()
        await peer.greet()
        await harness.server.close()
        await harness.empty()

    harness.run(test)


def test_tcp_serves_loopback(harness):
    async def test():
        host, port = harness.server.tcp_address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREAMBLE + hello())
        assert await reader.readexactly(1) == bytes([FrameType.WELCOME])
        writer.close()
        await writer.wait_closed()

    harness.run(test, tcp="127.0.0.1:0")


@pytest.mark.parametrize("address", ["0.0.0.0:8416", "192.168.0.1:8416", "example.org:8416", "[::]:8416"])
def test_tcp_beyond_loopback_is_refused(tmp_path, address):
    with pytest.raises(CannotListen, match="loopback"):
        start_and_close(Limits(tmp_path / "s", tcp=address))
    assert not (tmp_path / "s").exists(), "what was opened before is closed again"


def start_and_close(limits, **options):
    async def body():
        server = IngestServer(RecordingSink(), ProducerRegistry(), limits, lambda: 0)
        await server.start(**options)
        try:
            found = os.stat(limits.socket) if limits.socket else None  # noqa: PTH116  nothing else runs
            return server.socket_path, found
        finally:
            await server.close()

    return asyncio.run(body())


def test_the_socket_has_its_mode_and_its_folder_is_private(tmp_path):
    previous = os.umask(0)
    try:
        _, found = start_and_close(Limits(tmp_path / "run" / "ingest.sock", socket_mode=0o660))
    finally:
        os.umask(previous)
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path):
    path = tmp_path / "ingest.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    start_and_close(Limits(path))
    assert not path.exists()


def test_a_living_daemon_is_not_displaced(harness):
    async def test():
        second = IngestServer(RecordingSink(), ProducerRegistry(), Limits(harness.path), lambda: 0)
        with pytest.raises(CannotListen, match="another daemon listens"):
            await second.start()
        await harness.healthy()

    harness.run(test)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "ingest.sock"
    path.write_text("precious")
    with pytest.raises(CannotListen, match="not a socket"):
        start_and_close(Limits(path))
    assert path.read_text() == "precious"


def test_a_folder_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(CannotListen, match="everybody may write"):
        start_and_close(Limits(tmp_path / "ingest.sock"))


def test_the_file_of_a_successor_is_left(harness):
    async def test():
        harness.path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(harness.path))
            await harness.server.close()

    harness.run(test)
    assert harness.path.exists()


def test_a_socket_that_is_passed_in_is_used_and_its_file_left(tmp_path):
    path = tmp_path / "given.sock"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen()
        used, _ = start_and_close(Limits(tmp_path / "other.sock")._replace(socket=None), inherited=[given.dup()])
    assert used == str(path)
    assert path.exists()


def test_a_passed_socket_beyond_loopback_is_refused(tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as given, pytest.raises(CannotListen, match="loopback"):
        start_and_close(Limits(None), inherited=[given])


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_fifty_connections_leave_no_descriptor_open(harness):
    async def test():
        await harness.healthy()
        harness.peers[-1].close()
        await harness.empty()
        before = descriptors()
        for _ in range(50):
            peer = await harness.connect()
            await peer.greet(open_stream(), request(1), data(2, record_batch(1)))
            peer.close()
            await peer.writer.wait_closed()
        await harness.empty()
        assert descriptors() == before

    harness.run(test)


def test_an_oversized_header_reserves_nothing(harness):
    async def test():
        peer = await harness.connect()
        await peer.greet(open_stream(), data_header((1 << 20) + 1, channel=1, sequence=1))
        detail = await ended_with(peer, "frame_too_large")
        assert "1048577" in detail
        assert "1048576" in detail

    harness.run(test)
