"""Load the rows of simulated people: features at once, labels as soon as they are due.

Labels that are not due at the end of the command are kept in `.evergreen/simulated/MODEL/`, one file per simulation.
The next simulation of the model loads them.
"""

import hashlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pandas as pd

from db.store.appending import append
from pipelines.spec import ModelSpec
from utils.clock import utc_now
from utils.settings import Settings

CAUSE = "evergreen simulate"
LABEL_POLL = 0.5  # seconds between two checks while labels are waited for


class LateLabels:
    """The loader of one simulation's rows.

    waiting: labels that are not in the store yet, with the column `due` (UTC).
    feature_rows, label_rows: the number of loaded rows that were new in the store.

    `delay`: the time from a prediction to its label. `source`: the source of the rows in `load_batch`. `name`: the
    name of the file for waiting labels, without its ending.
    """

    def __init__(self, settings: Settings, spec: ModelSpec, *, delay: timedelta, source: str, name: str) -> None:
        self._settings, self._spec, self._delay, self._source = settings, spec, delay, source
        folder = settings.home / "simulated" / spec.name
        self._file, self._earlier_files = folder / f"{name}.parquet", sorted(folder.glob("*.parquet"))
        self.waiting = pd.concat([pd.DataFrame(), *map(pd.read_parquet, self._earlier_files)], ignore_index=True)
        self.feature_rows = self.label_rows = 0

    @property
    def last_due(self) -> datetime | None:
        """The time when the last waiting label is due, UTC. None if no label waits."""
        return None if self.waiting.empty else self.waiting["due"].max().to_pydatetime()

    def load(self, features: pd.DataFrame | None = None, labels: pd.DataFrame | None = None) -> None:
        """Load `features` and all labels that are due, as one batch. New `labels` that are not due wait.

        Both frames have the columns entity_id, available_at and, if the model has time, event_time. Both times are the
        time of the request, UTC. Raises: Unreachable, AccessDenied, StackError, DataRefused.
        """
        now = utc_now()
        if labels is not None:
            new_labels = labels.assign(due=labels["available_at"] + self._delay)
            self.waiting = (
                new_labels if self.waiting.empty else pd.concat([self.waiting, new_labels], ignore_index=True)
            )
        is_due = self.waiting["due"] <= now if len(self.waiting) else pd.Series(dtype=bool)
        # A label becomes available now, not at the time of the request.
        due_labels = self.waiting[is_due].drop(columns="due").assign(available_at=now) if is_due.any() else None
        if features is None and due_labels is None:
            return
        frames = [frame for frame in (features, due_labels) if frame is not None]
        digest = hashlib.sha256(b"".join(pd.util.hash_pandas_object(frame).to_numpy().tobytes() for frame in frames))
        report = append(
            self._settings,
            self._spec.store,
            features=features,
            labels=due_labels,
            source=self._source,
            content_sha256=digest.hexdigest(),
            caused_by=CAUSE,
            now=now,
            available_at_given=True,
        )
        self.feature_rows += report.features_added
        self.label_rows += report.labels_added
        if due_labels is not None:
            self.waiting = self.waiting[~is_due].reset_index(drop=True)

    def wait(self, longest: timedelta, *, report: Callable[[timedelta], None]) -> None:
        """Wait until all labels that are due within `longest` are loaded. `report` is given the remaining time."""
        end = utc_now() + longest
        due_soon = self.waiting[self.waiting["due"] <= end] if len(self.waiting) else self.waiting
        if due_soon.empty:
            return
        last_due_soon = due_soon["due"].max().to_pydatetime()
        while (remaining := last_due_soon - utc_now()) > timedelta(0):
            report(remaining)
            time.sleep(min(LABEL_POLL, remaining.total_seconds()))
        self.load()

    def close(self) -> None:
        """Write the waiting labels to disk, atomically. Remove the files of earlier simulations, which were loaded."""
        if len(self.waiting):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            new_file = self._file.with_suffix(".new")
            self.waiting.to_parquet(new_file, index=False)
            new_file.replace(self._file)
        for file in self._earlier_files:
            if file != self._file or self.waiting.empty:
                file.unlink(missing_ok=True)
