"""Endpoints of the daemon itself: is it alive, is it ready, what does it cost, what does it know."""

from http import HTTPStatus
from typing import Final

from hydrophone_schemas import rest

from hydrophoned.api.endpoint import Call, Endpoint, One, Raw
from hydrophoned.api.metrics import CONTENT_TYPE, exposition

LINKS: Final = {
    "models": "/v1/models",
    "streams": "/v1/streams",
    "self": "/v1/self",
    "live": "/livez",
    "ready": "/readyz",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
}


async def get_index(call: Call) -> One:
    """Where to go from here."""
    return One(rest.Index(name="hydrophone", version=call.backend.version, links=LINKS))


async def get_self(call: Call) -> One:
    """The daemon's own report."""
    return One(call.backend.self_report())


async def get_live(_: Call) -> One:
    """The process answers."""
    return One(rest.Liveness(status="ok"))


async def get_ready(call: Call) -> One:
    """Whether rows are taken and queries answered."""
    reasons = call.backend.ready()
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    return One(rest.Readiness(ready=not reasons, reasons=reasons), status)


async def get_metrics(call: Call) -> Raw:
    """Prometheus metrics."""
    return Raw(exposition(call.backend), CONTENT_TYPE)


ENDPOINTS: Final = (
    Endpoint("GET", "/", get_index, "Where to go from here", "daemon", rest.Index),
    Endpoint("GET", "/livez", get_live, "Whether the process answers", "daemon", rest.Liveness),
    Endpoint(
        "GET",
        "/readyz",
        get_ready,
        "Whether rows are taken and queries answered; 503 with the reasons if not",
        "daemon",
        rest.Readiness,
    ),
    Endpoint("GET", "/metrics", get_metrics, "Prometheus metrics", "daemon", produces="text/plain"),
    Endpoint(
        "GET",
        "/v1/self",
        get_self,
        "The daemon's own processor time, memory, lags and drops, stage by stage",
        "daemon",
        rest.SelfReport,
    ),
)
