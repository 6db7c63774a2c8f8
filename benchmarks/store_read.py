"""`python -m benchmarks.store_read evergreen|pandas HISTORY FILE`: write labels with their features to a Parquet file.

The program runs in its own process, so that its peak memory can be measured. It prints JSON: seconds, rows, and peak
memory in bytes. The baseline `pandas` is a data scientist's usual code: it reads both tables over pymysql, and joins
them with `merge_asof`. Every generated row was available at its event time, so both ways give the same rows.
"""

import json
import sys
import time
from pathlib import Path

import pandas as pd
from sqlalchemy import text

from benchmarks.store_data import END, make_spec
from db.session import session
from db.store.point_in_time import training_rows
from pipelines.runs.extract import write_rows
from pipelines.spec import ModelSpec
from utils.settings import STORE_DB, Settings, load_settings


def read_with_evergreen(settings: Settings, spec: ModelSpec, file: Path) -> int:
    """Write the joined rows to `file` with our code, and return their number."""
    parts = training_rows(settings, spec.store, start=None, until=END, window_end=END, commit_seq=2)
    return write_rows(parts, file)[0]


def read_with_pandas(settings: Settings, spec: ModelSpec, file: Path) -> int:
    """Write the joined rows to `file` with pandas, and return their number."""
    feature_names = ", ".join(spec.features.columns)
    with session(settings, "pipeline", STORE_DB) as connection:
        labels = pd.read_sql(
            text(f"SELECT entity_id, event_time, {spec.label.column} FROM {spec.name}_labels"),  # noqa: S608
            connection,
        )
        features = pd.read_sql(
            text(f"SELECT entity_id, event_time, {feature_names} FROM {spec.name}_features"),  # noqa: S608
            connection,
        )
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
    way, history, file = sys.argv[1:]
    settings, spec = load_settings(), make_spec(history)
    start = time.monotonic()
    row_count = {"evergreen": read_with_evergreen, "pandas": read_with_pandas}[way](settings, spec, Path(file))
    seconds = time.monotonic() - start
    print(json.dumps({"seconds": seconds, "rows": row_count, "peak_bytes": _peak_memory()}))


def _peak_memory() -> int:
    """Return this process's peak memory in bytes.

    `ru_maxrss` would be wrong: a process inherits the value of its parent.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
