"""Generate histories for the benchmark of the feature store.

A history has three feature rows per label. Its rows are ordered by time.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipelines.spec import ModelSpec

NUMERIC_FEATURES, CATEGORICAL_FEATURES = 18, 4
FEATURE_ROWS_PER_LABEL, LABELS_PER_ENTITY = 3, 10
END, DAYS = datetime(2026, 11, 1), 360
CHUNK_ROWS = 100_000
CATEGORIES = pa.array([f"kind {number}" for number in range(12)])


def make_spec(name: str) -> ModelSpec:
    """Return a model file of that name with 22 features."""
    columns = {f"n{i}": {"type": "numeric"} for i in range(NUMERIC_FEATURES)}
    columns |= {f"c{i}": {"type": "categorical"} for i in range(CATEGORICAL_FEATURES)}
    content = {
        "name": name,
        "task": "binary",
        "entity": "customer_id",
        "source": {"event_time": "at"},
        "label": {"column": "churned", "classes": ["no", "yes"]},
        "features": {"max_age": "90d", "columns": columns},
    }
    return ModelSpec.parse(content, file=f"{name}.yaml")


def write_files(spec: ModelSpec, label_count: int, folder: Path) -> tuple[Path, Path]:
    """Write `label_count` labels and three times as many feature rows to Parquet files. Return (features, labels)."""
    random = np.random.default_rng(1)
    entities = label_count // LABELS_PER_ENTITY
    features_file, labels_file = folder / f"{spec.name}-features.parquet", folder / f"{spec.name}-labels.parquet"
    _write(features_file, _generate_rows(random, label_count * FEATURE_ROWS_PER_LABEL, entities, label=False))
    _write(labels_file, _generate_rows(random, label_count, entities, label=True))
    return features_file, labels_file


def write_csv(spec: ModelSpec, rows: int, entities: int, file: Path) -> None:
    """Write a CSV file with `rows` feature rows of `entities` entities."""
    tables = _generate_rows(np.random.default_rng(1), rows, entities, label=False)
    pyarrow.csv.write_csv(pa.concat_tables(tables).select([spec.entity, "at", *spec.features.columns]), file)


def _generate_rows(random: np.random.Generator, count: int, entities: int, *, label: bool) -> Iterator[pa.Table]:
    """Yield `count` rows in chunks, in the order of time: labels if `label`, else feature rows."""
    chunks = max(1, count // CHUNK_ROWS)
    chunk_span = np.int64(DAYS * 86_400_000_000 // chunks)
    start = np.datetime64(END - timedelta(days=DAYS), "us")
    for chunk in range(chunks):
        size = count // chunks
        entity_numbers = random.integers(0, entities, size)
        moments = start + np.sort(random.integers(chunk * chunk_span, (chunk + 1) * chunk_span, size)).astype(
            "timedelta64[us]"
        )
        columns = {
            "customer_id": pa.array([f"c-{number:08d}" for number in entity_numbers.tolist()]),
            "at": pa.array(moments),
        }
        if label:
            columns["churned"] = pa.array(np.where(random.random(size) < 0.3, "yes", "no"))
        else:
            values = random.normal(size=(NUMERIC_FEATURES, size)).round(4)
            columns |= {f"n{i}": pa.array(values[i]) for i in range(NUMERIC_FEATURES)}
            columns |= {
                f"c{i}": CATEGORIES.take(pa.array(random.integers(0, 12, size))) for i in range(CATEGORICAL_FEATURES)
            }
        yield pa.table(columns)


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    first_table = next(tables)
    with pyarrow.parquet.ParquetWriter(path, first_table.schema) as writer:
        writer.write_table(first_table)
        for table in tables:
            writer.write_table(table)
