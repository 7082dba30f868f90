"""Endpoints of requests and their outcomes."""

import json
from datetime import UTC
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from hydrophone_schemas import rest
from pydantic import Field

from hydrophoned.api.endpoint import Call, Endpoint, One
from hydrophoned.api.errors import Refused
from hydrophoned.api.problems import not_found
from hydrophoned.api.times import to_datetime, to_us
from hydrophoned.store import StoreReader

_MAX_REQUESTS: Final = 100


class RequestQuery(rest.RestModel):
    """How much of a request to show."""

    tokens: bool = Field(default=True, description="whether to give the token strings, where they are kept")


async def get_request(call: Call) -> One:
    """The requests of an id, and their outcomes."""
    name = call.path["id"]
    found = await call.reads.run(partial(_read, call.backend.reader, name, tokens=call.query.tokens))
    if not found.requests and not found.outcomes:
        raise not_found(
            "request-not-found", f"no request {name!r} is stored; requests are stored about a second after they begin"
        )
    return One(found)


async def post_outcome(call: Call) -> One:
    """Record what the user tells of a request."""
    name, body = call.path["id"], call.body
    model = body.model
    if model is None:
        models = await call.reads.run(partial(call.backend.reader.request_models, name))
        if not models:
            raise not_found(
                "request-not-found",
                f"no request {name!r} is stored; give 'model' to record an outcome all the same",
            )
        if len(models) > 1:
            raise Refused(
                HTTPStatus.CONFLICT,
                "ambiguous-model",
                f"requests {name!r} were served by {', '.join(models)}; give 'model' to say which is meant",
            )
        model = models[0]
    received = call.backend.now()
    time = received if body.time is None else to_us(body.time)
    call.backend.put_outcome(name, model, body.labels, time, body.source)
    outcome = rest.Outcome(
        request=name,
        model=model,
        time=to_datetime(time),
        received=to_datetime(received),
        source=body.source,
        labels=body.labels,
    )
    return One(outcome, HTTPStatus.ACCEPTED)


def _read(reader: StoreReader, name: str, *, tokens: bool) -> rest.RequestDetail:
    requests = reader.requests(name, limit=_MAX_REQUESTS).to_pylist()
    keys = [request["request_key"] for request in requests]
    rows: dict[int, list[rest.RequestStreamRows]] = {}
    runs: dict[int, list[rest.TokenRun]] = {}
    if keys:
        for row in reader.request_rows(keys).to_pylist():
            rows.setdefault(row.pop("request_key"), []).append(rest.RequestStreamRows(**row))
    if keys and tokens:
        runs = _join_runs(reader.request_tokens(keys).to_pylist())
    return rest.RequestDetail(
        id=name,
        requests=[
            rest.Request(
                **{**request, "started": request["started"].replace(tzinfo=UTC)},
                rows=rows.get(request["request_key"], []),
                tokens=runs.get(request["request_key"]),
            )
            for request in ({**request, "attributes": _labels(request["attributes"])} for request in requests)
        ],
        outcomes=[
            rest.Outcome(
                request=name,
                model=outcome["model"],
                time=outcome["time"].replace(tzinfo=UTC),
                received=outcome["received"].replace(tzinfo=UTC),
                source=outcome["source"],
                labels=_labels(outcome["labels"]),
            )
            for outcome in reader.outcomes(name, limit=_MAX_REQUESTS).to_pylist()
        ],
    )


def _labels(text: str) -> dict[str, Any]:
    """Labels or attributes as a producer gave them: NaN and Inf become null, what is nested becomes JSON text."""
    given = json.loads(text, parse_constant=lambda _: None)
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for name, value in given.items()
    }


def _join_runs(runs: list[dict[str, Any]]) -> dict[int, list[rest.TokenRun]]:
    """Runs by request; those that follow one another (a token at a time, while decoding) are joined."""
    joined: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        ours = joined.setdefault(run.pop("request_key"), [])
        last = ours[-1] if ours else None
        if (
            last is not None
            and last["sequence"] == run["sequence"]
            and last["position"] + len(last["pieces"]) == run["position"]
        ):
            last["pieces"] += run["pieces"]
        else:
            ours.append(run)
    return {key: [rest.TokenRun(**run) for run in ours] for key, ours in joined.items()}


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/requests/{id}",
        get_request,
        "The requests of an id: rows by stream, outcomes, and token strings where these are kept",
        "requests",
        rest.RequestDetail,
        query=RequestQuery,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    ),
    Endpoint(
        "POST",
        "/v1/requests/{id}/outcome",
        post_outcome,
        "Record what became of a request",
        "requests",
        rest.Outcome,
        body=rest.OutcomeBody,
        consumes=(rest.JSON_TYPE,),
        status=HTTPStatus.ACCEPTED,
        problems=(
            HTTPStatus.NOT_FOUND,
            HTTPStatus.CONFLICT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            HTTPStatus.SERVICE_UNAVAILABLE,
        ),
    ),
)
