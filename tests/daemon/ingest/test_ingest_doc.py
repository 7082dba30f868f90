"""The specification against the code: its example is decoded, its tables are the enums."""

import re
from pathlib import Path

from hydrophone_schemas.wire import FATAL, SEQUENCED, ErrorCode, FrameReceiver, FrameType
from hydrophoned.ingest.producers import ProducerRegistry
from hydrophoned.ingest.session import IngestSession
from ingest_peer import RecordingSink, frames

DOC = (Path(__file__).parents[3] / "docs" / "reference" / "wire.md").read_text()


def examples():
    blocks = re.findall(r"```hex\n(.*?)```", DOC, re.DOTALL)
    return [bytes.fromhex("".join(line.partition(";")[0] for line in block.splitlines())) for block in blocks]


def test_the_worked_example_is_understood_and_answered_as_it_says():
    said, answered = examples()
    sink = RecordingSink()
    session = IngestSession(sink, ProducerRegistry(), None)
    reaction = session.receive(FrameReceiver().feed(said), now=0)
    ((_, rows),) = sink.rows
    assert rows.activation.tolist() == [[1.0, -0.5]]
    assert (rows.request[0], rows.position[0], rows.phase[0], rows.token[0]) == (1001, 4, 1, 7)
    assert rows.time[0] == 1_700_000_000_000_000
    assert sink.outcomes == [("r", "", {"ok": True}, 1_700_000_000_000_001, "sdk")]
    assert not sink.counters
    welcome, *others = reaction.send
    assert frames(welcome)[0].type is FrameType.WELCOME
    assert b"".join(others) == answered


def test_the_table_of_types_is_complete():
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \| \w+ \| (yes)? ?\|", DOC, re.MULTILINE)
    assert {(int(number), name, bool(yes)) for number, name, yes in rows} == {
        (kind.value, kind.name, kind in SEQUENCED) for kind in FrameType
    }


def test_the_table_of_errors_is_complete():
    rows = re.findall(r"^\| ([a-z_]+) \| (yes|no) \| ", DOC, re.MULTILINE)
    assert {code: fatal == "yes" for code, fatal in rows} == {str(code): code in FATAL for code in ErrorCode}
