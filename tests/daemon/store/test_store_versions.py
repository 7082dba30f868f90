import numpy as np
import pytest
from generated import LENGTH, START, GeneratedStream, as_table
from hydrophoned.store import MatchQuery, Store, StoreReader, WindowRange
from test_store_queries import example

FOREVER = 1 << 60
KEY = 1


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "h.duckdb") as store:
        yield store


@pytest.fixture
def reader(store):
    return StoreReader(store)


def version(number, *, parent=None, published=START, key=KEY):
    row = {
        "stream_key": [key], "version": [number], "published": [published], "reason": ["requested"],
        "parent": [parent], "rows_learned": [1000 * number], "features": [8], "k": [2], "variant": ["topk"],
        "digest": [f"{number:064x}"], "fvu": [0.2], "decoder_moved": [None], "codes_moved": [None], "probe": [1],
        "probe_rows": [64],
    }  # fmt: skip
    return {"dictionary": as_table("dictionary", row)}


def features(number, *rows, key=KEY):
    """Rows (id, index, state) of a version."""
    ids, index, state = zip(*rows, strict=True)
    columns = {
        "stream_key": [key] * len(rows), "dictionary_version": [number] * len(rows), "feature_id": ids,
        "feature": index, "state": state,
    }  # fmt: skip
    return {"feature": as_table("feature", columns)}


def matches(number, *rows, key=KEY):
    """Rows (kind, from id, to id, from index, to index) of a version and the one before."""
    kind, from_id, to_id, from_index, to_index = zip(*rows, strict=True)
    n = len(rows)
    columns = {
        "stream_key": [key] * n, "from_version": [number - 1] * n, "to_version": [number] * n, "kind": kind,
        "from_id": from_id, "to_id": to_id, "from_feature": from_index, "to_feature": to_index,
        "cosine": [0.5] * n, "correlation": [None] * n,
    }  # fmt: skip
    return {"feature_match": as_table("feature_match", columns)}


def under(number, table):
    """``table`` with ``number`` as its dictionary's version, if it tells one."""
    if "dictionary_version" not in table.schema.names:
        return table
    place = table.schema.names.index("dictionary_version")
    return table.set_column(place, table.schema.field(place), [np.full(table.num_rows, number, np.int32)])


@pytest.fixture
def told(store):
    """Version 1: ids 1 to 4 at 0 to 3. Version 2: 2 was lost, 5 born in its place, 3 and 4 changed places."""
    store.write(version(1) | features(1, *((i + 1, i, "born") for i in range(4))))
    store.write(
        version(2, parent=1, published=START + 5 * LENGTH)
        | features(2, (2, 1, "lost"), (5, 1, "born"), (3, 3, "renumbered"), (4, 2, "renumbered"))
        | matches(
            2,
            ("stable", 1, 1, 0, 0),
            ("split", 2, 5, 1, 1),
            ("split", 2, 3, 1, 3),
            ("moved", 3, 3, 2, 3),
            ("moved", 4, 4, 3, 2),
            ("born", None, 5, None, 1),
            ("lost", 2, None, 1, None),
        )
    )
    store.write(version(1, key=9) | features(1, (7, 0, "born"), key=9))  # another stream


def test_versions_come_latest_first_with_what_became_of_features(reader, told):
    second, first = reader.versions(KEY, limit=10).to_pylist()
    assert [second[name] for name in ("version", "parent", "digest")] == [2, 1, f"{2:064x}"]
    counts = {name: second[name] for name in ("stable", "moved", "split", "merged", "born", "lost")}
    assert counts == {"stable": 1, "moved": 2, "split": 1, "merged": 0, "born": 1, "lost": 1}  # split: of one feature
    assert first["version"] == 1
    assert first["stable"] is first["born"] is None
    assert [row["version"] for row in reader.versions(KEY, limit=1).to_pylist()] == [2]
    assert [row["version"] for row in reader.versions(KEY, limit=5, before=2).to_pylist()] == [1]
    assert [row["version"] for row in reader.versions(KEY, limit=5, only=1).to_pylist()] == [1]
    assert reader.versions(KEY, limit=5, only=3).num_rows == 0


def test_matches_are_paged_in_order_of_index_with_the_lost_last(reader, told):
    pages, after = [], None
    while page := reader.matches(KEY, MatchQuery(2, 2, (), after)).to_pylist():
        pages += page
        after = (page[-1]["to_index"], page[-1]["from_index"])
    everything = reader.matches(KEY, MatchQuery(2, 100)).to_pylist()
    assert pages == everything
    assert [(row["to_index"], row["from_index"]) for row in everything] == [
        (0, 0), (1, 1), (1, None), (2, 3), (3, 1), (3, 2), (None, 1),
    ]  # fmt: skip
    assert {row["kind"] for row in reader.matches(KEY, MatchQuery(2, 9, ["moved", "lost"])).to_pylist()} == {
        "moved",
        "lost",
    }
    assert reader.matches(KEY, MatchQuery(1, 9)).num_rows == 0


def test_who_stands_where_and_since_when(reader, told):
    assert [reader.feature_at(KEY, index, 1) for index in range(4)] == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert [reader.feature_at(KEY, index, 2) for index in range(4)] == [(1, 1), (5, 2), (4, 1), (3, 1)]
    assert reader.feature_at(KEY, 7, 2) is None
    assert reader.feature_at(KEY, 0, 0) is None
    assert reader.feature_of_id(KEY, 3) == {"index": 3, "state": "renumbered", "version": 2, "born_version": 1}
    assert reader.feature_of_id(KEY, 2) == {"index": 1, "state": "lost", "version": 2, "born_version": 1}
    assert reader.feature_of_id(KEY, 7) is None  # of the other stream
    assert reader.last_given(KEY) == (2, 6)
    assert reader.last_given(9) == (1, 8)
    assert reader.last_given(4) == (0, 1)


@pytest.fixture
def windows(store, told):
    """Thirty windows of four features: five under version 1, the others under version 2."""
    stream = GeneratedStream(key=KEY, features=4, never=0)
    store.write({"stream": stream.stream_row()})
    for w in range(stream.count):
        number = 1 if w < 5 else 2
        store.write({name: under(number, table) for name, table in stream.window(w).items()})
    return stream


def series(table):
    return table.select(["window_start", "rows", "fired", "dictionary_version", "feature_id"]).to_pylist()


def test_the_series_of_an_id_follows_it_to_other_indices_and_ends_with_it(reader, windows):
    whole = WindowRange(0, FOREVER, 1000)
    lives = ((1, (0, 0), 0, 30), (3, (2, 3), 0, 30), (5, (None, 1), 5, 30), (2, (1, 1), 0, 5))
    for feature_id, index, born, lost in lives:
        found = series(reader.series_of_id(KEY, feature_id, whole))
        assert len(found) == lost - born
        for w, point in zip(range(born, lost), found, strict=True):
            at = index[0] if w < 5 else index[1]
            scored = int(windows.rows[w])
            assert point["rows"] == scored
            assert point["fired"] == (int(windows.fired[w, at]) if scored else None)
            assert point["feature_id"] == feature_id
            assert point["dictionary_version"] == (1 if w < 5 else 2)
    assert reader.series_of_id(KEY, 99, whole).num_rows == 0


def test_the_series_of_an_index_says_whose_each_point_is(reader, windows):
    whole = WindowRange(0, FOREVER, 1000)
    for index, ids in ((0, (1, 1)), (1, (2, 5)), (2, (3, 4)), (3, (4, 3))):
        found = series(reader.series(KEY, index, whole))
        assert [point["feature_id"] for point in found] == [ids[0]] * 5 + [ids[1]] * 25
        assert [point["fired"] for point in found] == [
            int(windows.fired[w, index]) if windows.rows[w] else None for w in range(30)
        ]
    steps = series(reader.series(KEY, 1, WindowRange(0, FOREVER, 1000, step=10 * LENGTH)))
    assert [point["feature_id"] for point in steps] == [5, 5, 5]  # that of the last window of each step


def test_examples_of_a_feature_that_stood_at_the_index_before_are_not_its_own(store, reader, told):
    for number, score in ((1, 9.0), (2, 3.0)):
        store.write({"example": under(number, example(1, number, score))})
    found = reader.examples(KEY, 1, limit=5).to_pylist()
    assert [row["dictionary_version"] for row in found] == [2]
    assert store.retain(START, examples_per_feature=1).example == 1  # the better one, which is no longer current
    assert reader.examples(KEY, 1, limit=5).to_pylist() == found


def test_old_matches_go_and_so_do_ids_that_ended_long_ago(store, reader, told):
    age = 3 * LENGTH
    assert store.retain(START + 5 * LENGTH + age, max_age_us=age).feature_match == 0
    done = store.retain(START + 6 * LENGTH + age, max_age_us=age)
    assert done.feature_match == 7
    assert done.feature == 2  # both rows of id 2
    assert reader.feature_of_id(KEY, 2) is None
    assert [reader.feature_at(KEY, index, 2) for index in range(4)] == [(1, 1), (5, 2), (4, 1), (3, 1)]
    assert [row["version"] for row in reader.versions(KEY, limit=9).to_pylist()] == [2, 1]
