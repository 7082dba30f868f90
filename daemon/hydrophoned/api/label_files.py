"""Labels as files: JSON lines and CSV of our own, and Neuronpedia's export of explanations.

Ours have the fields of ``rest.FeatureLabel``; to be read a line needs ``index`` and ``text``. Neuronpedia's files (JSON
lines, gzipped in the public data sets, or a JSON list) have ``modelId``, ``layer``, ``index`` as text, ``description``,
``typeName`` and ``explanationModelName``; what else is in them is left alone.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from hydrophone_schemas import rest

JSONL_TYPE: Final = "application/jsonl"
NDJSON_TYPE: Final = "application/x-ndjson"
CSV_TYPE: Final = "text/csv"
MAX_TEXT: Final = 500
_MAX_AUTHOR: Final = 200
_MAX_LINES: Final = 500_000


class Given(NamedTuple):
    """One label that was read: of the feature at ``place`` now, or with ``feature_id`` where that is given."""

    line: int
    place: int
    feature_id: int | None
    text: str
    author: str | None
    rule: str | None


class ReadLabels(NamedTuple):
    """Labels, and what was wrong with the lines that gave none."""

    labels: list[Given]
    problems: list[rest.LabelProblem]


def read_labels(body: bytes, content_type: str) -> ReadLabels:
    """Read a file of any of the forms; raises ValueError where it is none of them at all."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is not UTF-8 text: {error.reason} at byte {error.start}") from None
    entries = _from_csv(text) if content_type == CSV_TYPE else _from_json(text)
    labels, problems = [], []
    for line, entry in entries:
        if line > _MAX_LINES:
            raise ValueError(f"the file has more than {_MAX_LINES} lines; give it in several parts")
        try:
            labels.append(_label(line, entry))
        except ValueError as error:
            problems.append(rest.LabelProblem(line=line, message=str(error)))
    return ReadLabels(labels, problems)


def write_jsonl(labels: Iterable[Mapping[str, Any]]) -> bytes:
    """Labels, as the store has them, one JSON object a line."""
    return "".join(f"{rest.FeatureLabel(**label).model_dump_json()}\n" for label in labels).encode()


def write_csv(labels: Iterable[Mapping[str, Any]]) -> bytes:
    """Labels, as the store has them, as CSV with a head line; null is an empty field."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rest.FeatureLabel.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rest.FeatureLabel(**label).model_dump(mode="json") for label in labels)
    return file.getvalue().encode()


def write_neuronpedia(labels: Iterable[Mapping[str, Any]], model: str, layer: str) -> bytes:
    """Labels as lines of Neuronpedia's export; those of features that no longer exist are left out."""
    lines = [
        {
            "modelId": model,
            "layer": layer,
            "index": str(label["index"]),
            "description": label["text"],
            "typeName": f"hydrophone_{label['source']}",
            "explanationModelName": label["author"] or label["source"],
        }
        for label in labels
        if label["index"] is not None
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _from_csv(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text))
    if not reader.fieldnames or not {"index", "text", "description"} & set(reader.fieldnames):
        raise ValueError(f"the CSV's head line names {reader.fieldnames}; it needs index and text")
    try:
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if value}
    except csv.Error as error:
        raise ValueError(f"the file is no CSV: {error} after line {reader.line_num}") from None


def _from_json(text: str) -> Iterator[tuple[int, Any]]:
    """Entries of one JSON list, or JSON lines, which are not read yet."""
    if text.lstrip().startswith("["):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the file is no JSON list: {error}") from None
        yield from enumerate(whole, 1)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line


def _label(line: int, entry: Any) -> Given:
    """One entry as a label; raises ValueError that says what is wrong."""
    if isinstance(entry, str):
        try:
            entry = json.loads(entry)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(entry, Mapping):
        raise ValueError("is no object with fields")  # noqa: TRY004  one kind of error for whatever a file holds
    text = entry.get("text", entry.get("description"))
    if not isinstance(text, str) or not text.strip():
        raise ValueError("has no text (Neuronpedia: description)")
    if len(text) > MAX_TEXT:
        raise ValueError(f"has a text of {len(text)} characters; at most {MAX_TEXT} are kept")
    author = entry.get("author") or entry.get("explanationModelName")
    rule = entry.get("rule")
    feature_id = entry.get("feature_id")
    return Given(
        line,
        _whole(entry.get("index"), "index"),
        None if feature_id is None else _whole(feature_id, "feature_id"),
        text.strip(),
        author[:_MAX_AUTHOR] if isinstance(author, str) else None,
        rule if isinstance(rule, str) else None,
    )


def _whole(value: Any, name: str) -> int:
    """A number from 0, which may be written as text."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"has {name} {value!r}; a whole number from 0 is needed")
    return value


def first_problems(problems: Sequence[rest.LabelProblem]) -> list[rest.LabelProblem]:
    """The twenty that an answer shows, in order of line."""
    return sorted(problems, key=lambda problem: problem.line)[:20]
