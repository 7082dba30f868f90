"""Questions about features: which ones, what they do in a request, what is near them, what they rebuild.

All methods block, on the learner's thread for a copy of its samples, on the store, and for the numerics: the API calls
them in threads of its own.
"""

from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from hydrophone_schemas import rest
from hydrophone_schemas.rest import StreamStatus
from numpy.typing import NDArray

from hydrophoned.analyse.cooccurrence import partners
from hydrophoned.analyse.firings import firings
from hydrophoned.analyse.intervals import wilson
from hydrophoned.analyse.neighbours import chance_cosine, correlations, cosines
from hydrophoned.analyse.row_features import features_of_rows
from hydrophoned.api.backend import Answered
from hydrophoned.learn.dictionary import Codes
from hydrophoned.learn.learner import StreamLearner
from hydrophoned.runtime.inspection import Inspector
from hydrophoned.runtime.question_samples import ask, at_places, known, labels_of, sampled
from hydrophoned.runtime.streams import StreamRegistry
from hydrophoned.store import LabelQuery
from hydrophoned.store.questions import QuestionReader

_MAX_PLACES: Final = 100_000
_MAX_TEXTS: Final = 1000
_MAX_LABELS: Final = 10_000
_GIVEN: Final = ("imported", "manual")


class FeatureQuestions:
    """Answers questions about the features of one stream at a time."""

    def __init__(self, streams: StreamRegistry, reader: QuestionReader) -> None:
        self._streams, self._reader = streams, reader
        self._inspector = Inspector(streams, reader)

    def search(self, status: StreamStatus, body: rest.FeatureSearchBody, rows: NDArray[np.float32] | None) -> Answered:
        """Features by label, token, piece or text, or those of ``rows`` [n, d]: ``rest.FoundFeature``."""
        if body.label is not None:
            return self._by_label(status, body.label, body.limit)
        if rows is not None:
            return self._by_rows(status, rows, body.limit)
        sample = ask(self._streams, status.id, sampled)
        if body.token is not None:
            marked = sample.rows.token == body.token
        else:
            places = self._pieces(body.piece) if body.piece is not None else self._text(body.text or "")
            marked = at_places(sample.rows, places)
        found = features_of_rows(sample.rows, marked, sample.features, limit=body.limit)
        labels = labels_of(self._reader, status.stream_key, found.feature)
        items = [
            rest.FoundFeature(
                index=int(index),
                score=known(found.f1[place]),
                rows=found.marked,
                fired=int(found.fired[place]),
                requests=int(found.requests[place]),
                rate=float(found.rate[place]),
                rate_low=float(found.rate_low[place]),
                rate_high=float(found.rate_high[place]),
                precision=known(found.precision[place]),
                mean=known(found.mean[place]),
                **labels.get(int(index), {}),
            )
            for place, index in enumerate(found.feature)
        ]
        return Answered(items, {"sample_rows": found.rows, "dictionary_version": sample.dictionary_version})

    def inspect(self, status: StreamStatus, body: rest.InspectBody, rows: NDArray[np.float32] | None) -> Answered:
        """What features do in a request, or in ``rows`` [n, d]; the columns of ``rest.InspectedFeature``."""
        return self._inspector.inspect(status, body, rows)

    def neighbours(self, status: StreamStatus, feature: int, order: rest.NeighbourOrder, limit: int) -> Answered:
        """Features near one; the columns of ``rest.Neighbour``."""

        def copied(learner: StreamLearner) -> tuple[torch.Tensor, Any]:
            return learner.dictionary.W_dec.to("cpu", copy=True), sampled(learner)

        W, sample = ask(self._streams, status.id, copied)
        cosine = cosines(W, feature).double().numpy()
        correlated = correlations(sample.rows, feature, sample.features)
        key = cosine if order is rest.NeighbourOrder.COSINE else correlated.correlation
        nearest = np.lexsort((np.arange(len(key)), -key))  # NaN last
        nearest = nearest[(nearest != feature) & ~np.isnan(key[nearest])][:limit]
        labels = labels_of(self._reader, status.stream_key, nearest)
        items = [
            rest.Neighbour(
                index=int(index),
                cosine=float(cosine[index]),
                correlation=known(correlated.correlation[index]),
                together=int(correlated.together[index]),
                **labels.get(int(index), {}),
            )
            for index in nearest
        ]
        about = {
            "rows": sample.rows.rows,
            "chance_cosine": chance_cosine(*W.shape),
            "dictionary_version": sample.dictionary_version,
        }
        return Answered(items, about)

    def partners(self, status: StreamStatus, feature: int, order: rest.PartnerOrder, limit: int) -> Answered:
        """What fires together with a feature; the columns of ``rest.Partner``."""
        sample = ask(self._streams, status.id, sampled)
        by_npmi = order is rest.PartnerOrder.NPMI
        found = partners(sample.rows, feature, sample.features, limit=limit, by_npmi=by_npmi)
        labels = labels_of(self._reader, status.stream_key, found.feature)
        items = [
            rest.Partner(
                index=int(index),
                together=int(found.together[place]),
                requests=int(found.requests[place]),
                fired=int(found.partner_fired[place]),
                rate=float(found.share[place]),
                rate_low=float(found.share_low[place]),
                rate_high=float(found.share_high[place]),
                npmi=known(found.npmi[place]),
                npmi_low=known(found.npmi_low[place]),
                **labels.get(int(index), {}),
            )
            for place, index in enumerate(found.feature)
        ]
        about = {"rows": found.rows, "fired": found.fired, "dictionary_version": sample.dictionary_version}
        return Answered(items, about)

    def firings(
        self, status: StreamStatus, feature: int, choice: rest.FiringChoice, limit: int, context: int
    ) -> Answered:
        """Some rows on which a feature fired; the columns of ``rest.Firing``."""
        sample = ask(self._streams, status.id, sampled)
        found = firings(sample.rows, feature, limit=limit, in_bands=choice is rest.FiringChoice.BAND)
        drawn = sample.rows.take(found.row)
        names = ("request_key", "sequence", "position", "token", "time")
        columns = (drawn.request, drawn.sequence, drawn.position, drawn.token, drawn.time)
        table = pa.table(dict(zip(names, columns, strict=True)))
        requests = self._reader.request_ids(drawn.request.tolist())
        items = [
            rest.Firing(
                **row
                | {
                    "value": float(found.value[place]),
                    "band": int(found.band[place]),
                    "request": requests.get(row["request_key"]),
                    "token": None if row["token"] < 0 else row["token"],
                    "time": datetime.fromtimestamp(row["time"] / 1e6, UTC),
                }
            )
            for place, row in enumerate(self._reader.with_context(table, context).to_pylist())
        ]
        about = {"rows": found.rows, "fired": found.fired, "dictionary_version": sample.dictionary_version}
        return Answered(items, about)

    def decode(
        self, status: StreamStatus, index: NDArray[np.int32], value: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], int]:
        """Rows [n, d] in the model's own scale of codes [n, k], and the dictionary's version; 0 is not active."""

        def decoded(learner: StreamLearner) -> tuple[NDArray[np.float32], int]:
            parts = []
            size = learner.config.batch_rows
            for start in range(0, len(index), size):
                some = slice(start, start + size)
                codes = Codes(
                    torch.from_numpy(index[some]).to(learner.device), torch.from_numpy(value[some]).to(learner.device)
                )
                parts.append(learner.normaliser.invert(learner.dictionary.decode(codes)).cpu().numpy())
            empty = np.zeros((0, learner.width), dtype=np.float32)
            return np.concatenate([empty, *parts]).astype(np.float32), learner.dictionary_version

        return ask(self._streams, status.id, decoded)

    # -- inside -------------------------------------------------------------------------------------------------

    def _by_label(self, status: StreamStatus, text: str, limit: int) -> Answered:
        table = self._reader.labels(status.stream_key, LabelQuery(_MAX_LABELS, text=text))
        best: dict[int, dict[str, Any]] = {}

        def rank(row: dict[str, Any]) -> tuple[int, float]:
            given = _GIVEN.index(row["source"]) if row["source"] in _GIVEN else -1
            return given, -1.0 if row["score"] is None else row["score"]

        for row in table.to_pylist():
            if row["index"] is not None and (row["index"] not in best or rank(row) > rank(best[row["index"]])):
                best[row["index"]] = row
        ordered = sorted(best.values(), key=lambda row: ([-part for part in rank(row)], row["index"]))
        nothing = dict.fromkeys(("rows", "fired", "requests", "rate", "rate_low", "rate_high", "precision", "mean"))
        items = [
            rest.FoundFeature(
                index=row["index"],
                score=row["score"],
                label=row["text"],
                label_source=row["source"],
                label_score=row["score"],
                **nothing,
            )
            for row in ordered[:limit]
        ]
        return Answered(items, {"sample_rows": None, "dictionary_version": status.dictionary_version})

    def _by_rows(self, status: StreamStatus, rows: NDArray[np.float32], limit: int) -> Answered:
        codes, version = ask(
            self._streams, status.id, lambda learner: (learner.encode(rows), learner.dictionary_version)
        )
        row, place = ((codes.value > 0) & codes.finite[:, None]).nonzero()
        index, value = codes.index[row, place], codes.value[row, place].astype(np.float64)
        count = int(codes.finite.sum())
        feature, number = np.unique(index, return_inverse=True)
        fired, total = np.bincount(number), np.bincount(number, value)
        low, high = wilson(fired, count)
        order = np.lexsort((feature, -total))[:limit]
        labels = labels_of(self._reader, status.stream_key, feature[order])
        items = [
            rest.FoundFeature(
                index=int(feature[at]),
                score=float(total[at] / count),
                rows=count,
                fired=int(fired[at]),
                requests=None,
                rate=float(fired[at] / count),
                rate_low=float(low[at]),
                rate_high=float(high[at]),
                precision=None,
                mean=float(total[at] / fired[at]),
                **labels.get(int(feature[at]), {}),
            )
            for at in order
        ]
        return Answered(items, {"sample_rows": None, "dictionary_version": version})

    def _pieces(self, piece: str) -> list[tuple[int, int, int]]:
        table = self._reader.places_of_piece([piece], limit=_MAX_PLACES)
        return list(zip(*(table[name].to_pylist() for name in ("request_key", "sequence", "position")), strict=True))

    def _text(self, part: str) -> list[tuple[int, int, int]]:
        """Places of the tokens that ``part`` lies over, in the latest texts that hold it."""
        texts = self._reader.texts(part, limit=_MAX_TEXTS)
        wanted = set(zip(texts["request_key"].to_pylist(), texts["sequence"].to_pylist(), strict=True))
        runs = self._reader.request_tokens(sorted({key for key, _ in wanted})).to_pylist()
        pieces: dict[tuple[int, int], dict[int, str]] = {}
        for run in runs:
            of = (run["request_key"], run["sequence"])
            if of in wanted:
                for at, piece in enumerate(run["pieces"], run["position"]):
                    pieces.setdefault(of, {})[at] = piece or ""
        return [(*of, at) for of, known_pieces in pieces.items() for at in _under(part, known_pieces)]


def _under(part: str, pieces: dict[int, str]) -> list[int]:
    """Positions of the pieces that an occurrence of ``part`` lies over, whatever its case."""
    positions = sorted(pieces)
    text = "".join(pieces[at] for at in positions).lower()
    ends = np.cumsum([len(pieces[at].lower()) for at in positions])
    found: set[int] = set()
    start = text.find(part.lower())
    while start >= 0:
        first, last = np.searchsorted(ends, [start, start + len(part) - 1], side="right")
        found.update(positions[first : last + 1])
        start = text.find(part.lower(), start + 1)
    return sorted(found)
