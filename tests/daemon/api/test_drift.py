"""Drift over REST, of a real daemon whose stream changes: found, told, and taken for the new normal."""

import asyncio
import shutil
import threading
import time

import numpy as np
import pytest
from hydrophone_schemas import rest
from hydrophone_schemas.names import StreamId
from hydrophoned.ingest.sink import RequestSpec, StreamSpec
from hydrophoned.rows import Rows
from hydrophoned.runtime.backend import DaemonBackend
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.config import load_config
from hydrophoned.runtime.daemon import Daemon
from hydrophoned.runtime.streams import StreamRegistry
from loopback import Api
from test_api_problems import JSON, problem

WIDTH, ATOMS, LENGTH = 32, 24, 24
SECOND = 1_000_000
STREAM = "toy@1/layers.0"
BASE = f"/v1/streams/{STREAM}"
LEARN = {
    "features": 48, "k": 4, "batch_rows": 128, "buffer_rows": 1024, "warmup_rows": 512, "window_seconds": 60,
    "publish_moved": 0.0,
}  # fmt: skip
DRIFT = {"reference_units": 400, "recent_units": 300, "false_alarms": 1.0, "period_days": 1 / 24}
BEFORE, AFTER = 700, 200  # fewer than end a drift by themselves
RARE, COMMON = 0.05, 0.1


class Watched:
    """A daemon whose requests are sums of planted directions; the rate of the first ones can be raised."""

    def __init__(self, folder, drift=None):
        settings = {"daemon": {"data_dir": str(folder), "nice": 0}, "learn": LEARN, "drift": DRIFT | (drift or {})}
        self.config = load_config(None, settings)
        self.rng = np.random.default_rng(0)
        self.atoms = np.linalg.qr(self.rng.normal(size=(WIDTH, WIDTH)))[0][:ATOMS].astype(np.float32)
        self.time = now_us() - 4 * 3600 * SECOND
        self.count = 0
        asyncio.run(self._start())

    def _await_learner(self):
        worker = self.daemon.streams.by_key(self.key).worker
        for _ in range(600):
            if worker.status:
                return
            time.sleep(0.1)
        raise AssertionError("the learner did not start within a minute")

    async def _start(self):
        self.daemon = Daemon(self.config)
        self.daemon.restore()
        self.key = self.daemon.open_stream(StreamSpec(StreamId.parse(STREAM), "f" * 16, WIDTH, "float32"), "p")
        self.backend = DaemonBackend(self.daemon, None)

    def restart(self):
        self.close()
        asyncio.run(self._start())
        self._await_learner()

    def close(self):
        asyncio.run(self.daemon.close())

    def send(self, count, *, raised=0, tenant=None):
        """``count`` requests, ten seconds apart; in those of ``tenant`` the first ``raised`` directions are common."""
        for _ in range(count):
            own = tenant or ("acme" if self.count % 2 else "beta")
            self._request(own, raised if tenant in (None, own) else 0)
        asyncio.run(self.daemon.flush())

    def _request(self, tenant, raised):
        spec = RequestSpec(f"r{self.count}", "toy", "1", "p", self.time, 1.0, {"tenant": tenant})
        key = self.daemon.open_request(spec)
        rate = np.full(ATOMS, RARE)
        rate[:raised] = COMMON
        weight = (1 + self.rng.random((LENGTH, ATOMS))) * (self.rng.random((LENGTH, ATOMS)) < rate)
        x = (weight @ self.atoms + 0.05 * self.rng.normal(size=(LENGTH, WIDTH))).astype(np.float32)
        zeros = np.zeros(LENGTH)
        rows = Rows(
            x, "float32", np.full(LENGTH, key, np.int64), zeros.astype(np.uint16), np.arange(LENGTH, dtype=np.int32),
            zeros.astype(np.uint8), zeros.astype(np.int32), np.full(LENGTH, self.time, np.int64),
        )  # fmt: skip
        self.daemon.put_rows(self.key, rows)
        self.count += 1
        self.time += 10 * SECOND


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A stream that was watched, and then changed; with what was told before that."""
    watched = Watched(tmp_path_factory.mktemp("drift"))
    try:
        api = Api(watched.backend)
        watched.send(100)
        early = rest.DriftStatus.model_validate_json(api.get(f"{BASE}/drift").body)
        watched.send(BEFORE - 100)
        before = rest.DriftStatus.model_validate_json(api.get(f"{BASE}/drift").body)
        quiet = api.get("/v1/detections").json["items"]
        watched.send(AFTER, raised=4)
        yield watched, early, before, quiet
    finally:
        watched.close()


@pytest.fixture
def api(changed):
    return Api(changed[0].backend)


def status(api):
    return rest.DriftStatus.model_validate_json(api.get(f"{BASE}/drift").body)


def test_the_first_requests_make_the_reference_and_then_it_is_watched(changed):
    _, early, before, quiet = changed
    (collecting,) = early.strata
    assert (early.state, collecting.wanted, collecting.reference) == (rest.DriftState.COLLECTING, 400, None)
    assert collecting.collected >= 90
    (watching,) = before.strata
    assert before.state is rest.DriftState.WATCHING
    assert (watching.reference.units, watching.reference.source, watching.reference.thin) == (400, "next", 1)
    assert watching.watched > 290
    assert {one.name for one in watching.detectors} == {"betting", "firing", "novel_share"}
    assert all(one.statistic < one.threshold for one in watching.detectors)
    assert quiet == []


def test_a_change_is_one_drift_with_its_time_features_and_requests(api, changed):
    watched = changed[0]
    (found,) = api.get(f"/v1/detections?stream={STREAM}").json["items"]
    assert found["number"] == 1
    assert status(api).state is rest.DriftState.DRIFTING
    detail = rest.DetectionDetail.model_validate_json(api.get(f"{BASE}/detections/1").body)
    assert detail.detection.units_after >= 8  # of fewer nothing is told
    began = (watched.time - AFTER * 10 * SECOND) / 1e6
    assert abs(detail.detection.change_time.timestamp() - began) <= 16 * 10
    assert detail.detection.changed_features == sum(one.q <= 0.1 for one in detail.features)
    assert detail.features
    assert all((one.rate_after > one.rate_before) == (one.effect > 0) for one in detail.features)
    assert {one.units_after for one in detail.features} == {detail.detection.units_after}
    assert all(one.feature_id is not None and one.index_now == one.index for one in detail.features)
    carriers = [int(one.request[1:]) for one in detail.requests]
    assert sum(number >= BEFORE for number in carriers) > len(carriers) / 2
    assert detail.detection.dictionary_changed is False
    assert api.get(f"{BASE}/features/{detail.features[0].index}").status == 200


def test_too_few_requests_make_no_reference_and_the_old_one_stays(api):
    before = status(api)
    asked = api.post(f"{BASE}/references", data=b'{"source": "recent", "units": 10}', headers=JSON)
    assert "64 units" in problem(asked, 409, "insufficient-reference").detail
    assert status(api).strata[0].reference == before.strata[0].reference


def test_a_restart_keeps_the_watch_and_raises_nothing(api, changed):
    watched = changed[0]
    before = status(api)
    watched.restart()
    api = Api(watched.backend)
    after = status(api)
    assert after.strata[0].reference == before.strata[0].reference
    assert (after.drifts, after.drift_since, after.state) == (before.drifts, before.drift_since, before.state)
    assert len(api.get("/v1/detections").json["items"]) == 1


def test_what_is_here_to_stay_becomes_the_reference(changed):
    watched = changed[0]
    api = Api(watched.backend)
    asked = api.post(
        f"{BASE}/references", data=b'{"source": "recent", "name": "new normal", "units": 180}', headers=JSON
    )
    assert asked.status == 201, asked.body
    told = rest.DriftStatus.model_validate_json(asked.body)
    assert told.state is rest.DriftState.WATCHING
    assert (told.strata[0].reference.name, told.strata[0].reference.source) == ("new normal", "recent")
    listed = api.get(f"{BASE}/references").json["items"]
    assert [(one["name"], one["version"]) for one in listed] == [("new normal", 2), ("default", 1)]
    (found,) = api.get("/v1/detections").json["items"]
    assert found["ended"] is not None
    watched.send(100, raised=4)
    assert len(api.get("/v1/detections").json["items"]) == 1
    assert status(api).state is rest.DriftState.WATCHING
    waited = api.post(f"{BASE}/references", data=b"{}", headers=JSON)
    assert waited.status == 202
    assert rest.DriftStatus.model_validate_json(waited.body).state is rest.DriftState.COLLECTING


def test_a_watch_that_is_being_made_says_so_and_one_that_cannot_be_made_too(tmp_path, monkeypatch):
    watched = Watched(tmp_path)
    try:
        watched.send(5)
        watched.close()
        goes_on = threading.Event()
        make = StreamRegistry._make_learner
        monkeypatch.setattr(StreamRegistry, "_make_learner", lambda *given: goes_on.wait(60) and make(*given))
        asyncio.run(watched._start())
        api = Api(watched.backend)
        assert api.get(f"{BASE}/drift").json["state"] == "starting"
        refused = problem(api.post(f"{BASE}/references", data=b"{}", headers=JSON), 503, "unavailable")
        assert "is starting" in refused.detail
        goes_on.set()
        watched._await_learner()
        assert status(api).state is rest.DriftState.COLLECTING
        watched.close()

        def fail(*_):
            raise RuntimeError("no memory")

        monkeypatch.setattr(StreamRegistry, "_make_learner", fail)
        asyncio.run(watched._start())
        watched.daemon.streams.by_key(watched.key).worker.join(60)
        api = Api(watched.backend)
        failed = status(api)
        assert (failed.state, failed.drifts) == (rest.DriftState.OFF, None)
        assert "has ended" in failed.problem
        refused = problem(api.post(f"{BASE}/references", data=b"{}", headers=JSON), 503, "unavailable")
        assert "has ended" in refused.detail
    finally:
        watched.close()


QUICK = {"reference_units": 256, "recent_units": 200}


def test_numbers_of_drifts_and_references_go_on_after_a_lost_checkpoint(tmp_path):
    """Without any checkpoint all begins anew but for the numbers; with an older one the same reference goes on."""
    watched = Watched(tmp_path, QUICK)
    folder = tmp_path / "streams" / "toy@1%2Flayers.0"
    try:
        watched.send(300)
        asyncio.run(watched.daemon.checkpoint())
        shutil.copytree(folder, tmp_path / "older")
        watched.send(60, raised=16)
        api = Api(watched.backend)
        (first,) = api.get("/v1/detections").json["items"]
        assert (first["number"], first["reference_version"], first["ended"]) == (1, 1, None)

        watched.close()
        shutil.rmtree(folder)
        shutil.move(tmp_path / "older", folder)
        asyncio.run(watched._start())
        watched._await_learner()
        api = Api(watched.backend)
        assert (status(api).state, status(api).drifts) == (rest.DriftState.WATCHING, 1)
        watched.send(60, raised=16)
        second, first = api.get("/v1/detections").json["items"]
        assert (second["number"], second["reference_version"], second["ended"]) == (2, 1, None)
        assert first["ended"] == second["time"]

        watched.close()
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        asyncio.run(watched._start())
        watched._await_learner()
        api = Api(watched.backend)
        assert (status(api).state, status(api).drifts, status(api).strata) == (rest.DriftState.COLLECTING, 2, [])
        watched.send(300)
        assert status(api).strata[0].reference.version == 2
        watched.send(60, raised=16)
        third, second, _ = api.get("/v1/detections").json["items"]
        assert (third["number"], third["reference_version"]) == (3, 2)
        assert second["ended"] is not None
        assert [one["version"] for one in api.get(f"{BASE}/references").json["items"]] == [2, 1]
    finally:
        watched.close()


def test_a_drift_is_told_again_over_rest_and_once_more_when_a_reference_ends_it(tmp_path):
    watched = Watched(tmp_path, QUICK)
    try:
        watched.send(300)
        api = Api(watched.backend)
        seen = {}
        for _ in range(16):
            watched.send(20, raised=16)
            if api.get("/v1/detections").json["items"]:
                detail = rest.DetectionDetail.model_validate_json(api.get(f"{BASE}/detections/1").body)
                seen.setdefault(detail.detection.telling, detail)
        assert sorted(seen) == [0, 1, 2]
        after = [seen[telling].detection.units_after for telling in (0, 1, 2)]
        assert after[0] < 64 <= after[1] < after[2] <= 200
        assert len({(one.detection.time, one.detection.number, one.detection.unit) for one in seen.values()}) == 1
        for telling, detail in seen.items():
            assert detail.detection.telling == telling
            assert {one.units_after for one in detail.features} <= {detail.detection.units_after}
            assert detail.detection.changed_features == sum(one.q <= 0.1 for one in detail.features)
        assert seen[1].detection.changed_features > seen[0].detection.changed_features
        # 300 units later the change is before all that are held
        assert seen[1].detection.change_time is not None
        assert (seen[2].detection.change_time, seen[2].detection.change_low) == (None, None)
        assert len(api.get("/v1/detections").json["items"]) == 1
        watched.send(256)
        watched.send(200)
        ended = api.get("/v1/detections").json["items"][0]
        assert ended["ended"] is not None
        assert status(api).state is rest.DriftState.WATCHING

        watched.send(60, raised=16)
        before = rest.DetectionDetail.model_validate_json(api.get(f"{BASE}/detections/2").body).detection
        asked = api.post(f"{BASE}/references", data=b"{}", headers=JSON)
        assert asked.status == 202
        after = rest.DetectionDetail.model_validate_json(api.get(f"{BASE}/detections/2").body).detection
        assert before.ended is None
        assert after.ended is not None
        assert after.telling == before.telling + 1
        assert after.units_after > before.units_after
    finally:
        watched.close()


def test_a_daemon_that_watches_nothing_says_so(tmp_path):
    watched = Watched(tmp_path, {"enabled": False})
    try:
        api = Api(watched.backend)
        watched.send(5)
        assert status(api).state is rest.DriftState.OFF
        problem(api.post(f"{BASE}/references", data=b"{}", headers=JSON), 409, "not-watched")
        problem(api.post(f"{BASE}/novelty:clusters"), 409, "not-watched")
    finally:
        watched.close()


def test_a_divided_stream_has_a_reference_of_each_part_and_the_drift_says_in_which(tmp_path):
    watched = Watched(tmp_path, {"strata_by": ["tenant"], "reference_units": 250, "recent_units": 128})
    try:
        watched.send(700)
        api = Api(watched.backend)
        before = status(api)
        assert sorted(one.stratum for one in before.strata) == ["tenant=acme", "tenant=beta"]
        assert {one.reference.units for one in before.strata} == {250}
        assert before.state is rest.DriftState.WATCHING
        for _ in range(100):
            watched.send(1, raised=6, tenant="acme")
            watched.send(1, tenant="beta")
        items = api.get("/v1/detections").json["items"]
        assert [one["stratum"] for one in items] == ["tenant=acme"]
    finally:
        watched.close()
