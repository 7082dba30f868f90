"""Endpoints that answer questions: about features, a request, sets of traffic; and from codes back to rows."""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import numpy as np
import pyarrow as pa
from hydrophone_schemas import rest
from numpy.typing import NDArray
from pydantic import Field

from hydrophoned.api.backend import Answered
from hydrophoned.api.codes import from_lists
from hydrophoned.api.endpoint import Call, Endpoint, FormatQuery, Listing
from hydrophoned.api.errors import Refused
from hydrophoned.api.given_codes import GivenCodes, codes_from_arrow, codes_from_lists


class NeighboursQuery(FormatQuery):
    """Which neighbours."""

    limit: int = Field(default=10, ge=1, le=1000, description="neighbours at most")
    by: rest.NeighbourOrder = Field(
        default=rest.NeighbourOrder.COSINE, description="cosine of decoder rows, or correlation of activations"
    )


class PartnersQuery(FormatQuery):
    """Which partners."""

    limit: int = Field(default=10, ge=1, le=1000, description="partners at most")
    by: rest.PartnerOrder = Field(
        default=rest.PartnerOrder.NPMI,
        description="npmi: its value at the lower bound of the rate; count: rows on which both fire",
    )


class FiringsQuery(FormatQuery):
    """Which firings, and how much around them."""

    limit: int = Field(default=12, ge=1, le=1000, description="firings at most")
    by: rest.FiringChoice = Field(
        default=rest.FiringChoice.BAND,
        description="band: as many of each quarter of the values; random: of all firings uniformly",
    )
    context: int = Field(default=10, ge=0, le=200, description="token strings to either side of the row's own")


class ProbesQuery(FormatQuery):
    """Which probes."""

    name: str | None = Field(default=None, max_length=200, description="only those of this name")


async def search_features(call: Call) -> Listing:
    """Features by label, token, token string, text, or example rows."""
    status = _with_dictionary(call)
    rows = await _rows(call, status)
    return await _answer(call, partial(call.backend.questions.search, status, call.body, rows))


async def inspect(call: Call) -> Listing:
    """What features do in a request or in given rows."""
    status = _with_dictionary(call)
    rows = await _rows(call, status)
    return await _answer(call, partial(call.backend.questions.inspect, status, call.body, rows))


async def feature_neighbours(call: Call) -> Listing:
    """Features near one."""
    status = _with_dictionary(call)
    index, query = call.index(status), call.query
    return await _answer(call, partial(call.backend.questions.neighbours, status, index, query.by, query.limit))


async def feature_partners(call: Call) -> Listing:
    """Features that fire together with one."""
    status = _with_dictionary(call)
    index, query = call.index(status), call.query
    return await _answer(call, partial(call.backend.questions.partners, status, index, query.by, query.limit))


async def feature_firings(call: Call) -> Listing:
    """Some rows on which a feature fired."""
    status = _with_dictionary(call)
    index, query = call.index(status), call.query
    return await _answer(
        call, partial(call.backend.questions.firings, status, index, query.by, query.limit, query.context)
    )


async def contrast(call: Call) -> Listing:
    """Features that differ between two sets of traffic."""
    status = _with_dictionary(call)
    return await _answer(call, partial(call.backend.traffic.contrast, status, call.body))


async def rerank(call: Call) -> Listing:
    """Requests in order of a probe, or features in order of an outcome."""
    status = _with_dictionary(call)
    return await _answer(call, partial(call.backend.traffic.rerank, status, call.body))


async def decode(call: Call) -> Listing:
    """Rows of the given codes."""
    status = _with_dictionary(call)
    assert status.features is not None  # noqa: S101  there is a dictionary
    if isinstance(call.body, rest.DecodeBody):
        read: Callable[[], GivenCodes] = partial(codes_from_lists, call.body.codes, status.features)
    else:
        read = partial(codes_from_arrow, call.body, status.features)
    codes = await call.reads.run(read)
    rows, version = await call.reads.run(partial(call.backend.questions.decode, status, codes.index, codes.value))
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * status.width)
    table = pa.table({"row": pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)))})
    return Listing(table, about={"dictionary_version": version})


async def make_probes(call: Call) -> Listing:
    """Find the few features that tell a label, and store how they do it."""
    status = _with_dictionary(call)
    return await _answer(call, partial(call.backend.traffic.make_probes, status, call.body))


async def list_probes(call: Call) -> Listing:
    """Stored probes of a stream."""
    return await _answer(call, partial(call.backend.traffic.probes, call.stream(), call.query.name))


async def _answer(call: Call, question: Callable[[], Answered]) -> Listing:
    answered = await call.reads.run(question)
    return Listing(answered.items, about=answered.about)


def _with_dictionary(call: Call) -> rest.StreamStatus:
    """The stream that is named; raises Refused (404, 409)."""
    status = call.stream()
    if not status.dictionary_version:
        raise Refused(
            HTTPStatus.CONFLICT,
            "no-dictionary",
            f"{status.id} has no dictionary yet: it is made from the first rows, and {status.rows_received} have been "
            "received",
        )
    return status


async def _rows(call: Call, status: rest.StreamStatus) -> NDArray[np.float32] | None:
    """The rows [n, d] of the body, None without; raises Refused (413, 422)."""
    given = call.body.rows
    return None if given is None else await call.reads.run(partial(from_lists, given, status.width))


_JSON: Final = (rest.JSON_TYPE,)
_READ: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE)
_PROBLEMS: Final = (
    *_READ,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


def _asks(path: str, handle: Any, summary: str, answer: Any, item: Any, body: Any, tag: str = "questions") -> Endpoint:
    return Endpoint(
        "POST",
        f"/v1/streams/{{stream}}/{path}",
        handle,
        summary,
        tag,
        answer,
        item,
        FormatQuery,
        body,
        consumes=_JSON if body is not rest.DecodeBody else (rest.JSON_TYPE, rest.ARROW_TYPE),
        problems=_PROBLEMS,
        stability="beta",
    )


ENDPOINTS: Final = (
    _asks(
        "features:search",
        search_features,
        "Features by label, token, token string, text, or example rows",
        rest.FeatureSearch,
        rest.FoundFeature,
        rest.FeatureSearchBody,
    ),
    _asks(
        "inspect",
        inspect,
        "Which features fire in a request or in given rows, where, and how strongly",
        rest.Inspection,
        rest.InspectedFeature,
        rest.InspectBody,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/features/{index}/neighbours",
        feature_neighbours,
        "Features near one, by what they write and by when they fire",
        "questions",
        rest.NeighbourList,
        rest.Neighbour,
        NeighboursQuery,
        problems=_READ,
        stability="beta",
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/features/{index}/partners",
        feature_partners,
        "Features that fire on the same rows as one",
        "questions",
        rest.PartnerList,
        rest.Partner,
        PartnersQuery,
        problems=_READ,
        stability="beta",
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/features/{index}/firings",
        feature_firings,
        "Rows on which a feature fired, weak and strong, drawn from a uniform sample",
        "questions",
        rest.FiringList,
        rest.Firing,
        FiringsQuery,
        problems=_READ,
        stability="beta",
    ),
    _asks(
        "contrast",
        contrast,
        "Features that differ between two sets of requests, with effect size and q-value",
        rest.Contrast,
        rest.ContrastedFeature,
        rest.ContrastBody,
    ),
    _asks(
        "rerank",
        rerank,
        "Requests in order of a stored probe, or features in order of an outcome",
        rest.RerankedList,
        rest.Reranked,
        rest.RerankBody,
    ),
    _asks(
        "decode",
        decode,
        "Rows of given codes, with the dictionary as it is now",
        rest.DecodedList,
        rest.DecodedRow,
        rest.DecodeBody,
        "codes",
    ),
    _asks(
        "probes",
        make_probes,
        "The few features that tell an outcome or a token best, scored on held-out requests and stored",
        rest.ProbeList,
        rest.Probe,
        rest.ProbeBody,
    ),
    Endpoint(
        "GET",
        "/v1/streams/{stream}/probes",
        list_probes,
        "Stored probes: the latest of each name and number of features",
        "questions",
        rest.ProbeList,
        rest.Probe,
        ProbesQuery,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
        stability="beta",
    ),
)
