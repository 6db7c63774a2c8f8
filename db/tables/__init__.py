"""The platform's tables (database `evergreen`). Alembic creates them. A test compares both definitions.

Histories are append-only: one row an event, with its cause and reason. A decision is recorded before it is acted on.
Times are UTC in DATETIME(6). `db.store` makes the store tables of each model from its model file.
"""

from db.tables.common import metadata
from db.tables.data_tables import forgotten, load_batch, retention, snapshot, validation_report
from db.tables.decision_tables import deployment, promotion_decision, retrain_decision, shadow, training_run
from db.tables.serving_tables import dead_letter, instance, prediction_feedback, prediction_log, request_reject
from db.tables.window_tables import drift_result, performance_result, window_profile

__all__ = [
    "dead_letter",
    "deployment",
    "drift_result",
    "forgotten",
    "instance",
    "load_batch",
    "metadata",
    "performance_result",
    "prediction_feedback",
    "prediction_log",
    "promotion_decision",
    "request_reject",
    "retention",
    "retrain_decision",
    "shadow",
    "snapshot",
    "training_run",
    "validation_report",
    "window_profile",
]
