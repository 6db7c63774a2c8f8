"""The platform's tables (database `evergreen`). Alembic makes them; a test holds the two against each other.

Histories are append-only, one row an event with who or what caused it and why; a decision is a row first and an action
second. Times are UTC in DATETIME(6). The per-model store tables are made from the model files by `db.store`.
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
