"""Labels over REST: given by hand, taken back, imported, exported, listed, and shown with features."""

import csv
import io
import json

import pyarrow as pa
import pytest
from generated import GeneratedStream
from hydrophone_schemas import rest
from hydrophone_schemas.tables import FEATURE
from hydrophoned.store import Label, Store, label_table
from loopback import Api, StoreBackend
from test_api_problems import problem

ID = "toy@1/layers.0"
STREAM = f"/v1/streams/{ID}"
LABELS = f"{STREAM}/labels"
JSON = {"Content-Type": "application/json"}
JSONL = {"Content-Type": "application/jsonl"}


@pytest.fixture
def backend(tmp_path):
    """A store of its own: labels are written to it."""
    stream = GeneratedStream(key=7, count=3)
    with Store(tmp_path / "h.duckdb") as store:
        stream.fill(store)
        backend = StoreBackend(store, [stream])
        yield backend
        assert backend.writer.close(10)


@pytest.fixture
def api(backend):
    return Api(backend)


def put(api, index, text, **more):
    return api.call("PUT", f"{STREAM}/features/{index}/label", data=json.dumps({"text": text, **more}), headers=JSON)


def labels(api, query=""):
    return api.get(f"{LABELS}{query}").json["items"]


def write(backend, *given):
    backend.writer.put({"label": label_table(7, given)})
    assert backend.writer.flush(10)


def rule_label(index, text="token is 1", *, score=0.5, created=1, source="rule", **more):
    return Label(1000 + index, index, 3, created, source, text, rule="{}", score=score, rows=10, fired=2, **more)


def test_a_label_given_by_hand_is_listed_shown_and_taken_back(api, backend):
    got = put(api, 4, " line ends ", author="ada")
    assert got.status == 200
    given = got.json
    assert given == {
        "index": 4, "feature_id": 1004, "source": "manual", "text": "line ends", "author": "ada", "rule": None,
        "score": None, "precision": None, "recall": None, "rows": None, "fired": None,
        "created": rest.format_time(rest.FeatureLabel.model_validate_json(got.body).created), "dictionary_version": 3,
    }  # fmt: skip
    assert labels(api) == [given]
    feature = api.get(f"{STREAM}/features/4").json["feature"]
    assert (feature["label"], feature["label_source"], feature["label_score"]) == ("line ends", "manual", None)
    backend.time += 1
    taken = api.call("DELETE", f"{STREAM}/features/4/label")
    assert taken.status == 200
    assert taken.json["text"] == ""
    assert labels(api) == []
    assert api.get(f"{STREAM}/features/4").json["feature"]["label"] is None
    problem(api.call("DELETE", f"{STREAM}/features/4/label"), 404, "label-not-found")


def test_the_latest_label_of_a_source_counts(api, backend):
    put(api, 4, "first")
    backend.time += 1
    put(api, 4, "second")
    assert [label["text"] for label in labels(api)] == ["second"]


def test_features_show_the_label_that_counts_most(api, backend):
    write(
        backend,
        rule_label(1, score=0.9),
        rule_label(1, source="gpt", text="of a model", score=0.3),
        rule_label(1, source="other", text="unchecked", score=None),
        rule_label(2, source="imported", text="from elsewhere", score=None),
        rule_label(2, score=1.0),
        rule_label(3, source="imported", text="from elsewhere", score=None),
    )
    put(api, 3, "by hand")
    shown = {item["index"]: item for item in api.get(f"{STREAM}/features?sort=index&order=asc&limit=5").json["items"]}
    assert [(shown[i]["label"], shown[i]["label_source"], shown[i]["label_score"]) for i in range(5)] == [
        (None, None, None),
        ("token is 1", "rule", 0.9),
        ("from elsewhere", "imported", None),
        ("by hand", "manual", None),
        (None, None, None),
    ]
    arrow = api.get(f"{STREAM}/features?sort=index&order=asc&limit=5&format=arrow")
    with pa.ipc.open_stream(arrow.body) as reader:
        table = reader.read_all()
    assert table["label"].to_pylist() == [shown[i]["label"] for i in range(5)]


def test_labels_are_filtered_and_paged(api, backend):
    made = [rule_label(i, f"token is {i}", score=i / 40) for i in range(30)]
    write(backend, *made, *(rule_label(i, f"Model {i}", source="gpt", score=None) for i in range(0, 30, 3)))
    assert len(labels(api)) == 40
    assert {label["source"] for label in labels(api, "?source=gpt")} == {"gpt"}
    assert [label["index"] for label in labels(api, "?min_score=0.7")] == [28, 29]
    assert [(label["index"], label["source"]) for label in labels(api, "?index=6")] == [(6, "gpt"), (6, "rule")]
    assert [label["text"] for label in labels(api, "?text=model%2012")] == ["Model 12"]

    async def walk(session):
        found, path = [], f"{LABELS}?limit=7"
        while path:
            page = (await session.get(path)).json
            found.append(page["items"])
            path = f"{LABELS}?limit=7&cursor={page['next']}" if page["next"] else None
        return found

    pages = api.together(walk)
    assert [len(page) for page in pages] == [7] * 5 + [5]
    found = [label for page in pages for label in page]
    assert found == labels(api)
    assert [(label["index"], label["source"]) for label in found] == sorted(
        (label["index"], label["source"]) for label in found
    )


def test_json_and_arrow_say_the_same(api, backend):
    write(backend, rule_label(5), rule_label(2, source="gpt", score=None, author="x"))
    got = api.get(LABELS, headers={"Accept": rest.ARROW_TYPE})
    with pa.ipc.open_stream(got.body) as reader:
        table = reader.read_all()
    rows = [row | {"created": rest.format_time(row["created"])} for row in table.to_pylist()]
    assert rows == labels(api)


def test_a_label_follows_its_feature_to_another_index(api, backend):
    """An id that has moved takes its label with it; one that is lost keeps it, at no index."""
    put(api, 4, "moves")
    put(api, 5, "is lost")
    put(api, 6, "stays")
    rows = [
        (1004, 4, "born", 1),
        (1005, 5, "born", 1),
        (1006, 6, "born", 1),
        (1004, 9, "moved", 2),
        (1005, 5, "lost", 2),
    ]
    table = [
        {"stream_key": 7, "dictionary_version": version, "feature_id": key, "feature": index, "state": state}
        for key, index, state, version in rows
    ]
    backend.writer.put({"feature": pa.Table.from_pylist(table, schema=FEATURE)})
    assert backend.writer.flush(10)
    assert [(label["index"], label["text"]) for label in labels(api)] == [(6, "stays"), (9, "moves"), (None, "is lost")]
    assert api.get(f"{STREAM}/features/9").json["feature"]["label"] == "moves"
    assert api.get(f"{STREAM}/features/4").json["feature"]["label"] is None
    assert api.get(f"{STREAM}/features/5").json["feature"]["label"] is None

    async def walk(session):
        first = await session.get(f"{LABELS}?limit=2")
        return (await session.get(f"{LABELS}?limit=2&cursor={first.json['next']}")).json["items"]

    assert [label["text"] for label in api.together(walk)] == ["is lost"]


# -- files --------------------------------------------------------------------------------------------------------


def send(api, body, headers=JSONL):
    return api.post(f"{LABELS}:import", data=body, headers=headers)


def lines(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def test_json_lines_are_imported_and_what_is_wrong_is_told_by_line(api, backend):
    body = lines(
        {"index": 3, "text": "digits", "author": "ada"},
        {"index": 400, "text": "beyond"},
        {"index": "7", "text": "an index as text"},
        {"index": 1.5, "text": "no index"},
        {"index": 1},
        {"feature_id": 1009, "index": 2, "text": "by id"},
        {"feature_id": 77, "index": 2, "text": "an id that is not there"},
        {"index": 8, "text": "x" * 501},
    )
    got = send(api, body + b"{\n\n[1]\n")
    assert got.status == 200
    told = got.json
    assert (told["imported"], told["skipped"]) == (3, 7)
    assert [one["line"] for one in told["problems"]] == [2, 4, 5, 7, 8, 9, 11]
    assert "40 features" in told["problems"][0]["message"]
    found = labels(api)
    assert [(label["index"], label["feature_id"], label["text"]) for label in found] == [
        (3, 1003, "digits"), (7, 1007, "an index as text"), (9, 1009, "by id"),
    ]  # fmt: skip
    assert {label["source"] for label in found} == {"imported"}
    assert found[0]["author"] == "ada"
    assert found[0]["dictionary_version"] == 3


NEURONPEDIA = {
    "modelId": "gpt2-small",
    "layer": "6-res-jb",
    "index": "12",
    "description": "time-related phrases",
    "typeName": "oai_token-act-pair",
    "explanationModelName": "gpt-4o-mini",
    "embedding": "[0.0, 1.0]",
}


@pytest.mark.parametrize("form", ["lines", "list"])
def test_neuronpedias_export_is_imported(api, form):
    two = [NEURONPEDIA, NEURONPEDIA | {"index": "13", "explanationModelName": None, "authorId": "x"}]
    body, headers = (lines(*two), JSONL) if form == "lines" else (json.dumps(two).encode(), JSON)
    assert send(api, body, headers).json == {"imported": 2, "skipped": 0, "problems": []}
    assert [(label["index"], label["text"], label["author"]) for label in labels(api)] == [
        (12, "time-related phrases", "gpt-4o-mini"),
        (13, "time-related phrases", None),
    ]


def test_csv_is_imported(api):
    body = b'text,index,author\n"commas, and ""quotes""",5,ada\nplain,6,\n,7,x\n'
    told = send(api, body, {"Content-Type": "text/csv"}).json
    assert (told["imported"], [one["line"] for one in told["problems"]]) == (2, [4])
    assert [(label["text"], label["author"]) for label in labels(api)] == [
        ('commas, and "quotes"', "ada"),
        ("plain", None),
    ]


BAD_FILES = [
    (b"\xff\xfe", JSONL, "not UTF-8"),
    (b"[1,", JSON, "no JSON list"),
    (b"[" * 100_000, JSON, "no JSON list"),
    (b"a,b\n1,2\n", {"Content-Type": "text/csv"}, "head line names"),
    (b"", {"Content-Type": "text/csv"}, "head line names"),
    (b'index,text\n1,"' + b"x" * 200_000 + b"\n", {"Content-Type": "text/csv"}, "no CSV"),
]


@pytest.mark.parametrize(("body", "headers", "message"), BAD_FILES)
def test_a_file_that_is_none_of_the_forms_is_refused(api, body, headers, message):
    assert message in problem(send(api, body, headers), 422, "invalid-body").detail


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_what_is_exported_can_be_imported_elsewhere(api, backend, form, tmp_path):
    put(api, 3, 'a "label",\nwith a line end', author="ada")
    write(backend, rule_label(5), rule_label(6, source="gpt", score=None))
    got = api.get(f"{LABELS}:export?form={form}")
    assert got.status == 200
    assert got.headers["Content-Type"] == {"jsonl": "application/jsonl", "csv": "text/csv"}[form]
    if form == "jsonl":
        assert [json.loads(line) for line in got.body.decode().splitlines()] == labels(api)
    else:
        assert [row["text"] for row in csv.DictReader(io.StringIO(got.body.decode()))] == [
            x["text"] for x in labels(api)
        ]
    before = labels(api)
    with Store(tmp_path / "other.duckdb") as store:
        other = StoreBackend(store, [GeneratedStream(key=7, count=1)])
        told = send(Api(other), got.body, {"Content-Type": got.headers["Content-Type"]}).json
        assert told == {"imported": 3, "skipped": 0, "problems": []}
        after = labels(Api(other))
        assert [(x["index"], x["text"], x["rule"]) for x in after] == [
            (x["index"], x["text"], x["rule"]) for x in before
        ]
        assert {(x["source"], x["score"]) for x in after} == {
            ("imported", None)
        }  # measured elsewhere: not a score here
        assert other.writer.close(10)


def test_the_export_for_neuronpedia_has_its_fields(api, backend):
    put(api, 3, "digits", author="ada")
    write(backend, rule_label(5))
    got = api.get(f"{LABELS}:export?form=neuronpedia")
    first, second = (json.loads(line) for line in got.body.decode().splitlines())
    assert first == {
        "modelId": "toy", "layer": "layers.0", "index": "3", "description": "digits",
        "typeName": "hydrophone_manual", "explanationModelName": "ada",
    }  # fmt: skip
    assert (second["typeName"], second["explanationModelName"]) == ("hydrophone_rule", "rule")
    assert len(api.get(f"{LABELS}:export?source=manual").body.splitlines()) == 1


# -- problems, and automatic labelling ----------------------------------------------------------------------------


def test_what_cannot_be_labelled_is_refused(api, backend):
    problem(put(api, 40, "x"), 404, "feature-not-found")
    problem(put(api, "x", "x"), 400, "invalid-parameter")
    problem(put(api, 1, ""), 422, "invalid-body")
    problem(put(api, 1, " \n"), 422, "invalid-body")
    problem(put(api, 1, "x" * 501), 422, "invalid-body")
    problem(send(api, b"{}", {"Content-Type": "text/plain"}), 415, "unsupported-media-type")
    problem(api.get(f"{LABELS}:export?form=xml"), 400, "invalid-parameter")
    problem(api.get(f"{LABELS}?cursor=x"), 400, "invalid-cursor")
    backend.busy = True
    problem(put(api, 1, "x"), 503, "unavailable")
    backend.live = {ID: backend.live[ID].model_copy(update={"dictionary_version": 0})}
    for got in (put(api, 1, "x"), send(api, b""), api.post(f"{LABELS}:auto", data=b"{}", headers=JSON)):
        problem(got, 409, "no-dictionary")


def test_automatic_labelling_is_begun_once_and_can_be_looked_at(api):
    assert api.get(f"{LABELS}:auto").json["state"] == "idle"
    got = api.post(f"{LABELS}:auto", data=b'{"method": "rule", "count": 5}', headers=JSON)
    assert got.status == 202
    assert got.json["state"] == "running"
    assert api.get(f"{LABELS}:auto").json == got.json
    problem(api.post(f"{LABELS}:auto", data=b"{}", headers=JSON), 409, "labelling-in-progress")
    for body in (b'{"seconds": 0}', b'{"count": 0}', b'{"features": []}', b'{"method": "guess"}'):
        problem(api.post(f"{LABELS}:auto", data=body, headers=JSON), 422, "invalid-body")
