import asyncio
import json
import logging
from urllib.parse import quote, urlencode

import numpy as np
import pyarrow as pa
import pytest
from hydrophone_schemas import rest
from hydrophoned.api.endpoint import PageQuery
from hydrophoned.api.problems import PROBLEMS
from hydrophoned.store import QueryTimeout, StoreClosed, StoreReader
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Api

ID = "toy@1/layers.0"
FEATURES = f"/v1/streams/{ID}/features"
ENCODE = f"/v1/streams/{ID}/encode"
RECONSTRUCT = f"/v1/streams/{ID}/reconstruct"
JSON = {"Content-Type": "application/json"}
ARROW = {"Content-Type": rest.ARROW_TYPE}


def problem(got, status, name):
    """The problem document of an answer, which must have the one shape and leak nothing."""
    assert got.status == status, got.body
    assert got.headers["Content-Type"].partition(";")[0] == rest.PROBLEM_TYPE
    document = rest.Problem.model_validate_json(got.body)
    assert document.status == status
    assert document.type == rest.PROBLEM_URN + name
    assert document.title == PROBLEMS[name]
    assert "Traceback" not in document.detail
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    return document


BAD_PARAMETERS = [
    ("limt=5", "unknown-parameter", "limt", "did you mean 'limit'"),
    ("colour=red", "unknown-parameter", "colour", "there are"),
    ("limit=0", "invalid-parameter", "limit", "greater than or equal to 1"),
    ("limit=10001", "invalid-parameter", "limit", "less than or equal to 10000"),
    ("limit=five", "invalid-parameter", "limit", "valid integer"),
    ("limit=1&limit=2", "invalid-parameter", "limit", "more than once"),
    ("sort=colour", "invalid-parameter", "sort", "rate"),
    ("order=up", "invalid-parameter", "order", "asc"),
    ("min_rate=nan", "invalid-parameter", "min_rate", "finite"),
    ("fired=perhaps", "invalid-parameter", "fired", "boolean"),
    ("index=1,x", "invalid-parameter", "index", "pattern"),
    ("index=9999999999", "invalid-parameter", "index", "at most"),
    ("since=yesterday", "invalid-parameter", "since", "write 2026-01-31T12:00:00Z"),
    ("since=2026-01-01T00:00:00", "invalid-parameter", "since", "has no zone"),
    ("since=-999999999d", "invalid-parameter", "since", "before 1970"),
    ("since=1969-01-01T00:00:00Z", "invalid-parameter", "since", "before 1970"),
    ("until=2026-01-01T00:00:00Z&since=2026-01-02T00:00:00Z", "invalid-parameter", "since", "is after until"),
    ("format=xml", "invalid-parameter", "format", "json"),
    ("cursor=!!!", "invalid-cursor", "cursor", "damaged"),
    ("cursor=AAAA", "invalid-cursor", "cursor", "another list"),
]


@pytest.mark.parametrize(("query", "name", "parameter", "message"), BAD_PARAMETERS)
def test_a_bad_parameter_is_named_with_what_is_accepted(api, query, name, parameter, message):
    document = problem(api.get(f"{FEATURES}?{query}"), 400, name)
    (error,) = document.errors
    assert (error.location, error.name) == ("query", parameter)
    assert message in error.message
    assert document.instance == FEATURES


def test_parameters_are_refused_where_there_are_none(api):
    for path in ("/", "/livez", "/metrics", "/v1/self", "/openapi.json", f"/v1/streams/{ID}"):
        problem(api.get(f"{path}?x=1"), 400, "unknown-parameter")


def test_a_cursor_belongs_to_its_list_and_order(api):
    async def scenario(session):
        cursor = (await session.get(f"{FEATURES}?limit=3&sort=max")).json["next"]
        others = [f"{FEATURES}?limit=3&sort=mean", f"{FEATURES}?sort=max&min_rate=0", f"{FEATURES}/3/series?"]
        return (
            [await session.get(f"{other}&cursor={cursor}".replace("?&", "?")) for other in others],
            await session.get(f"{FEATURES}?limit=9&sort=max&cursor={cursor}"),
            [await session.get(f"{FEATURES}?limit=3&sort=max&cursor={cursor[:at]}") for at in range(1, len(cursor))],
        )

    others, same, cut = api.together(scenario)
    for got in others:
        assert "another list" in problem(got, 400, "invalid-cursor").detail
    assert same.status == 200  # the size of a page may change on the way
    for got in cut:
        problem(got, 400, "invalid-cursor")


def test_what_is_not_there_is_a_404_that_names_near_matches(api):
    assert (
        "near matches: toy@1/layers.0" in problem(api.get("/v1/streams/toy@1/layer.0"), 404, "stream-not-found").detail
    )
    assert "/openapi.json" in problem(api.get("/v2/streams"), 404, "not-found").detail
    assert "40 features, 0 to 39" in problem(api.get(f"{FEATURES}/40"), 404, "feature-not-found").detail
    problem(api.get("/v1/requests/nobody"), 404, "request-not-found")


@pytest.mark.parametrize("index", ["x", "-1", "1.5", "%C2%B2", "99999999999999999999"])
def test_an_index_that_is_no_number_is_a_bad_parameter(api, index):
    document = problem(api.get(f"{FEATURES}/{index}"), 400, "invalid-parameter")
    assert document.errors[0].location == "path"


def test_a_wrong_method_names_the_right_ones(api):
    got = api.post(FEATURES)
    problem(got, 405, "method-not-allowed")
    assert got.headers["Allow"] == "GET, HEAD"
    assert api.get(ENCODE).headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "accept", ["text/html", "application/xml;q=0.9", f"{rest.ARROW_TYPE};q=0, application/json;q=0"]
)
def test_a_form_that_there_is_not_is_a_406(api, accept):
    document = problem(api.get(FEATURES, headers={"Accept": accept}), 406, "not-acceptable")
    assert rest.ARROW_TYPE in document.detail


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        (f"application/json;q=0.5, {rest.ARROW_TYPE};q=0.6", rest.ARROW_TYPE),
        (f"application/json, {rest.ARROW_TYPE}", "application/json"),
        ("application/*;q=0.5, application/json;q=0.1", rest.ARROW_TYPE),
        ("garbage, application/json", "application/json"),
    ],
)
def test_the_accept_header_is_weighed(api, accept, content_type):
    assert api.get(FEATURES, headers={"Accept": accept}).headers["Content-Type"] == content_type


def test_arrow_is_refused_where_the_answer_is_no_list(api):
    problem(api.get(f"{FEATURES}/3", headers={"Accept": rest.ARROW_TYPE}), 406, "not-acceptable")


BAD_BODIES = [
    (b"{", JSON, 400, "malformed-body"),
    (b"", JSON, 400, "malformed-body"),
    (b'{"rows": [[1, 2]]}', JSON, 422, "invalid-body"),
    (b'{"rows": [["a"]]}', JSON, 422, "invalid-body"),
    (b'{"rows": [[1,2,3,4,5,6,7,8]], "more": 1}', JSON, 422, "invalid-body"),
    (b'{"row": []}', JSON, 422, "invalid-body"),
    (b"[" * 100_000, JSON, 400, "malformed-body"),
    (b"nonsense", ARROW, 400, "malformed-body"),
    (b"", ARROW, 400, "malformed-body"),
    (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported-media-type"),
    (b"{}", {"Content-Type": ""}, 415, "unsupported-media-type"),
    (json.dumps({"rows": [[0] * 8] * 8193}).encode(), JSON, 413, "too-many-rows"),
]


@pytest.mark.parametrize("path", [ENCODE, RECONSTRUCT])
@pytest.mark.parametrize(("body", "headers", "status", "name"), BAD_BODIES)
def test_a_bad_body_is_told_apart(api, path, body, headers, status, name):
    problem(api.post(path, data=body, headers=headers), status, name)


def arrow_body(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def fixed(rows, kind=None, width=8):
    kind = kind or pa.float32()
    return pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(rows).reshape(-1), kind), width)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"x": [1.0]}), "fixed-size-list"),
        (pa.table({"x": fixed(np.zeros((2, 8))), "y": [1, 2]}), "fixed-size-list"),
        (pa.table({"x": fixed(np.zeros((2, 4)), width=4)}), "rows of 4 values"),
        (pa.table({"x": fixed(np.zeros((2, 8), dtype=np.int32), pa.int32())}), "holds int32"),
        (pa.table({"x": pa.array([None, [1.0] * 8], pa.list_(pa.float32(), 8))}), "has nulls"),
    ],
)
def test_an_arrow_body_of_another_shape_is_named(api, table, message):
    got = api.post(ENCODE, data=arrow_body(table), headers=ARROW)
    assert message in problem(got, 422, "invalid-body").detail


def test_every_cut_of_an_arrow_body_is_refused_or_read(api):
    whole = arrow_body(pa.table({"x": fixed(np.ones((2, 8)))}))

    async def scenario(session):
        return [await session.call("POST", ENCODE, data=whole[:cut], headers=ARROW) for cut in range(0, len(whole), 9)]

    for got in api.together(scenario):
        assert got.status in {200, 400, 422}, got.body
        if got.status != 200:
            rest.Problem.model_validate_json(got.body)


def test_a_body_beyond_the_limit_is_refused(backend):
    small = Api(backend, max_body_bytes=1000)
    problem(small.post(ENCODE, data=b" " * 2000, headers=JSON), 413, "body-too-large")


@pytest.mark.parametrize("path", [ENCODE, RECONSTRUCT])
def test_a_stream_without_a_dictionary_cannot_encode(api, backend, path):
    backend.live = {ID: backend.live[ID].model_copy(update={"dictionary_version": 0})}
    got = api.post(path, data=b'{"rows": []}', headers=JSON)
    assert "1000 have been received" in problem(got, 409, "no-dictionary").detail


@pytest.mark.parametrize("path", [ENCODE, RECONSTRUCT])
def test_a_learner_that_cannot_answer_is_a_503(api, backend, path):
    backend.busy = True
    got = api.post(path, data=b'{"rows": [[1,2,3,4,5,6,7,8]]}', headers=JSON)
    assert problem(got, 503, "unavailable").detail == "the learner is behind"
    assert got.headers["Retry-After"] == "1"


def test_an_unforeseen_error_is_logged_under_the_id_that_the_client_gets(api, backend, caplog):
    class BrokenError(Exception):
        pass

    def broken():
        raise BrokenError("the secret inside")

    backend.streams, kept = broken, backend.streams
    try:
        with caplog.at_level(logging.ERROR):
            got = api.get("/v1/streams")
    finally:
        backend.streams = kept
    document = problem(got, 500, "internal")
    assert document.id
    assert document.id in document.detail
    assert b"secret" not in got.body
    assert any(document.id in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("error", "name"),
    [(QueryTimeout("the query took longer than 1 s"), "query-timeout"), (StoreClosed(), "unavailable")],
)
def test_a_store_that_does_not_answer_is_a_503(api, backend, monkeypatch, error, name):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(StoreReader, "features", fail)
    problem(api.get(FEATURES), 503, name)


def test_a_slow_query_is_stopped_in_the_store(api, backend):
    patient, backend.reader = backend.reader, StoreReader(backend.store, timeout_s=0.05)
    backend.reader.series = lambda *_, **__: backend.reader._query(
        "SELECT sum(sqrt(a.range * b.range)) FROM range(10000000) a, range(10000000) b"
    )
    try:
        problem(api.get(f"{FEATURES}/3/series"), 503, "query-timeout")
    finally:
        backend.reader = patient


def test_a_request_past_its_time_is_a_503(backend):
    impatient = Api(backend, request_timeout_s=0.05)

    async def never_ending():
        yield b'{"rows": '
        await asyncio.Event().wait()

    got = impatient.together(lambda session: session.call("POST", ENCODE, data=never_ending(), headers=JSON))
    problem(got, 503, "request-timeout")


def test_too_many_queries_are_refused_and_the_rest_answered(backend):
    import threading

    busy = Api(backend, read_workers=1, read_waiting=2)
    go, real = threading.Event(), backend.reader.request_models

    async def scenario(session):
        backend.reader.request_models = lambda _: go.wait(10) and []
        calls = [
            asyncio.ensure_future(
                session.call("POST", "/v1/requests/r/outcome", data=b'{"labels":{"a":1}}', headers=JSON)
            )
            for _ in range(4)
        ]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        go.set()
        return [call.result() for call in done], await asyncio.gather(*waiting)

    try:
        refused, answered = busy.together(scenario)
    finally:
        backend.reader.request_models = real
    (got,) = refused
    problem(got, 503, "busy")
    assert [got.status for got in answered] == [404] * 3


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8417", "127.0.0.1.evil.example", "localhost.evil", "[::2]"]
)
def test_a_host_that_is_not_ours_is_refused(api, host):
    problem(api.get("/v1/streams", headers={"Host": host}), 421, "misdirected")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8417", "localhost.", "box.internal"]
)
def test_loopback_names_and_configured_ones_are_answered(backend, host):
    assert Api(backend, allowed_hosts=["Box.internal"]).get("/livez", headers={"Host": host}).status == 200


def test_every_answer_has_the_security_headers(api):
    for path in ("/", "/v1/streams", "/nowhere", "/metrics"):
        headers = api.get(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        assert "aiohttp" not in headers["Server"].lower()


def test_limits_of_a_page_are_stated():
    schema = PageQuery.model_json_schema()["properties"]["limit"]
    assert (schema["minimum"], schema["maximum"], schema["default"]) == (1, 10_000, 100)


@settings(max_examples=15, deadline=None)  # each example asks a server of its own some forty times
@given(data=st.data())
def test_nothing_asked_is_an_internal_error(backend, data):
    """Whatever stands in a path or a query: an answer or a problem document, never a 500."""
    text = st.text(max_size=12) | st.sampled_from(["0", "-1", "1e400", "nan", "2**63", "9" * 30, "..", "%", "-5m", ID])
    names = st.sampled_from(["limit", "cursor", "since", "until", "sort", "step", "index", "min_rate", "context", "x"])
    paths = st.sampled_from([FEATURES, f"{FEATURES}/3/series", f"{FEATURES}/3/examples", f"/v1/streams/{ID}/windows"])
    asked = []
    for _ in range(20):
        query = data.draw(st.dictionaries(names, text, max_size=3))
        asked.append(f"{data.draw(paths)}?{urlencode(query)}")
        asked.append("/v1/" + "/".join(quote(part, safe="") for part in data.draw(st.lists(text, max_size=4))))

    async def scenario(session):
        return [(path, await session.get(path)) for path in asked]

    for path, got in Api(backend).together(scenario):
        assert got.status in {200, 400, 404, 405, 406}, (path, got.body)
        if got.status != 200:
            rest.Problem.model_validate_json(got.body)
