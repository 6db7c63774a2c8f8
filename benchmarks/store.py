"""The feature store: loading, reading at a point in time, and the online store.

Every history has ten labels an entity over 360 days, three feature rows a label, 22 features; see `store_data`.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from benchmarks.figures import Figure, lower_is_better, within
from benchmarks.store_data import END, FEATURE_ROWS_A_LABEL, LABELS_AN_ENTITY, spec_of, write_files
from db.driver import Client
from db.store import online
from pipelines.loading.loader import load_file
from stack.programs.program import settings_environment
from tests.services import own_mariadb
from utils.settings import Settings, inherited_environment
from utils.version import ROOT

SIZES = {"store_100k": 100_000, "store_1m": 1_000_000, "store_5m": 5_000_000}
SMALL, MIDDLE, LARGE = SIZES
ROUNDS, LOOKUPS = 3, 2_000
FASTER, GROWTH, MEMORY_GB, LOADED, ONE_MS, HUNDRED_MS = 10.0, 1.2, 2.0, 80_000.0, 1.7, 6.0  # goals


def measure() -> list[Figure]:
    """Raises: AssertionError where both ways of reading do not give the same rows."""
    specs = {name: spec_of(name) for name in SIZES}
    with own_mariadb([spec.store for spec in specs.values()]) as server:
        settings = server.settings
        loads = [_load(settings, name) for name in SIZES]
        read = {name: _read(settings, "evergreen", name, rounds=ROUNDS) for name in SIZES}
        baseline = _read(settings, "pandas", MIDDLE, rounds=ROUNDS)
        _assert_equal(settings, MIDDLE)
        lookups = {count: _lookups(settings, SMALL, count) for count in (1, 100)}
    seconds = {name: statistics.median(each["seconds"] for each in rounds) for name, rounds in read.items()}
    pandas_seconds = statistics.median(each["seconds"] for each in baseline)
    peak = max(each["peak_bytes"] for each in read[LARGE]) / 1e9
    pandas_peak = max(each["peak_bytes"] for each in baseline) / 1e9
    a_row = {name: seconds[name] / SIZES[name] for name in SIZES}
    what = "1,000,000 labels with their features to Parquet"
    return [
        lower_is_better(f"{what}: pandas and merge_asof", seconds[MIDDLE], "s", baseline=pandas_seconds, goal=FASTER),
        within("time a row, 1,000,000 labels against 100,000", a_row[MIDDLE] / a_row[SMALL], "times", most=GROWTH),
        within("time a row, 5,000,000 labels against 1,000,000", a_row[LARGE] / a_row[MIDDLE], "times", most=GROWTH),
        within(f"peak memory, 5,000,000 labels (pandas, 1,000,000: {pandas_peak:.1f} GB)", peak, "GB", most=MEMORY_GB),
        within("load of new rows of 24 columns, checks included", statistics.median(loads), "rows/s", least=LOADED),
        within("latest features of one entity, 99th percentile", lookups[1], "ms", most=ONE_MS),
        within("latest features of 100 entities, 99th percentile", lookups[100], "ms", most=HUNDRED_MS),
    ]


def _load(settings: Settings, name: str) -> float:
    """Feature rows a second."""
    spec = spec_of(name)
    features, labels = write_files(spec, SIZES[name], settings.home)
    report = load_file(features, spec=spec, settings=settings, caused_by="benchmark", now=END)
    assert report.features_added == SIZES[name] * FEATURE_ROWS_A_LABEL, report
    load_file(labels, spec=spec, settings=settings, caused_by="benchmark", now=END)
    features.unlink()
    labels.unlink()
    print(f"{name}: {report.rows / report.seconds:,.0f} feature rows/s", flush=True)
    return report.rows / report.seconds


def _read(settings: Settings, how: str, name: str, *, rounds: int) -> list[dict[str, Any]]:
    own = settings_environment(settings, secrets=("db_pipeline_password",))
    argv = [sys.executable, "-m", "benchmarks.store_read", how, name, str(_file(settings, how))]
    found = []
    for number in range(rounds):
        ran = subprocess.run(argv, cwd=ROOT, env={**inherited_environment(), **own}, stdout=subprocess.PIPE, check=True)
        found.append(json.loads(ran.stdout))
        assert found[-1]["rows"] == SIZES[name], found
        print(f"round {number + 1}, {how}, {name}: {found[-1]}", flush=True)
    return found


def _file(settings: Settings, how: str) -> Path:
    return settings.home / f"{how}.parquet"


def _assert_equal(settings: Settings, name: str) -> None:
    """That the last files of both ways hold the same rows."""
    _read(settings, "evergreen", name, rounds=1)
    ours, theirs = (pyarrow.parquet.read_table(_file(settings, how)) for how in ("evergreen", "pandas"))
    for column in ours.column_names:
        assert ours[column].to_pandas().equals(theirs[column].cast(ours[column].type).to_pandas()), column


def _lookups(settings: Settings, name: str, count: int) -> float:
    """The 99th percentile of reading the newest features of `count` entities, in ms."""
    spec, client, random = spec_of(name), Client(settings), np.random.default_rng(2)
    entities = SIZES[name] // LABELS_AN_ENTITY
    asked = [[f"c-{number:08d}" for number in random.integers(0, entities, count)] for _ in range(LOOKUPS)]
    took = [
        _timed(lambda ids=ids: client.run(lambda link: online.latest(link, spec.store, ids, at=END))) for ids in asked
    ]
    client.close()
    return float(np.percentile(took[LOOKUPS // 10 :], 99)) * 1000


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
