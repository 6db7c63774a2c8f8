"""Promote: refit what was judged on everything that is known, and name the version that shall serve."""

from datetime import datetime

from sqlalchemy import RowMapping

from db.history import decisions
from db.session import session
from pipelines import registry
from pipelines.artifact.features import pool_from_frame, score
from pipelines.measures.metrics import HIGHER_IS_BETTER, judge, value
from pipelines.runs import training_runs
from pipelines.runs.snapshot import read_snapshot
from pipelines.runs.training_runs import Run
from pipelines.spec import margin_at
from pipelines.training.fit import fit_recipe, newest_label, register
from pipelines.training.split import split_rows
from utils.errors import IntegrityError, NotFound, NothingToDo
from utils.settings import Settings


def claim(settings: Settings, *, model: str, run_id: str, now: datetime) -> RowMapping:
    """The newest candidate of `model` that passed its gates and waits; it and all older ones are then `run_id`'s.

    Raises: NothingToDo where none waits.
    """
    with session(settings, "pipeline") as connection:
        decision = decisions.claim_candidate(connection, model=model, run_id=run_id, now=now)
    if decision is None:
        raise NothingToDo(model=model, reason="no candidate that passed its gates waits for deployment")
    return decision


def promote(settings: Settings, *, decision_id: int) -> int:
    """The version that serves for a decision: the candidate, or its final fit where the model file asks for one.

    Raises: NothingToDo where a newer candidate passed its gates meanwhile, as while this one waited for a person;
    IntegrityError where the final fit is worse on the test rows, which it has seen, than the candidate, which
    had not; the champion then serves on.
    """
    with session(settings, "pipeline") as connection:
        decision = decisions.find_decision(connection, decision_id)
        newer = decisions.newer_candidate(connection, model=decision["model"], than=decision_id) if decision else None
    if decision is None:
        raise NotFound(what=f"promotion decision {decision_id}")
    if newer:
        raise NothingToDo(model=decision["model"], reason=f"candidate version {newer} superseded this one")
    if decision["promoted_version"]:
        return int(decision["promoted_version"])
    run = training_runs.load_run(settings, decision["run_id"])
    candidate = int(decision["candidate_version"])
    version = final_fit(run, candidate, settings=settings) if run.spec.training.final_fit else candidate
    with session(settings, "pipeline") as connection:
        decisions.set_promoted_version(connection, decision_id=decision["id"], version=version)
    return version


def final_fit(run: Run, candidate: int, *, settings: Settings) -> int:
    """Refit the candidate's recipe (same parameters, same number of trees) with the test rows included and register it.

    What serves would otherwise know nothing newer than its test period. Raises: IntegrityError (see `promote`).
    """
    version = registry.find_version(settings, run.model, run_id=run.run_id, evaluated_as=candidate)
    if version is not None:
        return version
    snapshot = read_snapshot(str(run.snapshot_id), settings=settings)
    model, fitted_rows = fit_recipe(snapshot.frame, run=run)
    test = split_rows(snapshot.frame, spec=run.spec, until=newest_label(run)).test
    truth, pool = test[run.spec.label.column].to_numpy(), pool_from_frame(test, spec=run.spec, label=False)
    metric = run.spec.gates.champion.metric
    judged = registry.load(settings, run.model, candidate).model
    final, evaluated = (
        value(metric, judge(truth, score(fitted, pool, spec=run.spec), spec=run.spec)) for fitted in (model, judged)
    )
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    if sign * (final - evaluated) < -margin_at(run.spec.gates.champion.margin, evaluated):
        raise IntegrityError(what=f"final fit of version {candidate}", expected=f"{metric} near {evaluated:.4f}",
                             found=f"{final:.4f}")  # fmt: skip
    return register(model, fitted_rows, run=run, manifest=snapshot.manifest, settings=settings, evaluated_as=candidate)
