"""Drifts, references and novel requests: what is read of them, and how long they are kept."""

import duckdb
import pyarrow as pa
import pytest
from drifting import HOUR, about, drift, end, novel, reference
from generated import SECOND, START, GeneratedStream
from hydrophoned.store import (
    DetectionQuery,
    DetectionReader,
    ExportRange,
    Label,
    NovelQuery,
    Store,
    StoreReader,
    export_tables,
    label_table,
)
from hydrophoned.store.migrations import MIGRATIONS, migrate
from test_store_queries import request, tokens
from test_store_versions import features

DRIFTS = ("detection", "detection_end", "detection_feature", "detection_request", "detection_attribute")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "h.duckdb") as store:
        store.write({"stream": GeneratedStream(key=7).stream_row()})
        store.write({"stream": GeneratedStream(key=8, id="toy@1/layers.1").stream_row()})
        yield store


@pytest.fixture
def reader(store):
    return DetectionReader(store)


def times(table, column):
    return table[column].cast(pa.int64()).to_pylist()


def counts(store, *names):
    cursor = store.cursor()
    try:
        return [cursor.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names]  # noqa: S608  our own names
    finally:
        cursor.close()


# -- drifts --------------------------------------------------------------------------------------------------------


def test_drifts_are_listed_latest_first_with_their_end_and_page_by_page(store, reader):
    for number, stratum in ((1, "a"), (2, "b"), (3, "c")):
        store.write(drift(number, START + number * HOUR, stratum=stratum, change=START + number * HOUR - 60 * SECOND))
    store.write(drift(1, START + 2 * HOUR, key=8, detector="firing", dictionary_version=0))
    store.write(end(1, START + 90 * 60 * SECOND))
    table = reader.detections(DetectionQuery(10))
    order = list(zip(table["stream"].to_pylist(), table["number"].to_pylist(), strict=True))
    first, second = "toy@1/layers.0", "toy@1/layers.1"
    assert order == [(first, 3), (second, 1), (first, 2), (first, 1)]
    assert times(table, "ended") == [None, None, None, START + 90 * 60 * SECOND]
    assert table["dictionary_version"].to_pylist() == [1, None, 1, 1]  # 0 was before there was one
    assert times(table, "change_low") == [
        START + 3 * HOUR - 120 * SECOND, None, START + 2 * HOUR - 120 * SECOND, START + HOUR - 120 * SECOND
    ]  # fmt: skip
    found, after = [], None
    while (page := reader.detections(DetectionQuery(1, after=after))).num_rows:
        found.append((page["stream"][0].as_py(), page["number"][0].as_py()))
        after = (times(page, "time")[0], page["stream_key"][0].as_py(), page["number"][0].as_py())
    assert found == order


def test_of_a_drift_that_is_told_again_the_fullest_telling_counts(store, reader):
    store.write(drift(1, START))  # nothing is known yet of what came after it
    store.write(drift(2, START + HOUR))
    assert reader.detections(DetectionQuery(9))["units_after"].to_pylist() == [None, None]
    store.write(drift(1, START, change=START - SECOND))
    table = reader.detections(DetectionQuery(9))
    assert table["number"].to_pylist() == [2, 1]
    assert table["units_after"].to_pylist() == [None, 30]
    assert times(table, "change_time") == [None, START - SECOND]


def test_all_that_is_shown_of_a_drift_is_of_its_last_telling(store, reader):
    found = START - 60 * SECOND
    store.write(drift(1, START, change=found) | about(1, features=((3, 1),), requests=((11, 1.0),), tenants=("a", "b")))
    store.write(drift(2, START) | about(2))
    again = about(1, features=((7, 2), (8, 3)), requests=((21, 3.0), (22, 2.0)), tenants=("c",), telling=1)
    store.write(drift(1, START, change=found + SECOND, telling=1, after=12) | again)  # its time is told better by now
    table = reader.detections(DetectionQuery(9, number=1))
    assert (table["telling"].to_pylist(), table["units_after"].to_pylist()) == ([1], [12])
    assert times(table, "change_time") == [found + SECOND]
    assert reader.detected_features(7, 1)["index"].to_pylist() == [7, 8]
    assert reader.detected_requests(7, 1)["request_key"].to_pylist() == [21, 22]
    assert reader.detected_attributes(7, 1)["value"].to_pylist() == ["c"]
    assert reader.detected_features(7, 2)["index"].to_pylist() == [3, 9]
    # after a crash the same is told twice
    store.write(drift(1, START, change=found, telling=1, after=13) | again)
    assert reader.detections(DetectionQuery(9, number=1))["units_after"].to_pylist() == [13]
    assert reader.detected_features(7, 1)["index"].to_pylist() == [7, 8]
    assert reader.detected_requests(7, 1).num_rows == 2
    assert reader.detected_attributes(7, 1).num_rows == 1
    # a telling of which nothing can be said shows nothing of the one before
    store.write(drift(1, START, telling=2))
    assert reader.detections(DetectionQuery(9, number=1))["units_after"].to_pylist() == [None]
    assert reader.detected_features(7, 1).num_rows == 0
    # the macros of the file say the same
    with store.cursor() as cursor:
        rows = cursor.execute("SELECT number, telling, units_after FROM detections()").fetchall()
        assert sorted(rows) == [(1, 2, None), (2, 0, None)]
        assert cursor.execute("FROM detection_features('toy@1/layers.0', 1)").fetchall() == []


def test_drifts_of_a_file_from_before_they_were_told_again_are_first_tellings(tmp_path):
    path = tmp_path / "old.duckdb"
    with duckdb.connect(str(path)) as connection:
        migrate(connection, MIGRATIONS[:3])
        for name, table in (drift(1, START) | about(1)).items():
            old = table.drop_columns("telling")
            connection.register("old", old)
            connection.execute(f"INSERT INTO {name} SELECT * FROM old")  # noqa: S608  our own names
            connection.unregister("old")
    with Store(path) as store:
        store.write({"stream": GeneratedStream(key=7).stream_row()})
        reader = DetectionReader(store)
        assert reader.detections(DetectionQuery(9))["telling"].to_pylist() == [0]
        assert reader.detected_features(7, 1).num_rows == 2
        store.write(drift(1, START, telling=1) | about(1, features=((5, 5),), telling=1))
        assert reader.detected_features(7, 1)["index"].to_pylist() == [5]


def test_a_drift_is_over_when_another_reference_of_its_part_is_taken(store, reader):
    for number, stratum in ((1, "a"), (2, "b"), (3, "c")):
        store.write(drift(number, START + number * HOUR, stratum=stratum))
    store.write(reference(1, stratum="a", made=START) | end(3, START + 4 * HOUR))
    store.write(reference(2, stratum="a", made=START + 5 * HOUR))
    store.write(reference(3, stratum="a", made=START + 6 * HOUR))
    store.write(reference(2, stratum="a", made=START + 2 * HOUR, key=8))
    store.write(reference(2, stratum="c", made=START + 5 * HOUR))
    assert times(reader.detections(DetectionQuery(9)), "ended") == [START + 4 * HOUR, None, START + 5 * HOUR]


def test_a_drift_whose_end_was_lost_is_over_when_the_next_one_of_its_part_is_found(store, reader):
    for number, stratum in ((1, "a"), (2, "b"), (3, "a"), (4, "a")):
        store.write(drift(number, START + number * HOUR, stratum=stratum))
    store.write(end(3, START + 3 * HOUR + SECOND) | drift(5, START + 9 * HOUR, stratum="b", key=8))
    ended = [None, None, START + 3 * HOUR + SECOND, None, START + 3 * HOUR]
    assert times(reader.detections(DetectionQuery(9)), "ended") == ended


def test_drifts_of_one_stream_or_of_a_range(store, reader):
    for number in (1, 2, 3):
        store.write(drift(number, START + number * HOUR))
    store.write(drift(1, START + HOUR, key=8))
    numbers = lambda **which: reader.detections(DetectionQuery(10, **which))["number"].to_pylist()  # noqa: E731  only here
    assert numbers(stream_key=8) == [1]
    assert numbers(stream_key=7, since=START + 2 * HOUR, until=START + 3 * HOUR) == [2]
    assert numbers(stream_key=7, number=3) == [3]
    assert numbers(stream_key=9) == []


def test_features_of_a_drift_have_the_label_and_the_place_of_their_id_today(store, reader):
    store.write(features(1, *((number + 1, number, "born") for number in range(4)), key=7))
    store.write(drift(1, START) | about(1, features=((3, 4), (0, 1), (2, 3), (1, None))))
    store.write(features(2, (1, 9, "renumbered"), (3, 2, "lost"), (10, 0, "born"), key=7))
    labels = [
        Label(1, 0, 1, START, "rule", "by a rule", score=0.9),
        Label(1, 0, 1, START, "manual", "by hand"),
        Label(10, 0, 2, START, "manual", "of the one that stands at index 0 now"),
        Label(3, 2, 1, START, "manual", "of one that is lost"),
    ]
    store.write({"label": label_table(7, labels)})
    rows = reader.detected_features(7, 1).to_pylist()
    told = [(row["index"], row["feature_id"], row["index_now"], row["label"], row["label_source"]) for row in rows]
    assert told == [
        (3, 4, 3, None, None),
        (0, 1, 9, "by hand", "manual"),
        (2, 3, None, "of one that is lost", "manual"),
        (1, None, None, None, None),
    ]
    assert [row["rank"] for row in rows] == [0, 1, 2, 3]
    assert reader.detected_features(7, 2).num_rows == reader.detected_features(8, 1).num_rows == 0


def test_requests_and_attributes_of_a_drift(store, reader):
    store.write(drift(1, START) | about(1, tenants=("acme", "beta")) | {"request": request(11, "r11", started=START)})
    rows = reader.detected_requests(7, 1).to_pylist()
    assert [(row["request"], row["request_key"], row["score"]) for row in rows] == [("r11", 11, 4.0), (None, 12, 2.5)]
    assert rows[1]["started"] is None
    attributes = reader.detected_attributes(7, 1).to_pylist()
    assert [(one["value"], one["share_after"], one["shift_q"]) for one in attributes] == [
        ("acme", 0.9, None),
        ("beta", 0.9, None),
    ]


# -- references and novel requests ---------------------------------------------------------------------------------


def test_references_are_listed_latest_first(store, reader):
    rows = [(1, "a", 1), (2, "a", 5), (1, "b", 5), (3, "a", 9)]
    for version, stratum, seconds in rows:
        store.write(reference(version, stratum=stratum, made=START + seconds * SECOND))
    store.write(reference(1, key=8))
    found, after = [], None
    while (page := reader.references(7, limit=1, after=after)).num_rows:
        found.append((page["version"][0].as_py(), page["stratum"][0].as_py()))
        after = (times(page, "made")[0], page["stratum"][0].as_py(), page["version"][0].as_py())
    assert found == [(3, "a"), (1, "b"), (2, "a"), (1, "a")]
    assert reader.references(7, limit=9)["autocorrelation_time"].to_pylist() == [None] * 4


def test_novel_requests_are_listed_latest_first_page_by_page(store, reader):
    for key, seconds in ((11, 5), (12, 9), (13, 9), (-1, 1)):
        store.write(novel(key, START + seconds * SECOND))
    store.write(novel(14, START, key=8) | {"request": request(12, "r12")})
    found, after = [], None
    while (page := reader.novel(7, NovelQuery(1, after=after))).num_rows:
        found += page.to_pylist()
        after = (times(page, "time")[0], page["request_key"][0].as_py())
    assert [(one["request"], one["request_key"]) for one in found] == [(None, 13), ("r12", 12), (None, 11), (None, -1)]
    inside = NovelQuery(9, START + 5 * SECOND, START + 9 * SECOND)
    assert reader.novel(7, inside)["request_key"].to_pylist() == [11]


def test_numbers_are_never_given_twice(store, reader):
    assert (reader.last_drift(7), reader.last_references(7)) == (0, {})
    store.write(reference(2) | drift(5, START, reference_version=4))
    store.write(reference(3, stratum="tenant=a"))
    assert (reader.last_drift(7), reader.last_references(7)) == (5, {"": 4, "tenant=a": 3})
    assert (reader.last_drift(8), reader.last_references(8)) == (0, {})
    store.write(about(6, requests=((90, 1.0),)) | novel(91, START))
    assert reader.max_request_key() == 91


# -- retention and export ------------------------------------------------------------------------------------------


def test_old_drifts_go_with_all_that_belongs_to_them_but_not_the_one_that_is_not_over(store):
    for number in (1, 2, 3):
        store.write(drift(number, START + number * HOUR) | about(number))
    store.write(end(1, START + HOUR + SECOND) | drift(1, START, key=8) | about(1, key=8))
    done = store.retain(START + 100 * HOUR, max_age_us=10 * HOUR)
    # number 2 of the first stream has no end, but another drift began after it
    assert [getattr(done, name) for name in DRIFTS] == [2, 1, 4, 4, 2]
    assert counts(store, *DRIFTS) == [2, 0, 4, 4, 2]
    left = DetectionReader(store).detections(DetectionQuery(9))
    assert sorted(left["number"].to_pylist()) == [1, 3]
    store.write(end(3, START + 4 * HOUR))
    assert store.retain(START + 100 * HOUR, max_age_us=10 * HOUR).detection == 1


def test_drifts_within_the_age_stay(store):
    store.write(drift(1, START) | end(1, START) | novel(1, START) | reference(1))
    assert not any(store.retain(START + HOUR, max_age_us=HOUR))
    assert counts(store, *DRIFTS[:2], "novel_request", "reference") == [1, 1, 1, 1]


def test_requests_that_a_drift_or_novelty_shows_stay_while_it_does(store):
    for key in (11, 12, 13):
        store.write({"request": request(key, f"r{key}"), "request_tokens": tokens(key, 0, ["a"])})
    now = START + 100 * HOUR
    store.write(drift(1, now) | about(1, requests=((11, 1.0),)) | novel(12, now))
    assert store.retain(now, max_age_us=HOUR).request == 1
    reader = StoreReader(store)
    assert [reader.requests(f"r{key}", limit=5).num_rows for key in (11, 12, 13)] == [1, 1, 0]
    store.write(end(1, now))
    done = store.retain(now + 2 * HOUR, max_age_us=HOUR)
    assert (done.request, done.request_tokens, done.novel_request) == (2, 2, 1)


def test_references_that_nothing_refers_to_go_but_the_latest_stays(store, reader):
    for version in (1, 2, 3, 4):
        store.write(reference(version, made=START + version))
    store.write(reference(2, stratum="b", made=START))  # the only one of its own
    store.write(drift(1, START, reference_version=2) | novel(1, START + 99 * HOUR, reference_version=3))
    assert store.retain(START + 100 * HOUR, max_age_us=10 * HOUR).reference == 1
    assert reader.references(7, limit=9)["version"].to_pylist() == [4, 3, 2, 2]


def test_a_range_takes_the_drifts_found_in_it_with_all_of_theirs_and_all_references(tmp_path):
    path = tmp_path / "h.duckdb"
    with Store(path) as store:
        store.write(reference(1))
        for number in (1, 2):
            store.write(drift(number, START + number * HOUR) | about(number) | end(number, START + 9 * HOUR))
            store.write(novel(number, START + number * HOUR))
    covered = ExportRange(START + 2 * HOUR, START + 3 * HOUR)
    done = {one.table: one for one in export_tables(path, tmp_path / "out", covered=covered)}
    assert [done[name].rows for name in (*DRIFTS, "novel_request", "reference")] == [1, 1, 2, 2, 1, 1, 1]
    with duckdb.connect() as connection:
        ends = connection.execute(f"FROM '{done['detection_end'].file}'").fetchall()
    assert [number for _, number, _ in ends] == [2]
