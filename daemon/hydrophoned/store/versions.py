"""SQL of a dictionary's versions, of what became of its features, and of where ids stand.

``feature`` has a row where an id begins, where it goes to another index, and where it ends. The row of the highest
version says where it stands; in an earlier version it is the last row up to that one.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

KINDS: Final = ("stable", "moved", "split", "merged", "born", "lost")
NOWHERE: Final = 1 << 40
"""Stands for an index that is null in the order of matches: these come last."""

_VERSIONS: Final = """
    WITH kinds AS (
        SELECT to_version AS version, count(*) FILTER (kind = 'stable') AS stable,
               count(*) FILTER (kind = 'moved') AS moved,
               count(DISTINCT from_feature) FILTER (kind = 'split') AS split,
               count(DISTINCT to_feature) FILTER (kind = 'merged') AS merged,
               count(*) FILTER (kind = 'born') AS born, count(*) FILTER (kind = 'lost') AS lost
        FROM feature_match WHERE stream_key = $stream GROUP BY to_version)
    SELECT dictionary.* EXCLUDE (stream_key), kinds.* EXCLUDE (version)
    FROM dictionary LEFT JOIN kinds USING (version)
    WHERE stream_key = $stream AND {where} ORDER BY version DESC LIMIT $limit
"""
_MATCHES: Final = """
    SELECT kind, from_id, to_id, from_feature AS from_index, to_feature AS to_index, cosine, correlation
    FROM feature_match
    WHERE stream_key = $stream AND to_version = $version AND {where}
    ORDER BY coalesce(to_feature, {nowhere}), coalesce(from_feature, {nowhere}) LIMIT $limit
"""
_AT_INDEX: Final = """
    WITH here AS (
        SELECT arg_max(feature_id, dictionary_version) AS feature_id FROM feature
        WHERE stream_key = $stream AND feature = $index AND state <> 'lost' AND dictionary_version <= $version)
    SELECT feature_id, min(dictionary_version) AS born_version
    FROM feature JOIN here USING (feature_id) WHERE stream_key = $stream AND state = 'born' GROUP BY feature_id
"""
_STANDING: Final = """
    WITH here AS (
        SELECT feature, arg_max(feature_id, dictionary_version) AS feature_id
        FROM feature SEMI JOIN asked USING (feature)
        WHERE stream_key = $stream AND state <> 'lost' AND dictionary_version <= $version GROUP BY feature),
    births AS (
        SELECT feature_id, min(dictionary_version) AS born_version FROM feature SEMI JOIN here USING (feature_id)
        WHERE stream_key = $stream AND state = 'born' GROUP BY feature_id)
    SELECT feature AS index, feature_id, born_version
    FROM asked LEFT JOIN here USING (feature) LEFT JOIN births USING (feature_id) ORDER BY place
"""
_OF_ID: Final = """
    SELECT arg_max(feature, dictionary_version) AS index, arg_max(state, dictionary_version) AS state,
           max(dictionary_version) AS version, min(dictionary_version) AS born_version
    FROM feature WHERE stream_key = $stream AND feature_id = $id HAVING count(*) > 0
"""
LIVES: Final = """
    lives AS (
        SELECT feature, dictionary_version AS first_version, state,
               coalesce(lead(dictionary_version) OVER (ORDER BY dictionary_version), 2147483647) AS next_version
        FROM feature WHERE stream_key = $stream AND feature_id = $id),"""
"""A table of where the id ``$id`` stood: at ``feature`` from a first version on, until the next one."""
IDS: Final = """
    ids AS (
        SELECT feature_id, dictionary_version AS first_version FROM feature
        WHERE stream_key = $stream AND feature = $feature AND state <> 'lost'),"""
"""A table of the ids that stood at the index ``$feature``, each from a first version on."""


class MatchQuery(NamedTuple):
    """Which matches of ``version`` with its parent: of ``kinds``, behind ``after``, the indices of the last one."""

    version: int
    limit: int
    kinds: Sequence[str] = ()
    after: tuple[int | None, int | None] | None = None


def versions_sql(stream_key: int, limit: int, *, before: int | None, only: int | None) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.versions``."""
    values: dict[str, Any] = {"stream": stream_key, "limit": limit}
    where = ["true"]
    for condition, value in (("version < $before", before), ("version = $only", only)):
        if value is not None:
            values[condition.rpartition("$")[2]] = value
            where.append(condition)
    return _VERSIONS.format(where=" AND ".join(where)), values


def matches_sql(stream_key: int, query: MatchQuery) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.matches``."""
    values: dict[str, Any] = {"stream": stream_key, "version": query.version, "limit": query.limit}
    where = ["true"]
    if query.kinds:
        values["kinds"] = list(query.kinds)
        where.append("list_contains($kinds::VARCHAR[], kind)")
    if query.after is not None:
        to_index, from_index = (NOWHERE if one is None else one for one in query.after)
        values |= {"after_to": to_index, "after_from": from_index}
        where.append(f"(coalesce(to_feature, {NOWHERE}), coalesce(from_feature, {NOWHERE})) > ($after_to, $after_from)")
    return _MATCHES.format(where=" AND ".join(where), nowhere=NOWHERE), values


def feature_at_sql(stream_key: int, index: int, version: int) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.feature_at``."""
    return _AT_INDEX, {"stream": stream_key, "index": index, "version": version}


def standing_sql(stream_key: int, version: int) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.standing``; it reads a table ``asked`` of ``feature`` and ``place``."""
    return _STANDING, {"stream": stream_key, "version": version}


def feature_of_id_sql(stream_key: int, feature_id: int) -> tuple[str, dict[str, Any]]:
    """Statement and parameters of ``StoreReader.feature_of_id``."""
    return _OF_ID, {"stream": stream_key, "id": feature_id}


LAST_GIVEN: Final = """
    SELECT coalesce((SELECT max(version) FROM dictionary WHERE stream_key = $stream), 0) AS version,
           coalesce((SELECT max(feature_id) FROM feature WHERE stream_key = $stream), 0) + 1 AS next_id
"""

TRIM: Final = (
    # matches are of their version's age; of ids that ended long ago, and of places long left, nothing is to be found
    """
    DELETE FROM feature_match USING dictionary
    WHERE dictionary.stream_key = feature_match.stream_key AND dictionary.version = feature_match.to_version
      AND dictionary.published < make_timestamp(?)
    """,
    """
    DELETE FROM feature USING (
        SELECT feature.stream_key, feature_id FROM feature JOIN dictionary
            ON dictionary.stream_key = feature.stream_key AND dictionary.version = feature.dictionary_version
        WHERE published < make_timestamp(?)
        GROUP BY feature.stream_key, feature_id
        HAVING arg_max(state, dictionary_version) = 'lost'
           AND feature_id NOT IN (SELECT feature_id FROM label)) AS gone
    WHERE gone.stream_key = feature.stream_key AND gone.feature_id = feature.feature_id
    """,
)
"""Statements that delete what belongs to versions published before a time, in us."""
