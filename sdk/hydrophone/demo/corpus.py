"""Real text that every CPython has: its reference documentation (prose) and its standard library (code)."""

import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hydrophone.demo.errors import DemoError


class Document(NamedTuple):
    """A text and what it is."""

    name: str
    kind: str
    text: str


class Chunk(NamedTuple):
    """Token ids of a stretch of one document."""

    document: str
    kind: str
    token_ids: list[int]


def builtin_documents() -> list[Document]:
    """The topics of ``pydoc_data`` as prose and the top level of the standard library as code."""
    from pydoc_data.topics import topics  # noqa: PLC0415  half a megabyte, only read by the demo

    prose = [Document(name, "prose", text) for name, text in sorted(topics.items())]
    code = [
        Document(path.name, "code", path.read_text(encoding="utf-8", errors="replace"))
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    ]
    return prose + code


def read_documents(paths: list[Path]) -> list[Document]:
    """The user's own files, each one document; raises DemoError for one that cannot be read."""
    documents = []
    for path in paths:
        try:
            documents.append(Document(path.name, path.suffix.lstrip(".") or "text", path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise DemoError(f"--text {path}: {error}") from error
    return documents


def chunks(documents: list[Document], tokenizer: Any, length: int, seed: int) -> Iterator[Chunk]:
    """Chunks of up to ``length`` tokens without end: kinds alternate, documents are drawn in a seeded order."""
    order = random.Random(seed)  # noqa: S311  an order, not a secret
    by_kind: dict[str, list[Document]] = {}
    for document in documents:
        by_kind.setdefault(document.kind, []).append(document)
    streams = [_of_kind(group, tokenizer, length, random.Random(order.random())) for group in by_kind.values()]  # noqa: S311  an order
    while True:
        for stream in streams:
            yield next(stream)


def turning(documents: list[Document], tokenizer: Any, length: int, seed: int, turn: int) -> Iterator[Chunk]:
    """Chunks of up to ``length`` tokens without end: of the first kind, after ``turn`` tokens of the others in turn.

    Each is from a random place of a document of its own, in a seeded order, so that chunks of a kind are exchangeable.
    """
    order = random.Random(seed)  # noqa: S311  an order, not a secret
    by_kind: dict[str, list[Document]] = {}
    for document in documents:
        by_kind.setdefault(document.kind, []).append(document)
    first, *others = (_stretches(group, tokenizer, length, random.Random(order.random())) for group in by_kind.values())  # noqa: S311  an order
    given = 0
    while given < turn or not others:
        chunk = next(first)
        given += len(chunk.token_ids)
        yield chunk
    while True:
        for stream in others:
            yield next(stream)


def _stretches(documents: list[Document], tokenizer: Any, length: int, order: random.Random) -> Iterator[Chunk]:
    while True:
        shuffled = documents.copy()
        order.shuffle(shuffled)
        produced = False
        for document in shuffled:
            room = length * 8  # characters: enough for that many tokens, but for text of very short ones
            start = order.randrange(max(1, len(document.text) - room))
            ids = tokenizer(document.text[start : start + room], add_special_tokens=False)["input_ids"][:length]
            if len(ids) >= min(length, 16):
                produced = True
                yield Chunk(document.name, document.kind, ids)
        if not produced:
            raise DemoError("the given text has fewer than 16 tokens; give longer files with --text")


def _of_kind(documents: list[Document], tokenizer: Any, length: int, order: random.Random) -> Iterator[Chunk]:
    # a chunk from each of a few documents in turn: long files do not crowd out the others
    while True:
        shuffled = documents.copy()
        order.shuffle(shuffled)
        produced = False
        for document in shuffled:
            # four characters to a token: enough text for a few chunks from a random place
            room = length * 4 * 4
            start = order.randrange(max(1, len(document.text) - room))
            ids = tokenizer(document.text[start : start + room], add_special_tokens=False)["input_ids"]
            for at in range(0, len(ids), length):
                part = ids[at : at + length]
                if len(part) >= min(length, 16):
                    produced = True
                    yield Chunk(document.name, document.kind, part)
        if not produced:
            raise DemoError("the given text has fewer than 16 tokens; give longer files with --text")
