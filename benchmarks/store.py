"""The feature store: loading, reading at a point in time, and the online store.

Every history has ten labels an entity over 360 days, three feature rows a label, 22 features; see `store_data`.
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
from benchmarks.store_data import END, FEATURE_ROWS_A_LABEL, LABELS_AN_ENTITY, spec_of, write_files
from benchmarks.store_load import loads, specs
from db.driver import Client, Link
from db.store import online
from db.store.schema import StoreSchema
from pipelines.loading.loader import load_file
from stack.programs.program import settings_environment
from tests.services import own_mariadb
from utils.settings import STORE_DB, Settings, inherited_environment
from utils.version import ROOT

SIZES = {"store_100k": 100_000, "store_1m": 1_000_000, "store_5m": 5_000_000}
SMALL, MIDDLE, LARGE = SIZES
ROUNDS, LOOKUP_ROUNDS, LOOKUPS = 3, 5, 500

Read = list[dict[str, Any]]  # what `store_read` says of itself, a round each


def measure() -> list[Figure]:
    """Raises: AssertionError where both ways of reading do not give the same rows."""
    own, models = {name: spec_of(name) for name in SIZES}, specs()
    with own_mariadb([spec.store for spec in (*own.values(), *models)]) as server:
        settings = server.settings
        loaded = [loads(settings, models), *(_load(settings, name) for name in SIZES)]
        read: dict[str, Read] = {name: [] for name in SIZES}
        pandas: Read = []
        for _ in range(ROUNDS):
            for name in SIZES:
                read[name].append(_read(settings, "evergreen", name))
            pandas.append(_read(settings, "pandas", MIDDLE))
        _assert_equal(settings, MIDDLE)
        lookups = [figure for count in (1, 100) for figure in _lookups(settings, SMALL, count)]
    return [*_reading(read, pandas), *loaded, *lookups]


def _reading(read: dict[str, Read], pandas: Read) -> list[Ratio]:
    seconds = {name: [each["seconds"] for each in rounds] for name, rounds in read.items()}
    a_label = {name: [1e6 * each / SIZES[name] for each in seconds[name]] for name in SIZES}
    plain = [each["seconds"] for each in pandas]
    way = "pandas over pymysql, merge_asof"
    return [
        lower_is_better(
            "1,000,000 labels with their features to Parquet",
            seconds[MIDDLE],
            "s",
            against=way,
            baselines=plain,
            goal=8,
        ),
        *(
            lower_is_better(
                f"time of a label, {SIZES[larger]:,} labels",
                a_label[larger],
                "µs",
                against=f"{SIZES[smaller]:,} labels",
                baselines=a_label[smaller],
                goal=0.8,
            )
            for larger, smaller in ((MIDDLE, SMALL), (LARGE, MIDDLE))
        ),
        lower_is_better(
            "peak memory, 5,000,000 labels",
            [each["peak_bytes"] / 1e9 for each in read[LARGE]],
            "GB",
            against=f"{way}, 1,000,000 labels",
            baselines=[each["peak_bytes"] / 1e9 for each in pandas],
            goal=5,
        ),
    ]


def _load(settings: Settings, name: str) -> Figure:
    """Feature rows a second."""
    spec = spec_of(name)
    features, labels = write_files(spec, SIZES[name], settings.home)
    report = load_file(features, spec=spec, settings=settings, caused_by="benchmark", now=END)
    assert report.features_added == SIZES[name] * FEATURE_ROWS_A_LABEL, report
    load_file(labels, spec=spec, settings=settings, caused_by="benchmark", now=END)
    features.unlink()
    labels.unlink()
    figure = Figure(f"load of {report.rows:,} new rows of 24 columns, Parquet", report.rows / report.seconds, "rows/s")
    print(f"{figure.what}: {figure.value:,.0f} {figure.unit}", flush=True)
    return figure


def _read(settings: Settings, how: str, name: str) -> dict[str, Any]:
    own = settings_environment(settings, secrets=("db_pipeline_password",))
    argv = [sys.executable, "-m", "benchmarks.store_read", how, name, str(_file(settings, how))]
    ran = subprocess.run(argv, cwd=ROOT, env={**inherited_environment(), **own}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    assert found["rows"] == SIZES[name], found
    print(f"{how}, {name}: {found}", flush=True)
    return found


def _file(settings: Settings, how: str) -> Path:
    return settings.home / f"{how}.parquet"


def _assert_equal(settings: Settings, name: str) -> None:
    """That the last files of both ways hold the same rows."""
    _read(settings, "evergreen", name)
    ours, theirs = (pyarrow.parquet.read_table(_file(settings, how)) for how in ("evergreen", "pandas"))
    for column in ours.column_names:
        assert ours[column].to_pandas().equals(theirs[column].cast(ours[column].type).to_pandas()), column


def _lookups(settings: Settings, name: str, count: int) -> list[Ratio]:
    """Reading the newest features of `count` entities, and the same rows plainly: each has the first turn in turn."""
    schema, client, random = spec_of(name).store, Client(settings), np.random.default_rng(2)
    entities = SIZES[name] // LABELS_AN_ENTITY
    took: dict[Any, list[list[float]]] = {_ours: [], _plain: []}
    for _ in range(LOOKUP_ROUNDS + 1):
        for way in took:
            took[way].append([])
        for number in range(LOOKUPS):
            ids = [f"c-{each:08d}" for each in random.integers(0, entities, count)]
            for way in (_ours, _plain) if number % 2 else (_plain, _ours):
                began = time.perf_counter()
                client.run(partial(way, schema=schema, ids=ids))
                took[way][-1].append(1000 * (time.perf_counter() - began))
    client.close()
    return [
        lower_is_better(
            f"newest features of {count} of {entities:,} entities: {told}",
            [float(np.percentile(each, percent)) for each in took[_ours][1:]],  # without the round that warms up
            "ms",
            against="SELECT by primary key",
            baselines=[float(np.percentile(each, percent)) for each in took[_plain][1:]],
            goal=goal,
        )
        for percent, told, goal in ((50, "median", 0.7), (99, "99th percentile", 0.6))
    ]


def _ours(link: Link, *, schema: StoreSchema, ids: Sequence[str]) -> None:
    online.latest(link, schema, ids, at=END)


def _plain(link: Link, *, schema: StoreSchema, ids: Sequence[str]) -> None:
    columns = ", ".join(("entity_id", *(column.name for column in schema.features)))
    with link.cursor() as cursor:
        places = ", ".join(["%s"] * len(ids))
        cursor.execute(f"SELECT {columns} FROM {STORE_DB}.{schema.latest_table} WHERE entity_id IN ({places})", ids)  # noqa: S608
        cursor.fetchall()
