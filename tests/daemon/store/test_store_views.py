"""The macros in the file say what the API says, to whoever opens the file without the daemon's code."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pytest
from drifting import about, drift, end, novel, reference
from generated import LENGTH, START, GeneratedStream, as_table, sketch_quantile
from hydrophoned.store import (
    DetectionQuery,
    DetectionReader,
    FeatureQuery,
    Label,
    LabelQuery,
    NovelQuery,
    SplitCell,
    Store,
    StoreReader,
    WindowRange,
    label_table,
)
from hydrophoned.store.views import MACROS
from test_store_queries import example
from test_store_versions import features, matches, version

FOREVER = 1 << 60
KEY = 7
ID = "toy@1/layers.0"
REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "sql.md"
RANGES = [(0, FOREVER), (START + 4 * LENGTH, START + 17 * LENGTH), (START + 3 * LENGTH, START + 4 * LENGTH), (0, 1)]


def requests_and_outcomes():
    request = {
        "request_key": [1, 2, 3, 4], "id": ["a", "b", "c", "a"], "model": ["toy", "toy", "toy", "other"],
        "version": ["1"] * 4, "producer": ["p"] * 4, "started": [START + n for n in range(4)], "sample": [1.0] * 4,
        "attributes": ["{}"] * 4,
    }  # fmt: skip
    told = [
        ("a", "toy", 1, '{"hallucinated": true, "kind": "date"}'),
        ("a", "toy", 2, '{"hallucinated": false, "a.b \\"c\\"": [1, 2]}'),
        ("b", "toy", 1, "{}"),
        ("nobody", "toy", 1, '{"hallucinated": true}'),
    ]
    ids, model, received, labels = zip(*told, strict=True)
    outcome = {
        "request_id": ids, "model": model, "time": [START] * 4, "received": [START + n for n in received],
        "source": ["judge"] * 4, "labels": labels,
    }  # fmt: skip
    return {"request": as_table("request", request), "outcome": as_table("outcome", outcome)}


@pytest.fixture(scope="module")
def stream():
    return GeneratedStream(key=KEY, id=ID)


@pytest.fixture(scope="module")
def path(tmp_path_factory, stream):
    path = tmp_path_factory.mktemp("store") / "h.duckdb"
    other = GeneratedStream(key=8, id="toy@1/layers.1", seed=1)  # must never show in the other's figures
    labels = [
        Label(1, 0, 1, START, "manual", "first"),
        Label(1, 0, 1, START + 1, "manual", "second"),
        Label(1, 0, 1, START, "rule", "a rule", score=0.5, rows=100, fired=9),
        Label(2, 1, 1, START, "rule", "of one that is lost"),
        Label(3, 2, 1, START, "manual", "taken back"),
        Label(3, 2, 1, START + 1, "manual", ""),
    ]
    with Store(path) as store:
        stream.fill(store)
        other.fill(store)
        store.write(version(1, key=KEY) | features(1, *((n + 1, n, "born") for n in range(4)), key=KEY))
        store.write(
            version(2, parent=1, key=KEY)
            | features(2, (2, 1, "lost"), (5, 1, "born"), key=KEY)
            | matches(2, ("stable", 1, 1, 0, 0), ("born", None, 5, None, 1), ("lost", 2, None, 1, None), key=KEY)
        )
        store.write(requests_and_outcomes())
        for request, score in ((1, 3.0), (2, 5.0), (3, 4.0), (1, 6.0)):
            store.write({"example": example(2, request, score, key=KEY)})
        store.write({"label": label_table(KEY, labels)})
        for number, window in ((1, 1), (2, 5), (3, 16)):
            time = START + window * LENGTH
            store.write(
                drift(number, time, key=KEY, change=time - 5) | about(number, key=KEY, features=((0, 1), (1, 2)))
            )
            store.write(drift(number, time, key=8) | about(number, key=8) | novel(9, time, key=8))
            store.write(novel(number, time, key=KEY))
        store.write(end(1, START + 2 * LENGTH, key=KEY) | reference(1, key=KEY))
        store.write(reference(2, key=KEY, name="deploy"))
        store.write(reference(1, key=8))
    return path


@pytest.fixture(scope="module")
def asked(path):
    """What the API's queries say; the store is closed again before a test asks in SQL."""
    with Store(path) as store:
        reader, drifts = StoreReader(store), DetectionReader(store)
        said = {
            "changed": drifts.detected_features(KEY, 2),
            "references": drifts.references(KEY, limit=100),
            "labels": reader.labels(KEY, LabelQuery(100)),
            "examples": reader.examples(KEY, 2, limit=2).drop_columns(["context", "context_index"]),
            "versions": reader.versions(KEY, limit=100),
        }
        for since, until in RANGES:
            covered = WindowRange(since, until, 1000)
            minutes = WindowRange(since, until, 1000, step=60_000_000)
            cell = SplitCell("phase", "decode")
            said[since, until] = {
                "rates": reader.features(KEY, FeatureQuery(since, until, 1000)),
                "rates_in": reader.features(KEY, FeatureQuery(since, until, 1000, split=cell)),
                "series": reader.series(KEY, 3, minutes),
                "series_in": reader.series(KEY, 3, covered, split=cell),
                "windows": reader.windows(KEY, minutes),
                "drifts": drifts.detections(DetectionQuery(1000, since, until)),
                "novel": drifts.novel(KEY, NovelQuery(1000, since, until)),
            }
    return said


@pytest.fixture
def sql(path, asked):
    del asked
    with duckdb.connect(str(path), read_only=True) as connection:
        yield lambda statement, *values: connection.execute(statement, values).to_arrow_table()


def at(time):
    """A time in us as whoever writes SQL gives it; None for the bounds of all time."""
    return None if time in (0, FOREVER) else str(np.datetime64(time, "us"))


@pytest.mark.parametrize("covered", RANGES)
@pytest.mark.parametrize(
    ("macro", "query"),
    [
        ("feature_rates(?, since := ?, until := ?)", "rates"),
        ("feature_rates_in(?, 'phase', 'decode', since := ?, until := ?)", "rates_in"),
        ("feature_series(?, 3, since := ?, until := ?, step := INTERVAL 1 MINUTE)", "series"),
        ("feature_series_in(?, 3, 'phase', 'decode', since := ?, until := ?)", "series_in"),
        ("stream_windows(?, since := ?, until := ?, step := '1 minute')", "windows"),
    ],
)
def test_macros_over_a_range_say_what_the_api_says(sql, asked, macro, query, covered):
    found = sql(f"FROM {macro}", ID, *map(at, covered))
    assert found.equals(asked[covered][query])
    assert found.num_rows > 0 or covered in RANGES[2:]  # of which one window has no scored rows


@pytest.mark.parametrize(
    ("macro", "query"),
    [
        (f"feature_labels('{ID}')", "labels"),
        (f"top_examples('{ID}', 2, n := 2)", "examples"),
        (f"dictionary_versions('{ID}')", "versions"),
        (f"detection_features('{ID}', 2)", "changed"),
        (f"stream_references('{ID}')", "references"),
    ],
)
def test_macros_of_what_is_now_say_what_the_api_says(sql, asked, macro, query):
    assert sql(f"FROM {macro}").equals(asked[query])
    assert asked[query].num_rows


def test_labels_are_the_latest_of_each_source(sql):
    rows = sql("SELECT index, source, text FROM feature_labels(?)", ID).to_pylist()
    told = [tuple(row.values()) for row in rows]
    assert told == [(0, "manual", "second"), (0, "rule", "a rule"), (None, "rule", "of one that is lost")]


@pytest.mark.parametrize("covered", RANGES)
@pytest.mark.parametrize("q", [0, 0.25, 0.9, 1])
def test_quantiles_are_those_of_the_values_that_were_counted(sql, stream, covered, q):
    since, until = covered
    for feature, expected in enumerate(stream.expected(since, until)):
        statement = "FROM feature_quantile(?, ?, ?, since := ?, until := ?)"
        (row,) = sql(statement, ID, feature, q, at(since), at(until)).to_pylist()
        fired, requests = expected["fired"] or 0, expected["requests"]
        assert row["fired"] == fired
        if fired < 5 or (requests is not None and requests < 2):
            assert row["value"] is None
            continue
        inside = [(w, f) for w, f in stream.values if f == feature and since <= stream.starts[w] < until]
        want = sketch_quantile(np.concatenate([stream.values[one] for one in inside]), q)
        assert row["value"] == (None if want is None else pytest.approx(want))


@pytest.mark.parametrize("covered", RANGES)
def test_macros_of_drifts_say_what_the_api_says(sql, asked, covered):
    since, until = map(at, covered)
    assert sql("FROM detections(since := ?, until := ?)", since, until).equals(asked[covered]["drifts"])
    assert sql("FROM novel_requests(?, since := ?, until := ?)", ID, since, until).equals(asked[covered]["novel"])
    inside = sum(covered[0] <= START + window * LENGTH < covered[1] for window in (1, 5, 16))
    assert asked[covered]["drifts"].num_rows == 2 * inside
    assert asked[covered]["novel"].num_rows == inside


@pytest.mark.parametrize("q", [-0.1, 1.5, None])
def test_no_quantile_is_made_up(sql, q):
    with pytest.raises(duckdb.InvalidInputException, match=r"there is no quantile (-0\.1|1\.5|NULL)"):
        sql("FROM feature_quantile(?, 3, ?)", ID, q)


def test_outcomes_stand_beside_their_requests_the_latest_of_each_label(sql):
    rows = sql("SELECT request_key, label, value FROM request_outcomes()").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (1, 'a.b "c"', "[1,2]"),
        (1, "hallucinated", "false"),
        (1, "kind", '"date"'),
        (2, None, None),
        (3, None, None),
        (4, None, None),  # the same id, of another model
    ]
    assert sql("FROM request_outcomes() WHERE label = 'hallucinated' AND value = 'false'").num_rows == 1


def test_streams_now_have_their_last_window_and_their_totals(sql, stream):
    first, second = sql("FROM stream_now()").to_pylist()
    assert (first["stream"], second["stream"]) == (ID, "toy@1/layers.1")
    assert first["rows_scored"] == stream.rows.sum()
    assert first["fvu"] == stream.fvu[-1]
    assert first["last_window_end"] == np.datetime64(stream.end, "us")
    assert (first["features"], second["features"]) == (8, None)  # the other has no published dictionary


def test_an_unknown_stream_has_no_rows(sql):
    assert sql("FROM feature_rates('no@such/stream')").num_rows == 0
    assert sql("FROM feature_series('no@such/stream', 1)").num_rows == 0


def test_macros_are_found_from_another_database_after_use(path, asked):
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{path}' AS store (READ_ONLY); USE store")
        assert connection.execute("FROM feature_rates(?)", [ID]).to_arrow_table().equals(asked[0, FOREVER]["rates"])


def test_a_macro_of_a_former_version_is_replaced_at_opening(tmp_path):
    path = tmp_path / "h.duckdb"
    Store(path).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE OR REPLACE MACRO stream_now() AS TABLE SELECT 1 AS former")
        connection.execute("CREATE MACRO mine(a) AS a + 1")
    Store(path).close()
    with duckdb.connect(str(path)) as connection:
        assert "former" not in connection.execute("FROM stream_now()").to_arrow_table().column_names
        assert connection.execute("SELECT mine(1)").fetchone() == (2,)  # what a user made is left alone


def test_opening_again_and_again_does_not_grow_the_file(tmp_path):
    path = tmp_path / "h.duckdb"
    sizes = []
    for _ in range(6):
        Store(path).close()
        sizes.append(path.stat().st_size)
    assert max(sizes) == max(sizes[:2])


def test_the_reference_names_every_macro_its_parameters_and_columns(sql):
    sections = dict(re.findall(r"^### `([^`]+)`\n(.*?)(?=^##|\Z)", REFERENCE.read_text(), re.DOTALL | re.MULTILINE))
    assert list(sections) == [f"{name}({macro.parameters})" for name, macro in MACROS.items()]
    values = {"stream_id": f"'{ID}'", "feature_index": "1", "q": "0.5", "split_attribute": "'phase'"}
    values |= {"detection_number": "1"}
    for head, (name, macro) in zip(sections, MACROS.items(), strict=True):
        needed = [one for one in macro.parameters.split(", ") if one and ":=" not in one]
        table = sql(f"FROM {name}({', '.join(values.get(one, repr('decode')) for one in needed)})")
        assert re.findall(r"^\| `(\w+)` \| .+ \|$", sections[head], re.MULTILINE) == table.column_names, name
