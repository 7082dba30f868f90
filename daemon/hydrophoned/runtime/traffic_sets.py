"""Sets of requests, as they are described from outside, and what is known of their features."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from hydrophone_schemas.rest import FieldProblem, StreamStatus, TrafficSet
from numpy.typing import NDArray

from hydrophoned.analyse.traffic import Traffic
from hydrophoned.api.errors import Refused
from hydrophoned.api.times import parse_time
from hydrophoned.runtime.question_samples import Sampled
from hydrophoned.store.questions import QuestionReader

FOREVER: Final = (0, 1 << 60)
_NAMED: Final = 5
Values = Mapping[str, Any]


class Known(NamedTuple):
    """The requests of a stream's model, latest first: ``key`` int64 [R], ids, attributes, and what was told of them."""

    key: NDArray[np.int64]
    ids: list[str]
    attributes: list[Values]
    outcomes: list[Values]

    @classmethod
    def of(cls, reader: QuestionReader, status: StreamStatus) -> "Known":
        """Read them."""
        table = reader.known_requests(status.model, status.version)
        told: dict[str, dict[str, Any]] = {}
        outcomes = reader.model_outcomes(status.model)
        for request_id, labels in zip(outcomes["request_id"].to_pylist(), outcomes["labels"].to_pylist(), strict=True):
            told.setdefault(request_id, {}).update(_object(labels))
        ids = table["id"].to_pylist()
        return cls(
            table["request_key"].to_numpy().astype(np.int64),
            ids,
            [_object(text) for text in table["attributes"].to_pylist()],
            [told.get(one, {}) for one in ids],
        )

    def members(self, wanted: TrafficSet, field: str) -> NDArray[np.bool_]:
        """Bool [R]: which requests have the attributes, the outcome and the id that ``wanted`` names, but for times.

        Raises Refused (404) for ids that are not known; ``field`` is where they were given.
        """
        inside = np.ones(len(self.key), dtype=np.bool_)
        if wanted.requests is not None:
            ids = set(wanted.requests)
            inside &= np.fromiter((one in ids for one in self.ids), dtype=np.bool_, count=len(self.ids))
            unknown = ids - set(self.ids)
            if unknown:
                raise unknown_requests(sorted(unknown), f"{field}.requests")
        for given, values in ((wanted.attributes, self.attributes), (wanted.outcomes, self.outcomes)):
            if given:
                inside &= np.fromiter((matches(one, given) for one in values), dtype=np.bool_, count=len(values))
        return inside


class Kept(NamedTuple):
    """What is known of the features of requests: ``key`` int64 [R] beside ``traffic``.

    ``whole`` bool [R] says of which all scored rows of the windows in which they were sampled are behind it; of the
    others, the rows that are in a uniform sample of the stream's rows. ``probability`` holds the least and the largest
    probability with which a window's requests were sampled; None where none was.
    """

    traffic: Traffic
    key: NDArray[np.int64]
    whole: NDArray[np.bool_]
    probability: tuple[float, float] | None

    @classmethod
    def joined(cls, parts: Sequence["Kept"]) -> "Kept":
        """The requests of all ``parts``, at least one; of a request of several parts the first one counts."""
        shares = [part.probability for part in parts if part.probability is not None]
        whole = cls(
            Traffic.joined([part.traffic for part in parts]),
            np.concatenate([part.key for part in parts]),
            np.concatenate([part.whole for part in parts]),
            (min(low for low, _ in shares), max(high for _, high in shares)) if shares else None,
        )
        first = np.zeros(len(whole.key), dtype=np.bool_)
        first[np.unique(whole.key, return_index=True)[1]] = True
        return whole.take(first)

    def take(self, chosen: NDArray[np.bool_]) -> "Kept":
        """The requests where bool [R] ``chosen`` is true."""
        return self._replace(traffic=self.traffic.take(chosen), key=self.key[chosen], whole=self.whole[chosen])


def times(wanted: TrafficSet, now: int, field: str) -> tuple[int, int]:
    """The range [since, until) of a set in us; raises Refused (422)."""
    since, until = (
        _time(getattr(wanted, name), now, f"{field}.{name}", default)
        for name, default in zip(("since", "until"), FOREVER, strict=True)
    )
    if since > until:
        raise _invalid(f"{field}.since", f"{wanted.since} is after until = {wanted.until}")
    return since, until


def kept(
    reader: QuestionReader,
    status: StreamStatus,
    sample: Sampled,
    keys: NDArray[np.int64],
    covered: tuple[int, int] = FOREVER,
) -> Kept:
    """What is known of the requests ``keys`` over rows, or windows that start, in ``covered``; blocks."""
    since, until = covered
    table = reader.request_features(status.stream_key, keys.tolist(), since=since, until=until)
    births = reader.feature_births(status.stream_key)
    stored, stored_keys = _of_table(table, sample.features, births)
    rows, whole = sample.rows, reader.sampled_requests(status.stream_key)["request_key"].to_numpy()
    # a request that the store knows is taken by its windows only: else the rows beside a range would be in both sets
    here = np.isin(rows.request, keys) & ~np.isin(rows.request, whole)
    here &= (rows.time >= since) & (rows.time < until)
    others, other_keys = Traffic.of_codes(rows.take(here), sample.features)
    probability = None
    if table.num_rows:
        shares = table["sample"].to_numpy()
        probability = (float(shares.min()), float(shares.max()))
    return Kept(
        Traffic.joined([stored, others]),
        np.concatenate((stored_keys, other_keys)),
        np.arange(stored.requests + others.requests) < stored.requests,
        probability,
    )


def matches(values: Values, wanted: Values) -> bool:
    """Whether all of ``wanted`` is in ``values``, true not being 1."""
    return all(name in values and _same(values[name], value) for name, value in wanted.items())


def unknown_requests(ids: list[str], field: str) -> Refused:
    """404: no request has one of these ids."""
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    message = f"there is no request {', '.join(repr(one) for one in ids[:_NAMED])}{more} of this stream's model"
    return Refused(
        HTTPStatus.NOT_FOUND,
        "request-not-found",
        message,
        errors=[FieldProblem(location="body", name=field, message=message)],
    )


def _of_table(table: pa.Table, features: int, births: pa.Table) -> tuple[Traffic, NDArray[np.int64]]:
    """Rows of ``request_feature`` as traffic; what a feature did before it stood at its index is another's."""
    keys, request = np.unique(table["request_key"].to_numpy().astype(np.int64), return_inverse=True)
    rows = np.bincount(request, table["rows_scored"].to_numpy(), minlength=len(keys)).astype(np.int64)
    lengths = np.array([len(one) for one in table["features"]], dtype=np.int64)
    flat = {
        name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        for name in ("features", "fired", "sum")
    }
    version = np.repeat(table["dictionary_version"].to_numpy(), lengths)
    born = np.zeros(features, dtype=np.int64)
    known = births["feature"].to_numpy()
    born[known[known < features]] = births["version"].to_numpy()[known < features]
    feature = flat["features"].astype(np.int64)
    here = feature < features
    here[here] = born[feature[here]] <= version[here]
    traffic = Traffic.of(
        features, rows, np.repeat(request, lengths)[here], feature[here], flat["fired"][here], flat["sum"][here]
    )
    return traffic, keys


def _time(text: str | None, now: int, field: str, default: int) -> int:
    if text is None:
        return default
    try:
        return min(parse_time(text, now), FOREVER[1])
    except (ValueError, OverflowError) as error:
        raise _invalid(field, str(error)) from None


def _invalid(name: str, message: str) -> Refused:
    return Refused(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid-body",
        f"{name}: {message}",
        errors=[FieldProblem(location="body", name=name, message=message)],
    )


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {}


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other
