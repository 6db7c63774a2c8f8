"""Add the results of monitoring (profiles of windows, drift, performance) and the alerts of decisions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the tables and columns. The next try completes a failed one."""
    op.execute("ALTER TABLE retrain_decision ADD COLUMN IF NOT EXISTS alert VARCHAR(1000)")
    op.execute("ALTER TABLE retrain_decision ADD COLUMN IF NOT EXISTS alerted_at DATETIME(6)")
    _make(
        "window_profile",
        sa.Column("row_count", sa.BigInteger(), nullable=False),
        sa.Column("distinct_count", sa.BigInteger(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("quality", sa.JSON(), nullable=False),
        unique="one_profile_a_window",
    )
    op.create_index("profiled_windows", "window_profile", ["model", "window_end"], if_not_exists=True)
    _make(
        "drift_result",
        sa.Column("row_count", sa.BigInteger(), nullable=False),
        sa.Column("drifted", sa.Boolean(), nullable=False),
        sa.Column("worst", sa.String(length=64), nullable=True),
        sa.Column("evidence", sa.JSON(), nullable=False),
        unique="one_drift_result_a_window",
    )
    _make(
        "performance_result",
        sa.Column("label_count", sa.BigInteger(), nullable=False),
        sa.Column("metric", sa.String(length=32), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("judged", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("lost", sa.Boolean(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        unique="one_performance_result_a_window",
    )


def _make(name: str, *columns: sa.Column[object], unique: str) -> None:
    """Create a table with one row a model, version and window."""
    op.create_table(
        name,
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("window_start", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("window_end", mysql.DATETIME(fsp=6), nullable=False),
        *columns,
        sa.Column("measured_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("model", "version", "window_end", name=unique),
        if_not_exists=True,
    )
