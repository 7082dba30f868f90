import json
import string
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from generated import START, as_table
from hydrophone_schemas import rest
from hydrophoned.api.cursors import decode_cursor, encode_cursor
from hydrophoned.api.errors import Refused
from hydrophoned.api.features import _FeatureCursor
from hydrophoned.api.negotiation import choose
from hydrophoned.api.times import parse_time, to_datetime
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from test_api_problems import ARROW, ENCODE, ID, JSON, RECONSTRUCT, arrow_body, fixed, problem


def test_encode_gives_the_codes_of_every_row(api):
    rows = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    got = api.post(ENCODE, data=json.dumps({"rows": rows.astype(float).tolist()}), headers=JSON)
    assert got.status == 200
    assert got.json["dictionary_version"] == 1
    for row, code in zip(rows, got.json["items"], strict=True):
        best = np.argsort(-row, kind="stable")[:3]
        assert code == {
            "index": best.tolist(),
            "value": row[best].astype(float).tolist(),
            "sink": False,
            "finite": True,
        }


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_encode_reads_arrow_and_answers_it(api, kind):
    rows = np.arange(24).reshape(3, 8)
    table = pa.table({"x": fixed(rows.astype(kind.to_pandas_dtype()), kind)})

    async def scenario(session):
        return [
            await session.call("POST", ENCODE, data=arrow_body(table), headers=ARROW | {"Accept": accept})
            for accept in (rest.ARROW_TYPE, rest.JSON_TYPE)
        ]

    by_arrow, by_json = api.together(scenario)
    with pa.ipc.open_stream(by_arrow.body) as reader:
        answered = reader.read_all()
    assert answered.to_pylist() == by_json.json["items"]
    assert answered["index"].to_pylist() == [[7, 6, 5]] * 3
    assert answered.schema.metadata[b"hydrophone.dictionary_version"] == b"1"


def test_rows_that_are_not_finite_or_are_sinks_are_flagged(api):
    body = b'{"rows": [[1,2,3,4,5,6,7,NaN], [1e39,0,0,0,0,0,0,0], [500,0,0,0,0,0,0,0], [1,0,0,0,0,0,0,0]]}'
    items = api.post(ENCODE, data=body, headers=JSON).json["items"]
    assert [(i["finite"], i["sink"], i["index"] is None, i["value"] is None) for i in items] == [
        (False, False, True, True),
        (False, True, True, True),
        (True, True, False, False),
        (True, False, False, False),
    ]


@pytest.mark.parametrize("path", [ENCODE, RECONSTRUCT])
def test_no_rows_have_no_codes(api, path):
    assert api.post(path, data=b'{"rows": []}', headers=JSON).json["items"] == []
    empty = arrow_body(pa.table({"x": fixed(np.zeros((0, 8)))}))
    assert api.post(path, data=empty, headers=ARROW).json["items"] == []


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_reconstruct_gives_every_row_as_its_code_rebuilds_it(api, kind):
    rows = np.arange(24).reshape(3, 8)
    table = pa.table({"x": fixed(rows.astype(kind.to_pandas_dtype()), kind)})

    async def scenario(session):
        lists = json.dumps({"rows": rows.tolist()})
        return [
            await session.call(
                "POST", RECONSTRUCT, data=arrow_body(table), headers=ARROW | {"Accept": rest.ARROW_TYPE}
            ),
            await session.call("POST", RECONSTRUCT, data=arrow_body(table), headers=ARROW),
            await session.call("POST", RECONSTRUCT, data=lists, headers=JSON),
        ]

    by_arrow, *by_json = api.together(scenario)
    with pa.ipc.open_stream(by_arrow.body) as reader:
        answered = reader.read_all()
    expected = np.where(np.arange(8) < 5, 0, rows).tolist()
    assert [(one["row"], one["sink"], one["finite"]) for one in answered.to_pylist()] == [
        (row, False, True) for row in expected
    ]
    assert answered.schema.field("row").type.value_type == pa.float32()
    assert answered.schema.metadata[b"hydrophone.dictionary_version"] == b"3", "the version that rebuilt the rows"
    for got in by_json:
        assert got.json == {"items": answered.to_pylist(), "next": None, "dictionary_version": 3}


def test_rows_that_cannot_be_rebuilt_come_back_as_they_were_given(api):
    given = np.array([[1, 2, 3, 4, 5, 6, 7, np.nan], [np.inf, 0, 0, 0, 0, 0, 0, 0], [500, 1, 1, 1, 0, 0, 0, 0]])

    async def scenario(session):
        body = arrow_body(pa.table({"x": fixed(given.astype(np.float32))}))
        headers = ARROW | {"Accept": rest.ARROW_TYPE}
        return [
            await session.call("POST", RECONSTRUCT, data=body, headers=headers),
            await session.call("POST", RECONSTRUCT, data=body, headers=ARROW),
        ]

    by_arrow, by_json = api.together(scenario)
    with pa.ipc.open_stream(by_arrow.body) as reader:
        table = reader.read_all()
    np.testing.assert_array_equal(np.array(table["row"].to_pylist()), given)
    assert table["finite"].to_pylist() == [False, False, True]
    assert table["sink"].to_pylist()[2]
    assert [one["row"] for one in by_json.json["items"]] == [
        [1, 2, 3, 4, 5, 6, 7, None],
        [None, 0, 0, 0, 0, 0, 0, 0],
        [500, 1, 1, 1, 0, 0, 0, 0],
    ]


@pytest.fixture(scope="module")
def stored_request(backend):
    """A request whose tokens came one run for the prompt, then one by one."""
    key, name = 50, "a/b c%2Fd?é#"
    backend.store.write(
        {
            "request": as_table(
                "request",
                {"request_key": [key], "id": [name], "model": ["toy"], "version": ["1"], "producer": ["p"],
                 "started": [START], "sample": [0.5], "attributes": ['{"user": "u", "n": 3, "ok": true}']},
            ),
            "request_tokens": as_table(
                "request_tokens",
                {"request_key": [key] * 4, "sequence": [0, 0, 0, 1], "position": [0, 2, 3, 0],
                 "pieces": [["a", "b"], ["c"], [None], ["z"]]},
            ),
            "request_rows": as_table(
                "request_rows",
                {"request_key": [key], "stream_key": [7], "window_start": [START], "rows": [4], "rows_prompt": [2],
                 "rows_decode": [2]},
            ),
            "example": as_table(
                "example",
                {"stream_key": [7], "feature": [4], "value": [2.0], "score": [3.0], "request_key": [key],
                 "sequence": [0], "position": [2], "token": [pa.scalar(9, pa.int32()).as_py()], "time": [START],
                 "written": [START], "dictionary_version": [1]},
            ),
        }
    )  # fmt: skip
    return name


def test_a_request_shows_its_rows_tokens_and_attributes(api, stored_request):
    got = api.get(f"/v1/requests/{quote(stored_request, safe='')}")
    (request,) = got.json["requests"]
    assert got.json["id"] == request["id"] == stored_request
    assert request["attributes"] == {"user": "u", "n": 3, "ok": True}
    assert request["started"] == "2026-01-01T00:00:00Z"
    assert request["rows"] == [{"stream": ID, "rows": 4, "rows_prompt": 2, "rows_decode": 2}]
    assert request["tokens"] == [
        {"sequence": 0, "position": 0, "pieces": ["a", "b", "c", None]},
        {"sequence": 1, "position": 0, "pieces": ["z"]},
    ]
    assert api.get(f"/v1/requests/{quote(stored_request, safe='')}?tokens=false").json["requests"][0]["tokens"] is None


def test_an_example_shows_its_request_and_context(api, stored_request):
    (example,) = api.get(f"/v1/streams/{ID}/features/4/examples?context=1").json["items"]
    assert example["request"] == stored_request
    assert (example["context"], example["context_index"], example["token"]) == (["b", "c", None], 1, 9)
    (bare,) = api.get(f"/v1/streams/{ID}/features/4/examples?context=0").json["items"]
    assert bare["context"] is None


def test_an_outcome_is_recorded_and_shown(api, backend, stored_request):
    path = f"/v1/requests/{quote(stored_request, safe='')}"
    body = {"labels": {"hallucinated": True, "note": "x", "score": 0.5, "n": 2, "none": None}, "source": "reviewer",
            "time": "2026-01-01T02:00:00+02:00"}  # fmt: skip
    got = api.post(f"{path}/outcome", data=json.dumps(body), headers=JSON)
    assert got.status == 202
    assert backend.writer.flush(10)
    (outcome,) = api.get(path).json["outcomes"]
    assert outcome == got.json
    assert (outcome["model"], outcome["time"], outcome["labels"]) == ("toy", "2026-01-01T00:00:00Z", body["labels"])


def test_an_outcome_needs_a_model_that_is_known_and_single(api, backend):
    body = b'{"labels": {"good": true}}'
    problem(api.post("/v1/requests/later/outcome", data=body, headers=JSON), 404, "request-not-found")
    named = b'{"labels": {"good": true}, "model": "toy"}'
    assert api.post("/v1/requests/later/outcome", data=named, headers=JSON).status == 202
    assert backend.outcomes[-1] == ("later", "toy", {"good": True}, backend.time, "rest")
    for key, model in ((60, "one"), (61, "two")):
        row = {"request_key": [key], "id": ["twice"], "model": [model], "version": ["1"], "producer": ["p"],
               "started": [START], "sample": [1.0], "attributes": ["{}"]}  # fmt: skip
        backend.store.write({"request": as_table("request", row)})
    assert (
        "one, two"
        in problem(api.post("/v1/requests/twice/outcome", data=body, headers=JSON), 409, "ambiguous-model").detail
    )


BAD_OUTCOMES = [
    b'{"labels": {}}',
    b'{"labels": {"a": [1]}}',
    b'{"labels": {"a": 1}, "time": "2026-01-01T00:00:00"}',
    b'{"labels": {"": 1}}',
    b'{"labels": {"a": 1}, "when": 1}',
    b'{"labels": {"a": NaN}}',
    b'{"labels": {"a": 1}, "time": "0001-01-01T00:00:00+02:00"}',
]


@pytest.mark.parametrize("body", BAD_OUTCOMES)
def test_an_outcome_of_another_shape_is_refused(api, body):
    problem(api.post("/v1/requests/r/outcome", data=body, headers=JSON), 422, "invalid-body")


def test_attributes_that_json_cannot_say_are_still_shown(api, backend):
    row = {"request_key": [70], "id": ["odd"], "model": ["m"], "version": ["1"], "producer": ["p"], "started": [START],
           "sample": [1.0], "attributes": ['{"nan": NaN, "list": [1, "é"], "big": 99999999999999999999}']}  # fmt: skip
    backend.store.write({"request": as_table("request", row)})
    attributes = api.get("/v1/requests/odd").json["requests"][0]["attributes"]
    assert attributes == {"nan": None, "list": '[1, "é"]', "big": 99999999999999999999}


def test_ids_of_requests_may_hold_any_character(api, backend):
    ids = [
        "plain",
        "with/slash",
        "per%cent",
        "%2F",
        "%252F",
        "a b",
        "é",
        "日本",
        "q?x=1#f",
        "a+b",
        "{x}",
        '"',
        "\n",
        "\x00",
        "~",
        ";,",
    ]

    async def scenario(session):
        got = []
        for name in ids:
            path = f"/v1/requests/{quote(name, safe='')}/outcome"
            got.append(await session.call("POST", path, data=b'{"labels":{"a":1},"model":"m"}', headers=JSON))
        return got

    assert [got.json["request"] for got in api.together(scenario)] == ids


def test_live_and_ready_tell_the_reasons(api, backend):
    assert api.get("/livez").json == {"status": "ok"}
    assert api.get("/readyz").json == {"ready": True, "reasons": []}
    backend.reasons = ["the store cannot write: disk full"]
    got = api.get("/readyz")
    assert (got.status, got.json) == (503, {"ready": False, "reasons": backend.reasons})
    assert api.get("/livez").status == 200


def test_the_index_leads_to_what_answers(api):
    for path in api.get("/").json["links"].values():
        assert api.get(path).status == 200


def test_self_is_the_backends_report(api, backend):
    assert rest.SelfReport.model_validate_json(api.get("/v1/self").body).stages == backend.self_report().stages


def test_head_has_headers_and_no_body(api):
    got = api.call("HEAD", f"/v1/streams/{ID}/features")
    assert (got.status, got.body) == (200, b"")


def test_metrics_have_samples_for_what_is_known_only(api, backend):
    backend.events = {"frames_bad": 3, **{f"event{n:03}": 1 for n in range(200)}}
    try:
        text = api.get("/metrics").body.decode()
    finally:
        backend.events = {"frames_bad": 3}
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["hydrophone_rows_received_total", ("stream", ID)] == 1000
    assert samples["hydrophone_rows_dropped_total", ("reason", "queue_full"), ("stream", ID)] == 5
    assert samples["hydrophone_fvu", ("stream", ID)] == 0.25
    assert ("hydrophone_dead_fraction", ("stream", ID)) not in samples
    assert samples["hydrophone_ready",] == 1
    assert samples["process_cpu_seconds_total",] == 1.5
    events = {key: value for key, value in samples.items() if key[0] == "hydrophone_events_total"}
    assert len(events) == 65
    assert sum(events.values()) == 203


@given(
    key=st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False, width=32),
    index=st.integers(0, 2**31 - 1),
    name=st.text(max_size=20),
)
def test_a_cursor_comes_back_as_it_was(key, index, name):
    cursor = _FeatureCursor(key=key, index=index, since=0, until=1)
    text = encode_cursor(cursor, name)
    assert set(text) <= set(string.ascii_letters + string.digits + "-_")
    assert decode_cursor(text, _FeatureCursor, name) == cursor
    with pytest.raises(Refused, match="another list"):
        decode_cursor(text, _FeatureCursor, name + "x")


@given(st.text(max_size=60))
def test_no_text_breaks_the_cursor_reader(text):
    with pytest.raises(Refused):
        decode_cursor(text, _FeatureCursor, "features")


@given(st.datetimes(min_value=to_datetime(0).replace(tzinfo=None), timezones=st.timezones()))
@settings(deadline=None)  # the first zone reads its file
def test_times_are_read_as_they_are_written(time):
    try:
        text = rest.format_time(time)
    except OverflowError:  # the last hours of year 9999 in another zone
        return
    assert rest.format_time(to_datetime(parse_time(text, 0))) == text


@given(st.text(max_size=40))
def test_no_text_breaks_the_time_reader(text):
    try:
        assert parse_time(text, 10**15) >= 0
    except (ValueError, OverflowError):
        return


@given(st.text(max_size=60))
def test_no_accept_header_breaks_negotiation(text):
    assert choose(text, ["a/b", "c/d"]) in {"a/b", "c/d", None}
