import asyncio
import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from hydrophone_schemas import rest
from hydrophone_schemas.names import StreamId
from hydrophoned.api.etags import is_known
from hydrophoned.ingest.sink import StreamSpec
from hydrophoned.rows import Rows
from hydrophoned.runtime import versions
from hydrophoned.runtime.backend import DaemonBackend
from hydrophoned.runtime.clock import now_us
from hydrophoned.runtime.config import load_config
from hydrophoned.runtime.daemon import Daemon
from loopback import Api
from test_api_problems import problem

STREAM, EMPTY = "toy@1/layers.0", "toy@1/layers.1"
WIDTH, F = 16, 64
LEARN = {
    "features": F, "k": 4, "batch_rows": 64, "buffer_rows": 256, "warmup_rows": 128, "window_seconds": 1,
    "publish_moved": 0.0, "dead_after_rows": 500,
}  # fmt: skip
BASE = f"/v1/streams/{STREAM}"


def rows(count, seed, time):
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(32, WIDTH))
    x = ((rng.random((count, 32)) * (rng.random((count, 32)) < 0.08)) @ basis).astype(np.float32)
    column = np.arange(count, dtype=np.int32)
    return Rows(
        x, "float32", (column // 8).astype(np.int64), np.zeros(count, np.uint16), column % 8,
        np.zeros(count, np.uint8), column, time + column.astype(np.int64) * 1000,
    )  # fmt: skip


def spec(stream_id):
    return StreamSpec(StreamId.parse(stream_id), "f" * 16, WIDTH, "float32")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A daemon that has published three versions of one stream, each after some rows, and has another without any."""
    folder = tmp_path_factory.mktemp("versions")
    settings = {"daemon": {"data_dir": str(folder), "nice": 0}, "learn": LEARN, "store": {"keep_versions": 2}}
    daemon = Daemon(load_config(None, settings))
    start = now_us() - 600_000_000

    async def fill():
        daemon.restore()
        key = daemon.open_stream(spec(STREAM), "p")
        daemon.open_stream(spec(EMPTY), "p")
        for version in range(3):
            for part in range(4):
                daemon.put_rows(key, rows(1000, version * 4 + part, start + (version * 4 + part) * 10_000_000))
            await daemon.flush()
            if version:
                await DaemonBackend(daemon, None).publish(STREAM)
        daemon.put_rows(key, rows(1000, 50, start + 300_000_000))
        await daemon.flush()

    asyncio.run(fill())
    yield daemon
    asyncio.run(daemon.close())


@pytest.fixture
def api(daemon):
    return Api(DaemonBackend(daemon, None))


def learner(daemon, question):
    return daemon.streams.get(STREAM).worker.call(question).result(20)


def test_versions_are_listed_latest_first_and_one_by_one(api):
    items = api.get(f"{BASE}/versions").json["items"]
    assert [(item["version"], item["reason"], item["parent"]) for item in items] == [
        (3, "requested", 2), (2, "requested", 1), (1, "first", None),
    ]  # fmt: skip
    for item in items:
        rest.Version.model_validate_json(api.get(f"{BASE}/versions/{item['version']}").body)
        assert api.get(f"{BASE}/versions/{item['version']}").json == item
        assert item["fingerprint"] == "f" * 16
        assert (item["features"], item["k"], item["variant"]) == (F, 4, "topk")
        assert item["kept"] == (item["version"] > 1)  # store.keep_versions = 2
    assert items[0]["rows_learned"] > items[1]["rows_learned"] > items[2]["rows_learned"]
    assert items[2]["stable"] is items[2]["codes_moved"] is None
    assert items[0]["stable"] + items[0]["moved"] > 0
    assert 0 < items[0]["codes_moved"] < 1
    first = api.get(f"{BASE}/versions?limit=2").json
    assert [item["version"] for item in first["items"]] == [3, 2]
    assert [item["version"] for item in api.get(f"{BASE}/versions?limit=2&cursor={first['next']}").json["items"]] == [1]
    assert api.get(f"/v1/streams/{EMPTY}/versions").json == {"items": [], "next": None}


def test_versions_and_matches_come_as_arrow_too(api):
    for path in (f"{BASE}/versions", f"{BASE}/versions/3/matches?limit=10"):
        got = api.get(path, headers={"Accept": rest.ARROW_TYPE})
        with pa.ipc.open_stream(got.body) as reader:
            table = reader.read_all()
        listed = api.get(path).json["items"]
        assert table.num_rows == len(listed)
        assert table["version" if "matches" not in path else "kind"].to_pylist() == [
            item["version" if "matches" not in path else "kind"] for item in listed
        ]


def test_matches_say_how_each_feature_came_to_be(api, daemon):
    pages, cursor = [], ""
    while True:
        page = api.get(f"{BASE}/versions/3/matches?limit=25{cursor}").json
        pages += page["items"]
        assert (page["from_version"], page["to_version"]) == (2, 3)
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert {item["to_index"] for item in pages} - {None} == set(range(F))
    assert {item["from_index"] for item in pages} - {None} == set(range(F))
    ids = learner(daemon, lambda one: one.identity.ids.tolist())
    assert all(item["to_id"] == ids[item["to_index"]] for item in pages if item["to_index"] is not None)
    counts = api.get(f"{BASE}/versions/3").json
    for kind in ("stable", "moved", "born", "lost"):
        found = api.get(f"{BASE}/versions/3/matches?kind={kind}&limit=1000").json["items"]
        assert len(found) == counts[kind] == sum(item["kind"] == kind for item in pages)
        assert {item["kind"] for item in found} <= {kind}
    assert counts["split"] == len({item["from_index"] for item in pages if item["kind"] == "split"})
    assert counts["merged"] == len({item["to_index"] for item in pages if item["kind"] == "merged"})
    assert api.get(f"{BASE}/versions/1/matches").json == {
        "items": [], "next": None, "from_version": None, "to_version": 1,
    }  # fmt: skip


def test_a_version_can_be_published_and_had(api, daemon, tmp_path):
    got = api.post(f"{BASE}/versions")
    assert got.status == 201
    assert got.json["version"] == 4
    assert got.json["reason"] == "requested"
    assert got.json["kept"]
    assert api.get(f"{BASE}/versions/4").json == got.json
    artefact = api.get(f"{BASE}/versions/4/artefact")
    assert artefact.status == 200
    assert artefact.headers["Content-Type"] == "application/x-tar"
    assert artefact.headers["ETag"] == f'"{got.json["digest"]}"'
    assert artefact.headers["Content-Length"] == str(len(artefact.body))
    with tarfile.open(fileobj=io.BytesIO(artefact.body)) as tar:
        tar.extractall(tmp_path, filter="data")
    saved = versions.load(tmp_path / "v000004", versions.Origin("f" * 16, "layers.0", WIDTH))
    weights = learner(daemon, lambda one: one.dictionary.W_dec.clone())
    assert (saved.dictionary.W_dec == weights).all()
    for header in (artefact.headers["ETag"], f'"x", W/{artefact.headers["ETag"]}', "*"):
        again = api.get(f"{BASE}/versions/4/artefact", headers={"If-None-Match": header})
        assert (again.status, again.body) == (304, b"")
        assert again.headers["ETag"] == artefact.headers["ETag"]
    assert api.get(f"{BASE}/versions/4/artefact", headers={"If-None-Match": '"x"'}).body == artefact.body
    head = api.call("HEAD", f"{BASE}/versions/4/artefact")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(artefact.body))


def test_what_there_is_not_is_told_as_such(api):
    problem(api.get(f"{BASE}/versions/99"), 404, "version-not-found")
    problem(api.get(f"{BASE}/versions/99/matches"), 404, "version-not-found")
    problem(api.get(f"{BASE}/versions/99/artefact"), 404, "version-not-found")
    gone = problem(api.get(f"{BASE}/versions/1/artefact"), 404, "version-not-kept")
    assert "keep_versions" in gone.detail
    problem(api.get(f"{BASE}/versions/two"), 400, "invalid-parameter")
    problem(api.get(f"{BASE}/versions/3/matches?kind=vanished"), 400, "invalid-parameter")
    problem(api.post(f"/v1/streams/{EMPTY}/versions"), 409, "no-dictionary")
    problem(api.get(f"{BASE}/features/by-id/99999"), 404, "feature-not-found")
    problem(api.get(f"{BASE}/features/by-id/-1"), 400, "invalid-parameter")


def test_features_are_found_by_their_ids(api, daemon):
    ids, born = learner(daemon, lambda one: (one.identity.ids.tolist(), one.identity.born.tolist()))
    for index in (0, 5, F - 1):
        got = api.get(f"{BASE}/features/{index}").json
        assert (got["feature_id"], got["born_version"]) == (ids[index], born[index])
        assert api.get(f"{BASE}/features/by-id/{ids[index]}").json == {
            "stream": STREAM, "feature_id": ids[index], "index": index, "born_version": born[index],
            "lost_version": None,
        }  # fmt: skip
    lost = api.get(f"{BASE}/versions/2/matches?kind=lost&limit=1").json["items"]
    assert lost, "the planted stream tears up some latents between the first two versions"
    told = api.get(f"{BASE}/features/by-id/{lost[0]['from_id']}").json
    assert (told["index"], told["born_version"], told["lost_version"]) == (None, 1, 2)


def test_series_go_on_by_id_and_say_whose_they_are_by_index(api, daemon):
    ids, born = learner(daemon, lambda one: (one.identity.ids.tolist(), one.identity.born.tolist()))
    series = {
        index: api.get(f"{BASE}/features/{index}/series?limit=1000").json["items"]
        for index, version in enumerate(born)
        if version > 1
    }
    # one that never fired before its birth has no points of another id
    young = next(index for index, points in series.items() if len({p["feature_id"] for p in points} - {None}) > 1)
    by_index = series[young]
    old = next(index for index, version in enumerate(born) if version == 1)
    assert [point["feature_id"] == ids[young] for point in by_index] == [
        point["dictionary_version"] >= born[young] for point in by_index
    ]
    mine = api.get(f"{BASE}/features/by-id/{ids[young]}/series?limit=1000").json["items"]
    assert mine == [point for point in by_index if point["feature_id"] == ids[young]]
    whole = api.get(f"{BASE}/features/by-id/{ids[old]}/series?limit=1000").json["items"]
    by_index = api.get(f"{BASE}/features/{old}/series?limit=1000").json["items"]
    assert whole == [point for point in by_index if point["dictionary_version"]]
    page = api.get(f"{BASE}/features/by-id/{ids[old]}/series?limit=2").json
    rest_of_it = api.get(f"{BASE}/features/by-id/{ids[old]}/series?limit=1000&cursor={page['next']}").json["items"]
    assert page["items"] + rest_of_it == whole


def test_the_quality_of_a_dictionary_is_tagged_by_what_it_says(api, daemon):
    got = api.get(f"{BASE}/dictionary")
    newest = api.get(f"{BASE}/versions?limit=1").json["items"][0]
    assert got.json["dictionary_version"] == newest["version"]
    assert got.json["digest"] == newest["digest"]
    again = api.get(f"{BASE}/dictionary", headers={"If-None-Match": got.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    api.post(f"{BASE}/versions")
    changed = api.get(f"{BASE}/dictionary", headers={"If-None-Match": got.headers["ETag"]})
    assert changed.status == 200
    assert changed.headers["ETag"] != got.headers["ETag"]


def test_tags_are_told_apart():
    assert is_known('"a"', "a")
    assert not is_known('"ab"', "a")
    assert not is_known("a", "a")
