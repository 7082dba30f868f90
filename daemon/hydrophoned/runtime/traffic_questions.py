"""Questions about traffic: which features differ between two sets of requests, and which tell an outcome.

All methods block, as those of :mod:`.questions` do.
"""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from hydrophone_schemas import rest
from hydrophone_schemas.rest import StreamStatus

from hydrophoned.analyse.columns import Bools, Columns, DenseColumns
from hydrophoned.analyse.contrast import Contrast, Side, contrast
from hydrophoned.analyse.errors import AnalysisError, TooLittle
from hydrophoned.analyse.rerank import association, falling, probe_scores
from hydrophoned.analyse.sparse_probe import SparseProbe, sparse_probes
from hydrophoned.analyse.traffic import Measure, Traffic
from hydrophoned.api.backend import Answered
from hydrophoned.api.errors import Refused, Unavailable
from hydrophoned.api.times import to_datetime
from hydrophoned.runtime.question_samples import Sampled, ask, at_places, known, labels_of, raw_rows, sampled
from hydrophoned.runtime.streams import StreamRegistry
from hydrophoned.runtime.traffic_sets import FOREVER, Kept, Known, kept, matches, times, unknown_requests
from hydrophoned.store import StoreWriter
from hydrophoned.store.questions import QuestionReader, probe_table

_FLUSH_SECONDS: Final = 20.0
_MAX_PLACES: Final = 100_000
_OUTCOMES, _MEASURE = "outcomes", "measure"


class TrafficQuestions:
    """Answers questions about the traffic of one stream at a time; ``now`` gives UTC in us."""

    def __init__(
        self, streams: StreamRegistry, reader: QuestionReader, writer: StoreWriter, now: Callable[[], int]
    ) -> None:
        self._streams, self._reader, self._writer, self._now = streams, reader, writer, now

    def contrast(self, status: StreamStatus, body: rest.ContrastBody) -> Answered:
        """Features that differ between two sets; raises Refused (404, 409, 422)."""
        sample = ask(self._streams, status.id, sampled)
        a, b, in_both = self._sets(status, sample, body)
        try:
            found = contrast(
                Traffic.joined([a.traffic, b.traffic]),
                np.arange(len(a.key) + len(b.key)) < len(a.key),
                measure=Measure(body.measure.value),
                least_requests=body.least_requests,
                by_length=body.by_length,
            )
        except AnalysisError as error:
            raise _too_little(error) from error
        shares = [kept_.probability for kept_ in (a, b) if kept_.probability is not None]
        about = {
            "requests_a": found.a.requests,
            "requests_b": found.b.requests,
            "compared_a": found.compared[0],
            "compared_b": found.compared[1],
            "rows_a": found.a.rows,
            "rows_b": found.b.rows,
            "in_both": in_both,
            "tested": len(found.p),
            "whole": int(a.whole.sum() + b.whole.sum()),
            "sample_low": min((low for low, _ in shares), default=None),
            "sample_high": max((high for _, high in shares), default=None),
            "dictionary_version": sample.dictionary_version,
        }
        return Answered(self._contrasted(status, body, found), about)

    def rerank(self, status: StreamStatus, body: rest.RerankBody) -> Answered:
        """Requests by a probe, or features by an outcome; raises Refused (404, 409)."""
        sample = ask(self._streams, status.id, sampled)
        about = {"dictionary_version": sample.dictionary_version}
        if body.outcomes is None:
            return Answered(self._requests_by_probe(status, body, sample), about)
        return Answered(self._features_by_outcome(status, body, sample), about)

    def make_probes(self, status: StreamStatus, body: rest.ProbeBody) -> Answered:
        """Fit, score and store probes; raises Refused (409), Unavailable where they cannot be stored."""
        sample = ask(self._streams, status.id, sampled)
        sizes, created, neuron = tuple(sorted(set(body.sizes))), self._now(), None
        try:
            if body.outcomes is not None:
                target: dict[str, Any] = {_OUTCOMES: body.outcomes, _MEASURE: body.measure.value}
                held, label = self._labelled(status, sample, body.outcomes)
                columns = held.traffic.columns(Measure(body.measure.value))
                probes = sparse_probes(columns, label, held.key, sizes=sizes)
            else:
                target = {"tokens": body.tokens} if body.tokens is not None else {"pieces": body.pieces}
                marks = self._marks(body)
                columns = Columns.of_codes(sample.rows.index, sample.rows.value, sample.features)
                probes = sparse_probes(columns, marks(sample.rows), sample.rows.request, sizes=sizes)
                neuron = self._best_neuron(status, marks)
        except AnalysisError as error:
            raise _too_little(error) from error
        rows = [
            _stored(probe, name=body.name, created=created, version=sample.dictionary_version, target=target)
            | {"neuron_auroc": neuron}
            for probe in probes
        ]
        taken = self._writer.put({"probe": probe_table(status.stream_key, rows)})
        if not taken or not self._writer.flush(_FLUSH_SECONDS):
            raise Unavailable(f"the store did not take the probes: {self._writer.problem or 'it is behind'}")
        return Answered([_probe(row) for row in rows], {})

    def probes(self, status: StreamStatus, name: str | None) -> Answered:
        """Stored probes, the latest of each name and k."""
        table = self._reader.probes(status.stream_key, name)
        created = table["created"].cast("int64").to_pylist()
        rows = [row | {"created": time} for row, time in zip(table.to_pylist(), created, strict=True)]
        return Answered([_probe(row) for row in rows], {})

    # -- contrast -----------------------------------------------------------------------------------------------

    def _sets(self, status: StreamStatus, sample: Sampled, body: rest.ContrastBody) -> tuple[Kept, Kept, int]:
        """The two sets, and the number of requests that both hold and that are left out."""
        all_ = Known.of(self._reader, status)
        now = self._now()
        in_a = all_.members(body.a, "a")
        a = kept(self._reader, status, sample, all_.key[in_a], times(body.a, now, "a"))
        if body.b is None:
            since, until = times(body.a, now, "a")
            rest_ = [(~in_a, FOREVER), (in_a, (FOREVER[0], since)), (in_a, (until, FOREVER[1]))]
            parts = [
                kept(self._reader, status, sample, all_.key[some], covered)
                for some, covered in rest_
                if covered[0] < covered[1]
            ]
            b = Kept.joined(parts)
        else:
            in_b = all_.members(body.b, "b")
            b = kept(self._reader, status, sample, all_.key[in_b], times(body.b, now, "b"))
        in_both = np.intersect1d(a.key, b.key)
        return a.take(~np.isin(a.key, in_both)), b.take(~np.isin(b.key, in_both)), len(in_both)

    def _contrasted(
        self, status: StreamStatus, body: rest.ContrastBody, found: Contrast
    ) -> list[rest.ContrastedFeature]:
        wanted = np.ones(len(found.p), dtype=np.bool_)
        if body.higher_in is not None:
            wanted &= found.effect > 0 if body.higher_in is rest.Side.A else found.effect < 0
        if body.max_q is not None:
            wanted &= found.q <= body.max_q
        (places,) = wanted.nonzero()
        places = places[: body.limit]
        labels = labels_of(self._reader, status.stream_key, found.feature[places])
        return [
            rest.ContrastedFeature(
                index=int(found.feature[at]),
                difference=float(found.difference[at]),
                difference_low=known(found.difference_low[at]),
                difference_high=known(found.difference_high[at]),
                effect=float(found.effect[at]),
                p=float(found.p[at]),
                q=float(found.q[at]),
                **_side(found.a, int(at), "a"),
                **_side(found.b, int(at), "b"),
                **labels.get(int(found.feature[at]), {}),
            )
            for at in places
        ]

    # -- probes and orders --------------------------------------------------------------------------------------

    def _labelled(self, status: StreamStatus, sample: Sampled, outcomes: dict[str, rest.Label]) -> tuple[Kept, Bools]:
        """Requests of which it was told, and whether it was ``outcomes``: bool [R]."""
        all_ = Known.of(self._reader, status)
        told = np.fromiter((outcomes.keys() <= one.keys() for one in all_.outcomes), np.bool_, len(all_.ids))
        held = kept(self._reader, status, sample, all_.key[told])
        right = {key for key, one in zip(all_.key.tolist(), all_.outcomes, strict=True) if matches(one, outcomes)}
        held = held.take(held.traffic.rows > 0)
        return held, np.fromiter((key in right for key in held.key.tolist()), np.bool_, len(held.key))

    def _marks(self, body: rest.ProbeBody) -> Callable[[Any], Bools]:
        """Which rows, of a sample, are of the tokens or the pieces."""
        if body.tokens is not None:
            tokens = np.array(body.tokens)
            return lambda rows: np.isin(rows.token, tokens)
        table = self._reader.places_of_piece(body.pieces or [], limit=_MAX_PLACES)
        columns = (table[name].to_pylist() for name in ("request_key", "sequence", "position"))
        places = set(zip(*columns, strict=True))
        return lambda rows: at_places(rows, places)

    def _best_neuron(self, status: StreamStatus, marks: Callable[[Any], Bools]) -> float | None:
        """AUROC of the best single element of the raw rows, chosen and scored as features are; None where unknown."""
        raw = ask(self._streams, status.id, raw_rows)
        try:
            (probe,) = sparse_probes(DenseColumns(raw.x), marks(raw), raw.request, sizes=(1,))
        except TooLittle:
            return None
        return probe.held.auroc

    def _requests_by_probe(self, status: StreamStatus, body: rest.RerankBody, sample: Sampled) -> list[rest.Reranked]:
        probe = self._stored_probe(status, body)
        wanted = dict.fromkeys(body.requests or [])
        all_ = Known.of(self._reader, status)
        latest: dict[str, int] = {}
        for key, request_id in zip(all_.key.tolist(), all_.ids, strict=True):  # latest first
            if request_id in wanted:
                latest.setdefault(request_id, key)
        unknown = [one for one in wanted if one not in latest]
        if unknown:
            raise unknown_requests(unknown, "requests")
        held = kept(self._reader, status, sample, np.array(list(latest.values()), dtype=np.int64))
        measure = Measure(json.loads(probe["target"])[_MEASURE])
        scores = probe_scores(
            held.traffic, np.array(probe["features"]), np.array(probe["weights"]), probe["bias"], measure
        )
        place = {key: at for at, key in enumerate(held.key.tolist())}
        ids = list(wanted)
        score = np.array([scores[place[latest[one]]] if latest[one] in place else np.nan for one in ids])
        return [
            rest.Reranked(
                request=ids[at],
                request_key=latest[ids[at]],
                index=None,
                score=known(score[at]),
                p=None,
                rows=int(held.traffic.rows[place[latest[ids[at]]]]) if latest[ids[at]] in place else 0,
                requests=None,
            )
            for at in falling(score)[: body.limit]
        ]

    def _stored_probe(self, status: StreamStatus, body: rest.RerankBody) -> dict[str, Any]:
        found = [
            row
            for row in self._reader.probes(status.stream_key, body.probe).to_pylist()
            if body.k is None or row["k"] == body.k
        ]
        if not found:
            of = "" if body.k is None else f" with k = {body.k}"
            raise Refused(
                HTTPStatus.NOT_FOUND, "probe-not-found", f"no probe {body.probe!r}{of} of {status.id} is stored"
            )
        best: dict[str, Any] = max(found, key=lambda row: -1.0 if row["auroc"] is None else row["auroc"])
        if _OUTCOMES not in json.loads(best["target"]):
            raise Refused(
                HTTPStatus.CONFLICT,
                "not-of-requests",
                f"the probe {body.probe!r} tells {best['target']}, which is of rows: requests are ordered by one of "
                "outcomes",
            )
        return best

    def _features_by_outcome(self, status: StreamStatus, body: rest.RerankBody, sample: Sampled) -> list[rest.Reranked]:
        assert body.outcomes is not None  # noqa: S101  the caller saw to it
        held, label = self._labelled(status, sample, body.outcomes)
        try:
            found = association(held.traffic, label, Measure.RATE)
        except AnalysisError as error:
            raise _too_little(error) from error
        features = np.arange(sample.features) if body.features is None else np.array(list(dict.fromkeys(body.features)))
        beyond = features[features >= sample.features]
        if len(beyond):
            raise Refused(
                HTTPStatus.NOT_FOUND,
                "feature-not-found",
                f"there is no feature {beyond[0]}: {status.id} has {sample.features} features",
            )
        return [
            rest.Reranked(
                request=None,
                request_key=None,
                index=int(features[at]),
                score=known(found.effect[features[at]]),
                p=known(found.p[features[at]]),
                rows=None,
                requests=int(found.firing[features[at]]),
            )
            for at in falling(found.effect[features])[: body.limit]
        ]


def _side(side: Side, at: int, name: str) -> dict[str, Any]:
    return {
        f"requests_{name}": int(side.firing[at]),
        f"fired_{name}": int(side.fired[at]),
        f"rate_{name}": float(side.rate[at]),
        f"rate_low_{name}": float(side.rate_low[at]),
        f"rate_high_{name}": float(side.rate_high[at]),
        f"mean_{name}": known(side.mean[at]),
    }


def _stored(probe: SparseProbe, *, name: str, created: int, version: int, target: dict[str, Any]) -> dict[str, Any]:
    """A row of the table ``probe`` but for the stream."""
    held = probe.held
    return {
        "name": name,
        "created": created,
        "dictionary_version": version,
        "target": json.dumps(target, ensure_ascii=False),
        "k": probe.k,
        "features": probe.features.tolist(),
        "weights": probe.weights.tolist(),
        "bias": probe.bias,
        "threshold": probe.threshold,
        "chosen_again": probe.chosen_again.tolist(),
        "f1": held.f1,
        "f1_chance": held.f1_chance,
        "auroc": held.auroc,
        "auroc_low": held.auroc_low,
        "auroc_high": held.auroc_high,
        "units": probe.units,
        "requests": probe.requests,
        "positives": probe.positives,
    }


def _probe(row: dict[str, Any]) -> rest.Probe:
    share = row["positives"] / row["units"]
    return rest.Probe(**row | {"created": to_datetime(row["created"]), "f1_always": 2 * share / (1 + share)})


def _too_little(error: AnalysisError) -> Refused:
    return Refused(HTTPStatus.CONFLICT, "too-little", str(error))
