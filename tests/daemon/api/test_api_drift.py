"""Drift and novelty over REST, of rows in the store and a watch that is set by the test."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from drifting import HOUR, about, drift, end, novel, reference
from generated import START, GeneratedStream
from hydrophone_schemas import rest
from hydrophoned.store import Store
from loopback import Api, StoreBackend
from prometheus_client.parser import text_string_to_metric_families
from test_api_problems import JSON, problem
from test_store_queries import request

ID, OTHER = "toy@1/layers.0", "toy@1/layers.1"
BASE = f"/v1/streams/{ID}"
ARROW = {"Accept": rest.ARROW_TYPE}
TIME = datetime.fromtimestamp(START / 1e6, UTC)


def watch(**told):
    """A watch that has seen 500 requests; the second detector's statistic is not known."""
    used = rest.Reference(
        stratum="", name="default", version=2, source="next", made=TIME, units=1000, since=TIME, until=TIME,
        units_per_second=0.5, autocorrelation_time=None, thin=1, halves_p=0.4,
    )  # fmt: skip
    one = {"guarantee": "run_length", "run_length": 2000.0, "seconds": 4000.0, "share": 0.5, "units": 500}
    detectors = [
        rest.WatchingDetector(name="betting", statistic=3.5, threshold=9.0, left_out=1, dictionary_version=None, **one),
        rest.WatchingDetector(name="firing", statistic=None, threshold=7.0, left_out=0, dictionary_version=4, **one),
    ]
    stratum = rest.DriftStratum(
        stratum="", state=rest.DriftState.WATCHING, problem=None, watched=500, collected=0, wanted=1000, reference=used,
        detectors=detectors,
    )  # fmt: skip
    values = {
        "stream": ID, "state": rest.DriftState.WATCHING, "problem": None, "units_per_second": 0.4,
        "budget": rest.DriftBudget(false_alarms=1.0, period_seconds=86_400.0), "drifts": 3, "drift_since": None,
        "strata": [stratum],
        "novelty": rest.NoveltyStatus(units=500, novel=20, share=0.04, p=0.01, reference_share=0.009),
    }  # fmt: skip
    return rest.DriftStatus(**values | told)


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    streams = [GeneratedStream(key=7, id=ID), GeneratedStream(key=8, id=OTHER)]
    with Store(tmp_path_factory.mktemp("drift") / "h.duckdb") as store:
        for stream in streams:
            store.write({"stream": stream.stream_row()})
        for number in (1, 2, 3):
            store.write(drift(number, START + number * HOUR, change=START + number * HOUR - 60_000_000) | about(number))
            store.write(novel(10 + number, START + number * HOUR, p=0.001 * number))
        store.write(drift(1, START + 2 * HOUR, key=8) | end(1, START + 2 * HOUR, key=7))
        store.write({"request": request(11, "r11", started=START)})
        for version in (1, 2):
            store.write(reference(version, made=START + version))
        backend = StoreBackend(store, streams)
        yield backend
        assert backend.writer.close(10)


@pytest.fixture
def api(backend):
    backend.drift.watches = {ID: watch()}
    return Api(backend)


def read(model, got):
    assert got.status == 200, got.body
    return model.model_validate_json(got.body)


def pages(api, path, limit=1):
    """All items of a list, page by page."""
    items, cursor = [], None
    mark = "&" if "?" in path else "?"
    while True:
        page = api.get(f"{path}{mark}limit={limit}{f'&cursor={cursor}' if cursor else ''}").json
        items += page["items"]
        cursor = page["next"]
        if cursor is None:
            return items


# -- the watch -----------------------------------------------------------------------------------------------------


def test_a_watch_is_told_as_it_stands_and_one_that_is_off_says_so(api):
    told = read(rest.DriftStatus, api.get(f"{BASE}/drift"))
    assert told == watch()
    off = api.get(f"/v1/streams/{OTHER}/drift").json
    assert off["state"] == "off"
    assert {name for name, value in off.items() if value is not None} == {"stream", "state", "strata"}
    problem(api.get("/v1/streams/toy@1/nowhere/drift"), 404, "stream-not-found")


def test_references_come_latest_first_page_by_page_and_as_arrow(api):
    found = read(rest.ReferenceList, api.get(f"{BASE}/references")).items
    assert [one.version for one in found] == [2, 1]
    assert found[0].autocorrelation_time is None
    assert [one["version"] for one in pages(api, f"{BASE}/references")] == [2, 1]
    table = pa.ipc.open_stream(api.get(f"{BASE}/references", headers=ARROW).body).read_all()
    assert table.column_names == list(rest.Reference.model_fields)
    assert table["units"].to_pylist() == [1000, 1000]


def test_another_reference_is_made_or_waited_for_or_refused(api):
    def ask(body, stream=ID):
        return api.post(f"/v1/streams/{stream}/references", data=body, headers=JSON)

    assert ask("{}").status == 202
    made = ask('{"source": "recent", "name": "deploy-7"}')
    assert made.status == 201
    assert rest.DriftStatus.model_validate_json(made.body) == watch()
    problem(ask('{"source": "recent", "units": 10}'), 409, "insufficient-reference")
    problem(ask("{}", OTHER), 409, "not-watched")
    problem(ask('{"source": "yesterday"}'), 422, "invalid-body")
    problem(ask('{"source": "recent", "units": 0}'), 422, "invalid-body")
    assert "units go with source = recent" in problem(ask('{"units": 200}'), 422, "invalid-body").detail


# -- drifts --------------------------------------------------------------------------------------------------------


def test_drifts_of_all_streams_latest_first(api):
    whole = read(rest.DetectionList, api.get("/v1/detections")).items
    assert [(one.stream, one.number) for one in whole] == [(ID, 3), (OTHER, 1), (ID, 2), (ID, 1)]
    assert [one.ended is None for one in whole] == [True, True, False, False]
    assert whole[1].change_time is None
    paged = pages(api, "/v1/detections")
    assert [(one["stream"], one["number"]) for one in paged] == [(one.stream, one.number) for one in whole]
    table = pa.ipc.open_stream(api.get("/v1/detections", headers=ARROW).body).read_all()
    assert table.column_names == list(rest.Detection.model_fields)
    assert table["number"].to_pylist() == [3, 1, 2, 1]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        (f"stream={OTHER}", [1]),
        (f"stream={ID}&since=2026-01-01T02:00:00Z", [3, 2]),
        (f"stream={ID}&until=2026-01-01T02:00:00Z", [1]),
        ("since=2026-01-01T02:00:00Z&until=2026-01-01T03:00:00Z", [1, 2]),
        ("until=1970-01-01T00:00:01Z", []),
    ],
)
def test_drifts_of_a_stream_or_a_range(api, query, numbers):
    assert [one["number"] for one in api.get(f"/v1/detections?{query}").json["items"]] == numbers
    assert [one["number"] for one in pages(api, f"/v1/detections?{query}")] == numbers


def test_what_cannot_be_asked_says_why(api):
    problem(api.get("/v1/detections?stream=toy@1/layers.9"), 404, "stream-not-found")
    problem(api.get("/v1/detections?since=noon"), 400, "invalid-parameter")
    problem(api.get("/v1/detections?since=-1h&until=-2h"), 400, "invalid-parameter")
    cursor = api.get("/v1/detections?limit=1").json["next"]
    problem(api.get(f"/v1/detections?limit=1&stream={ID}&cursor={cursor}"), 400, "invalid-cursor")
    problem(api.get(f"{BASE}/novelty?cursor={cursor}"), 400, "invalid-cursor")
    problem(api.get(f"{BASE}/detections/4"), 404, "detection-not-found")
    problem(api.get(f"{BASE}/detections/{2**62}"), 404, "detection-not-found")
    problem(api.get(f"{BASE}/detections/first"), 400, "invalid-parameter")
    assert "so far 3 were found" in api.get(f"{BASE}/detections/4").json["detail"]


def test_a_drift_has_its_features_requests_and_attributes(api):
    found = read(rest.DetectionDetail, api.get(f"{BASE}/detections/2"))
    assert found.detection.number == 2
    assert [(one.index, one.feature_id, one.label) for one in found.features] == [(3, 1, None), (9, None, None)]
    assert [(one.request, one.request_key) for one in found.requests] == [("r11", 11), (None, 12)]
    assert [(one.attribute, one.value, one.shift_q) for one in found.attributes] == [("tenant", "acme", None)]


# -- novelty -------------------------------------------------------------------------------------------------------


def test_novel_requests_come_with_their_share_of_all(api):
    page = read(rest.NoveltyList, api.get(f"{BASE}/novelty"))
    assert [(one.request, one.request_key) for one in page.items] == [(None, 13), (None, 12), ("r11", 11)]
    assert (page.units, page.novel, page.share, page.p, page.reference_share) == (500, 20, 0.04, 0.01, 0.009)
    assert [one["request_key"] for one in pages(api, f"{BASE}/novelty")] == [13, 12, 11]
    late = api.get(f"{BASE}/novelty?since=2026-01-01T02:00:00Z&until=2026-01-01T03:00:00Z").json["items"]
    assert [one["request_key"] for one in late] == [12]
    off = read(rest.NoveltyList, api.get(f"/v1/streams/{OTHER}/novelty"))
    assert (off.items, off.units, off.share, off.p) == ([], None, None, None)
    table = pa.ipc.open_stream(api.get(f"{BASE}/novelty", headers=ARROW).body).read_all()
    assert table.column_names == list(rest.NovelRequest.model_fields)
    assert table.schema.metadata[b"hydrophone.share"] == b"0.04"


def test_groups_of_novel_requests(api, backend):
    backend.drift.groups = [
        rest.NoveltyCluster(size=9, requests=["r11", None], request_keys=[11, 12], cohesion=0.8, first=TIME, last=TIME)
    ]
    got = read(rest.NoveltyClusterList, api.post(f"{BASE}/novelty:clusters"))
    assert got.items == backend.drift.groups
    table = pa.ipc.open_stream(api.post(f"{BASE}/novelty:clusters", headers=ARROW).body).read_all()
    assert table["requests"].to_pylist() == [["r11", None]]
    problem(api.post(f"/v1/streams/{OTHER}/novelty:clusters"), 409, "not-watched")


# -- metrics -------------------------------------------------------------------------------------------------------


def test_metrics_tell_the_state_and_how_near_an_alarm_is(api):
    families = text_string_to_metric_families(api.get("/metrics").body.decode())
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value for one in families for sample in one.samples
    }
    stream = ("stream", ID)
    states = {
        key[1][1]: value for key, value in samples.items() if key[0] == "hydrophone_drift_state" and key[2] == stream
    }
    assert states == {state.value: float(state is rest.DriftState.WATCHING) for state in rest.DriftState}
    assert samples["hydrophone_drift_state", ("state", "off"), ("stream", OTHER)] == 1
    assert samples["hydrophone_detections_total", stream] == 3
    assert samples["hydrophone_drift_statistic", ("detector", "betting"), ("stratum", ""), stream] == 3.5
    assert samples["hydrophone_drift_threshold", ("detector", "firing"), ("stratum", ""), stream] == 7.0
    assert ("hydrophone_drift_statistic", ("detector", "firing"), ("stratum", ""), stream) not in samples
    assert samples["hydrophone_novel_share", stream] == 0.04
    assert ("hydrophone_novel_share", ("stream", OTHER)) not in samples
