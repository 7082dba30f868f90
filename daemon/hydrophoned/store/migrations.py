"""The migrations of the database file: numbered, each in a transaction, none ever changed after a release.

The tables are those of ``hydrophone_schemas.tables``; a test compares the two. There is no primary key and no index on
purpose: an index on a growing table costs memory without bound, and indexes with upserts have damaged files.
"""

from typing import Final, NamedTuple

import duckdb

from hydrophoned.runtime.clock import now_us
from hydrophoned.store.errors import StoreTooNew


class Migration(NamedTuple):
    """A step from version ``number - 1`` to ``number``."""

    number: int
    name: str
    statements: tuple[str, ...]


MIGRATIONS: Final = (
    Migration(
        1,
        "first tables",
        (
            """
            CREATE TABLE stream (
                stream_key INTEGER NOT NULL, id VARCHAR NOT NULL, model VARCHAR NOT NULL, version VARCHAR NOT NULL,
                site VARCHAR NOT NULL, fingerprint VARCHAR NOT NULL, width INTEGER NOT NULL, dtype VARCHAR NOT NULL,
                created TIMESTAMP NOT NULL)
            """,
            """
            CREATE TABLE stream_window (
                stream_key INTEGER NOT NULL, window_start TIMESTAMP NOT NULL, window_end TIMESTAMP NOT NULL,
                "rows" BIGINT NOT NULL, rows_sink BIGINT NOT NULL, rows_quarantined BIGINT NOT NULL,
                rows_late BIGINT NOT NULL, rows_scored BIGINT NOT NULL, rows_learned BIGINT NOT NULL,
                requests BIGINT NOT NULL, fvu DOUBLE, l0 DOUBLE, dead_fraction DOUBLE, mean_norm DOUBLE,
                median_norm DOUBLE, features_fired INTEGER, dictionary_version INTEGER NOT NULL)
            """,
            """
            CREATE TABLE feature_window (
                stream_key INTEGER NOT NULL, window_start TIMESTAMP NOT NULL, window_end TIMESTAMP NOT NULL,
                feature INTEGER NOT NULL, fired BIGINT NOT NULL, requests BIGINT, sum DOUBLE NOT NULL,
                sum_squares DOUBLE NOT NULL, max FLOAT NOT NULL, buckets SMALLINT[] NOT NULL,
                counts INTEGER[] NOT NULL, dictionary_version INTEGER NOT NULL)
            """,
            """
            CREATE TABLE example (
                stream_key INTEGER NOT NULL, feature INTEGER NOT NULL, value FLOAT NOT NULL, score DOUBLE NOT NULL,
                request_key BIGINT NOT NULL, sequence INTEGER NOT NULL, position INTEGER NOT NULL, token INTEGER,
                time TIMESTAMP NOT NULL, written TIMESTAMP NOT NULL, dictionary_version INTEGER NOT NULL)
            """,
            """
            CREATE TABLE request (
                request_key BIGINT NOT NULL, id VARCHAR NOT NULL, model VARCHAR NOT NULL, version VARCHAR NOT NULL,
                producer VARCHAR NOT NULL, started TIMESTAMP NOT NULL, sample DOUBLE NOT NULL,
                attributes VARCHAR NOT NULL)
            """,
            """
            CREATE TABLE request_tokens (
                request_key BIGINT NOT NULL, sequence INTEGER NOT NULL, position INTEGER NOT NULL,
                pieces VARCHAR[] NOT NULL)
            """,
            """
            CREATE TABLE request_rows (
                request_key BIGINT NOT NULL, stream_key INTEGER NOT NULL, window_start TIMESTAMP NOT NULL,
                "rows" BIGINT NOT NULL, rows_prompt BIGINT NOT NULL, rows_decode BIGINT NOT NULL)
            """,
            """
            CREATE TABLE outcome (
                request_id VARCHAR NOT NULL, model VARCHAR NOT NULL, time TIMESTAMP NOT NULL,
                received TIMESTAMP NOT NULL, source VARCHAR NOT NULL, labels VARCHAR NOT NULL)
            """,
        ),
    ),
    Migration(
        2,
        "what a feature is",
        (
            """
            CREATE TABLE dictionary (
                stream_key INTEGER NOT NULL, version INTEGER NOT NULL, published TIMESTAMP NOT NULL,
                reason VARCHAR NOT NULL, parent INTEGER, rows_learned BIGINT NOT NULL, features INTEGER NOT NULL,
                k INTEGER NOT NULL, variant VARCHAR NOT NULL, digest VARCHAR, fvu DOUBLE, decoder_moved DOUBLE,
                codes_moved DOUBLE, probe INTEGER NOT NULL, probe_rows BIGINT NOT NULL)
            """,
            """
            CREATE TABLE feature (
                stream_key INTEGER NOT NULL, dictionary_version INTEGER NOT NULL, feature_id BIGINT
                NOT NULL, feature INTEGER NOT NULL, state VARCHAR NOT NULL)
            """,
            """
            CREATE TABLE feature_match (
                stream_key INTEGER NOT NULL, from_version INTEGER NOT NULL, to_version INTEGER NOT NULL,
                kind VARCHAR NOT NULL, from_id BIGINT, to_id BIGINT, from_feature INTEGER, to_feature INTEGER,
                cosine DOUBLE, correlation DOUBLE)
            """,
            """
            CREATE TABLE stream_split (
                stream_key INTEGER NOT NULL, window_start TIMESTAMP NOT NULL, window_end TIMESTAMP
                NOT NULL, attribute VARCHAR NOT NULL, value VARCHAR NOT NULL, rows_scored BIGINT NOT
                NULL, requests BIGINT NOT NULL)
            """,
            """
            CREATE TABLE feature_split (
                stream_key INTEGER NOT NULL, window_start TIMESTAMP NOT NULL, window_end TIMESTAMP
                NOT NULL, attribute VARCHAR NOT NULL, value VARCHAR NOT NULL, feature INTEGER NOT
                NULL, fired BIGINT NOT NULL, sum DOUBLE NOT NULL, dictionary_version INTEGER NOT
                NULL)
            """,
            """
            CREATE TABLE request_feature (
                stream_key INTEGER NOT NULL, request_key BIGINT NOT NULL, window_start TIMESTAMP NOT
                NULL, rows_scored BIGINT NOT NULL, sample DOUBLE NOT NULL, features INTEGER[] NOT
                NULL, fired INTEGER[] NOT NULL, sum FLOAT[] NOT NULL, max FLOAT[] NOT NULL,
                dictionary_version INTEGER NOT NULL)
            """,
            """
            CREATE TABLE label (
                stream_key INTEGER NOT NULL, feature_id BIGINT NOT NULL, feature INTEGER NOT NULL,
                dictionary_version INTEGER NOT NULL, created TIMESTAMP NOT NULL, source VARCHAR NOT
                NULL, author VARCHAR, text VARCHAR NOT NULL, rule VARCHAR, score DOUBLE, precision
                DOUBLE, recall DOUBLE, "rows" BIGINT, fired BIGINT)
            """,
            """
            CREATE TABLE probe (
                stream_key INTEGER NOT NULL, name VARCHAR NOT NULL, created TIMESTAMP NOT NULL,
                dictionary_version INTEGER NOT NULL, target VARCHAR NOT NULL, k INTEGER NOT NULL,
                features INTEGER[] NOT NULL, weights DOUBLE[] NOT NULL, bias DOUBLE NOT NULL,
                threshold DOUBLE NOT NULL, chosen_again DOUBLE[] NOT NULL, f1 DOUBLE, f1_chance DOUBLE,
                auroc DOUBLE, auroc_low DOUBLE, auroc_high DOUBLE, neuron_auroc DOUBLE, units BIGINT
                NOT NULL, requests BIGINT NOT NULL, positives BIGINT NOT NULL)
            """,
        ),
    ),
    Migration(
        3,
        "drift and novelty",
        (
            """
            CREATE TABLE reference (
                stream_key INTEGER NOT NULL, stratum VARCHAR NOT NULL, name VARCHAR NOT NULL, version INTEGER NOT NULL,
                source VARCHAR NOT NULL, made TIMESTAMP NOT NULL, units BIGINT NOT NULL, since TIMESTAMP NOT NULL,
                until TIMESTAMP NOT NULL, units_per_second DOUBLE, autocorrelation_time DOUBLE, thin INTEGER NOT NULL,
                halves_p DOUBLE)
            """,
            """
            CREATE TABLE detection (
                stream_key INTEGER NOT NULL, number INTEGER NOT NULL, stratum VARCHAR NOT NULL,
                detector VARCHAR NOT NULL, guarantee VARCHAR NOT NULL, time TIMESTAMP NOT NULL, unit BIGINT NOT NULL,
                statistic DOUBLE NOT NULL, threshold DOUBLE NOT NULL, run_length DOUBLE NOT NULL,
                reference_name VARCHAR NOT NULL, reference_version INTEGER NOT NULL, dictionary_version INTEGER,
                change_time TIMESTAMP, change_low TIMESTAMP, change_high TIMESTAMP, units_after BIGINT, shift DOUBLE,
                changed_features INTEGER, dictionary_changed BOOLEAN NOT NULL)
            """,
            """
            CREATE TABLE detection_end (
                stream_key INTEGER NOT NULL, number INTEGER NOT NULL, time TIMESTAMP NOT NULL)
            """,
            """
            CREATE TABLE detection_feature (
                stream_key INTEGER NOT NULL, number INTEGER NOT NULL, rank INTEGER NOT NULL, feature INTEGER NOT NULL,
                feature_id BIGINT, rate_before DOUBLE, rate_after DOUBLE, units_before BIGINT NOT NULL,
                units_after BIGINT NOT NULL, effect DOUBLE, p DOUBLE, q DOUBLE)
            """,
            """
            CREATE TABLE detection_request (
                stream_key INTEGER NOT NULL, number INTEGER NOT NULL, rank INTEGER NOT NULL,
                request_key BIGINT NOT NULL, score DOUBLE NOT NULL)
            """,
            """
            CREATE TABLE detection_attribute (
                stream_key INTEGER NOT NULL, number INTEGER NOT NULL, attribute VARCHAR NOT NULL,
                value VARCHAR NOT NULL, units_before BIGINT NOT NULL, units_after BIGINT NOT NULL, share_before DOUBLE,
                share_after DOUBLE, share_q DOUBLE, shift DOUBLE, elsewhere DOUBLE, shift_q DOUBLE)
            """,
            """
            CREATE TABLE novel_request (
                stream_key INTEGER NOT NULL, request_key BIGINT NOT NULL, time TIMESTAMP NOT NULL, p DOUBLE NOT NULL,
                reference_version INTEGER NOT NULL)
            """,
        ),
    ),
    Migration(
        4,
        "drifts that are told again",
        tuple(
            statement
            for table in ("detection", "detection_feature", "detection_request", "detection_attribute")
            for statement in (
                f"ALTER TABLE {table} ADD COLUMN telling INTEGER DEFAULT 0",
                f"ALTER TABLE {table} ALTER COLUMN telling DROP DEFAULT",
                f"ALTER TABLE {table} ALTER COLUMN telling SET NOT NULL",
            )
        ),
    ),
)


def migrate(connection: duckdb.DuckDBPyConnection, migrations: tuple[Migration, ...] = MIGRATIONS) -> list[int]:
    """Bring the file to the newest version; returns the numbers applied.

    Raises :class:`StoreTooNew` if the file has a version beyond ``migrations``. A migration that fails leaves the file
    at the version before it.
    """
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migration "
        "(number INTEGER NOT NULL, name VARCHAR NOT NULL, applied TIMESTAMP NOT NULL)"
    )
    version = check_version(connection, migrations)
    applied = []
    for migration in migrations:
        if migration.number <= version:
            continue
        connection.begin()
        try:
            for statement in migration.statements:
                connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_migration VALUES (?, ?, make_timestamp(?))",
                [migration.number, migration.name, now_us()],
            )
            connection.commit()
        except duckdb.Error:
            connection.rollback()
            raise
        applied.append(migration.number)
    return applied


def check_version(connection: duckdb.DuckDBPyConnection, migrations: tuple[Migration, ...] = MIGRATIONS) -> int:
    """The file's version; raises :class:`StoreTooNew` if it is beyond ``migrations``."""
    row = connection.execute("SELECT coalesce(max(number), 0) FROM schema_migration").fetchone()
    version = row[0] if row else 0
    newest = migrations[-1].number
    if version > newest:
        raise StoreTooNew(
            f"the store is at version {version}; this daemon knows versions up to {newest}. "
            "Use the daemon that wrote it, or a later one, or another data directory."
        )
    return int(version)
