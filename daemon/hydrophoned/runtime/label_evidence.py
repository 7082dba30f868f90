"""What labels are made from: rows of a learner's sample with the strings and attributes that the store keeps."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrophoned.analyse.facts import Facts, facts
from hydrophoned.learn.code_sample import CodedRows
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.store import StoreReader

MAX_ROWS: Final = 65_536
"""Rows of the sample that are looked at."""


class Sampled(NamedTuple):
    """A learner's sample, the ids of its features, int64 [F], and the version of its dictionary."""

    rows: CodedRows
    ids: NDArray[np.int64]
    dictionary_version: int

    @property
    def features(self) -> int:
        """Number of features F."""
        return len(self.ids)


class Evidence(NamedTuple):
    """Rows, what is known of them, and the strings of token ids; empty where no text is kept."""

    rows: CodedRows
    facts: Facts
    strings: dict[int, str]


def feature_ids(learner: StreamLearner) -> NDArray[np.int64]:
    """The id of the feature at each index, int64 [F]."""
    return learner.identity.ids.numpy().copy()


def sampled(learner: StreamLearner) -> Sampled:
    """What the learner's thread is asked for."""
    return Sampled(learner.sample.rows(), feature_ids(learner), learner.dictionary_version)


def gather(reader: StoreReader, rows: CodedRows) -> Evidence:
    """Read what the store keeps of ``rows``; blocks. Raises StoreError."""
    rows = rows.take(np.arange(min(rows.rows, MAX_ROWS)))
    pieces = reader.pieces(rows.request.tolist(), rows.sequence.tolist(), rows.position.tolist())
    strings: dict[int, str] = {}
    previous: list[str | None] = [None] * rows.rows
    for place, piece, before in zip(*(pieces[name].to_pylist() for name in pieces.column_names), strict=True):
        if piece is not None and rows.token[place] >= 0:
            strings.setdefault(int(rows.token[place]), piece)
        previous[place] = before
    known = facts(
        rows,
        strings=strings,
        previous=previous if pieces.num_rows else None,
        attributes=_attributes(reader, rows.request),
    )
    return Evidence(rows, known, strings)


def _attributes(reader: StoreReader, request: NDArray[np.int64]) -> dict[str, list[Any]]:
    """By name the value that each row's request has, None where it has none; those of the most requests first."""
    keys, place = np.unique(request, return_inverse=True)
    table = reader.request_attributes(keys[keys >= 0].tolist())
    given = {
        key: _scalars(json.loads(text, parse_constant=lambda _: None))
        for key, text in zip(table["request_key"].to_pylist(), table["attributes"].to_pylist(), strict=True)
    }
    counts: dict[str, int] = {}
    for values in given.values():
        for name in values:
            counts[name] = counts.get(name, 0) + 1
    found = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        by_request = [given.get(key, {}).get(name) for key in keys.tolist()]
        found[name] = [by_request[number] for number in place.tolist()]
    return found


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, str | int | float)}
