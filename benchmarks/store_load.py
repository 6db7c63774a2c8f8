"""Compare the loader with a usual script, in which pandas checks a file and LOAD DATA loads it."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sqlalchemy import text

from benchmarks.figures import Ratio, higher_is_better
from benchmarks.store_data import END, make_spec, write_csv
from db.session import engine
from pipelines.loading.loader import load_file
from pipelines.spec import ModelSpec
from utils.settings import STORE_DB, Settings

ROUNDS, ROWS, ENTITIES = 5, 300_000, 10_000


def make_specs() -> list[ModelSpec]:
    """Return one model for each round, so that every round loads into empty tables."""
    return [make_spec(f"load_{number}") for number in range(ROUNDS)]


def measure_loads(settings: Settings, specs: Sequence[ModelSpec]) -> Ratio:
    """Measure how many rows of 24 columns are loaded per second, from the file to the commit.

    Raises: AssertionError if a row is missing.
    """
    file = settings.home / "features.csv"
    write_csv(specs[0], ROWS, ENTITIES, file)
    rates, baselines = [], []
    for number, spec in enumerate(specs):
        report = load_file(file, spec=spec, settings=settings, caused_by="benchmark", now=END)
        assert report.features_added == ROWS, report
        rates.append(ROWS / report.seconds)
        baselines.append(ROWS / _load_plainly(settings, spec, file))
        print(f"round {number + 1}, load: {rates[-1]:,.0f} rows/s, by LOAD DATA {baselines[-1]:,.0f}", flush=True)
    file.unlink()
    return higher_is_better(
        f"load of {ROWS:,} new rows of 24 columns",
        rates,
        "rows/s",
        against="LOAD DATA after pandas' checks of the file",
        baselines=baselines,
        goal=0.7,
    )


def _load_plainly(settings: Settings, spec: ModelSpec, file: Path) -> float:
    """Return the seconds to load the file with LOAD DATA into a table like the model's feature table.

    Unlike the loader, this does not compare the rows with the store, and does not update the online store.
    """
    admin_engine = engine(settings, "admin", local_infile=True)
    model_table, table = f"{STORE_DB}.{spec.store.features_table}", f"{STORE_DB}.{spec.name}_plain"
    columns = ", ".join(["entity_id", "event_time", *spec.features.columns])
    statement = (
        f"LOAD DATA LOCAL INFILE :file INTO TABLE {table} CHARACTER SET utf8mb4 FIELDS TERMINATED BY ','"
        f" OPTIONALLY ENCLOSED BY '\"' IGNORE 1 LINES ({columns}) SET available_at = event_time, batch_id = 1"
    )
    with admin_engine.connect() as connection:
        connection.execute(text(f"CREATE TABLE {table} LIKE {model_table}"))
        start = time.perf_counter()
        _assert_valid(pd.read_csv(file, parse_dates=["at"]), spec)
        assert connection.execute(text(statement), {"file": str(file)}).rowcount == ROWS
        assert not connection.scalar(text("SELECT @@warning_count"))
        connection.commit()
        duration = time.perf_counter() - start
        connection.execute(text(f"DROP TABLE {table}"))
    admin_engine.dispose()
    return duration


def _assert_valid(frame: pd.DataFrame, spec: ModelSpec) -> None:
    text_columns = [spec.entity, *spec.columns_of("categorical")]
    assert np.isfinite(frame[spec.columns_of("numeric")].to_numpy(np.float64)).all()
    assert all(frame[name].notna().all() and frame[name].str.len().max() <= 64 for name in text_columns)
    assert frame["at"].between("1000-01-01", "9999-12-31").all()
    assert not frame.duplicated([spec.entity, "at"]).any()
