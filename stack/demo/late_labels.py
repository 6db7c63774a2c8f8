"""What simulated people leave in the store: their features at once, their labels when those are due.

Labels that are not due when the command ends lie in `.evergreen/simulated/MODEL/`, one file a simulation; the next
simulation of the model takes them over.
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
STEP = 0.5  # seconds between two looks while labels are waited for


class LateLabels:
    """The rows of one simulation. `source` is what `load_batch` tells of them; `name` is that of the file it leaves.

    `waiting`: labels not in the store yet, with the time `due` (UTC). The row counts are of what is new in the store.
    """

    def __init__(self, settings: Settings, spec: ModelSpec, *, delay: timedelta, source: str, name: str) -> None:
        self._settings, self._spec, self._delay, self._source = settings, spec, delay, source
        folder = settings.home / "simulated" / spec.name
        self._file, self._taken_over = folder / f"{name}.parquet", sorted(folder.glob("*.parquet"))
        self.waiting = pd.concat([pd.DataFrame(), *map(pd.read_parquet, self._taken_over)], ignore_index=True)
        self.feature_rows = self.label_rows = 0

    @property
    def due(self) -> datetime | None:
        """When the last of the waiting labels is due, UTC."""
        return None if self.waiting.empty else self.waiting["due"].max().to_pydatetime()

    def load(self, features: pd.DataFrame | None = None, labels: pd.DataFrame | None = None) -> None:
        """Load `features`, and those of `labels` and of the waiting ones that are due, as one batch.

        Both have entity_id, event_time (where the model has time) and available_at: when the person asked, UTC.
        Raises: Unreachable, AccessDenied, StackError, DataRefused.
        """
        now = utc_now()
        if labels is not None:
            dated = labels.assign(due=labels["available_at"] + self._delay)
            self.waiting = dated if self.waiting.empty else pd.concat([self.waiting, dated], ignore_index=True)
        is_due = self.waiting["due"] <= now if len(self.waiting) else pd.Series(dtype=bool)
        # Known from this moment on, not from the one they are about.
        due = self.waiting[is_due].drop(columns="due").assign(available_at=now) if is_due.any() else None
        if features is None and due is None:
            return
        parts = [frame for frame in (features, due) if frame is not None]
        digest = hashlib.sha256(b"".join(pd.util.hash_pandas_object(part).to_numpy().tobytes() for part in parts))
        report = append(
            self._settings,
            self._spec.store,
            features=features,
            labels=due,
            source=self._source,
            content_sha256=digest.hexdigest(),
            caused_by=CAUSE,
            now=now,
            available_at_given=True,
        )
        self.feature_rows += report.features_added
        self.label_rows += report.labels_added
        if due is not None:
            self.waiting = self.waiting[~is_due].reset_index(drop=True)

    def wait(self, longest: timedelta, *, tell: Callable[[timedelta], None]) -> None:
        """Stay until all labels that are due within `longest` are loaded; `tell` hears how long that still takes."""
        end = utc_now() + longest
        soon = self.waiting[self.waiting["due"] <= end] if len(self.waiting) else self.waiting
        if soon.empty:
            return
        last = soon["due"].max().to_pydatetime()
        while (left := last - utc_now()) > timedelta(0):
            tell(left)
            time.sleep(min(STEP, left.total_seconds()))
        self.load()

    def close(self) -> None:
        """Keep what waits on disk, whole or not at all."""
        if len(self.waiting):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            aside = self._file.with_suffix(".new")
            self.waiting.to_parquet(aside, index=False)
            aside.replace(self._file)
        for file in self._taken_over:
            if file != self._file or self.waiting.empty:
                file.unlink(missing_ok=True)
