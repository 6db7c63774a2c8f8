"""Predict many rows at once with the champion. The rows come from a file or a query.

The rows pass the same checks as rows that are loaded. Every result is logged in `prediction_log` before it is written
to a file or table, so it can be traced. Monitoring treats these predictions like predictions for requests.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from db.history import deployments
from db.log.prediction_ids import created_at, new_id
from db.log.writing import LOG_COLUMNS, LOG_NEW
from db.session import session
from pipelines import registry
from pipelines.artifact.bundle import Bundle, read_bundle
from pipelines.artifact.learner import pool_from_frame, rows_of, score
from pipelines.artifact.profile import make_warnings_function, seen_categories
from pipelines.batch_scoring.sources import (
    Source,
    file_source,
    query_source,
    results_file,
    results_table,
    table_name,
    writer_of,
)
from pipelines.loading.checking import check
from pipelines.loading.loader import Progress
from pipelines.loading.rejects import Reject
from pipelines.spec import find_spec
from utils.errors import DataRefused, NotFound, RowsRefused
from utils.settings import RESULTS_DB, Settings

INSERT_ROWS = 2_000  # rows that one transaction adds to the log
MAX_REJECTS = 1_000  # reading stops at this number, because it is probably the wrong file


@dataclass(frozen=True, slots=True)
class ScoringReport:
    """The report of a scoring batch.

    version: the version that scored the rows.
    rows: the number of scored rows.
    seconds: the duration of the batch.
    batch: the id of the batch. It is `instance` in `prediction_log` and `batch_id` in `table`.
    out: the file of results, or None if no file was requested.
    table: the database and the table of results, or None if no table was requested.
    """

    model: str
    version: int
    rows: int
    seconds: float
    batch: UUID
    out: Path | None
    table: str | None

    @property
    def summary(self) -> str:
        """Two lines for users: how many rows were scored and how fast, and where the results are."""
        places = [
            *([str(self.out)] if self.out else []),
            *([f"{self.table} where batch_id = '{self.batch}'"] if self.table else []),
            f"prediction_log where instance = '{self.batch}'",
        ]
        rows_per_second = self.rows / max(self.seconds, 1e-9)
        return (
            f"{self.rows:,} rows scored by version {self.version} in {self.seconds:.1f} s"
            f" ({rows_per_second:,.0f} a second)\n"
            f"results are in {' and in '.join(places)}"
        )


@dataclass(frozen=True, slots=True)
class ServingVersion:
    """The version that serves, loaded for scoring.

    seen_categories: the categories that occurred in its training rows, by feature.
    """

    version: int
    bundle: Bundle
    seen_categories: Mapping[str, frozenset[str]]


def load_serving_version(settings: Settings, model: str) -> ServingVersion:
    """Download the version of `model` that serves, and check its bundle against the hash in the deployment's row.

    Raises: NotFound if no version was deployed yet; Unreachable, AccessDenied, IntegrityError.
    """
    with session(settings, "pipeline") as connection:
        row = deployments.champion(connection, model)
    if row is None:
        raise NotFound(what=f"version of {model} in service", hint=f"train and deploy one: evergreen train {model}")
    with tempfile.TemporaryDirectory() as folder:
        registry.download(settings, model, row["version"], Path(folder))
        bundle = read_bundle(Path(folder), sha256=row["artifact_sha256"])
        profile = json.loads((Path(folder) / "profile.json").read_text(encoding="utf-8"))
    return ServingVersion(row["version"], bundle, seen_categories(profile))


def score_rows(
    settings: Settings,
    model: str,
    *,
    now: datetime,
    file: Path | None = None,
    query: str | None = None,
    out: Path | None = None,
    table: str | None = None,
    progress: Progress | None = None,
) -> ScoringReport:
    """Score the rows of `file` or of the SELECT `query` with the version of `model` that serves.

    Give either `file` or `query`. `now` (UTC) is the time of the predictions.

    Raises: DataRefused if `file` and `query` are both given or both missing, or if a row, `out` or `table` can't be
    used; UnknownModel, NotFound, MissingColumns, RowsRefused, IntegrityError, Unreachable, AccessDenied.
    """
    if bool(file) == bool(query):
        raise DataRefused("give either a file or a query")
    find_spec(settings.models_dir, model)
    if out:  # check the names before the slow steps
        writer_of(out)
    if table is not None:
        table_name(table)
    serving = load_serving_version(settings, model)
    spec = serving.bundle.spec
    source = file_source(file, spec=spec) if file else query_source(str(query), spec=spec, settings=settings)
    return score_source(source, serving=serving, settings=settings, now=now, out=out, table=table, progress=progress)


def score_source(
    source: Source,
    *,
    serving: ServingVersion,
    settings: Settings,
    now: datetime,
    out: Path | None = None,
    table: str | None = None,
    progress: Progress | None = None,
) -> ScoringReport:
    """Score and log every row of `source`. Write the results to `out` and `table`, unless they are None.

    source: rows whose columns were matched with the spec of `serving`.
    now: the time of the predictions, UTC.
    out: a `.csv` or `.parquet` file. It is replaced at the end.
    table: a table of `evergreen_results`. It receives all rows at the end.

    After an error, file and table are unchanged. Rows that were already logged stay in the log.

    Raises: RowsRefused or DataRefused if a row can't be used; Unreachable, AccessDenied.
    """
    started, spec, batch = time.monotonic(), serving.bundle.spec, new_id(now)
    _check_all_rows(source)
    scored_rows = 0
    timed = source.spec.timed
    with (
        results_file(out, spec=spec, timed=timed) as write,
        results_table(table, spec=spec, timed=timed, batch=batch, settings=settings) as append,
    ):
        for rows in _read_checked_rows(source):
            results, log_rows = _score(rows, serving=serving, batch=batch, now=now)
            _log(log_rows, settings=settings)
            write(results)
            append(results)
            scored_rows += rows.num_rows
            if progress:
                progress(scored_rows, None)
    table_path = f"{RESULTS_DB}.{table}" if table else None
    return ScoringReport(spec.name, serving.version, scored_rows, time.monotonic() - started, batch, out, table_path)


def _check_all_rows(source: Source) -> None:
    """Check every row before the first one is scored."""
    rows = 0
    rejects: list[Reject] = []
    for chunk in source.chunks():
        checked = check(chunk.rows, spec=source.spec, columns=source.columns, lines=chunk.lines)
        rejects += sorted([*chunk.broken, *checked.rejects])
        rows += chunk.rows.num_rows + len(chunk.broken)
        if len(rejects) >= MAX_REJECTS:
            break
    if rejects:
        raise RowsRefused(source=source.name, refused=len(rejects), first=rejects[0], rows=rows, undone="scored")
    if not rows:
        raise DataRefused(f"{source.name}: holds no rows")


def _read_checked_rows(source: Source) -> Iterator[pa.Table]:
    """Yield the rows in chunks. Raises: DataRefused if the rows have changed since `_check_all_rows`."""
    for chunk in source.chunks():
        checked = check(chunk.rows, spec=source.spec, columns=source.columns, lines=chunk.lines)
        if chunk.broken or checked.rejects or checked.features is None:
            raise DataRefused(f"{source.name}: changed while it was read")
        yield checked.features


def _score(
    rows: pa.Table, *, serving: ServingVersion, batch: UUID, now: datetime
) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
    """Score rows. Return the results with the columns of `results_schema`, and the values of the log's rows."""
    spec, started = serving.bundle.spec, time.perf_counter()
    frame = rows.to_pandas()
    scores = score(serving.bundle.model, pool_from_frame(frame, spec=spec, label=False), spec=spec)
    latency_ms = (time.perf_counter() - started) * 1000 / len(frame)  # per row
    probabilities = None if scores.probabilities is None else scores.probabilities.tolist()
    results, log_rows, warnings_of_row = [], [], make_warnings_function(spec, serving.seen_categories)
    for i, (key, values) in enumerate(
        zip(rows.select(["entity_id", "event_time"]).to_pylist(), rows_of(frame, spec=spec), strict=True)
    ):
        prediction_id, prediction = new_id(now), scores.predictions[i]
        class_probabilities = dict(zip(spec.label.classes, probabilities[i], strict=True)) if probabilities else None
        warnings = warnings_of_row(values)
        common_columns = {
            "prediction_id": str(prediction_id),
            "confidence": max(class_probabilities.values()) if class_probabilities else None,
            "version": serving.version,
        }
        probability_columns = {f"probability_{name}": value for name, value in (class_probabilities or {}).items()}
        key_columns = {spec.entity: key["entity_id"], str(spec.source.event_time): key["event_time"]}
        results.append(
            {
                **common_columns,
                **key_columns,
                **probability_columns,
                "prediction": prediction,
                "warnings": "; ".join(warnings),
                "predicted_at": now,
            }
        )
        log_row = {
            **common_columns,
            "model": spec.name,
            "role": "champion",
            "entity_id": key["entity_id"],
            "features": _to_json(dict(zip(spec.features.columns, values, strict=True))),
            "prediction": str(prediction),
            "probabilities": _to_json(class_probabilities) if class_probabilities else None,
            "warnings": _to_json(warnings),
            "latency_ms": latency_ms,
            "instance": str(batch),
            "created_at": created_at(prediction_id),
            "logged_at": now,
        }
        log_rows.append(tuple(log_row[name] for name in LOG_COLUMNS))
    return results, log_rows


def _to_json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _log(rows: list[tuple[Any, ...]], *, settings: Settings) -> None:
    """Add rows to `prediction_log`. The values are in the order of `LOG_COLUMNS`."""
    for start in range(0, len(rows), INSERT_ROWS):
        with session(settings, "pipeline") as connection:
            connection.exec_driver_sql(LOG_NEW, rows[start : start + INSERT_ROWS])
