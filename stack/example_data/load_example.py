"""Load example data into the store in the same way as a user's file."""

import hashlib
from datetime import datetime

import pandas as pd
import pyarrow as pa

from db.store.batch import LoadReport, Origin
from pipelines.loading.columns import Columns
from pipelines.loading.files import CHUNK_ROWS, numbered
from pipelines.loading.loader import Progress, load_rows
from pipelines.spec import ModelSpec
from stack.example_data.credit_score import EXAMPLE_SEED
from stack.example_data.worlds import example_world
from utils.settings import Settings


def load_example(*, spec: ModelSpec, settings: Settings, now: datetime, progress: Progress | None = None) -> LoadReport:
    """Load the generated example data of the model. The newest rows have the day of `now` (UTC).

    Raises: NotFound if the model has no example; Unreachable, AccessDenied.
    """
    frame = example_world(spec.name, end=now)
    source = f"example world, seed {EXAMPLE_SEED}"
    digest = hashlib.sha256(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()).hexdigest()
    columns = Columns.of(list(frame.columns), spec=spec, source=source)
    rows = pa.Table.from_pandas(frame[list(columns.taken)], preserve_index=False)
    chunks = numbered(pa.Table.from_batches([batch]) for batch in rows.to_batches(CHUNK_ROWS))
    origin = Origin(source, digest, "evergreen load --example", now)
    return load_rows(chunks, columns, origin, spec=spec, settings=settings, progress=progress)
