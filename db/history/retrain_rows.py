"""Rows of every kind that a decision to retrain goes by. One session reads them all, so they are of one moment."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, RowMapping

from db.history import decisions, deployments, trainings, window_rows
from db.tables import drift_result, performance_result, window_profile


@dataclass(frozen=True, slots=True)
class RetrainRows:
    """What is recorded of a model. Where nothing serves, nothing else is read.

    serving: the deployment of the version that serves. finished, started, running: the newest training that finished,
    the newest in any state, the newest that is still running. verdict: on the candidate of `finished`. waiting: the
    oldest decision to retrain that no training has claimed. decided: the last decisions, newest first.

    drift: what the version's newest windows showed, oldest first. profiled: counts of the version's windows from the
    first of those that drifted to the last, oldest first. performance: the version's newest result. recent: end, rows
    and quality of the model's newest windows, of any version, oldest first.
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
        """Those of `profiled` that were put together for `window`, a row of `drift`."""
        return [row for row in self.profiled if window["window_start"] < row["window_end"] <= window["window_end"]]


def read_rows(connection: Connection, model: str, *, drift: int, recent: int, decided_since: datetime) -> RetrainRows:
    """`drift` and `recent` are how many rows there are of each at most. Decisions were made after `decided_since`."""
    serving = deployments.champion(connection, model)
    if serving is None:
        return RetrainRows(serving=None)
    version = int(serving["version"])
    finished = _newest_training(connection, model, state="finished")
    compared = window_rows.newest_windows(connection, drift_result, model=model, version=version, most=drift)
    measured = window_rows.newest_windows(connection, performance_result, model=model, version=version, most=1)
    return RetrainRows(
        serving=serving,
        finished=finished,
        started=_newest_training(connection, model),
        running=_newest_training(connection, model, state="running"),
        verdict=decisions.find_verdict(connection, finished["run_id"]) if finished else None,
        waiting=decisions.open_retraining(connection, model),
        decided=tuple(decisions.last_decisions(connection, model=model, since=decided_since)),
        drift=tuple(compared),
        profiled=_profiled(connection, model, version, [row for row in compared if row["drifted"]]),
        performance=measured[-1] if measured else None,
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
