"""The rows that a decision on retraining is based on. One session reads all of them, so they are consistent."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, RowMapping

from db.history import decisions, deployments, trainings, window_rows
from db.tables import drift_result, performance_result, window_profile


@dataclass(frozen=True, slots=True)
class RetrainRows:
    """The recorded rows of a model. If no version serves, all other fields are empty.

    serving: the deployment of the version that serves.
    finished: the newest finished training.
    started: the newest training in any state.
    running: the newest training that still runs.
    verdict: the verdict on the candidate of `finished`.
    waiting: the oldest decision to retrain that no training has claimed.
    decided: the last decisions, newest first.
    drift: the drift results of the version's newest windows, oldest first.
    profiled: the counts of the version's windows from the first to the last drifted one, oldest first.
    performance: the version's newest performance result.
    recent: end, rows and quality of the model's newest windows, of any version, oldest first.
    """

    serving: RowMapping | None
    finished: RowMapping | None = None
    started: RowMapping | None = None
    running: RowMapping | None = None
    verdict: RowMapping | None = None
    waiting: RowMapping | None = None
    decided: tuple[RowMapping, ...] = ()
    drift: tuple[RowMapping, ...] = ()
    profiled: tuple[RowMapping, ...] = ()
    performance: RowMapping | None = None
    recent: tuple[RowMapping, ...] = ()

    def profiled_in(self, window: RowMapping) -> list[RowMapping]:
        """Return the rows of `profiled` that were merged into `window`, a row of `drift`."""
        return [row for row in self.profiled if window["window_start"] < row["window_end"] <= window["window_end"]]


def read_rows(connection: Connection, model: str, *, drift: int, recent: int, decided_since: datetime) -> RetrainRows:
    """Read the rows of a model: at most `drift` and `recent` rows of each, and decisions after `decided_since`."""
    serving = deployments.champion(connection, model)
    if serving is None:
        return RetrainRows(serving=None)
    version = int(serving["version"])
    finished = _newest_training(connection, model, state="finished")
    drift_rows = window_rows.newest_windows(connection, drift_result, model=model, version=version, most=drift)
    performance_rows = window_rows.newest_windows(connection, performance_result, model=model, version=version, most=1)
    return RetrainRows(
        serving=serving,
        finished=finished,
        started=_newest_training(connection, model),
        running=_newest_training(connection, model, state="running"),
        verdict=decisions.find_verdict(connection, finished["run_id"]) if finished else None,
        waiting=decisions.open_retraining(connection, model),
        decided=tuple(decisions.last_decisions(connection, model=model, since=decided_since)),
        drift=tuple(drift_rows),
        profiled=_profiled(connection, model, version, [row for row in drift_rows if row["drifted"]]),
        performance=performance_rows[-1] if performance_rows else None,
        recent=tuple(window_rows.last_windows(connection, model=model, most=recent)),
    )


def _newest_training(connection: Connection, model: str, *, state: str | None = None) -> RowMapping | None:
    return next(iter(trainings.trainings(connection, model=model, state=state)), None)


def _profiled(connection: Connection, model: str, version: int, drifted: list[RowMapping]) -> tuple[RowMapping, ...]:
    if not drifted:
        return ()
    after, until = drifted[0]["window_start"], drifted[-1]["window_end"]
    return tuple(
        window_rows.windows(connection, window_profile, model=model, version=version, after=after, until=until)
    )
