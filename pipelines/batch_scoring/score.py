"""Score: predictions for many rows at once, from a file or a query, by the version that serves.

A row is checked as the loader checks it and logged as the service logs it. No result is written that is not in
`prediction_log`, so each can be traced back, and what monitoring sees does not depend on how a model was asked.
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
from pipelines.artifact.profile import seen_categories, warnings_of
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
MOST_REJECTS = 1_000  # reading stops there: a file as wrong as that is the wrong file


@dataclass(frozen=True, slots=True)
class Scored:
    """What a batch scoring did.

    `batch` stands in each of its rows: in `prediction_log` as `instance`, in `table` as `batch_id`.
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
        """Two lines: what was done, and where the results are."""
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
    """The version that serves; `seen`: by feature, the categories that it learned from."""

    version: int
    bundle: Bundle
    seen: Mapping[str, frozenset[str]]


def serving(settings: Settings, model: str) -> Serving:
    """The version that serves `model`, checked against the hash that it was deployed with.

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
    """Score the rows of `file`, or those of the SELECT `query`, by the version of `model` that serves.

    Raises: DataRefused where both are given or neither, or where a row, `out` or `table` can't be used; UnknownModel,
    NotFound, MissingColumns, RowsRefused, IntegrityError, Unreachable, AccessDenied.
    """
    if bool(file) == bool(query):
        raise DataRefused("give either a file or a query")
    find_spec(settings.models_dir, model)
    if out:  # before anything takes long
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
    """Score every row of `source`, log it, and write it to the file `out` and the table `table` where they are named.

    `source` is opened for the spec of `by`. `now` (UTC) is when the predictions are made. A `.csv` or `.parquet` file
    is replaced at the end, and a table of `evergreen_results` gets all rows then; where something fails both stay as
    they were, and rows logged by then stay too.

    Raises: RowsRefused, DataRefused (nothing is scored then); Unreachable, AccessDenied.
    """
    begun, spec, batch = time.monotonic(), by.bundle.spec, new_id(now)
    _refuse_wrong_rows(source)
    done = 0
    timed = source.spec.timed
    with (
        results_file(out, spec=spec, timed=timed) as write,
        results_table(table, spec=spec, timed=timed, batch=batch, settings=settings) as append,
    ):
        for rows in _checked(source):
            results, log_rows = _score(rows, by=by, batch=batch, now=now)
            _log(log_rows, settings=settings)
            write(results)
            append(results)
            done += rows.num_rows
            if progress:
                progress(done, None)
    where = f"{RESULTS_DB}.{table}" if table else None
    return Scored(spec.name, by.version, done, time.monotonic() - begun, batch, out, where)


def _refuse_wrong_rows(source: Source) -> None:
    """Look at every row before the first one is scored."""
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


def _checked(source: Source) -> Iterator[pa.Table]:
    for chunk in source.chunks():
        checked = check(chunk.rows, spec=source.spec, columns=source.columns, lines=chunk.lines)
        if chunk.broken or checked.rejects or checked.features is None:
            raise DataRefused(f"{source.name}: changed while it was read")
        yield checked.features


def _score(
    rows: pa.Table, *, by: Serving, batch: UUID, now: datetime
) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
    """The results of checked rows as `results_schema` has them, and their rows for the log."""
    spec, begun = by.bundle.spec, time.perf_counter()
    frame = rows.to_pandas()
    scores = score(by.bundle.model, pool_from_frame(frame, spec=spec, label=False), spec=spec)
    latency_ms = (time.perf_counter() - begun) * 1000 / len(frame)  # a row's share of the batch's
    probabilities = None if scores.probabilities is None else scores.probabilities.tolist()
    results, log_rows, warnings_of_row = [], [], warnings_of(spec, by.seen)
    for i, (key, values) in enumerate(
        zip(rows.select(["entity_id", "event_time"]).to_pylist(), rows_of(frame, spec=spec), strict=True)
    ):
        prediction_id, predicted = new_id(now), scores.predictions[i]
        by_class = dict(zip(spec.label.classes, probabilities[i], strict=True)) if probabilities else None
        told = warnings_of_row(values)
        common = {
            "prediction_id": str(prediction_id),
            "confidence": max(by_class.values()) if by_class else None,
            "version": by.version,
        }
        shown = {f"probability_{name}": value for name, value in (by_class or {}).items()}
        keys = {spec.entity: key["entity_id"], str(spec.source.event_time): key["event_time"]}
        results.append(
            {**common, **keys, **shown, "prediction": predicted, "warnings": "; ".join(told), "predicted_at": now}
        )
        logged = {
            **common,
            "model": spec.name,
            "role": "champion",
            "entity_id": key["entity_id"],
            "features": _json(dict(zip(spec.features.columns, values, strict=True))),
            "prediction": str(predicted),
            "probabilities": _json(by_class) if by_class else None,
            "warnings": _json(told),
            "latency_ms": latency_ms,
            "instance": str(batch),
            "created_at": created_at(prediction_id),
            "logged_at": now,
        }
        log_rows.append(tuple(logged[name] for name in LOG_COLUMNS))
    return results, log_rows


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _log(rows: list[tuple[Any, ...]], *, settings: Settings) -> None:
    for start in range(0, len(rows), INSERTED):
        with session(settings, "pipeline") as connection:
            connection.exec_driver_sql(LOG_NEW, rows[start : start + INSERTED])
