"""`python -m benchmarks.store_read evergreen|pandas LABELS FILE`: write labels with features to Parquet, and time it.

It runs in its own process to measure the peak memory. Prints JSON: seconds, rows, peak memory in bytes.
The baseline is a data scientist's usual code: both tables by pandas over pymysql, `merge_asof`, `to_parquet`. The
availability time of every generated row is its event time, so both ways give the same rows.
"""

import json
import sys
import time
from pathlib import Path

import pandas as pd
from sqlalchemy import text

from benchmarks.store_data import END, spec_of
from db.session import session
from db.store.point_in_time import training_rows
from pipelines.runs.extract import write_rows
from pipelines.spec import ModelSpec
from utils.settings import STORE_DB, Settings, load_settings


def evergreen(settings: Settings, spec: ModelSpec, file: Path) -> int:
    parts = training_rows(settings, spec.store, start=None, until=END, window_end=END, commit_seq=2)
    return write_rows(parts, file)[0]


def pandas(settings: Settings, spec: ModelSpec, file: Path) -> int:
    names = ", ".join(spec.features.columns)
    with session(settings, "pipeline", STORE_DB) as connection:
        labels = pd.read_sql(
            text(f"SELECT entity_id, event_time, {spec.label.column} FROM {spec.name}_labels"),  # noqa: S608
            connection,
        )
        features = pd.read_sql(text(f"SELECT entity_id, event_time, {names} FROM {spec.name}_features"), connection)  # noqa: S608
    assert spec.features.max_age is not None
    joined = pd.merge_asof(
        labels.sort_values("event_time"),
        features.sort_values("event_time"),
        on="event_time",
        by="entity_id",
        tolerance=pd.Timedelta(spec.features.max_age),
    )
    joined.sort_values(["entity_id", "event_time"]).to_parquet(file, index=False, compression="zstd")
    return len(joined)


def main() -> None:
    way, name, file = sys.argv[1:]
    settings, spec = load_settings(), spec_of(name)
    start = time.monotonic()
    rows = {"evergreen": evergreen, "pandas": pandas}[way](settings, spec, Path(file))
    seconds = time.monotonic() - start
    print(json.dumps({"seconds": seconds, "rows": rows, "peak_bytes": _peak()}))


def _peak() -> int:
    """This process's peak memory in bytes. `ru_maxrss` would include the memory of the parent, which is inherited."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
