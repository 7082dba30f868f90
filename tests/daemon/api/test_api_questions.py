"""Questions asked of a daemon that has learned planted features; see ``asked``."""

import asyncio
import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from asked import ATOMS, LENGTH, PIECES, REQUESTS, SECOND, STREAM, WARM, WIDTH, Asked
from hydrophone_schemas import rest
from hydrophoned.store import Label, label_table
from loopback import Api
from test_api_problems import ARROW, JSON, arrow_body, problem

BASE = f"/v1/streams/{STREAM}"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    found = Asked(tmp_path_factory.mktemp("asked"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def ask(asked):
    """Posts a body, and gives the answer, which must be of the status wanted."""
    api = Api(asked.backend)

    def post(path, body, status=200):
        got = api.post(f"{BASE}/{path}", data=json.dumps(body), headers=JSON)
        assert got.status == status, got.body
        return got.json

    post.api = api
    return post


@pytest.fixture(scope="module")
def feature(asked, ask):
    """The feature of each atom: the strongest of its direction."""
    codes = ask("encode", {"rows": (3 * asked.atoms).tolist()})["items"]
    return [code["index"][0] for code in codes]


def test_a_token_finds_its_feature_and_its_string_does_too(ask, feature):
    by_token = ask("features:search", {"token": 7})
    assert by_token["items"][0]["index"] == feature[7]
    best = by_token["items"][0]
    assert 0 < best["rate_low"] < best["rate"] <= best["rate_high"] <= 1
    assert best["rows"] >= best["fired"] > 100
    assert by_token["sample_rows"] > WARM * LENGTH
    by_piece = ask("features:search", {"piece": PIECES[7], "limit": 1})
    assert by_piece["items"][0]["index"] == feature[7]
    assert by_piece["items"][0]["rows"] < best["rows"], "strings are kept of some requests only"
    assert ask("features:search", {"token": 999})["items"] == []
    assert ask("features:search", {"piece": "word7"})["items"] == [], "another string"


def test_text_finds_the_features_of_its_tokens(asked, ask, feature):
    """Two tokens that follow each other somewhere: found over several runs, whatever the case."""
    tokens = asked.daemon.reader.request_tokens([WARM + 1]).to_pylist()
    pieces = [piece for run in tokens for piece in run["pieces"]]
    first, second = (PIECES.index(piece) for piece in pieces[20:22])
    found = ask("features:search", {"text": f"{PIECES[first]}{PIECES[second]} ".rstrip().upper(), "limit": 10})
    assert found["items"][0]["rows"] >= 2
    indices = [item["index"] for item in found["items"]]
    assert feature[first] in indices
    assert feature[second] in indices
    assert ask("features:search", {"text": "nobody wrote this"})["items"] == []


def test_rows_find_their_strongest_features(asked, ask, feature):
    rows = np.stack([4 * asked.atoms[7] + asked.atoms[2], 4 * asked.atoms[7]])
    found = ask("features:search", {"rows": rows.tolist()})["items"]
    assert found[0]["index"] == feature[7]
    assert (found[0]["rows"], found[0]["fired"], found[0]["rate"]) == (2, 2, 1.0)
    second = next(item for item in found if item["index"] == feature[2])
    assert second["fired"] == 1
    assert second["score"] == pytest.approx(second["mean"] / 2)


def test_a_label_is_found_and_goes_with_every_feature(asked, ask, feature):
    ids = asyncio.run(asked.backend.feature_ids(STREAM)).ids
    labels = [
        Label(int(ids[feature[3]]), feature[3], 1, asked.start, "rule", "the third Word", score=0.5),
        Label(int(ids[feature[3]]), feature[3], 1, asked.start, "manual", "third word, by hand"),
        Label(int(ids[feature[9]]), feature[9], 1, asked.start, "rule", "a word too", score=0.9),
    ]
    asked.daemon.writer.put({"label": label_table(asked.key, labels)})
    assert asked.daemon.writer.flush(10)
    found = ask("features:search", {"label": "WORD"})["items"]
    assert [item["label"] for item in found] == ["third word, by hand", "a word too"]
    assert [item["index"] for item in found] == [feature[3], feature[9]]
    assert found[1]["score"] == 0.9
    assert found[0]["rows"] is None
    named = ask("features:search", {"rows": (3 * asked.atoms[[3]]).tolist(), "limit": 1})["items"]
    assert [item["label"] for item in named] == ["third word, by hand"]


def test_a_request_shows_its_features_and_where_they_fire(asked, ask, feature):
    found = ask("inspect", {"request": "r4", "limit": 200, "places": LENGTH})
    assert (found["request"], found["rows"], found["complete"]) == ("r4", LENGTH, True)
    assert [item["mean"] for item in found["items"]] == sorted((i["mean"] for i in found["items"]), reverse=True)
    by_index = {item["index"]: item for item in found["items"]}
    tokens = asked.daemon.reader.request_tokens([found["request_key"]]).to_pylist()
    pieces = {run["position"] + at: piece for run in tokens for at, piece in enumerate(run["pieces"])}
    common = by_index[feature[3]]
    assert common["fired"] == len(common["places"]) == round(common["rate"] * LENGTH)
    assert common["max"] == pytest.approx(common["places"][0]["value"], rel=1e-6)
    assert common["mean"] == pytest.approx(sum(place["value"] for place in common["places"]) / LENGTH, rel=1e-5)
    assert 0.02 < common["usual_rate"] < 0.3
    for place in common["places"]:
        assert place["piece"] == pieces[place["position"]]
        assert PIECES[place["token"]] == place["piece"]
    few = ask("inspect", {"request": "r4", "limit": 1, "places": 1})["items"]
    assert few == [{**found["items"][0], "places": found["items"][0]["places"][:1]}]


def test_a_request_by_key_and_one_of_which_nothing_is_kept(ask):
    by_id = ask("inspect", {"request": "r10"})
    by_key = ask("inspect", {"request_key": by_id["request_key"]})
    assert by_key["items"] == by_id["items"]
    nothing = ask("inspect", {"request_key": 10**9})
    assert (nothing["items"], nothing["rows"], nothing["complete"]) == ([], 0, False)
    assert "toy@1" in ask("inspect", {"request": "nobody"}, 404)["detail"]


def test_rows_are_inspected_as_they_are_encoded(asked, ask):
    rows = [*asked.atoms[:2].tolist(), [float("nan")] * WIDTH]
    codes = ask("encode", {"rows": rows})["items"]
    found = ask("inspect", {"rows": rows, "limit": 100})
    assert (found["rows"], found["request"], found["complete"]) == (2, None, True)
    expected = {
        (index, position): value
        for position, code in enumerate(codes[:2])
        for index, value in zip(code["index"], code["value"], strict=True)
        if value > 0
    }
    places = {(item["index"], p["position"]): p["value"] for item in found["items"] for p in item["places"]}
    assert places == pytest.approx(expected)


def test_neighbours_are_near_by_decoder_or_by_activation(asked, ask, feature):
    W = asked.daemon.streams.get(STREAM).worker.call(lambda learner: learner.dictionary.W_dec.clone()).result(10)
    one = feature[7]
    cosine = (W @ W[one]).numpy()
    got = ask.api.get(f"{BASE}/features/{one}/neighbours?limit=63").json
    assert [item["index"] for item in got["items"]] == [i for i in np.argsort(-cosine, kind="stable") if i != one]
    np.testing.assert_allclose(
        [item["cosine"] for item in got["items"]], np.sort(np.delete(cosine, one))[::-1], atol=1e-5
    )
    assert got["chance_cosine"] == pytest.approx(np.sqrt(2 * np.log(63) / WIDTH))
    by_activation = ask.api.get(f"{BASE}/features/{one}/neighbours?by=correlation&limit=5").json["items"]
    correlation = [item["correlation"] for item in by_activation]
    assert correlation == sorted(correlation, reverse=True)


def test_partners_are_those_of_the_sample(asked, ask, feature):
    rows = asked.daemon.streams.get(STREAM).worker.call(lambda learner: learner.sample.rows()).result(10)
    fires = np.zeros((rows.rows, 64), dtype=bool)
    row, place = (rows.value > 0).nonzero()
    fires[row, rows.index[row, place]] = True
    one = feature[3]
    got = ask.api.get(f"{BASE}/features/{one}/partners?by=count&limit=3").json
    assert (got["rows"], got["fired"]) == (rows.rows, fires[:, one].sum())
    together = (fires[:, [one]] & fires).sum(0)
    together[one] = 0
    assert [item["together"] for item in got["items"]] == sorted(together)[:-4:-1]
    for item in got["items"]:
        assert item["together"] == together[item["index"]]
        assert item["rate_low"] < item["rate"] < item["rate_high"]
    low = [item["npmi_low"] for item in ask.api.get(f"{BASE}/features/{one}/partners?limit=9").json["items"]]
    assert low == sorted(low, reverse=True)


def test_firings_are_real_and_show_weak_ones_too(asked, ask, feature):
    rows = asked.daemon.streams.get(STREAM).worker.call(lambda learner: learner.sample.rows()).result(10)
    one = feature[3]
    row, place = np.nonzero((rows.index == one) & (rows.value > 0))
    values = dict(zip(zip(rows.request[row], rows.position[row], strict=True), rows.value[row, place], strict=True))
    got = ask.api.get(f"{BASE}/features/{one}/firings?limit=40&context=2").json
    assert (got["rows"], got["fired"]) == (rows.rows, len(row))
    assert [sum(item["band"] == band for item in got["items"]) for band in (1, 2, 3, 4)] == [10] * 4
    weak = np.quantile(rows.value[row, place], 0.25)
    for item in got["items"]:
        assert item["value"] == values[item["request_key"], item["position"]]
        assert (item["value"] <= weak) == (item["band"] == 1)
    named = [item for item in got["items"] if item["request"].startswith("r")]
    assert named
    for item in named:
        assert item["context"][item["context_index"]] == PIECES[item["token"]]
    drawn = ask.api.get(f"{BASE}/features/{one}/firings?limit=40&by=random&context=0").json["items"]
    assert [item["value"] for item in drawn] == sorted((item["value"] for item in drawn), reverse=True)
    assert {item["context"] for item in drawn} == {None}
    assert {item["band"] for item in drawn} == {1, 2, 3, 4}


def test_what_differs_between_two_kinds_of_requests_comes_first(ask, feature):
    sets = {"a": {"attributes": {"kind": "code"}}, "b": {"attributes": {"kind": "prose"}}}
    found = ask("contrast", sets)
    best, *others = found["items"]
    assert best["index"] == feature[3]
    assert best["q"] < 1e-10
    assert best["effect"] > 0.5
    assert 0 < best["difference_low"] < best["difference"] < best["difference_high"]
    assert best["rate_a"] == pytest.approx(best["fired_a"] / found["rows_a"])
    assert (found["requests_a"], found["requests_b"], found["whole"]) == (80, 80, REQUESTS)
    assert (found["rows_a"], found["rows_b"], found["in_both"]) == (80 * LENGTH, 80 * LENGTH, 0)
    assert len(found["items"]) == 50 <= found["tested"] <= 64
    assert 0 < found["sample_low"] <= found["sample_high"] <= 1
    turned = ask("contrast", {"a": sets["b"], "b": sets["a"], "limit": 1})["items"][0]
    assert turned["index"] == best["index"]
    assert turned["effect"] == pytest.approx(-best["effect"])
    assert turned["p"] == pytest.approx(best["p"], rel=1e-6)
    assert ask("contrast", sets | {"higher_in": "b", "max_q": 1e-10})["items"] == []
    assert all(other["q"] >= best["q"] for other in others)


def test_two_sets_that_only_differ_in_name_have_nothing_between_them(ask):
    """Every fourth request against those two further on: all of code, and drawn alike."""
    names = [f"r{number}" for number in range(0, REQUESTS, 2)]
    found = ask("contrast", {"a": {"requests": names[::2]}, "b": {"requests": names[1::2]}})
    assert all(item["q"] > 0.05 for item in found["items"])
    assert found["requests_a"] == found["requests_b"] == 40


def test_an_outcome_is_contrasted_with_all_other_requests(ask, feature):
    found = ask("contrast", {"a": {"outcomes": {"bad": True}}, "measure": "mean", "limit": 1})
    assert found["items"][0]["index"] == feature[5]
    assert found["requests_a"] + found["requests_b"] == found["whole"]
    assert found["requests_b"] > REQUESTS
    assert ask("contrast", {"a": {"outcomes": {"bad": 1}}}, 409)["type"].endswith("too-little"), "1 is not true"


def test_times_tell_sets_apart_too(asked, ask):
    middle = datetime.fromtimestamp((asked.start + 2 * (WARM + 80) * SECOND) / SECOND, UTC).isoformat()
    begun = datetime.fromtimestamp((asked.start + 2 * WARM * SECOND) / SECOND, UTC).isoformat()
    late = ask("contrast", {"a": {"since": middle}, "b": {"since": begun, "until": middle}, "limit": 1})
    assert abs(late["requests_a"] - 80) <= 3
    assert abs(late["requests_b"] - 80) <= 3
    against_all = ask("contrast", {"a": {"since": middle}, "limit": 1})
    assert against_all["requests_a"] == late["requests_a"]
    assert against_all["requests_b"] > late["requests_b"]
    assert against_all["requests_a"] + against_all["requests_b"] == against_all["whole"]


def test_requests_in_both_sets_are_left_out_and_counted(ask):
    found = ask("contrast", {"a": {"attributes": {"kind": "code"}}, "b": {"requests": ["r0", "r1", "r2", "r3"]}})
    assert found["in_both"] == 2
    assert (found["requests_a"], found["requests_b"]) == (78, 2)


BAD_SETS = [
    ({"a": {"requests": ["nobody", "r1"]}}, 404, "request-not-found"),
    ({"a": {"since": "yesterday"}}, 422, "invalid-body"),
    ({"a": {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}}, 422, "invalid-body"),
    ({"a": {"attributes": {"kind": "verse"}}}, 409, "too-little"),
    ({"a": {}}, 409, "too-little"),
    ({}, 422, "invalid-body"),
    ({"a": {"requests": []}}, 422, "invalid-body"),
    ({"a": {}, "measure": "size"}, 422, "invalid-body"),
]


@pytest.mark.parametrize(("body", "status", "name"), BAD_SETS)
def test_sets_that_cannot_be_compared_are_told_apart(ask, body, status, name):
    got = ask.api.post(f"{BASE}/contrast", data=json.dumps(body), headers=JSON)
    problem(got, status, name)


def test_a_probe_of_an_outcome_finds_the_planted_feature_and_is_stored(asked, ask, feature):
    made = ask("probes", {"name": "bad", "outcomes": {"bad": True}, "sizes": [2, 1]})["items"]
    assert [probe["k"] for probe in made] == [1, 2]
    one = made[0]
    assert one["features"] == [feature[5]]
    assert one["weights"][0] > 0
    assert (one["units"], one["requests"], one["positives"]) == (150, 150, sum(list(asked.bad.values())[:150]))
    assert one["auroc_low"] > 0.9
    assert one["f1"] > one["f1_always"] > 0
    assert json.loads(one["target"]) == {"outcomes": {"bad": True}, "measure": "mean"}
    assert one["neuron_auroc"] is None
    stored = ask.api.get(f"{BASE}/probes").json["items"]
    assert [probe for probe in stored if probe["name"] == "bad"] == made
    again = ask("probes", {"name": "bad", "outcomes": {"bad": True}, "sizes": [1]})["items"]
    assert ask.api.get(f"{BASE}/probes?name=bad").json["items"] == [again[0], made[1]], "the latest counts"
    assert ask.api.get(f"{BASE}/probes?name=good").json["items"] == []


def test_a_probe_of_tokens_has_the_best_neuron_beside_it(ask, feature):
    by_token = ask("probes", {"name": "seven", "tokens": [7], "sizes": [1]})["items"][0]
    assert by_token["features"] == [feature[7]]
    assert by_token["auroc"] > 0.7
    assert 0.5 < by_token["neuron_auroc"] <= 1
    assert by_token["units"] > by_token["requests"] > REQUESTS
    by_piece = ask("probes", {"name": "seven", "pieces": [PIECES[7]], "sizes": [1]})["items"][0]
    assert by_piece["features"] == [feature[7]]


def test_requests_come_in_the_order_of_a_probe(asked, ask):
    ask("probes", {"name": "order", "outcomes": {"bad": True}, "sizes": [1]})
    fresh = [f"r{number}" for number in range(REQUESTS - 10, REQUESTS)]  # of which nothing was told
    found = ask("rerank", {"probe": "order", "requests": fresh})["items"]
    assert {item["request"] for item in found} == set(fresh)
    scores = [item["score"] for item in found]
    assert scores == sorted(scores, reverse=True)
    bad = [item["score"] for item in found if asked.bad[item["request"]]]
    good = [item["score"] for item in found if not asked.bad[item["request"]]]
    assert min(bad) > max(good)
    assert all(item["rows"] == LENGTH for item in found)


def test_features_come_in_the_order_of_an_outcome(ask, feature):
    found = ask("rerank", {"outcomes": {"bad": True}, "limit": 3})["items"]
    assert found[0]["index"] == feature[5]
    assert found[0]["score"] > 0.8
    assert found[0]["p"] < 1e-10
    only = ask("rerank", {"outcomes": {"bad": True}, "features": [feature[9], feature[5]]})["items"]
    assert [item["index"] for item in only] == [feature[5], feature[9]]


@pytest.mark.parametrize(
    ("path", "body", "status", "name"),
    [
        ("rerank", {"probe": "none", "requests": ["r1"]}, 404, "probe-not-found"),
        ("rerank", {"probe": "rows", "requests": ["r1"]}, 409, "not-of-requests"),
        ("rerank", {"probe": "rows"}, 422, "invalid-body"),
        ("rerank", {"outcomes": {"bad": True}, "features": [64]}, 404, "feature-not-found"),
        ("rerank", {"outcomes": {"unheard": 1}}, 409, "too-little"),
        ("probes", {"name": "x"}, 422, "invalid-body"),
        ("probes", {"name": "x", "tokens": [999]}, 409, "too-little"),
        ("features:search", {}, 422, "invalid-body"),
        ("features:search", {"label": "a", "token": 1}, 422, "invalid-body"),
        ("features:search", {"rows": [[1.0]]}, 422, "invalid-body"),
        ("inspect", {"request": "r1", "rows": []}, 422, "invalid-body"),
        ("decode", {"codes": [{"index": [64], "value": [1.0]}]}, 422, "invalid-body"),
        ("decode", {"codes": [{"index": [1, 1], "value": [1.0, 2.0]}]}, 422, "invalid-body"),
        ("decode", {"codes": [{"index": [1], "value": []}]}, 422, "invalid-body"),
        ("decode", {"codes": [{"index": [1], "value": [-1.0]}]}, 422, "invalid-body"),
        ("decode", {"codes": [{"index": [], "value": []}] * 8193}, 413, "too-many-rows"),
    ],
)
def test_what_cannot_be_answered_is_told_apart(ask, path, body, status, name):
    if body.get("probe") == "rows":
        ask("probes", {"name": "rows", "tokens": [7], "sizes": [1]})
    problem(ask.api.post(f"{BASE}/{path}", data=json.dumps(body), headers=JSON), status, name)


def test_decode_is_the_way_back_of_encode(asked, ask):
    rows = asked.atoms[:3] * 4
    codes = ask("encode", {"rows": rows.tolist()})["items"]
    given = [{"index": code["index"], "value": code["value"]} for code in codes]
    decoded = ask("decode", {"codes": [*given, {"index": [], "value": []}]})
    rebuilt = ask("reconstruct", {"rows": rows.tolist()})["items"]
    for got, wanted in zip(decoded["items"], rebuilt, strict=False):
        np.testing.assert_allclose(got["row"], wanted["row"], atol=1e-5)
    table = pa.table(
        {
            "index": pa.array([code["index"] for code in given], pa.list_(pa.int32())),
            "value": pa.array([code["value"] for code in given], pa.list_(pa.float32())),
        }
    )
    got = ask.api.post(f"{BASE}/decode", data=arrow_body(table), headers=ARROW | {"Accept": rest.ARROW_TYPE})
    with pa.ipc.open_stream(got.body) as reader:
        read = reader.read_all()
    np.testing.assert_allclose(read["row"].to_pylist(), [item["row"] for item in decoded["items"][:3]], atol=1e-6)
    for broken in (table.drop(["value"]), table.rename_columns(["index", "values"])):
        problem(ask.api.post(f"{BASE}/decode", data=arrow_body(broken), headers=ARROW), 422, "invalid-body")
    problem(ask.api.post(f"{BASE}/decode", data=b"nonsense", headers=ARROW), 400, "malformed-body")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("contrast", {"a": {"attributes": {"kind": "code"}}}),
        ("features:search", {"token": 7}),
        ("inspect", {"request": "r4"}),
        ("rerank", {"outcomes": {"bad": True}}),
    ],
)
def test_answers_come_as_arrow_too(ask, path, body):
    as_json = ask(path, body)
    got = ask.api.post(f"{BASE}/{path}", data=json.dumps(body), headers=JSON | {"Accept": rest.ARROW_TYPE})
    with pa.ipc.open_stream(got.body) as reader:
        table = reader.read_all()
    assert json.loads(json.dumps(table.to_pylist())) == as_json["items"]
    assert table.schema.metadata[b"hydrophone.dictionary_version"] == str(as_json["dictionary_version"]).encode()


def test_a_stream_without_a_dictionary_is_told(asked, ask, monkeypatch):
    status = asked.backend.stream(STREAM).model_copy(update={"dictionary_version": 0})
    monkeypatch.setattr(asked.backend, "stream", lambda _: status)
    for path, body in (("contrast", {"a": {}}), ("inspect", {"request": "r1"}), ("decode", {"codes": []})):
        problem(ask.api.post(f"{BASE}/{path}", data=json.dumps(body), headers=JSON), 409, "no-dictionary")


def test_every_atom_has_a_feature_of_its_own(feature):
    """What the other tests stand on."""
    assert len(set(feature)) >= ATOMS - 4
