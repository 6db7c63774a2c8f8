"""`python -m benchmarks.store_read evergreen|pandas LABELS FILE`: labels with their features to Parquet, timed.

In a process of its own, so that its memory is its own. Prints JSON: seconds, rows, peak memory in bytes.
The baseline is what a data scientist writes: both tables by pandas over pymysql, `merge_asof`, `to_parquet`. Every row
of the generated data is available at its event time, so both give the same rows.
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
    how, name, file = sys.argv[1:]
    settings, spec = load_settings(), spec_of(name)
    started = time.monotonic()
    rows = {"evergreen": evergreen, "pandas": pandas}[how](settings, spec, Path(file))
    seconds = time.monotonic() - started
    print(json.dumps({"seconds": seconds, "rows": rows, "peak_bytes": _peak()}))


def _peak() -> int:
    """Bytes. `ru_maxrss` would not do: a child inherits its parent's, whatever it takes itself."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
