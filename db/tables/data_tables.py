"""Tables of loads, snapshots, validation, retention and forgotten entities."""

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, String, Table, UniqueConstraint
from sqlalchemy.dialects.mysql import ENUM

from db.tables.common import MODEL, RUN_ID, Moment, id_column, metadata

# One load of a file. Readers see its rows only once it is committed. `commit_seq` counts a model's commits from 1.
load_batch = Table(
    "load_batch",
    metadata,
    Column("batch_id", BigInteger, primary_key=True, autoincrement=True),
    Column("model", MODEL, nullable=False),
    Column("source", String(500), nullable=False),
    Column("content_sha256", String(64), nullable=False),
    Column("feature_rows", BigInteger, nullable=False, server_default="0"),
    Column("label_rows", BigInteger, nullable=False, server_default="0"),
    Column("unchanged_rows", BigInteger, nullable=False, server_default="0"),
    Column("rejects", BigInteger, nullable=False, server_default="0"),
    Column("state", ENUM("open", "committed", "abandoned"), nullable=False),
    Column("commit_seq", BigInteger),
    Column("caused_by", String(250), nullable=False),
    Column("opened_at", Moment, nullable=False),
    Column("committed_at", Moment),
    UniqueConstraint("model", "commit_seq", name="one_commit_seq_a_model"),
)


# An immutable Parquet file. (spec_hash, window_end, commit_seq) defines its content. If entities were forgotten since,
# `redacted_rows` counts the removed rows, and `redacted_sha256` is the hash of the remaining rows.
snapshot = Table(
    "snapshot",
    metadata,
    Column("snapshot_id", String(120), primary_key=True),
    Column("model", MODEL, nullable=False),
    Column("spec_hash", String(64), nullable=False),
    Column("window_end", Moment, nullable=False),
    Column("commit_seq", BigInteger, nullable=False),
    Column("row_count", BigInteger, nullable=False),
    Column("content_sha256", String(64), nullable=False),
    Column("path", String(1000), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("redacted_rows", BigInteger, nullable=False, server_default="0"),
    Column("redacted_sha256", String(64)),
)


# The result of validating a training's data before the training.
validation_report = Table(
    "validation_report",
    metadata,
    Column("run_id", RUN_ID, primary_key=True),
    Column("model", MODEL, nullable=False),
    Column("snapshot_id", String(120), nullable=False),
    Column("errors", Integer, nullable=False),
    Column("warnings", Integer, nullable=False),
    Column("report", JSON, nullable=False),
    Column("checked_at", Moment, nullable=False),
)


# Dropped rows: retention dropped the rows of `table_name` with a time before `dropped_before`.
retention = Table(
    "retention",
    metadata,
    id_column(),
    Column("table_name", String(64), nullable=False),
    Column("model", MODEL),
    Column("dropped_before", Moment, nullable=False),
    Column("caused_by", String(250), nullable=False),
    Column("dropped_at", Moment, nullable=False),
    Index("retention_of_a_table", "table_name", "dropped_before"),
)


# Tombstones of entities whose rows were deleted everywhere. `found` counts the rows by place. The id is not stored.
forgotten = Table(
    "forgotten",
    metadata,
    id_column(),
    Column("model", MODEL, nullable=False),
    Column("entity_sha256", String(64), nullable=False),
    Column("found", JSON, nullable=False),
    Column("caused_by", String(250), nullable=False),
    Column("forgotten_at", Moment, nullable=False),
    Index("forgotten_of_a_model", "model", "entity_sha256"),
)
