"""Tables of trainings and decisions, from the decision to retrain to the version that serves."""

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, String, Table, UniqueConstraint
from sqlalchemy.dialects.mysql import ENUM

from db.tables.common import MODEL, RUN_ID, Moment, id_column, metadata

# A decision to retrain or to hold. It is open while action is `retrain` and run_id is empty.
retrain_decision = Table(
    "retrain_decision",
    metadata,
    id_column(),
    Column("model", MODEL, nullable=False),
    Column("action", ENUM("retrain", "hold"), nullable=False),
    Column(
        "cause", String(32), nullable=False
    ),  # schedule, manual, drift, performance, new_labels, age; or the cause to hold
    Column("reason", String(1000), nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("caused_by", String(250), nullable=False),
    Column("decided_at", Moment, nullable=False),
    Column("run_id", RUN_ID),
    Column("claimed_at", Moment),
    Column("alert", String(1000)),  # the text of an alert; it is sent while alerted_at is empty
    Column("alerted_at", Moment),
    Index("open_retrain_decisions", "model", "run_id"),
)


# A run of training. The first try fixes the inputs, so a retry does the same work. The steps add their results.
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


# The verdict on a candidate. A `promote` row without deployment_run_id waits for deployment.
promotion_decision = Table(
    "promotion_decision",
    metadata,
    id_column(),
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


# The newest `deploy` or `rollback` row of a model defines the version that its services should serve.
# The rows `live`, `failed` and `refused` record the outcome.
deployment = Table(
    "deployment",
    metadata,
    id_column(),
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


# The challenger that services score after the answer. The newest row of a model counts. A version of null ends it.
shadow = Table(
    "shadow",
    metadata,
    id_column(),
    Column("model", MODEL, nullable=False),
    Column("version", Integer),
    Column("artifact_sha256", String(64)),
    Column("caused_by", String(250), nullable=False),
    Column("created_at", Moment, nullable=False),
    Index("newest_shadow", "model", "id"),
)
