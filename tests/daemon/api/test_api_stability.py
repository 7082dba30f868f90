"""Stability over REST: a twin of a real daemon's dictionary, its list, and what lists of features show of it."""

import asyncio
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from asked import STREAM, Asked
from hydrophone_schemas import rest
from hydrophoned.api.backend import FoundStability
from loopback import Api
from test_api_problems import problem

BASE = f"/v1/streams/{STREAM}"
TWIN = f"{BASE}/stability"
JSON = {"Content-Type": "application/json"}
RANKS = {"stable": 0, "weak": 1, "unstable": 2, "unknown": 3}
ARROW = {"Accept": "application/vnd.apache.arrow.stream"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    made = Asked(tmp_path_factory.mktemp("stability"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(asked):
    async def scenario(session):
        before = (await session.get(TWIN)).json
        assert (before["state"], before["items"], before["rows"]) == ("none", [], None)
        listed = (await session.get(f"{BASE}/features")).json["items"]
        assert {one["stability"] for one in listed} == {None}
        begun = await session.call("POST", TWIN, data=b'{"passes": 30}', headers=JSON)
        assert begun.status == 202
        assert rest.StabilityRun.model_validate_json(begun.body).state is rest.StabilityState.RUNNING
        again = await session.call("POST", TWIN, data=b"{}", headers=JSON)
        problem(again, 409, "stability-in-progress")
        assert (await session.get(TWIN)).json["state"] == "running"
        await asyncio.wait_for(asked.daemon.stability._task, 60)
        done = (await session.get(TWIN)).json
        assert done["state"] == "done", done["problem"]
        return done

    return Api(asked.backend).together(scenario)


@pytest.fixture
def api(asked):
    return Api(asked.backend)


def test_the_answer_says_from_how_much_and_beside_which_floors(page):
    assert page["rows_trained"] + page["rows_scored"] == page["rows"] <= 8192
    assert (page["passes"], page["seed"], page["features"]) == (30, 1, 64)
    assert page["weak"] >= page["strong"] > 0.3
    assert page["weak_shuffled"] == 0
    assert page["strong_random"] < 0.1
    assert 0 < page["fvu_twin"] < 1
    assert page["time"] >= page["started"]
    assert page["pairs"] <= page["compared"] <= page["features"]


def test_stable_features_come_first_and_unknown_ones_last(page):
    items = page["items"]
    assert len(items) == 64
    ranks = [RANKS[one["status"]] for one in items]
    assert ranks == sorted(ranks)
    for one in items:
        known = one["correlation"]
        right = {
            "stable": known is not None and known > 0.7,
            "weak": known is not None and 0.4 < known <= 0.7,
            "unstable": known is None or known <= 0.4,
            "unknown": known is None,
        }
        assert right[one["status"]], one
        assert one["persisted"] >= 1
    assert sum(one["status"] == "stable" for one in items) == round(page["strong"] * page["compared"])


def test_pages_and_filters_and_arrow_hold_the_same(api, page):
    first = api.get(f"{TWIN}?limit=40").json
    second = api.get(f"{TWIN}?limit=40&cursor={first['next']}").json
    assert first["items"] + second["items"] == page["items"]
    assert second["next"] is None
    stable = api.get(f"{TWIN}?status=stable").json["items"]
    assert stable == [one for one in page["items"] if one["status"] == "stable"]
    got = api.get(TWIN, headers=ARROW)
    table = pa.ipc.open_stream(got.body).read_all()
    assert table.to_pylist() == page["items"]
    assert table.schema.metadata[b"hydrophone.rows_scored"] == str(page["rows_scored"]).encode()
    problem(api.get(f"{TWIN}?status=stable&cursor={first['next']}"), 400, "invalid-cursor")
    problem(api.get(f"{TWIN}?status=good"), 400, "invalid-parameter")


def test_features_show_it_and_are_sorted_by_it(api, page):
    by_index = {one["index"]: one for one in page["items"]}
    listed = api.get(f"{BASE}/features?sort=stability&limit=64").json["items"]
    assert [one["index"] for one in listed] == [one["index"] for one in page["items"]]
    for one in listed:
        status = by_index[one["index"]]["status"]
        assert one["stability"] == (None if status == "unknown" else status)
        assert one["persisted"] == by_index[one["index"]]["persisted"]
    pages, cursor = [], ""
    while cursor is not None:
        part = api.get(f"{BASE}/features?sort=stability&limit=25{cursor and '&cursor='}{cursor}").json
        pages, cursor = pages + part["items"], part["next"]
    assert pages == listed
    assert all(0 <= one["index"] < 64 for one in listed)
    rising = api.get(f"{BASE}/features?sort=stability&order=asc&limit=64").json["items"]
    known = [one["stability"] for one in rising if one["stability"]]
    assert [RANKS[one] for one in known] == sorted((RANKS[one] for one in known), reverse=True)
    assert all(one["stability"] is None for one in rising[len(known) :])
    chosen = listed[0]["index"]
    detail = api.get(f"{BASE}/features/{chosen}").json
    assert (detail["feature"]["stability"], detail["feature"]["persisted"]) == ("stable", listed[0]["persisted"])


def test_what_was_said_of_a_feature_is_not_said_of_another_that_stands_there_now(asked, api, page):
    runs = asked.daemon.stability
    kept = runs._found[STREAM]
    first = page["items"][0]["index"]
    ids = kept.feature_id.copy()
    ids[first] = 10**9
    runs._found[STREAM] = kept._replace(feature_id=ids)
    try:
        assert api.get(f"{BASE}/features/{first}").json["feature"]["stability"] is None
        listed = api.get(f"{BASE}/features?sort=stability&limit=64").json["items"]
        assert listed[0]["index"] != first
        assert next(one for one in listed if one["index"] == first)["stability"] is None
    finally:
        runs._found[STREAM] = kept


def test_a_new_answer_ends_the_pages_of_the_old_one(asked, api, page):
    runs = asked.daemon.stability
    kept = runs._found[STREAM]
    cursors = [api.get(f"{path}limit=10").json["next"] for path in (f"{TWIN}?", f"{BASE}/features?sort=stability&")]
    runs._found[STREAM] = kept._replace(about=kept.about | {"time": datetime(2026, 1, 1, tzinfo=UTC)})
    try:
        problem(api.get(f"{TWIN}?limit=10&cursor={cursors[0]}"), 400, "invalid-cursor")
        problem(api.get(f"{BASE}/features?sort=stability&cursor={cursors[1]}"), 400, "invalid-cursor")
    finally:
        runs._found[STREAM] = kept


def test_what_cannot_be_asked_is_refused(api, asked, page):
    for body in (b'{"passes": 0}', b'{"seconds": 0}', b'{"seed": -1}', b'{"rows": 5}'):
        problem(api.post(TWIN, data=body, headers=JSON), 422, "invalid-body")
    problem(api.post(TWIN, data=b"", headers={"Content-Type": "text/plain"}), 415, "unsupported-media-type")
    problem(api.get("/v1/streams/toy@1/layers.9/stability"), 404, "stream-not-found")


def test_a_stream_without_a_dictionary_has_none(backend):
    own = Api(backend)
    live = dict(backend.live)
    (stream, *_) = live
    backend.live[stream] = live[stream].model_copy(update={"dictionary_version": 0})
    try:
        problem(own.post(f"/v1/streams/{stream}/stability", data=b"{}", headers=JSON), 409, "no-dictionary")
        assert own.get(f"/v1/streams/{stream}/stability").json["state"] == "none"
        assert own.get(f"/v1/streams/{stream}/features?sort=stability").json["items"][0]["stability"] is None
    finally:
        backend.live = live


def test_ranks_of_fewer_features_than_there_are_are_unknown(backend):
    """An answer of an older, narrower dictionary says nothing of the others."""
    own, (stream, *_) = Api(backend), backend.live
    none = np.zeros(1)
    about = {"time": datetime(2026, 1, 1, tzinfo=UTC)}
    run = rest.StabilityRun(state=rest.StabilityState.DONE, stream=stream)
    backend.twins[stream] = run, FoundStability(about, none.astype(np.int64), none.astype(np.int8), none, none, none)
    try:
        items = own.get(f"/v1/streams/{stream}/features?sort=stability&limit=3").json["items"]
        assert [one["stability"] for one in items] == [None] * 3
    finally:
        backend.twins.clear()
