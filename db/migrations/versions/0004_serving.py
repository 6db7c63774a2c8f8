"""Add dead letters, challengers in the shadow, and the fill of spools."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the tables and columns. The next try completes a failed one."""
    for column in (
        "shadow_version INT",
        "shadow_refused VARCHAR(1000)",
        "spool_rows BIGINT NOT NULL DEFAULT 0",
        "spool_oldest DATETIME(6)",
    ):
        op.execute(f"ALTER TABLE instance ADD COLUMN IF NOT EXISTS {column}")
    op.create_table(
        "dead_letter",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("prediction_id", sa.UUID(), nullable=False),
        sa.Column("entity_id", sa.String(length=64), nullable=False),
        sa.Column("log_row", sa.JSON(), nullable=False),
        sa.Column("error", sa.Integer(), nullable=False),
        sa.Column("dead_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.Column("alerted_at", mysql.DATETIME(fsp=6), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("prediction_id", name="dead_once"),
        if_not_exists=True,
    )
    op.create_index("unheard_of", "dead_letter", ["model", "alerted_at"], if_not_exists=True)
    op.create_index("dead_of_an_entity", "dead_letter", ["model", "entity_id"], if_not_exists=True)
    op.create_table(
        "shadow",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=True),
        sa.Column("caused_by", sa.String(length=250), nullable=False),
        sa.Column("created_at", mysql.DATETIME(fsp=6), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index("newest_shadow", "shadow", ["model", "id"], if_not_exists=True)
