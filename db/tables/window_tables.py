"""Tables of monitoring results, by window of the log."""

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Index, Integer, String, Table, UniqueConstraint

from db.tables.common import MODEL, Moment, id_column, metadata

# Counts of one version's rows in one window of the log, over the bins of its profile. A window is read once.
window_profile = Table(
    "window_profile",
    metadata,
    id_column(),
    Column("model", MODEL, nullable=False),
    Column("version", Integer, nullable=False),
    Column("window_start", Moment, nullable=False),
    Column("window_end", Moment, nullable=False),
    Column("row_count", BigInteger, nullable=False),
    Column("distinct_count", BigInteger, nullable=False),  # an entity with the same features counts once
    Column("counts", JSON, nullable=False),
    Column("quality", JSON, nullable=False),
    Column("measured_at", Moment, nullable=False),
    UniqueConstraint("model", "version", "window_end", name="one_profile_a_window"),
    Index("profiled_windows", "model", "window_end"),
)


# Whether the rows of a version's window differ from its training rows. Windows with few rows are merged.
drift_result = Table(
    "drift_result",
    metadata,
    id_column(),
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


# The quality of a version's predictions, measured once their labels are mature.
performance_result = Table(
    "performance_result",
    metadata,
    id_column(),
    Column("model", MODEL, nullable=False),
    Column("version", Integer, nullable=False),
    Column("window_start", Moment, nullable=False),
    Column("window_end", Moment, nullable=False),
    Column("label_count", BigInteger, nullable=False),
    Column("metric", String(32), nullable=False),
    Column("value", Double, nullable=False),
    Column("low", Double, nullable=False),
    Column("high", Double, nullable=False),
    Column("judged", Double),  # the same metric on the test rows before the promotion
    Column("threshold", Double),
    Column("lost", Boolean, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("measured_at", Moment, nullable=False),
    UniqueConstraint("model", "version", "window_end", name="one_performance_result_a_window"),
)
