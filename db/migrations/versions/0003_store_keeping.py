"""Add reports of validation, rows dropped by retention, and forgotten entities."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the tables and columns. The next try completes a failed one."""
    op.execute("ALTER TABLE snapshot ADD COLUMN IF NOT EXISTS redacted_rows BIGINT NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE snapshot ADD COLUMN IF NOT EXISTS redacted_sha256 VARCHAR(64)")
    op.create_table(
        "validation_report",
        sa.Column("run_id", sa.String(length=250), nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("snapshot_id", sa.String(length=120), nullable=False),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("warnings", sa.Integer(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("checked_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
        if_not_exists=True,
    )
    op.create_table(
        "retention",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("table_name", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=48), nullable=True),
        sa.Column("dropped_before", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("caused_by", sa.String(length=250), nullable=False),
        sa.Column("dropped_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index("retention_of_a_table", "retention", ["table_name", "dropped_before"], if_not_exists=True)
    op.create_table(
        "forgotten",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("entity_sha256", sa.String(length=64), nullable=False),
        sa.Column("found", sa.JSON(), nullable=False),
        sa.Column("caused_by", sa.String(length=250), nullable=False),
        sa.Column("forgotten_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index("forgotten_of_a_model", "forgotten", ["model", "entity_sha256"], if_not_exists=True)
