import re
from pathlib import Path

import pytest
from hydrophone_schemas import rest
from hydrophone_schemas.rest import ARROW_TYPE, PROBLEM_TYPE
from hydrophone_schemas.tables import TABLES
from hydrophoned.api import create_app
from hydrophoned.api.app import ENDPOINTS
from hydrophoned.api.problems import PROBLEMS
from openapi_spec_validator import OpenAPIV31SpecValidator
from test_store_database import DUCKDB_NAMES

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


@pytest.fixture
def document(api):
    got = api.get("/openapi.json")
    assert got.status == 200
    return got.json


def test_the_document_is_valid_openapi(document):
    OpenAPIV31SpecValidator(document).validate()


def test_every_route_of_the_app_is_in_the_document(document, backend):
    routes = set()
    for route in create_app(backend).router.routes():
        if route.method != "HEAD":
            path = re.sub(r"\{(\w+):(?:[^{}]|\{[^}]*\})*\}", r"{\1}", route.resource.canonical)
            routes.add((route.method, path))
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert routes == described
    assert len(routes) == len(ENDPOINTS)


def test_every_operation_says_what_it_needs_to(document):
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        assert operation["x-stability"] in {"stable", "beta", "experimental"}
        assert all(parameter["description"] for parameter in operation["parameters"])
        assert PROBLEM_TYPE in operation["responses"]["500"]["content"]


def test_lists_offer_arrow_and_nothing_else_does(document):
    for endpoint in ENDPOINTS:
        content = document["paths"][endpoint.path][endpoint.method.lower()]["responses"][str(int(endpoint.status))][
            "content"
        ]
        assert (ARROW_TYPE in content) == (endpoint.item is not None)


def test_every_field_of_every_model_has_a_description(document):
    for name, schema in document["components"]["schemas"].items():
        for field, about in schema.get("properties", {}).items():
            assert about.get("description"), f"{name}.{field}"


def test_the_reference_names_every_endpoint_parameter_and_problem():
    text = (REFERENCE / "rest.md").read_text()
    sections = dict(re.findall(r"^### `(\w+ \S+)`\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE))
    assert set(sections) == {f"{endpoint.method} {endpoint.path}" for endpoint in ENDPOINTS}
    for endpoint in ENDPOINTS:
        section = sections[f"{endpoint.method} {endpoint.path}"]
        assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(endpoint.query.model_fields), (
            endpoint.path
        )
    assert set(re.findall(r"^\| `([a-z-]+)` \| \d", text, re.MULTILINE)) == set(PROBLEMS)


def test_the_reference_names_every_field_of_every_model():
    text = (REFERENCE / "rest.md").read_text().partition("## Models")[2]
    sections = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE))
    models = {
        name: model
        for name, model in vars(rest).items()
        if isinstance(model, type) and issubclass(model, rest.RestModel) and model is not rest.RestModel
    }
    assert set(sections) == set(models)
    for name, model in models.items():
        found = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", sections[name], re.MULTILINE)
        assert found == [(field, info.description) for field, info in model.model_fields.items()], name


def test_the_reference_names_every_table_and_column():
    text = (REFERENCE / "tables.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert set(sections) == {*TABLES, "schema_migration"}
    for name, schema in TABLES.items():
        found = re.findall(r"^\| `(\w+)` \| (\S+) \| (yes|no) \| .+ \|$", sections[name], re.MULTILINE)
        assert [row[0] for row in found] == schema.names
        assert [row[1] for row in found] == [DUCKDB_NAMES[field.type] for field in schema], name
        assert [row[2] == "yes" for row in found] == [field.nullable for field in schema], name
