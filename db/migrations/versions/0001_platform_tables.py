"""Create the platform's tables, which db/tables defines."""

from datetime import date

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

from db.partitions import by_day_of_id, days

revision = "0001"
down_revision = None

DAYS_AHEAD = 60  # partitions that prediction_log starts with; maintenance adds later ones


def upgrade() -> None:
    """Create every table. MariaDB can't roll back table creation, so the next try completes a failed one."""
    _load_batch()
    _retrain_decision()
    _training_run()
    _snapshot()
    _promotion_decision()
    _deployment()
    _instance()
    _prediction_log()
    _prediction_feedback()
    _request_reject()
    _partition_prediction_log(context.config.attributes["today"])


def _load_batch() -> None:
    op.create_table(
        "load_batch",
        sa.Column("batch_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("source", sa.String(length=500), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("feature_rows", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("label_rows", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unchanged_rows", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rejects", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("state", mysql.ENUM("open", "committed", "abandoned"), nullable=False),
        sa.Column("commit_seq", sa.BigInteger(), nullable=True),
        sa.Column("caused_by", sa.String(length=250), nullable=False),
        sa.Column("opened_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("committed_at", mysql.DATETIME(fsp=6), nullable=True),
        sa.PrimaryKeyConstraint("batch_id"),
        sa.UniqueConstraint("model", "commit_seq", name="one_commit_seq_a_model"),
        if_not_exists=True,
    )


def _retrain_decision() -> None:
    op.create_table(
        "retrain_decision",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("action", mysql.ENUM("retrain", "hold"), nullable=False),
        sa.Column("cause", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=1000), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("caused_by", sa.String(length=250), nullable=False),
        sa.Column("decided_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("run_id", sa.String(length=250), nullable=True),
        sa.Column("claimed_at", mysql.DATETIME(fsp=6), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index("open_retrain_decisions", "retrain_decision", ["model", "run_id"], if_not_exists=True)


def _training_run() -> None:
    op.create_table(
        "training_run",
        sa.Column("run_id", sa.String(length=250), nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("window_end", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("commit_seq", sa.BigInteger(), nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=1000), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("spec_hash", sa.String(length=64), nullable=False),
        sa.Column("code_commit", sa.String(length=80), nullable=False),
        sa.Column("snapshot_id", sa.String(length=120), nullable=True),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=True),
        sa.Column("best_params", sa.JSON(), nullable=True),
        sa.Column("candidate_version", sa.Integer(), nullable=True),
        sa.Column("state", mysql.ENUM("running", "finished", "failed"), nullable=False),
        sa.Column("started_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("finished_at", mysql.DATETIME(fsp=6), nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
        if_not_exists=True,
    )
    op.create_index("runs_of_a_model", "training_run", ["model", "started_at"], if_not_exists=True)


def _snapshot() -> None:
    op.create_table(
        "snapshot",
        sa.Column("snapshot_id", sa.String(length=120), nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("spec_hash", sa.String(length=64), nullable=False),
        sa.Column("window_end", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("commit_seq", sa.BigInteger(), nullable=False),
        sa.Column("row_count", sa.BigInteger(), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("path", sa.String(length=1000), nullable=False),
        sa.Column("created_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("snapshot_id"),
        if_not_exists=True,
    )


def _promotion_decision() -> None:
    op.create_table(
        "promotion_decision",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("candidate_version", sa.Integer(), nullable=False),
        sa.Column("champion_version", sa.Integer(), nullable=True),
        sa.Column("verdict", mysql.ENUM("promote", "reject", "wait"), nullable=False),
        sa.Column("reason", sa.String(length=1000), nullable=False),
        sa.Column("gates", sa.JSON(), nullable=False),
        sa.Column("run_id", sa.String(length=250), nullable=False),
        sa.Column("decided_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("deployment_run_id", sa.String(length=250), nullable=True),
        sa.Column("claimed_at", mysql.DATETIME(fsp=6), nullable=True),
        sa.Column("promoted_version", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id", name="one_verdict_a_run"),
        if_not_exists=True,
    )
    op.create_index(
        "open_candidates", "promotion_decision", ["model", "verdict", "deployment_run_id"], if_not_exists=True
    )
    op.create_index("promoted_versions", "promotion_decision", ["model", "promoted_version"], if_not_exists=True)


def _deployment() -> None:
    op.create_table(
        "deployment",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("action", mysql.ENUM("deploy", "rollback", "live", "failed", "refused"), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("previous_version", sa.Integer(), nullable=True),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=False),
        sa.Column("promotion_decision_id", sa.BigInteger(), nullable=True),
        sa.Column("caused_by", sa.String(length=250), nullable=False),
        sa.Column("reason", sa.String(length=1000), nullable=False),
        sa.Column("created_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index("newest_deployment", "deployment", ["model", "action", "id"], if_not_exists=True)


def _instance() -> None:
    op.create_table(
        "instance",
        sa.Column("instance_id", sa.UUID(), nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("host", sa.String(length=250), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("url", sa.String(length=250), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("serving_since", mysql.DATETIME(fsp=6), nullable=True),
        sa.Column("refused_version", sa.Integer(), nullable=True),
        sa.Column("refused_reason", sa.String(length=1000), nullable=True),
        sa.Column("started_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("heartbeat_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("instance_id"),
        if_not_exists=True,
    )
    op.create_index("instances_of_a_model", "instance", ["model", "heartbeat_at"], if_not_exists=True)


def _prediction_log() -> None:
    op.create_table(
        "prediction_log",
        sa.Column("prediction_id", sa.UUID(), nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("role", mysql.ENUM("champion", "shadow"), nullable=False),
        sa.Column("entity_id", sa.String(length=64), nullable=False),
        sa.Column("features", sa.JSON(), nullable=False),
        sa.Column("prediction", sa.String(length=128), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=True),
        sa.Column("probabilities", sa.JSON(), nullable=True),
        sa.Column("warnings", sa.JSON(), nullable=True),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("instance", sa.UUID(), nullable=False),
        sa.Column("created_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("logged_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("prediction_id"),
        if_not_exists=True,
    )


def _prediction_feedback() -> None:
    op.create_table(
        "prediction_feedback",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("prediction_id", sa.UUID(), nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("actual", sa.String(length=128), nullable=False),
        sa.Column("received_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index("feedback_of_a_prediction", "prediction_feedback", ["prediction_id"], if_not_exists=True)


def _request_reject() -> None:
    op.create_table(
        "request_reject",
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("day", mysql.DATETIME(), nullable=False),
        sa.Column("field", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", "day", "field", "reason"),
        if_not_exists=True,
    )


def _partition_prediction_log(today: date) -> None:
    partitions = by_day_of_id("prediction_id", days(today, DAYS_AHEAD))
    op.execute(f"ALTER TABLE prediction_log PARTITION BY {partitions}")
