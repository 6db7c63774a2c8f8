"""Score: predict many rows at once, from a file or a query, with the champion.

Rows are checked by the loader's checks and logged like requests. Every result is in `prediction_log` before it is
written, so every result can be traced. Monitoring treats the predictions of files, queries and requests alike.
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

INSERTED = 2_000  # rows of one transaction
MOST_REJECTS = 1_000  # reading stops at this number, the file is then the wrong one


@dataclass(frozen=True, slots=True)
class Scored:
    """The outcome of a scoring batch.

    version: the version that scored the rows.
    seconds: the duration of the batch.
    batch: the id of the batch. Each row has it, as `instance` in `prediction_log` and as `batch_id` in `table`.
    out: the file of results, if one was named.
    table: the table of results with its database, if one was named.
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
        """Two lines of text: the number of rows and the speed, then the places of the results."""
        places = [
            *([str(self.out)] if self.out else []),
            *([f"{self.table} where batch_id = '{self.batch}'"] if self.table else []),
            f"prediction_log where instance = '{self.batch}'",
        ]
        pace = self.rows / max(self.seconds, 1e-9)
        return (
            f"{self.rows:,} rows scored by version {self.version} in {self.seconds:.1f} s ({pace:,.0f} a second)\n"
            f"results are in {' and in '.join(places)}"
        )


@dataclass(frozen=True, slots=True)
class Serving:
    """The version that serves. `seen`: the categories in its training by feature."""

    version: int
    bundle: Bundle
    seen: Mapping[str, frozenset[str]]


def serving(settings: Settings, model: str) -> Serving:
    """Load the version that serves `model`, and check the hash that was recorded at deployment.

    Raises: NotFound before the first deployment; Unreachable, AccessDenied, IntegrityError.
    """
    with session(settings, "pipeline") as connection:
        row = deployments.champion(connection, model)
    if row is None:
        raise NotFound(what=f"version of {model} in service", hint=f"train and deploy one: evergreen train {model}")
    with tempfile.TemporaryDirectory() as folder:
        registry.download(settings, model, row["version"], Path(folder))
        bundle = read_bundle(Path(folder), sha256=row["artifact_sha256"])
        profile = json.loads((Path(folder) / "profile.json").read_text(encoding="utf-8"))
    return Serving(row["version"], bundle, seen_categories(profile))


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
) -> Scored:
    """Score the rows of `file` or of the SELECT `query` with the version of `model` that serves.

    Raises: DataRefused if not exactly one of both is given, or if a row, `out` or `table` can't be used; UnknownModel,
    NotFound, MissingColumns, RowsRefused, IntegrityError, Unreachable, AccessDenied.
    """
    if bool(file) == bool(query):
        raise DataRefused("give either a file or a query")
    find_spec(settings.models_dir, model)
    if out:  # reject a wrong name before any long step
        writer_of(out)
    if table is not None:
        table_name(table)
    by = serving(settings, model)
    spec = by.bundle.spec
    source = file_source(file, spec=spec) if file else query_source(str(query), spec=spec, settings=settings)
    return score_source(source, by=by, settings=settings, now=now, out=out, table=table, progress=progress)


def score_source(
    source: Source,
    *,
    by: Serving,
    settings: Settings,
    now: datetime,
    out: Path | None = None,
    table: str | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Score and log every row of `source`, and write the results to the file `out` and the table `table`, if named.

    `source` has the spec of `by`. `now` (UTC) is the time of the predictions. The `.csv` or `.parquet` file is replaced
    at the end, and the table of `evergreen_results` receives all rows at the end. After an error both are unchanged,
    but the rows logged so far stay in the log.

    Raises: RowsRefused, DataRefused (nothing is scored then); Unreachable, AccessDenied.
    """
    started, spec, batch = time.monotonic(), by.bundle.spec, new_id(now)
    _check_all(source)
    scored_rows = 0
    timed = source.spec.timed
    with (
        results_file(out, spec=spec, timed=timed) as write,
        results_table(table, spec=spec, timed=timed, batch=batch, settings=settings) as append,
    ):
        for rows in _checked_rows(source):
            results, log_rows = _score(rows, by=by, batch=batch, now=now)
            _log(log_rows, settings=settings)
            write(results)
            append(results)
            scored_rows += rows.num_rows
            if progress:
                progress(scored_rows, None)
    table_path = f"{RESULTS_DB}.{table}" if table else None
    return Scored(spec.name, by.version, scored_rows, time.monotonic() - started, batch, out, table_path)


def _check_all(source: Source) -> None:
    """Check every row before the first one is scored."""
    rows = 0
    rejects: list[Reject] = []
    for chunk in source.chunks():
        checked = check(chunk.rows, spec=source.spec, columns=source.columns, lines=chunk.lines)
        rejects += sorted([*chunk.broken, *checked.rejects])
        rows += chunk.rows.num_rows + len(chunk.broken)
        if len(rejects) >= MOST_REJECTS:
            break
    if rejects:
        raise RowsRefused(source=source.name, refused=len(rejects), first=rejects[0], rows=rows, undone="scored")
    if not rows:
        raise DataRefused(f"{source.name}: holds no rows")


def _checked_rows(source: Source) -> Iterator[pa.Table]:
    for chunk in source.chunks():
        checked = check(chunk.rows, spec=source.spec, columns=source.columns, lines=chunk.lines)
        if chunk.broken or checked.rejects or checked.features is None:
            raise DataRefused(f"{source.name}: changed while it was read")
        yield checked.features


def _score(
    rows: pa.Table, *, by: Serving, batch: UUID, now: datetime
) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
    """Score checked rows. Return the results in the form of `results_schema`, and the rows for the log."""
    spec, started = by.bundle.spec, time.perf_counter()
    frame = rows.to_pandas()
    scores = score(by.bundle.model, pool_from_frame(frame, spec=spec, label=False), spec=spec)
    latency_ms = (time.perf_counter() - started) * 1000 / len(frame)  # the share of one row
    probabilities = None if scores.probabilities is None else scores.probabilities.tolist()
    results, log_rows, warnings_of_row = [], [], make_warnings_function(spec, by.seen)
    for i, (key, values) in enumerate(
        zip(rows.select(["entity_id", "event_time"]).to_pylist(), rows_of(frame, spec=spec), strict=True)
    ):
        prediction_id, predicted = new_id(now), scores.predictions[i]
        by_class = dict(zip(spec.label.classes, probabilities[i], strict=True)) if probabilities else None
        warnings = warnings_of_row(values)
        common = {
            "prediction_id": str(prediction_id),
            "confidence": max(by_class.values()) if by_class else None,
            "version": by.version,
        }
        probability_columns = {f"probability_{name}": value for name, value in (by_class or {}).items()}
        keys = {spec.entity: key["entity_id"], str(spec.source.event_time): key["event_time"]}
        results.append(
            {
                **common,
                **keys,
                **probability_columns,
                "prediction": predicted,
                "warnings": "; ".join(warnings),
                "predicted_at": now,
            }
        )
        log_row = {
            **common,
            "model": spec.name,
            "role": "champion",
            "entity_id": key["entity_id"],
            "features": _json(dict(zip(spec.features.columns, values, strict=True))),
            "prediction": str(predicted),
            "probabilities": _json(by_class) if by_class else None,
            "warnings": _json(warnings),
            "latency_ms": latency_ms,
            "instance": str(batch),
            "created_at": created_at(prediction_id),
            "logged_at": now,
        }
        log_rows.append(tuple(log_row[name] for name in LOG_COLUMNS))
    return results, log_rows


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _log(rows: list[tuple[Any, ...]], *, settings: Settings) -> None:
    for start in range(0, len(rows), INSERTED):
        with session(settings, "pipeline") as connection:
            connection.exec_driver_sql(LOG_NEW, rows[start : start + INSERTED])
