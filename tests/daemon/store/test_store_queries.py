import itertools
import re
from pathlib import Path

import duckdb
import numpy as np
import pytest
from generated import EDGES, LENGTH, START, GeneratedStream, as_table, interval, ordered, sketch_quantile, wilson
from hydrophoned.store import BadQuery, FeatureQuery, QueryTimeout, SplitCell, Store, StoreReader, WindowRange
from hydrophoned.store.features import SORT_KEYS

FOREVER = 1 << 60


@pytest.fixture(scope="module")
def stream():
    return GeneratedStream(key=7)


@pytest.fixture(scope="module")
def store(tmp_path_factory, stream):
    with Store(tmp_path_factory.mktemp("store") / "h.duckdb") as store:
        stream.fill(store)
        GeneratedStream(key=8, id="toy@1/layers.1", seed=1).fill(store)  # must never show in the other's figures
        yield store


@pytest.fixture(scope="module")
def reader(store):
    return StoreReader(store)


def listed(table):
    rows = table.to_pylist()
    for row in rows:
        row["last_fired"] = (
            None if row["last_fired"] is None else int(np.datetime64(row["last_fired"], "us").astype(int))
        )
        assert row.pop("dictionary_version") == (1 if row["last_fired"] else None)
    return rows


RANGES = [(0, FOREVER), (START + 4 * LENGTH, START + 17 * LENGTH), (START + 3 * LENGTH, START + 4 * LENGTH), (0, 1)]


@pytest.mark.parametrize("covered", RANGES)
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("sort", SORT_KEYS)
def test_features_equal_numpy_aggregates_in_the_promised_order(reader, stream, covered, sort, descending):
    since, until = covered
    query = FeatureQuery(since, until, 1000, features=stream.features, sort=sort, descending=descending)
    found = listed(reader.features(7, query))
    expected = stream.expected(since, until)
    assert [row["index"] for row in found] == ordered(found, sort, descending=descending)
    for row in found:
        want = expected[row["index"]]
        for name, value in want.items():
            assert row[name] == (value if not isinstance(value, float) else pytest.approx(value, rel=1e-9, abs=1e-7))
    assert sorted(row["index"] for row in found) == list(range(stream.features))


@pytest.mark.parametrize("sort", SORT_KEYS)
@pytest.mark.parametrize("descending", [True, False])
def test_pages_join_to_the_whole_even_with_ties_and_unknowns(reader, stream, sort, descending):
    query = FeatureQuery(0, FOREVER, 1000, features=stream.features, sort=sort, descending=descending)
    whole = listed(reader.features(7, query))
    after, found = None, []
    for _ in itertools.count():
        page = listed(reader.features(7, query._replace(limit=7, after=after)))
        if not page:
            break
        found += page
        after = (page[-1][sort], page[-1]["index"])
    assert found == whole


def test_filters_keep_what_they_say(reader, stream):
    query = FeatureQuery(0, FOREVER, 1000, features=stream.features)
    expected = stream.expected(0, FOREVER)
    rates = sorted(item["rate"] for item in expected)
    low, high = rates[12], rates[30]

    def indices(**filters):
        return {row["index"] for row in listed(reader.features(7, query._replace(**filters)))}

    assert indices(min_rate=low, max_rate=high) == {i["index"] for i in expected if low <= i["rate"] <= high}
    assert indices(min_max=5.0) == {i["index"] for i in expected if i["max"] is not None and i["max"] >= 5.0}
    assert indices(fired=False) == set(range(35, 40))
    assert indices(fired=True) == set(range(35))
    assert indices(only=[3, 38, 99]) == {3, 38}
    assert indices(only=[]) == set()


def test_without_the_number_of_features_only_those_that_fired_are_listed(reader):
    found = listed(reader.features(7, FeatureQuery(0, FOREVER, 1000)))
    assert sorted(row["index"] for row in found) == list(range(35))


def test_a_sort_key_from_outside_never_reaches_sql(reader):
    with pytest.raises(BadQuery, match="cannot be sorted by 'rate; DROP TABLE"):
        reader.features(7, FeatureQuery(0, 1, 1, sort="rate; DROP TABLE stream"))


def test_thin_cells_are_null_and_thick_ones_are_not(reader, stream):
    """The made-up stream has both kinds, so that the comparison with numpy means something."""
    whole = stream.expected(0, FOREVER)
    assert all(item["q50"] is not None for item in whole[:35])
    one_window = stream.expected(START, START + LENGTH)
    assert all(item["q50"] is None for item in one_window)
    assert {item["rate_low"] is None for item in one_window if item["fired"] == 1} == {True}
    assert {item["rate_low"] is None for item in one_window if item["fired"] == 0} == {False}
    assert any(item["requests"] is None for item in whole)
    never = listed(reader.features(7, FeatureQuery(0, FOREVER, 1, features=stream.features, only=[39])))[0]
    assert (never["fired"], never["requests"], never["rate_low"]) == (0, 0, pytest.approx(0, abs=1e-12))
    rows = int(stream.rows.sum())
    assert never["rate_high"] == pytest.approx(wilson(0, rows)[1])
    assert never["rate_high"] == pytest.approx(1.96**2 / rows, rel=0.01)  # 0 firings in n rows: below 3.84 / n


def test_the_interval_holds_the_true_rate_as_often_as_it_says(tmp_path):
    rng = np.random.default_rng(0)
    rate, rows = 0.02, 1000
    with Store(tmp_path / "h.duckdb") as store:
        fired = rng.binomial(rows, rate, 2000)
        stream = GeneratedStream(key=1, features=2000, count=1, never=0, silent=frozenset())
        stream.rows[:] = rows
        stream.fired[0], stream.requests[0] = fired, 2 * (fired > 0)
        stream.values = {(0, f): np.ones(n, np.float32) for f, n in enumerate(fired) if n}
        stream.fill(store)
        found = StoreReader(store).features(1, FeatureQuery(0, FOREVER, 2000, features=2000)).to_pylist()
    held = np.mean([row["rate_low"] <= rate <= row["rate_high"] for row in found])
    assert len(found) == 2000
    assert 0.93 < held < 0.97


@pytest.mark.parametrize("covered", RANGES[:3])
def test_any_quantile_can_be_asked_for(reader, stream, covered):
    since, until = covered
    inside = ((stream.starts >= since) & (stream.starts < until)).nonzero()[0]
    asked = [0.0, 0.1, 0.5, 0.75, 1.0]
    for feature in (0, 9, 39):
        parts = [stream.values[w, feature] for w in inside if (w, feature) in stream.values]
        found = reader.quantiles(7, feature, asked, since=since, until=until)
        if not parts:
            assert found == [None] * len(asked)
            continue
        values = np.concatenate(parts)
        for q, told in zip(asked, found, strict=True):
            true = np.sort(values)[int(np.floor(q * (len(values) - 1)))]
            assert (told is None) == (not EDGES[1] <= true < EDGES[127])
            assert told is None or abs(told - true) <= true / 17 + 1e-6
    with pytest.raises(BadQuery, match=r"no 1\.5-quantile"):
        reader.quantiles(7, 0, [1.5], since=0, until=1)


def test_windows_added_up_in_sql_are_the_sketch_of_all_their_values(reader, stream):
    for feature in range(0, 35, 5):
        values = np.concatenate([stream.values[w, feature] for w in range(30) if (w, feature) in stream.values])
        (told,) = reader.quantiles(7, feature, [0.9], since=0, until=FOREVER)
        assert min(told, values.max()) == pytest.approx(sketch_quantile(values, 0.9))


def test_the_sql_of_the_docs_says_the_same(store, reader, stream):
    page = (Path(__file__).parents[3] / "docs/explanation/statistics.md").read_text()
    (sql,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert "stream_key = 1 AND feature = 4" in sql
    for feature in range(0, 35, 7):
        asked = sql.replace("stream_key = 1 AND feature = 4", f"stream_key = 7 AND feature = {feature}")
        ((told,),) = store._connection.cursor().execute(asked).fetchall()
        (wanted,) = reader.quantiles(7, feature, [0.9], since=0, until=FOREVER)
        assert told == pytest.approx(wanted)


def by_phase(stream, since, until, value):
    """Rows of a phase, and by feature on how many of them it fired, over the windows that start in a range."""
    rows, fired = 0, np.zeros(stream.features, int)
    for w in ((stream.starts >= since) & (stream.starts < until)).nonzero()[0]:
        decode, of_decode = stream.decode(w)
        rows += decode if value == "decode" else int(stream.rows[w]) - decode
        fired += of_decode if value == "decode" else stream.fired[w] - of_decode
    return rows, fired


@pytest.mark.parametrize("covered", RANGES)
@pytest.mark.parametrize("value", ["prompt", "decode"])
def test_features_of_a_cell_are_of_its_rows_alone(reader, stream, covered, value):
    since, until = covered
    rows, fired = by_phase(stream, since, until, value)
    query = FeatureQuery(since, until, 1000, features=stream.features, sort="mean", split=SplitCell("phase", value))
    found = reader.features(7, query).to_pylist()
    assert [row["index"] for row in found] == ordered(found, "mean", descending=True)
    assert len(found) == stream.features
    for row in found:
        n = int(fired[row["index"]])
        assert (row["rows"], row["fired"]) == (rows, n if rows else None)
        assert row["rate"] == (pytest.approx(n / rows) if rows else None)
        assert row["mean"] == (pytest.approx(row["index"] + 1) if n else None)
        for name, end in interval(n, rows, None).items():
            assert row[name] == (None if end is None else pytest.approx(end, rel=1e-9, abs=1e-12))
        assert {row[name] for name in ("std", "max", "q50", "q90", "q99")} == {None}
        assert row["requests"] == (0 if rows and not n else None)


def test_series_of_a_cell_and_of_all_rows_have_intervals_and_requests(reader, stream):
    whole = reader.series(7, 4, WindowRange(0, FOREVER, 1000)).to_pylist()
    cell = reader.series(7, 4, WindowRange(0, FOREVER, 1000), split=SplitCell("phase", "decode")).to_pylist()
    for w, point in enumerate(whole):
        fired, requests = int(stream.fired[w, 4]), int(stream.requests[w, 4])
        wanted = interval(fired, int(stream.rows[w]), None if requests < 0 else requests)
        for name, end in wanted.items():
            assert point[name] == (None if end is None else pytest.approx(end, rel=1e-9, abs=1e-12))
        assert point["requests"] == (None if requests < 0 or not stream.rows[w] else requests)
    scored = [w for w in range(stream.count) if stream.decode(w)[0]]
    assert [point["rows"] for point in cell] == [stream.decode(w)[0] for w in scored]
    assert [point["fired"] for point in cell] == [int(stream.decode(w)[1][4]) for w in scored]
    assert {point["max"] for point in cell} == {None}
    joined = reader.series(7, 4, WindowRange(0, FOREVER, 1000, 5 * LENGTH)).to_pylist()
    sums = stream.requests[:, 4].reshape(6, 5)
    assert [point["requests"] for point in joined] == [None if (r < 0).any() else int(r.sum()) for r in sums]


def test_splits_lists_what_there_is_to_ask_by(reader, stream):
    since, until = START + 4 * LENGTH, START + 9 * LENGTH
    found = reader.splits(7, since, until).to_pylist()
    rows = {value: by_phase(stream, since, until, value)[0] for value in ("prompt", "decode")}
    assert [(row["attribute"], row["value"], row["rows"], row["requests"]) for row in found] == [
        ("phase", "prompt", rows["prompt"], 10),
        ("phase", "decode", rows["decode"], 10),
    ]
    assert reader.splits(7, 0, 1).num_rows == 0


def test_series_tells_zero_from_unknown(reader, stream):
    table = reader.series(7, 4, WindowRange(0, FOREVER, 1000)).to_pylist()
    assert len(table) == stream.count
    for w, point in enumerate(table):
        assert point["rows"] == stream.rows[w]
        if stream.rows[w] == 0:
            assert (point["fired"], point["rate"], point["mean"], point["max"]) == (None,) * 4
        elif stream.fired[w, 4] == 0:
            assert (point["fired"], point["rate"], point["mean"], point["max"]) == (0, 0.0, None, None)
        else:
            assert point["fired"] == stream.fired[w, 4]
            assert point["mean"] == pytest.approx(stream.sum[w, 4] / stream.fired[w, 4])
            assert point["max"] == stream.max[w, 4]


def test_series_in_steps_joins_windows_and_pages(reader, stream):
    step = 3 * LENGTH
    whole = WindowRange(0, FOREVER, 1000, step)
    points = reader.series(7, 4, whole).to_pylist()
    assert [point["fired"] for point in points] == stream.fired[:, 4].reshape(10, 3).sum(1).tolist()
    covered, paged = whole._replace(limit=3), []
    while page := reader.series(7, 4, covered).to_pylist():
        paged += page
        covered = covered.after(int(np.datetime64(page[-1]["window_start"], "us").astype(int)))
    assert paged == points


def test_windows_of_one_slice_are_joined_by_weight(tmp_path, stream):
    with Store(tmp_path / "h.duckdb") as store:
        twin = GeneratedStream(key=7, seed=9, count=1)
        store.write(stream.window(0))
        store.write(twin.window(0))
        (window,) = StoreReader(store).windows(7, WindowRange(0, FOREVER, 10)).to_pylist()
    n = np.array([stream.rows[0], twin.rows[0]])
    assert window["rows_scored"] == n.sum()
    assert window["fvu"] == pytest.approx((n * [stream.fvu[0], twin.fvu[0]]).sum() / n.sum())
    assert window["requests"] is None
    assert window["features_fired"] is None


def test_windows_are_as_written(reader, stream):
    windows = reader.windows(7, WindowRange(START + LENGTH, FOREVER, 5)).to_pylist()
    assert [w["rows_scored"] for w in windows] == stream.rows[1:6].tolist()
    assert windows[2]["fvu"] is None  # window 3: nothing scored
    assert windows[2]["mean_norm"] is None
    assert windows[0]["fvu"] == stream.fvu[1]
    assert windows[0]["requests"] == 3
    assert reader.last_window_end(7) == stream.end
    assert reader.last_window_end(99) is None


def example(feature, request, score, *, sequence=0, position=5, key=1, token=11):
    return as_table(
        "example",
        {"stream_key": [key], "feature": [feature], "value": [2.0], "score": [score], "request_key": [request],
         "sequence": [sequence], "position": [position], "token": [token], "time": [START], "written": [START],
         "dictionary_version": [1]},
    )  # fmt: skip


def request(key, request_id, *, started=START, model="toy"):
    return as_table(
        "request",
        {"request_key": [key], "id": [request_id], "model": [model], "version": ["1"], "producer": ["p"],
         "started": [started], "sample": [1.0], "attributes": ["{}"]},
    )  # fmt: skip


def tokens(key, position, pieces, *, sequence=0):
    return as_table(
        "request_tokens",
        {"request_key": [key], "sequence": [sequence], "position": [position], "pieces": [pieces]},
    )


def test_examples_are_the_best_of_each_request_with_their_context(tmp_path):
    with Store(tmp_path / "h.duckdb") as store:
        for given in [(1, 10, 3.0), (1, 10, 4.0), (1, 11, 3.5), (1, 12, 1.0), (2, 13, 9.0)]:
            store.write({"example": example(*given)})
        store.write({"example": example(1, 14, 3.7, position=0)})
        store.write({"request": request(10, "ten")})
        store.write({"request": request(11, "eleven")})
        # pieces come in runs: a prompt, then one at a time; sequence 1 is another text
        store.write({"request_tokens": tokens(10, 0, list("abcd"))})
        store.write({"request_tokens": tokens(10, 0, list("XXXXXXXX"), sequence=1)})
        for place, piece in enumerate("efgh", 4):
            store.write({"request_tokens": tokens(10, place, [piece])})
        store.write({"request_tokens": tokens(14, 0, ["first", None, "third"])})
        found = StoreReader(store).examples(1, 1, limit=4, context=2).to_pylist()
    assert [row["score"] for row in found] == [4.0, 3.7, 3.5, 1.0]
    assert [row["request"] for row in found] == ["ten", None, "eleven", None]
    assert (found[0]["context"], found[0]["context_index"]) == (list("defgh"), 2)
    assert (found[1]["context"], found[1]["context_index"]) == (["first", None, "third"], 0)
    assert (found[2]["context"], found[2]["context_index"]) == (None, None)


def test_requests_rows_tokens_and_outcomes_of_one_id(tmp_path):
    odd = 'it\'s / a % "strange" id\n\x00é'
    with Store(tmp_path / "h.duckdb") as store:
        store.write({"stream": GeneratedStream(key=1).stream_row()})
        store.write({"request": request(4, odd), "request_tokens": tokens(4, 0, ["a", "b"])})
        store.write({"request": request(9, odd, started=START + 1, model="other")})
        for start in (START, START + LENGTH):
            store.write(
                {"request_rows": as_table("request_rows", {
                    "request_key": [4, 4], "stream_key": [1, 77], "window_start": [start, start], "rows": [5, 1],
                    "rows_prompt": [3, 1], "rows_decode": [2, 0]})}
            )  # fmt: skip
        store.write(
            {"outcome": as_table("outcome", {"request_id": [odd], "model": ["toy"], "time": [START],
             "received": [START], "source": ["s"], "labels": ['{"good": true}']})}
        )  # fmt: skip
        reader = StoreReader(store)
        assert reader.requests(odd, limit=10)["request_key"].to_pylist() == [9, 4]
        assert reader.requests(odd, limit=1).num_rows == 1
        assert reader.requests("it", limit=10).num_rows == 0
        assert reader.request_rows([4]).to_pylist() == [
            {"request_key": 4, "stream": "toy@1/layers.0", "rows": 10, "rows_prompt": 6, "rows_decode": 4},
            {"request_key": 4, "stream": None, "rows": 2, "rows_prompt": 2, "rows_decode": 0},
        ]
        assert reader.request_tokens([4, 9])["pieces"].to_pylist() == [["a", "b"]]
        assert reader.request_models(odd) == ["other", "toy"]
        assert reader.outcomes(odd, limit=5)["labels"].to_pylist() == ['{"good": true}']
        assert reader.max_request_key() == 9


def test_a_restart_finds_what_the_latest_requests_were_like(tmp_path):
    with Store(tmp_path / "h.duckdb") as store:
        for key in (4, 2, 9):
            store.write({"request": request(key, f"r{key}")})
        found = StoreReader(store).latest_attributes(2).to_pylist()
    assert found == [{"request_key": 4, "attributes": "{}"}, {"request_key": 9, "attributes": "{}"}]


def test_a_restart_finds_streams_and_the_largest_key(reader, store):
    assert reader.streams()["id"].to_pylist() == ["toy@1/layers.0", "toy@1/layers.1"]
    assert StoreReader(store).max_request_key() == 0


def test_a_query_past_its_time_is_stopped_and_the_store_stays_usable(store):
    reader = StoreReader(store, timeout_s=0.05)
    with pytest.raises(QueryTimeout, match=r"longer than 0\.05 s"):
        reader._query("SELECT sum(sqrt(a.range * b.range)) FROM range(10000000) a, range(10000000) b")
    assert StoreReader(store).last_window_end(7) is not None


def test_sql_cannot_reach_other_files(store, tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(duckdb.PermissionException):
        StoreReader(store)._query("SELECT * FROM read_csv(?)", [str(tmp_path / "secret.csv")])
