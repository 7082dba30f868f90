import io

import pytest
from hydrophone.demo.corpus import Document, builtin_documents, chunks, read_documents, turning
from hydrophone.demo.errors import DemoError
from hydrophone.demo.figures import Figures, Meter
from hydrophone.demo.telling import context_line, most_telling
from hydrophone.demo.view import panel
from hydrophone.tap import Status
from rich.console import Console


class Words:
    """A tokenizer that gives each word a number."""

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}


def test_builtin_text_is_prose_and_code():
    documents = builtin_documents()
    assert {document.kind for document in documents} == {"prose", "code"}
    assert sum(len(document.text) for document in documents) > 2_000_000


def test_chunks_alternate_between_kinds_and_repeat_with_the_seed():
    documents = [Document(f"{kind}{i}", kind, "word " * 500) for kind in ("a", "b") for i in range(3)]
    first = [next(stream) for stream in [chunks(documents, Words(), 32, 1)] for _ in range(8)]
    again = [next(stream) for stream in [chunks(documents, Words(), 32, 1)] for _ in range(8)]
    assert first == again
    assert [chunk.kind for chunk in first] == ["a", "b"] * 4
    assert all(16 <= len(chunk.token_ids) <= 32 for chunk in first)


def test_text_turns_from_one_kind_to_the_others():
    documents = [Document(f"{kind}{i}", kind, f"{kind} " * 500) for kind in ("a", "b", "c") for i in range(3)]
    stream = turning(documents, Words(), 32, 1, turn=160)
    first = [next(stream) for _ in range(9)]
    assert [chunk.kind for chunk in first] == ["a"] * 5 + ["b", "c", "b", "c"]
    assert sorted(chunk.document for chunk in first[:3]) == ["a0", "a1", "a2"]
    again = turning(documents, Words(), 32, 1, turn=160)
    assert [next(again) for _ in range(9)] == first
    alone = turning(documents[:3], Words(), 32, 1, turn=10)
    assert {next(alone).kind for _ in range(5)} == {"a"}
    with pytest.raises(DemoError, match="16 tokens"):
        next(turning([Document("x", "text", "a b c")], Words(), 32, 0, turn=9))


def test_text_that_is_too_short_or_missing_is_an_error(tmp_path):
    with pytest.raises(DemoError, match="16 tokens"):
        next(chunks([Document("x", "text", "a b c")], Words(), 32, 0))
    with pytest.raises(DemoError, match=r"absent\.txt"):
        read_documents([tmp_path / "absent.txt"])


def example(piece, value=1.0):
    return {"value": value, "context": ["before", piece, "after"], "context_index": 1}


def test_telling_features_are_those_whose_examples_agree():
    agree = ({"index": 1, "rate": 0.1}, [example(" The"), example("the")] * 4)
    differ = ({"index": 2, "rate": 0.9}, [example(f"w{i}") for i in range(8)])
    few = ({"index": 3, "rate": 0.1}, [example("x")] * 2)
    no_text = ({"index": 4, "rate": 0.1}, [{"value": 1.0, "context": None, "context_index": None}] * 8)
    (first, second) = most_telling([few, differ, agree, no_text], 5)
    assert (first.feature, first.shared, first.agreement) == (1, "the", 1.0)
    assert second.feature == 2


def test_only_one_feature_is_told_for_a_shared_token():
    features = [({"index": i, "rate": 0.1 * i}, [example("the")] * 8) for i in range(1, 4)]
    (only,) = most_telling(features, 5)
    assert only.feature == 3


def test_the_firing_token_is_marked_and_line_ends_are_visible():
    line = context_line({"value": 2.5, "context": ["a\n", "b", "c" * 100], "context_index": 1}).plain
    assert "a⏎[b]c" in line
    assert "\n" not in line


def test_a_stream_without_a_dictionary_yet_is_read_as_unknown():
    unknown = dict.fromkeys(
        ("rows_learned", "fvu", "l0", "dead_fraction", "features_alive", "features_fired", "features")
    )
    meter, tap = (
        Meter(),
        Status(
            connected=True,
            rate=1.0,
            forwards=1,
            buffer_bytes=0,
            dropped={"full": 2},
            caught={},
            counters={},
            streams=[],
        ),
    )
    for tokens in (10, 20):
        figures = meter.read(tokens, tap, {"rows_received": 5, "rows_dropped": {"queue_full": 1}} | unknown)
    assert (figures.rows_received, figures.rows_dropped, figures.rows_learned, figures.fvu) == (5, 3, 0, None)


def test_the_panel_shows_unknown_as_a_dash():
    console = Console(file=io.StringIO(), width=110)
    console.print(panel(Figures(), [], 100, "m@1/s"))
    shown = console.file.getvalue()
    assert "fvu" in shown
    assert "—" in shown


def test_a_long_course_of_fvu_fits_the_panel():
    console = Console(file=io.StringIO(), width=110)
    console.print(panel(Figures(), [1 - i / 1000 for i in range(599)], 100, "m@1/s"))
    (line,) = [line for line in console.file.getvalue().splitlines() if "over time" in line]
    assert line.count("█") >= 1
    assert sum(char in "▁▂▃▄▅▆▇█" for char in line) <= 60
