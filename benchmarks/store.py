"""Measure the feature store: loading rows, joining labels with features, and looking up the newest features.

Every history has 22 features, three feature rows per label, and ten labels per entity over 360 days. `store_data`
generates the histories.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from benchmarks.figures import Figure, Ratio, lower_is_better
from benchmarks.store_data import END, FEATURE_ROWS_PER_LABEL, LABELS_PER_ENTITY, make_spec, write_files
from benchmarks.store_load import make_specs, measure_loads
from db.driver import Client, Link
from db.store import online
from db.store.schema import StoreSchema
from pipelines.loading.loader import load_file
from stack.programs.program import settings_environment
from tests.services import own_mariadb
from utils.settings import STORE_DB, Settings, inherited_environment
from utils.version import ROOT

SIZES = {"store_100k": 100_000, "store_1m": 1_000_000, "store_5m": 5_000_000}
SMALL, MIDDLE, LARGE = SIZES  # the names of the histories
ROUNDS, LOOKUP_ROUNDS, LOOKUPS = 3, 5, 500

Reads = list[dict[str, Any]]  # the output of `store_read` in each round


def measure() -> list[Figure]:
    """Measure all figures of the feature store.

    Raises: AssertionError if the two ways of reading do not give the same rows.
    """
    history_specs, load_specs = {name: make_spec(name) for name in SIZES}, make_specs()
    with own_mariadb([spec.store for spec in (*history_specs.values(), *load_specs)]) as server:
        settings = server.settings
        load_figures = [measure_loads(settings, load_specs), *(_measure_load(settings, name) for name in SIZES)]
        reads: dict[str, Reads] = {name: [] for name in SIZES}
        pandas_reads: Reads = []
        for _ in range(ROUNDS):
            for name in SIZES:
                reads[name].append(_read(settings, "evergreen", name))
            pandas_reads.append(_read(settings, "pandas", MIDDLE))
        _assert_equal(settings, MIDDLE)
        lookups = [figure for count in (1, 100) for figure in _measure_lookups(settings, SMALL, count)]
    return [*_build_read_figures(reads, pandas_reads), *load_figures, *lookups]


def _build_read_figures(reads: dict[str, Reads], pandas_reads: Reads) -> list[Ratio]:
    seconds = {name: [output["seconds"] for output in rounds] for name, rounds in reads.items()}
    microseconds_per_label = {name: [1e6 * value / SIZES[name] for value in seconds[name]] for name in SIZES}
    pandas_seconds = [output["seconds"] for output in pandas_reads]
    pandas_way = "pandas over pymysql, merge_asof"
    return [
        lower_is_better(
            "1,000,000 labels with their features to Parquet",
            seconds[MIDDLE],
            "s",
            against=pandas_way,
            baselines=pandas_seconds,
            goal=8,
        ),
        *(
            lower_is_better(
                f"time of a label, {SIZES[larger]:,} labels",
                microseconds_per_label[larger],
                "µs",
                against=f"{SIZES[smaller]:,} labels",
                baselines=microseconds_per_label[smaller],
                goal=0.8,
            )
            for larger, smaller in ((MIDDLE, SMALL), (LARGE, MIDDLE))
        ),
        lower_is_better(
            "peak memory, 5,000,000 labels",
            [output["peak_bytes"] / 1e9 for output in reads[LARGE]],
            "GB",
            against=f"{pandas_way}, 1,000,000 labels",
            baselines=[output["peak_bytes"] / 1e9 for output in pandas_reads],
            goal=5,
        ),
    ]


def _measure_load(settings: Settings, name: str) -> Figure:
    """Load a history, and return the figure of rows per second."""
    spec = make_spec(name)
    features, labels = write_files(spec, SIZES[name], settings.home)
    report = load_file(features, spec=spec, settings=settings, caused_by="benchmark", now=END)
    assert report.features_added == SIZES[name] * FEATURE_ROWS_PER_LABEL, report
    load_file(labels, spec=spec, settings=settings, caused_by="benchmark", now=END)
    features.unlink()
    labels.unlink()
    figure = Figure(f"load of {report.rows:,} new rows of 24 columns, Parquet", report.rows / report.seconds, "rows/s")
    print(f"{figure.what}: {figure.value:,.0f} {figure.unit}", flush=True)
    return figure


def _read(settings: Settings, way: str, name: str) -> dict[str, Any]:
    """Run `benchmarks.store_read` in its own process, and return its output. `way` is `evergreen` or `pandas`."""
    settings_variables = settings_environment(settings, secrets=("db_pipeline_password",))
    argv = [sys.executable, "-m", "benchmarks.store_read", way, name, str(_file(settings, way))]
    process = subprocess.run(
        argv, cwd=ROOT, env={**inherited_environment(), **settings_variables}, stdout=subprocess.PIPE, check=True
    )
    output: dict[str, Any] = json.loads(process.stdout)
    assert output["rows"] == SIZES[name], output
    print(f"{way}, {name}: {output}", flush=True)
    return output


def _file(settings: Settings, way: str) -> Path:
    return settings.home / f"{way}.parquet"


def _assert_equal(settings: Settings, name: str) -> None:
    """Assert that both ways of reading write the same rows."""
    _read(settings, "evergreen", name)
    ours, baseline = (pyarrow.parquet.read_table(_file(settings, way)) for way in ("evergreen", "pandas"))
    for column in ours.column_names:
        assert ours[column].to_pandas().equals(baseline[column].cast(ours[column].type).to_pandas()), column


def _measure_lookups(settings: Settings, name: str, count: int) -> list[Ratio]:
    """Compare two ways to look up the newest features of `count` entities: the online store, and plain SQL.

    The order of the two alternates.
    """
    schema, client, random = make_spec(name).store, Client(settings), np.random.default_rng(2)
    entities = SIZES[name] // LABELS_PER_ENTITY
    milliseconds: dict[Any, list[list[float]]] = {_look_up_online: [], _look_up_by_sql: []}
    for _ in range(LOOKUP_ROUNDS + 1):
        for way in milliseconds:
            milliseconds[way].append([])
        for number in range(LOOKUPS):
            ids = [f"c-{entity:08d}" for entity in random.integers(0, entities, count)]
            for way in (_look_up_online, _look_up_by_sql) if number % 2 else (_look_up_by_sql, _look_up_online):
                start = time.perf_counter()
                client.run(partial(way, schema=schema, ids=ids))
                milliseconds[way][-1].append(1000 * (time.perf_counter() - start))
    client.close()
    return [
        lower_is_better(
            f"newest features of {count} of {entities:,} entities: {percentile_name}",
            # The first round is a warm-up.
            [float(np.percentile(round_times, percent)) for round_times in milliseconds[_look_up_online][1:]],
            "ms",
            against="SELECT by primary key",
            baselines=[float(np.percentile(round_times, percent)) for round_times in milliseconds[_look_up_by_sql][1:]],
            goal=goal,
        )
        for percent, percentile_name, goal in ((50, "median", 0.7), (99, "99th percentile", 0.6))
    ]


def _look_up_online(link: Link, *, schema: StoreSchema, ids: Sequence[str]) -> None:
    online.latest(link, schema, ids, at=END)


def _look_up_by_sql(link: Link, *, schema: StoreSchema, ids: Sequence[str]) -> None:
    columns = ", ".join(("entity_id", *(column.name for column in schema.features)))
    with link.cursor() as cursor:
        placeholders = ", ".join(["%s"] * len(ids))
        query = f"SELECT {columns} FROM {STORE_DB}.{schema.latest_table} WHERE entity_id IN ({placeholders})"  # noqa: S608
        cursor.execute(query, ids)
        cursor.fetchall()
