"""Which feature stands at each of some indices, and features in the order of what is given for each."""

import pytest
from generated import GeneratedStream, as_table
from hydrophoned.store import FeatureQuery, Store, StoreReader

ROWS = [  # version, id, index, state
    (1, 1, 0, "born"),
    (1, 2, 1, "born"),
    (1, 3, 2, "born"),
    (2, 4, 1, "born"),
    (2, 2, 1, "lost"),
    (3, 1, 2, "renumbered"),
    (3, 3, 0, "renumbered"),
    (4, 5, 3, "born"),
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    stream = GeneratedStream(key=7)
    with Store(tmp_path_factory.mktemp("standing") / "h.duckdb") as store:
        stream.fill(store)
        version, feature_id, feature, state = (list(column) for column in zip(*ROWS, strict=True))
        own = {"stream_key": [7] * len(ROWS), "dictionary_version": version, "feature_id": feature_id}
        store.write({"feature": as_table("feature", own | {"feature": feature, "state": state})})
        yield StoreReader(store), stream


@pytest.mark.parametrize(
    ("version", "ids", "born"),
    [
        (0, [None] * 4, [None] * 4),
        (1, [1, 2, 3, None], [1, 1, 1, None]),
        (2, [1, 4, 3, None], [1, 2, 1, None]),
        (3, [3, 4, 1, None], [1, 2, 1, None]),
        (4, [3, 4, 1, 5], [1, 2, 1, 4]),
    ],
)
def test_ids_stand_where_they_went(reader, version, ids, born):
    table = reader[0].standing(7, [0, 1, 2, 3], version)
    assert table.to_pydict() == {"index": [0, 1, 2, 3], "feature_id": ids, "born_version": born}
    for index, feature_id in enumerate(ids):
        at = reader[0].feature_at(7, index, version)
        assert (at and at[0]) == feature_id


def test_the_order_asked_for_is_kept_and_other_streams_are_left_out(reader):
    table = reader[0].standing(7, [3, 0, 9], 4)
    assert table["index"].to_pylist() == [3, 0, 9]
    assert table["feature_id"].to_pylist() == [5, 3, None]
    assert reader[0].standing(8, [0], 4)["feature_id"].to_pylist() == [None]
    assert reader[0].standing(7, [], 4).num_rows == 0


@pytest.mark.parametrize("descending", [True, False])
def test_features_in_the_order_of_stability_page_by_page(reader, descending):
    read, stream = reader
    ranks = [None if index % 3 == 0 else (index * 7 % 5) / 10 for index in range(stream.features - 1)]
    sign = -1 if descending else 1
    full = [*ranks, None]  # nothing is known of the last
    wanted = sorted(range(len(full)), key=lambda index: (full[index] is None, sign * (full[index] or 0), index))
    query = FeatureQuery(
        0, stream.end, 3, features=stream.features, sort="stability", descending=descending, stability=ranks
    )
    found, after = [], None
    while (page := read.features(7, query._replace(after=after))).num_rows:
        found += page["index"].to_pylist()
        after = (page["stability"][-1].as_py(), page["index"][-1].as_py())
    assert found == wanted
