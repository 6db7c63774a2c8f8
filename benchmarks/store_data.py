"""Generated histories for the benchmark of the store: three feature rows for every label, in the order of time."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipelines.spec import ModelSpec

NUMBERS, CATEGORIES = 18, 4
FEATURE_ROWS_A_LABEL, LABELS_AN_ENTITY = 3, 10
END, DAYS = datetime(2026, 11, 1), 360
CHUNK = 100_000
KINDS = pa.array([f"kind {number}" for number in range(12)])


def spec_of(name: str) -> ModelSpec:
    """A model file with 22 features."""
    columns = {f"n{i}": {"type": "numeric"} for i in range(NUMBERS)}
    columns |= {f"c{i}": {"type": "categorical"} for i in range(CATEGORIES)}
    content = {
        "name": name,
        "task": "binary",
        "entity": "customer_id",
        "source": {"event_time": "at"},
        "label": {"column": "churned", "classes": ["no", "yes"]},
        "features": {"max_age": "90d", "columns": columns},
    }
    return ModelSpec.parse(content, file=f"{name}.yaml")


def write_files(spec: ModelSpec, labels: int, folder: Path) -> tuple[Path, Path]:
    """Write Parquet files with `labels` labels and three times as many feature rows. Return (features, labels)."""
    random = np.random.default_rng(1)
    entities = labels // LABELS_AN_ENTITY
    features_file, labels_file = folder / f"{spec.name}-features.parquet", folder / f"{spec.name}-labels.parquet"
    _write(features_file, _rows(random, labels * FEATURE_ROWS_A_LABEL, entities, label=False))
    _write(labels_file, _rows(random, labels, entities, label=True))
    return features_file, labels_file


def write_csv(spec: ModelSpec, rows: int, entities: int, file: Path) -> None:
    """Write a CSV file with `rows` feature rows of `entities` entities."""
    tables = _rows(np.random.default_rng(1), rows, entities, label=False)
    pyarrow.csv.write_csv(pa.concat_tables(tables).select([spec.entity, "at", *spec.features.columns]), file)


def _rows(random: np.random.Generator, count: int, entities: int, *, label: bool) -> Iterator[pa.Table]:
    chunks = max(1, count // CHUNK)
    span = np.int64(DAYS * 86_400_000_000 // chunks)
    first = np.datetime64(END - timedelta(days=DAYS), "us")
    for chunk in range(chunks):
        size = count // chunks
        entity_numbers = random.integers(0, entities, size)
        moments = first + np.sort(random.integers(chunk * span, (chunk + 1) * span, size)).astype("timedelta64[us]")
        columns = {
            "customer_id": pa.array([f"c-{number:08d}" for number in entity_numbers.tolist()]),
            "at": pa.array(moments),
        }
        if label:
            columns["churned"] = pa.array(np.where(random.random(size) < 0.3, "yes", "no"))
        else:
            values = random.normal(size=(NUMBERS, size)).round(4)
            columns |= {f"n{i}": pa.array(values[i]) for i in range(NUMBERS)}
            columns |= {f"c{i}": KINDS.take(pa.array(random.integers(0, 12, size))) for i in range(CATEGORIES)}
        yield pa.table(columns)


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with pyarrow.parquet.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
