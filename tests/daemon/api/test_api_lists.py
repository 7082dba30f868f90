from datetime import datetime

import pyarrow as pa
import pytest
from generated import LENGTH, START, ordered
from hydrophone_schemas import rest
from hydrophoned.api.times import to_datetime

ID = "toy@1/layers.0"
FEATURES = f"/v1/streams/{ID}/features"


def iso(time_us):
    return None if time_us is None else rest.format_time(to_datetime(time_us))


def from_arrow(got):
    assert got.headers["Content-Type"] == rest.ARROW_TYPE
    with pa.ipc.open_stream(got.body) as reader:
        return reader.read_all()


def as_json(table):
    """Arrow rows as the JSON answer writes them."""

    def plain(value):
        if isinstance(value, datetime):
            return rest.format_time(value)
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            return {key: plain(item) for key, item in value}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value

    return [plain(row) for row in table.to_pylist()]


def without_empty_maps(value):
    """An empty map and an empty list read alike in Arrow's Python rows."""
    if isinstance(value, dict):
        return {key: without_empty_maps(item) for key, item in value.items()} or []
    return [without_empty_maps(item) for item in value] if isinstance(value, list) else value


def expected_features(stream, since=0, until=1 << 60):
    unlabelled = {"label": None, "label_source": None, "label_score": None, "stability": None, "persisted": None}
    return [
        item
        | {"last_fired": iso(item["last_fired"]), "dictionary_version": 1 if item["last_fired"] else None}
        | unlabelled
        for item in stream.expected(since, until)
    ]


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == (pytest.approx(value, rel=1e-9, abs=1e-7) if isinstance(value, float) else value), name


def test_features_are_the_aggregates_of_the_default_hour(api, backend):
    stream = backend.generated[0]
    got = api.get(FEATURES)
    assert got.status == 200
    assert got.headers["Content-Type"] == "application/json"
    page = got.json
    assert (page["since"], page["until"]) == (iso(stream.end - 3600 * 1_000_000), iso(stream.end))
    expected = expected_features(stream)
    assert [item["index"] for item in page["items"]] == ordered(stream.expected(0, 1 << 60), "rate", descending=True)
    for item in page["items"]:
        close(item, expected[item["index"]])
    assert page["next"] is None
    assert "Link" not in got.headers


@pytest.mark.parametrize("sort", list(rest.Sort))
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_following_next_visits_every_feature_once_in_order(api, backend, sort, order):
    stream = backend.generated[0]

    async def walk(session):
        path, pages = f"{FEATURES}?sort={sort}&order={order}&limit=7", []
        cursor = ""
        while cursor is not None:
            got = await session.get(path + cursor)
            assert got.status == 200, got.body
            pages.append(got.json["items"])
            following = got.json["next"]
            assert (following is None) == ("Link" not in got.headers)
            cursor = None if following is None else f"&cursor={following}"
        return pages

    pages = api.together(walk)
    assert [len(page) for page in pages] == [7] * 5 + [5]
    found = [item["index"] for page in pages for item in page]
    listed = [item for page in pages for item in page]
    assert found == ordered(listed, sort, descending=order == "desc")
    assert sorted(found) == list(range(stream.features))


def test_the_link_header_leads_to_the_next_page(api):
    async def follow(session):
        first = await session.get(f"{FEATURES}?limit=3&sort=max")
        target, rel = first.headers["Link"].split("; ")
        assert rel == 'rel="next"'
        return first, await session.get(target.strip("<>"))

    first, second = api.together(follow)
    assert second.status == 200
    assert not {i["index"] for i in first.json["items"]} & {i["index"] for i in second.json["items"]}


LISTS = [
    "/v1/models?",
    "/v1/streams?",
    f"{FEATURES}?sort=max&limit=6",
    f"{FEATURES}?since=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z",
    f"{FEATURES}/4/series?",
    f"{FEATURES}/4/series?step=30&limit=2",
    f"{FEATURES}/4/examples?",
    f"{FEATURES}?attribute=phase&value=decode",
    f"/v1/streams/{ID}/splits?",
    f"/v1/streams/{ID}/labels?",
    f"/v1/streams/{ID}/windows?limit=5",
]


@pytest.mark.parametrize("path", LISTS)
def test_arrow_and_json_say_the_same(api, path):
    async def both(session):
        return (
            await session.get(path.rstrip("?")),
            await session.get(path.rstrip("?"), headers={"Accept": rest.ARROW_TYPE}),
            await session.get(f"{path}&format=arrow", headers={"Accept": "application/json"}),
        )

    json_got, by_accept, by_format = api.together(both)
    assert json_got.status == by_accept.status == by_format.status == 200
    table = from_arrow(by_accept)
    assert table.equals(from_arrow(by_format))
    page = json_got.json
    assert without_empty_maps(as_json(table)) == without_empty_maps(page["items"])
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    expected = {f"hydrophone.{name}": value for name, value in page.items() if name != "items" and value is not None}
    assert metadata == expected
    assert by_accept.headers.get("Link", "").split(";")[0] == json_got.headers.get("Link", "").split(";")[0]


def test_a_range_is_what_it_says(api, backend):
    stream = backend.generated[0]
    since, until = START + 5 * LENGTH, START + 9 * LENGTH
    got = api.get(f"{FEATURES}/4?since={iso(since)}&until={iso(until)}")
    assert got.json["stream"] == ID
    assert (got.json["since"], got.json["until"]) == (iso(since), iso(until))
    close(got.json["feature"], expected_features(stream, since, until)[4])
    backend.time = until
    relative = api.get(f"{FEATURES}/4?since=-40s&until={iso(until)}")
    assert relative.json == got.json


def test_nothing_scored_is_unknown_and_nothing_fired_is_zero(api):
    start = START + 3 * LENGTH
    silent = api.get(f"{FEATURES}/4?since={iso(start)}&until={iso(start + 1)}").json["feature"]
    assert (silent["fired"], silent["rows"], silent["rate"], silent["mean"]) == (None, 0, None, None)
    never = api.get(f"{FEATURES}/39").json["feature"]
    assert (never["fired"], never["rate"], never["mean"], never["last_fired"]) == (0, 0.0, None, None)


def test_series_and_windows_page_to_the_whole(api, backend):
    async def walk(session, path):
        items, cursor = [], ""
        while cursor is not None:
            page = (await session.get(f"{path}?limit=4{cursor}")).json
            items += page["items"]
            cursor = None if page["next"] is None else f"&cursor={page['next']}"
        return items

    stream = backend.generated[0]
    series = api.together(lambda session: walk(session, f"{FEATURES}/4/series"))
    assert [point["window_start"] for point in series] == [iso(int(start)) for start in stream.starts]
    wanted = [None if n == 0 else int(fired) for n, fired in zip(stream.rows, stream.fired[:, 4], strict=True)]
    assert [point["fired"] for point in series] == wanted
    windows = api.together(lambda session: walk(session, f"/v1/streams/{ID}/windows"))
    assert [window["rows_scored"] for window in windows] == stream.rows.tolist()
    assert windows[3]["fvu"] is None


def test_a_cell_can_be_asked_for_wherever_features_are(api, backend):
    stream = backend.generated[0]
    rows, fired = (sum(part) for part in zip(*map(stream.decode, range(stream.count)), strict=True))
    (of_decode, of_prompt) = sorted(api.get(f"/v1/streams/{ID}/splits").json["items"], key=lambda item: item["value"])
    assert (of_decode["attribute"], of_decode["value"], of_decode["rows"]) == ("phase", "decode", rows)
    assert of_prompt["rows"] == int(stream.rows.sum()) - rows
    cell = "attribute=phase&value=decode"
    listed = api.get(f"{FEATURES}?{cell}&limit=1000").json["items"]
    assert {item["index"]: item["fired"] for item in listed} == dict(enumerate(fired.tolist()))
    one = api.get(f"{FEATURES}/4?{cell}").json["feature"]
    assert (one["fired"], one["rows"], one["max"], one["q50"]) == (fired[4], rows, None, None)
    points = api.get(f"{FEATURES}/4/series?{cell}").json["items"]
    assert sum(point["fired"] for point in points) == fired[4]
    unknown = api.get(f"{FEATURES}/4?attribute=tenant&value=acme").json["feature"]
    assert (unknown["fired"], unknown["rows"], unknown["rate"]) == (None, 0, None)


@pytest.mark.parametrize("path", [FEATURES, f"{FEATURES}/4", f"{FEATURES}/4/series"])
@pytest.mark.parametrize(("given", "missing"), [("attribute=phase", "value"), ("value=decode", "attribute")])
def test_half_a_cell_is_refused(api, path, given, missing):
    got = api.get(f"{path}?{given}")
    assert got.status == 400
    assert got.json["errors"][0]["name"] == missing


def test_filters_restrict_the_list(api, backend):
    stream = backend.generated[0]
    expected = expected_features(stream)

    def indices(query):
        return {item["index"] for item in api.get(f"{FEATURES}?limit=1000&{query}").json["items"]}

    assert indices("fired=false") == {35, 36, 37, 38, 39}
    assert indices("index=3,38") == {3, 38}
    low = sorted(item["rate"] for item in expected)[20]
    assert indices(f"min_rate={low!r}") == {item["index"] for item in expected if item["rate"] >= low}
    assert indices(f"max_rate={low!r}&fired=true") == {i["index"] for i in expected if i["rate"] <= low and i["fired"]}
    assert indices("min_max=6") == {i["index"] for i in expected if i["max"] is not None and i["max"] >= 6}


def test_a_stream_without_windows_has_an_empty_list_and_no_range(api, backend):
    fresh = backend.generated[0]
    status = backend.live[ID]
    backend.live = {"new@1/a": status.model_copy(update={"id": "new@1/a", "stream_key": 99, "features": None})}
    for path in ("features", "windows", "features/3/series"):
        page = api.get(f"/v1/streams/new@1/a/{path}").json
        assert page == {"items": [], "next": None, "since": None, "until": None}
    feature = api.get("/v1/streams/new@1/a/features/3").json
    assert feature["since"] is None
    assert feature["feature"]["fired"] is None
    assert fresh.key != 99


@pytest.mark.parametrize("written", ["toy@1/layers.0", "toy@1%2Flayers.0", "toy@1%2flayers.0", "toy%401%2Flayers.0"])
@pytest.mark.parametrize(
    "below", ["", "/features", "/features/3", "/features/3/series", "/features/3/examples", "/windows", "/dictionary"]
)
def test_a_stream_id_may_be_written_with_its_slash_or_encoded(api, written, below):
    got = api.get(f"/v1/streams/{written}{below}")
    assert got.status == 200, got.body
    if not below:
        assert got.json["id"] == ID


@pytest.mark.parametrize("site", ["features", "windows", "encode", "dictionary"])
def test_a_site_may_be_named_like_a_part_of_a_path(api, backend, site):
    name = f"toy@1/{site}"
    backend.live = {name: backend.live[ID].model_copy(update={"id": name})}
    assert api.get(f"/v1/streams/{name}").json["id"] == name
    assert api.get(f"/v1/streams/{name}/features").status == 200


def test_a_site_with_a_part_works(api):
    assert api.get("/v1/streams/toy@1/layers.1:input%5B0%5D/features/3").status == 200
    assert api.get("/v1/streams/toy@1%2Flayers.1%3Ainput%5B0%5D/features/3").status == 200


def test_streams_and_models_page_by_name(api, backend):
    status = backend.live[ID]
    backend.live = {
        f"m{n}@{v}/s": status.model_copy(update={"id": f"m{n}@{v}/s", "model": f"m{n}", "version": str(v)})
        for n in range(3)
        for v in (2, 1)
    }

    async def walk(session, path):
        found, cursor = [], ""
        while cursor is not None:
            page = (await session.get(f"{path}?limit=4{cursor}")).json
            found += page["items"]
            cursor = None if page["next"] is None else f"&cursor={page['next']}"
        return found

    streams = api.together(lambda session: walk(session, "/v1/streams"))
    assert [item["id"] for item in streams] == sorted(backend.live)
    models = api.together(lambda session: walk(session, "/v1/models"))
    assert [(item["name"], item["version"]) for item in models] == sorted((f"m{n}", v) for n in range(3) for v in "12")
    assert models[0]["streams"] == ["m0@1/s"]
    only = api.get("/v1/streams?model=m1").json["items"]
    assert {item["id"] for item in only} == {"m1@1/s", "m1@2/s"}


def test_a_stream_shows_unknown_figures_as_null(api):
    status = api.get(f"/v1/streams/{ID}").json
    assert status["dead_fraction"] is None
    assert status["created"] == "2026-01-01T00:00:00Z"
    assert status["producers"][0]["sent"] is None
    assert rest.StreamStatus.model_validate_json(api.get(f"/v1/streams/{ID}").body).rows_dropped == {"queue_full": 5}


def test_the_quality_of_a_dictionary_says_of_how_many_rows(api, backend):
    got = api.get(f"/v1/streams/{ID}/dictionary")
    assert got.status == 200
    assert got.json["rows"] == 512
    assert got.json["fvu_by_features"][0] == {"features": 1, "fvu": 0.8}
    assert len(got.json["density"]) == len(got.json["density_edges"]) + 2
    backend.busy = True
    assert api.get(f"/v1/streams/{ID}/dictionary").status == 503
