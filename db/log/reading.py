"""Read the prediction log: one window at a time, in short chunks, by ranges of its key, the UUIDv7."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

import pandas as pd
import pyarrow as pa
from sqlalchemy import ColumnClause, String, cast, literal_column, select

from db.arrow import read_arrow
from db.log.prediction_ids import shadow_id
from db.partitions import first_id_of, moment_of
from db.tables import prediction_feedback, prediction_log
from utils.settings import PLATFORM_DB, Settings

CHUNK = 50_000  # rows of one statement; a long read would block partition maintenance, and the inserts behind it
KEY: ColumnClause[str] = literal_column("prediction_id")


def predictions(settings: Settings, model: str, *, start: datetime, end: datetime) -> Iterator[pa.Table]:
    """Yield what the champions of `model` predicted in [start, end), oldest first, in tables of at most `CHUNK` rows.

    Columns: prediction_id (text), version, entity_id, features (JSON text), prediction, probabilities (JSON text),
    warnings (JSON text), created_at, latency_ms. Raises: Unreachable, AccessDenied.
    """
    log = prediction_log.c
    columns = (
        log.version,
        log.entity_id,
        log.features,
        log.prediction,
        log.probabilities,
        log.warnings,
        log.created_at,
        log.latency_ms,
    )
    rows = (
        select(cast(log.prediction_id, String(36)).label("id"), *columns)
        .where(log.model == model, log.role == "champion", _id(end) > KEY)
        .order_by(KEY)
        .limit(CHUNK)
    )
    chunk = read_arrow(settings, rows.where(_id(start) <= KEY), database=PLATFORM_DB)
    while chunk.num_rows:
        yield chunk.rename_columns(["prediction_id", *chunk.column_names[1:]])
        if chunk.num_rows < CHUNK:
            return
        chunk = read_arrow(settings, rows.where(_literal(chunk["id"][-1]) < KEY), database=PLATFORM_DB)


def pairs(
    settings: Settings, model: str, *, version: int, start: datetime, end: datetime
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Yield chunks of `predictions` without warnings, each with the predictions of `version` in the shadow.

    The column `shadow_id` joins both frames. The second frame also has prediction, probabilities and latency_ms.
    """
    log = prediction_log.c
    key = cast(log.prediction_id, String(36)).label("shadow_id")
    rows = select(key, log.prediction, log.probabilities, log.latency_ms).where(
        log.model == model, log.role == "shadow", log.version == version
    )
    for chunk in predictions(settings, model, start=start, end=end):
        answered = chunk.drop(["warnings"]).to_pandas()
        ids = [UUID(prediction_id) for prediction_id in answered["prediction_id"]]
        since, until = moment_of(ids[0]), moment_of(ids[-1]) + timedelta(milliseconds=1)
        shadow_rows = read_arrow(settings, rows.where(_id(since) <= KEY, _id(until) > KEY), database=PLATFORM_DB)
        shadow_ids = [str(shadow_id(prediction_id, version)) for prediction_id in ids]
        yield answered.assign(shadow_id=shadow_ids), shadow_rows.to_pandas()


def feedback(settings: Settings, model: str, *, start: datetime, end: datetime) -> pa.Table:
    """Return the ground truth that clients reported for predictions in [start, end): the last report of each.

    Columns: prediction_id (text), truth. Raises: Unreachable, AccessDenied.
    """
    report = prediction_feedback.c
    rows = (
        select(cast(report.prediction_id, String(36)).label("prediction_id"), report.actual.label("truth"))
        .where(report.model == model, _id(start) <= KEY, _id(end) > KEY)
        .order_by(report.id)
    )
    reports = read_arrow(settings, rows, database=PLATFORM_DB).to_pandas()
    return pa.Table.from_pandas(reports.drop_duplicates("prediction_id", keep="last"), preserve_index=False)


def _id(moment: datetime) -> ColumnClause[str]:
    return _literal(first_id_of(moment))


def _literal(prediction_id: object) -> ColumnClause[str]:
    # SQLAlchemy would write a UUID as 32 digits without hyphens, which prunes no partition.
    return literal_column(f"'{prediction_id}'")
