"""Tables that the prediction services write."""

from sqlalchemy import JSON, BigInteger, Column, Double, Index, Integer, String, Table, UniqueConstraint
from sqlalchemy.dialects.mysql import DATETIME, ENUM
from sqlalchemy.types import UUID

from db.tables.common import MODEL, Moment, id_column, metadata

# One row a worker process of a prediction service. Its heartbeat updates the row.
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


# One row a prediction, acknowledged before the client gets the answer. Partitioned by the time in the UUIDv7.
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


# Dead letters: rows of answered predictions that MariaDB refuses when a spool is drained. `log_row` has all values.
dead_letter = Table(
    "dead_letter",
    metadata,
    id_column(),
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


# Ground truth that a client reports for a prediction. Rows are never changed; a correction is a later row.
prediction_feedback = Table(
    "prediction_feedback",
    metadata,
    id_column(),
    Column("prediction_id", UUID(as_uuid=True), nullable=False),
    Column("model", MODEL, nullable=False),
    Column("actual", String(128), nullable=False),
    Column("received_at", Moment, nullable=False),
    Index("feedback_of_a_prediction", "prediction_id"),
)


# Counts of refused requests. They reveal a broken source, although its requests are not logged.
request_reject = Table(
    "request_reject",
    metadata,
    Column("model", MODEL, primary_key=True),
    Column("day", DATETIME(), primary_key=True),
    Column("field", String(64), primary_key=True),
    Column("reason", String(64), primary_key=True),
    Column("requests", BigInteger, nullable=False),
)
