"""What features do in one request, or in rows that are given: which, how often, how strongly, and where."""

from http import HTTPStatus
from typing import Final, NamedTuple

import numpy as np
from hydrophone_schemas import rest
from hydrophone_schemas.rest import StreamStatus
from numpy.typing import NDArray

from hydrophoned.api.backend import Answered
from hydrophoned.api.errors import Refused
from hydrophoned.learn.code_sample import CodedRows
from hydrophoned.runtime.question_samples import Sampled, ask, labels_of, sampled
from hydrophoned.runtime.streams import StreamRegistry
from hydrophoned.store.questions import QuestionReader

THIN_ROWS: Final = 5
THIN_REQUESTS: Final = 2
_SAME_ID: Final = 100


class _Fired(NamedTuple):
    """Pairs of a row and a feature that fires on it; ``sequence``, ``position`` and ``token`` are the row's."""

    feature: NDArray[np.int64]
    value: NDArray[np.float64]
    sequence: NDArray[np.int64]
    position: NDArray[np.int64]
    token: NDArray[np.int64]


class _Sums(NamedTuple):
    """What features do in ``rows`` rows: arrays [c]; ``complete`` says whether these rows are all there are."""

    rows: int
    feature: NDArray[np.int64]
    fired: NDArray[np.int64]
    sum: NDArray[np.float64]
    max: NDArray[np.float64]
    complete: bool


class Inspector:
    """Inspects requests and rows of a stream; blocks."""

    def __init__(self, streams: StreamRegistry, reader: QuestionReader) -> None:
        self._streams, self._reader = streams, reader

    def inspect(self, status: StreamStatus, body: rest.InspectBody, rows: NDArray[np.float32] | None) -> Answered:
        """See ``FeatureQuestions.inspect``; raises Refused (404)."""
        if rows is not None:
            codes, sample = ask(self._streams, status.id, lambda learner: (learner.encode(rows), sampled(learner)))
            row, place = ((codes.value > 0) & codes.finite[:, None]).nonzero()
            value = codes.value[row, place].astype(np.float64)
            nothing = np.full(len(row), -1)
            fired = _Fired(codes.index[row, place].astype(np.int64), value, np.zeros_like(row), row, nothing)
            sums = _summed(fired, int(codes.finite.sum()), complete=True)
            return self._answer(status, body, sums, fired, sample, (None, None))
        sample = ask(self._streams, status.id, sampled)
        key, request_id = self._request(status, body)
        own = sample.rows.take(sample.rows.request == key)
        in_sample = _pairs(own)
        sums = self._stored(status, key) or _summed(in_sample, own.rows, complete=False)
        fired = self._with_examples(status, in_sample, key)
        return self._answer(status, body, sums, fired, sample, (key, request_id))

    # -- inside -------------------------------------------------------------------------------------------------

    def _request(self, status: StreamStatus, body: rest.InspectBody) -> tuple[int, str | None]:
        if body.request is None:
            assert body.request_key is not None  # noqa: S101  the body has one of them
            return body.request_key, None
        known = self._reader.requests(body.request, limit=_SAME_ID).to_pylist()
        for row in known:
            if (row["model"], row["version"]) == (status.model, status.version):
                return row["request_key"], body.request
        models = sorted({f"{row['model']}@{row['version']}" for row in known})
        other = f"; it is known of {', '.join(models)}" if models else ""
        raise Refused(
            HTTPStatus.NOT_FOUND,
            "request-not-found",
            f"there is no request {body.request!r} of {status.model}@{status.version}{other}",
        )

    def _stored(self, status: StreamStatus, key: int) -> _Sums | None:
        """What the store keeps of a request whose features were sampled; None if they were not."""
        table = self._reader.request_features(status.stream_key, [key])
        if not table.num_rows:
            return None
        flat = {
            name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            for name in ("features", "fired", "sum", "max")
        }
        feature, number = np.unique(flat["features"].astype(np.int64), return_inverse=True)
        largest = np.zeros(len(feature))
        np.maximum.at(largest, number, flat["max"].astype(np.float64))
        return _Sums(
            int(sum(table["rows_scored"].to_pylist())),
            feature,
            np.bincount(number, flat["fired"], minlength=len(feature)).astype(np.int64),
            _added(number, flat["sum"].astype(np.float64), len(feature)),
            largest,
            complete=True,
        )

    def _with_examples(self, status: StreamStatus, in_sample: _Fired, key: int) -> _Fired:
        """Places of a request that are kept: in the sample, and among the examples of features."""
        examples = self._reader.request_examples(status.stream_key, key)
        columns = [
            np.concatenate((column, examples[name].fill_null(-1).to_numpy().astype(column.dtype)))
            for name, column in in_sample._asdict().items()
        ]
        both = _Fired(*columns)
        # an example may be in the sample, too
        _, first = np.unique(np.stack((both.feature, both.sequence, both.position)), axis=1, return_index=True)
        return _Fired(*[column[first] for column in columns])

    def _answer(
        self,
        status: StreamStatus,
        body: rest.InspectBody,
        sums: _Sums,
        fired: _Fired,
        sample: Sampled,
        request: tuple[int | None, str | None],
    ) -> Answered:
        order = np.lexsort((sums.feature, -sums.sum))[: body.limit]
        usual = _usual(sample)
        places = self._places(fired, sums.feature[order], body.places, request[0])
        labels = labels_of(self._reader, status.stream_key, sums.feature[order])
        items = [
            rest.InspectedFeature(
                index=int(sums.feature[at]),
                fired=int(sums.fired[at]),
                rate=float(sums.fired[at] / sums.rows),
                mean=float(sums.sum[at] / sums.rows),
                max=float(sums.max[at]),
                usual_rate=None if np.isnan(usual[sums.feature[at]]) else float(usual[sums.feature[at]]),
                places=places.get(int(sums.feature[at]), []),
                **labels.get(int(sums.feature[at]), {}),
            )
            for at in order
        ]
        about = {
            "request_key": request[0],
            "request": request[1],
            "rows": sums.rows,
            "complete": sums.complete,
            "dictionary_version": sample.dictionary_version,
        }
        return Answered(items, about)

    def _places(
        self, fired: _Fired, features: NDArray[np.int64], count: int, key: int | None
    ) -> dict[int, list[rest.FeaturePlace]]:
        """The ``count`` strongest places of each of ``features``, with token strings where these are kept."""
        chosen: list[int] = []
        for feature in features.tolist():
            (own,) = (fired.feature == feature).nonzero()
            chosen += own[np.lexsort((fired.position[own], -fired.value[own]))][:count].tolist()
        sequence, position = fired.sequence[chosen].tolist(), fired.position[chosen].tolist()
        pieces: dict[int, str | None] = {}
        if key is not None and chosen:
            table = self._reader.pieces([key] * len(chosen), sequence, position)
            pieces = dict(zip(table["place"].to_pylist(), table["piece"].to_pylist(), strict=True))
        found: dict[int, list[rest.FeaturePlace]] = {}
        for number, at in enumerate(chosen):
            place = rest.FeaturePlace(
                sequence=sequence[number],
                position=position[number],
                value=float(fired.value[at]),
                token=int(fired.token[at]) if fired.token[at] >= 0 else None,
                piece=pieces.get(number),
            )
            found.setdefault(int(fired.feature[at]), []).append(place)
        return found


def _pairs(rows: CodedRows) -> _Fired:
    row, place = (rows.value > 0).nonzero()
    return _Fired(
        rows.index[row, place].astype(np.int64),
        rows.value[row, place].astype(np.float64),
        *(column[row].astype(np.int64) for column in (rows.sequence, rows.position, rows.token)),
    )


def _summed(fired: _Fired, rows: int, *, complete: bool) -> _Sums:
    feature, number = np.unique(fired.feature, return_inverse=True)
    largest = np.zeros(len(feature))
    np.maximum.at(largest, number, fired.value)
    count = np.bincount(number, minlength=len(feature))
    return _Sums(rows, feature, count, _added(number, fired.value, len(feature)), largest, complete=complete)


def _added(place: NDArray[np.int64], weight: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.bincount(place, weight, minlength=count).astype(np.float64, copy=False)


def _usual(sample: Sampled) -> NDArray[np.float64]:
    """Share of the sampled rows on which each feature fires, float64 [F]; NaN where that is thin."""
    rows = sample.rows
    row, place = (rows.value > 0).nonzero()
    index = rows.index[row, place].astype(np.int64)
    fired = np.bincount(index, minlength=sample.features)
    known, number = np.unique(rows.request, return_inverse=True)
    pairs = np.unique(index * max(len(known), 1) + number[row])
    requests = np.bincount(pairs // max(len(known), 1), minlength=sample.features)
    thin = (fired < THIN_ROWS) | (requests < THIN_REQUESTS)
    return np.where(thin, np.nan, fired / max(rows.rows, 1))
