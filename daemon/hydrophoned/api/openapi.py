"""The OpenAPI 3.1 document, made from the endpoints' declarations."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from hydrophone_schemas.rest import ARROW_TYPE, JSON_TYPE, PROBLEM_TYPE, Problem, RestModel
from pydantic.json_schema import models_json_schema

from hydrophoned.api.endpoint import PATH_PARAMETERS, Endpoint

_EVERY: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_ACCEPTABLE,
    HTTPStatus.MISDIRECTED_REQUEST,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
"""Problems that every endpoint may answer."""

_DESCRIPTION: Final = (
    "What runs beneath the surface of running models. Unknown values are null, never 0; times are UTC. "
    f"Every list is also given as {ARROW_TYPE}. Errors are RFC 9457 problem documents."
)
_TAGS: Final = {
    "streams": "models, streams and their windows",
    "features": "features of a stream's dictionary",
    "versions": "published versions of a stream's dictionary, and what became of its features",
    "questions": "which features differ, tell, fire together, and what they do in a request",
    "drift": "whether a stream has changed, since when and in what, and which requests are novel",
    "codes": "rows in, their codes or what these rebuild out",
    "requests": "requests and their outcomes",
    "daemon": "the daemon itself",
}


def openapi(endpoints: Sequence[Endpoint], version: str) -> dict[str, Any]:
    """The document of ``endpoints``."""
    models: list[tuple[type[RestModel], Any]] = [(Problem, "serialization")]
    models += [(endpoint.answer, "serialization") for endpoint in endpoints if endpoint.answer]
    models += [(endpoint.body, "validation") for endpoint in endpoints if endpoint.body]
    references, schemas = models_json_schema(list(dict.fromkeys(models)), ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hydrophone",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(endpoint: Endpoint, references: Any) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.handle.__name__,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "x-stability": endpoint.stability,
        "parameters": _parameters(endpoint),
        "responses": _responses(endpoint, references),
    }
    if endpoint.consumes:
        operation["requestBody"] = {
            "required": True,
            "content": {
                media: {
                    "schema": references[endpoint.body, "validation"]
                    if media == JSON_TYPE and endpoint.body
                    else {"contentMediaType": media}
                }
                for media in endpoint.consumes
            },
        }
    return operation


_BINARY: Final[dict[str, Any]] = {"contentMediaType": ARROW_TYPE}


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name][1],
            "schema": {"type": "integer", "minimum": 0} if name == "index" else {"type": "string"},
        }
        for name in endpoint.path_parameters
    ]
    properties = _inlined(endpoint.query.model_json_schema())
    for name, schema in properties.items():
        description = schema.pop("description")
        schema.pop("title", None)
        found.append({"name": name, "in": "query", "required": False, "description": description, "schema": schema})
    return found


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Properties of a flat model, with references to its enumerations replaced by what they name."""
    definitions = schema.get("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                target = dict(definitions[part["$ref"].rpartition("/")[2]])
                target.pop("description", None)
                return resolve({**target, **{key: value for key, value in part.items() if key != "$ref"}})
            return {key: resolve(value) for key, value in part.items()}
        if isinstance(part, list):
            return [resolve(item) for item in part]
        return part

    resolved: dict[str, Any] = resolve(schema.get("properties", {}))
    return resolved


def _responses(endpoint: Endpoint, references: Any) -> dict[str, Any]:
    if endpoint.answer is None:
        content: dict[str, Any] = {endpoint.produces: {"schema": {"type": "string"}}}
    else:
        content = {endpoint.produces: {"schema": references[endpoint.answer, "serialization"]}}
    if endpoint.item is not None:
        content[ARROW_TYPE] = {"schema": _BINARY}
    responses: dict[str, Any] = {
        str(int(status)): {"description": HTTPStatus(status).phrase, "content": content}
        for status in (endpoint.status, *endpoint.also)
    }
    problem = {PROBLEM_TYPE: {"schema": references[Problem, "serialization"]}}
    for status in sorted({*_EVERY, *endpoint.problems}):
        responses[str(int(status))] = {"description": HTTPStatus(status).phrase, "content": problem}
    if endpoint.path == "/readyz":  # the one answer of 503 that is no problem document: it is what was asked
        responses["503"] = {"description": "Not ready", "content": content}
    return responses
