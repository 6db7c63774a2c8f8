"""The platform's tables (database `evergreen`). Alembic makes them; a test holds the two against each other.

Histories are append-only, one row an event with who or what caused it and why; a decision is a row first and an action
second. Times are UTC in DATETIME(6). The per-model store tables are made from the model files by `db.store`.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)
from sqlalchemy.dialects.mysql import DATETIME, ENUM
from sqlalchemy.types import UUID

metadata = MetaData()
Moment = DATETIME(fsp=6)
MODEL = String(48)
RUN_ID = String(250)


def _id() -> Column[int]:
    return Column("id", BigInteger, primary_key=True, autoincrement=True)


# One load of a file. Its rows are read only once it is committed; `commit_seq` counts a model's commits from 1.
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

# Why a training should run or should not. Open while action is `retrain` and run_id is empty.
retrain_decision = Table(
    "retrain_decision",
    metadata,
    _id(),
    Column("model", MODEL, nullable=False),
    Column("action", ENUM("retrain", "hold"), nullable=False),
    Column("cause", String(32), nullable=False),  # schedule, manual, drift, performance, new_labels, age; or why not
    Column("reason", String(1000), nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("caused_by", String(250), nullable=False),
    Column("decided_at", Moment, nullable=False),
    Column("run_id", RUN_ID),
    Column("claimed_at", Moment),
    Column("alert", String(1000)),  # what people must hear of; sent while alerted_at is empty
    Column("alerted_at", Moment),
    Index("open_retrain_decisions", "model", "run_id"),
)

# What the first try of a run fixed, so that a retry does the same work; then what its steps made.
training_run = Table(
    "training_run",
    metadata,
    Column("run_id", RUN_ID, primary_key=True),
    Column("model", MODEL, nullable=False),
    Column("window_end", Moment, nullable=False),
    Column("commit_seq", BigInteger, nullable=False),
    Column("trials", Integer, nullable=False),
    Column("reason", String(1000), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("spec_hash", String(64), nullable=False),
    Column("code_commit", String(80), nullable=False),
    Column("snapshot_id", String(120)),
    Column("mlflow_run_id", String(64)),
    Column("best_params", JSON),
    Column("candidate_version", Integer),
    Column("state", ENUM("running", "finished", "failed"), nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("finished_at", Moment),
    Index("runs_of_a_model", "model", "started_at"),
)

# An immutable Parquet file; (spec_hash, window_end, commit_seq) defines its content. Where entities in it were
# forgotten since, `redacted_sha256` is the hash of the rows that are left, and `redacted_rows` counts those gone.
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

# What a training's data was found to be before anything was learned from it.
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

# Rows that retention has dropped: those of `table_name` with a time before `dropped_before`.
retention = Table(
    "retention",
    metadata,
    _id(),
    Column("table_name", String(64), nullable=False),
    Column("model", MODEL),
    Column("dropped_before", Moment, nullable=False),
    Column("caused_by", String(250), nullable=False),
    Column("dropped_at", Moment, nullable=False),
    Index("retention_of_a_table", "table_name", "dropped_before"),
)

# Tombstones of entities whose rows were deleted everywhere; `found` counts them by place. The id itself is not kept.
forgotten = Table(
    "forgotten",
    metadata,
    _id(),
    Column("model", MODEL, nullable=False),
    Column("entity_sha256", String(64), nullable=False),
    Column("found", JSON, nullable=False),
    Column("caused_by", String(250), nullable=False),
    Column("forgotten_at", Moment, nullable=False),
    Index("forgotten_of_a_model", "model", "entity_sha256"),
)

# The verdict on a candidate. A `promote` row without deployment_run_id waits to be deployed.
promotion_decision = Table(
    "promotion_decision",
    metadata,
    _id(),
    Column("model", MODEL, nullable=False),
    Column("candidate_version", Integer, nullable=False),
    Column("champion_version", Integer),
    Column("verdict", ENUM("promote", "reject", "wait"), nullable=False),
    Column("reason", String(1000), nullable=False),
    Column("gates", JSON, nullable=False),
    Column("run_id", RUN_ID, nullable=False),
    Column("decided_at", Moment, nullable=False),
    Column("deployment_run_id", RUN_ID),
    Column("claimed_at", Moment),
    Column("promoted_version", Integer),  # the candidate itself, or its final fit
    UniqueConstraint("run_id", name="one_verdict_a_run"),
    Index("promoted_versions", "model", "promoted_version"),
    Index("open_candidates", "model", "verdict", "deployment_run_id"),
)

# The newest `deploy` or `rollback` row of a model says which version its services should serve;
# `live`, `failed` and `refused` say what came of it.
deployment = Table(
    "deployment",
    metadata,
    _id(),
    Column("model", MODEL, nullable=False),
    Column("action", ENUM("deploy", "rollback", "live", "failed", "refused"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("previous_version", Integer),
    Column("artifact_sha256", String(64), nullable=False),
    Column("promotion_decision_id", BigInteger),
    Column("caused_by", String(250), nullable=False),
    Column("reason", String(1000), nullable=False),
    Column("created_at", Moment, nullable=False),
    Index("newest_deployment", "model", "action", "id"),
)

# One row a worker process of a prediction service, kept fresh by its heartbeat.
instance = Table(
    "instance",
    metadata,
    Column("instance_id", UUID(as_uuid=True), primary_key=True),
    Column("model", MODEL, nullable=False),
    Column("host", String(250), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("url", String(250), nullable=False),
    Column("version", Integer),
    Column("serving_since", Moment),
    Column("refused_version", Integer),
    Column("refused_reason", String(1000)),
    Column("started_at", Moment, nullable=False),
    Column("heartbeat_at", Moment, nullable=False),
    Column("shadow_version", Integer),
    Column("shadow_refused", String(1000)),
    Column("spool_rows", BigInteger, nullable=False, server_default="0"),
    Column("spool_oldest", Moment),
    Index("instances_of_a_model", "model", "heartbeat_at"),
)
# The challenger that services score off the client's path; the newest row of a model rules, a version of null ends it.
shadow = Table(
    "shadow",
    metadata,
    _id(),
    Column("model", MODEL, nullable=False),
    Column("version", Integer),
    Column("artifact_sha256", String(64)),
    Column("caused_by", String(250), nullable=False),
    Column("created_at", Moment, nullable=False),
    Index("newest_shadow", "model", "id"),
)

# One row a prediction, acknowledged before the answer leaves. Partitioned by the time in the UUIDv7.
prediction_log = Table(
    "prediction_log",
    metadata,
    Column("prediction_id", UUID(as_uuid=True), primary_key=True),
    Column("model", MODEL, nullable=False),
    Column("version", Integer, nullable=False),
    Column("role", ENUM("champion", "shadow"), nullable=False),
    Column("entity_id", String(64), nullable=False),
    Column("features", JSON, nullable=False),
    Column("prediction", String(128), nullable=False),
    Column("confidence", Double),
    Column("probabilities", JSON),
    Column("warnings", JSON),
    Column("latency_ms", Double, nullable=False),
    Column("instance", UUID(as_uuid=True), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("logged_at", Moment, nullable=False),
)
# Rows of answered predictions that MariaDB refuses when a spool is drained; `log_row` holds all their values.
dead_letter = Table(
    "dead_letter",
    metadata,
    _id(),
    Column("model", MODEL, nullable=False),
    Column("prediction_id", UUID(as_uuid=True), nullable=False),
    Column("entity_id", String(64), nullable=False),
    Column("log_row", JSON, nullable=False),
    Column("error", Integer, nullable=False),
    Column("dead_at", Moment, nullable=False),
    Column("alerted_at", Moment),
    UniqueConstraint("prediction_id", name="dead_once"),
    Index("unheard_of", "model", "alerted_at"),
    Index("dead_of_an_entity", "model", "entity_id"),
)

# Ground truth that a client reports for a prediction; the first report of a value stays, a correction is a later row.
prediction_feedback = Table(
    "prediction_feedback",
    metadata,
    _id(),
    Column("prediction_id", UUID(as_uuid=True), nullable=False),
    Column("model", MODEL, nullable=False),
    Column("actual", String(128), nullable=False),
    Column("received_at", Moment, nullable=False),
    Index("feedback_of_a_prediction", "prediction_id"),
)

# Refused requests, counted: a source that breaks shows here although nothing of it is logged.
request_reject = Table(
    "request_reject",
    metadata,
    Column("model", MODEL, primary_key=True),
    Column("day", DATETIME(), primary_key=True),
    Column("field", String(64), primary_key=True),
    Column("reason", String(64), primary_key=True),
    Column("requests", BigInteger, nullable=False),
)

# What one version predicted in one window of the log, counted over the bins of its profile. A window is read once.
window_profile = Table(
    "window_profile",
    metadata,
    _id(),
    Column("model", MODEL, nullable=False),
    Column("version", Integer, nullable=False),
    Column("window_start", Moment, nullable=False),
    Column("window_end", Moment, nullable=False),
    Column("row_count", BigInteger, nullable=False),
    Column("distinct_count", BigInteger, nullable=False),  # without an entity's repetitions of the same features
    Column("counts", JSON, nullable=False),
    Column("quality", JSON, nullable=False),
    Column("measured_at", Moment, nullable=False),
    UniqueConstraint("model", "version", "window_end", name="one_profile_a_window"),
    Index("profiled_windows", "model", "window_end"),
)

# Whether the rows of a version's window differ from what it was fitted on; windows with few rows are merged.
drift_result = Table(
    "drift_result",
    metadata,
    _id(),
    Column("model", MODEL, nullable=False),
    Column("version", Integer, nullable=False),
    Column("window_start", Moment, nullable=False),
    Column("window_end", Moment, nullable=False),
    Column("row_count", BigInteger, nullable=False),
    Column("drifted", Boolean, nullable=False),
    Column("worst", String(64)),  # the feature that exceeds its limit by the largest factor
    Column("evidence", JSON, nullable=False),
    Column("measured_at", Moment, nullable=False),
    UniqueConstraint("model", "version", "window_end", name="one_drift_result_a_window"),
)

# How good a version's predictions were, once their labels were mature.
performance_result = Table(
    "performance_result",
    metadata,
    _id(),
    Column("model", MODEL, nullable=False),
    Column("version", Integer, nullable=False),
    Column("window_start", Moment, nullable=False),
    Column("window_end", Moment, nullable=False),
    Column("label_count", BigInteger, nullable=False),
    Column("metric", String(32), nullable=False),
    Column("value", Double, nullable=False),
    Column("low", Double, nullable=False),
    Column("high", Double, nullable=False),
    Column("judged", Double),  # the same metric on the test rows before the version was promoted
    Column("threshold", Double),
    Column("lost", Boolean, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("measured_at", Moment, nullable=False),
    UniqueConstraint("model", "version", "window_end", name="one_performance_result_a_window"),
)
