"""Claim a candidate that passed its gates, and determine the version that will serve."""

from datetime import datetime
from typing import TypedDict

from db.history import decisions
from db.session import session
from pipelines.runs import training_runs
from utils.errors import NotFound, NothingToDo
from utils.settings import Settings


class Claimed(TypedDict):
    """A candidate that a deployment has claimed.

    decision: the id of the row with the verdict.
    candidate: the number of the candidate's version.
    why: the reason of the verdict.
    """

    decision: int
    candidate: int
    why: str


def claim(settings: Settings, *, model: str, run_id: str, now: datetime) -> Claimed:
    """Claim the newest candidate of `model` that passed its gates and waits, for the deployment `run_id`.

    Older waiting candidates are claimed with it, so that no other run deploys them.

    Raises:
        NothingToDo: no candidate waits for deployment.
    """
    with session(settings, "pipeline") as connection:
        decision = decisions.claim_candidate(connection, model=model, run_id=run_id, now=now)
    if decision is None:
        raise NothingToDo(model=model, reason="no candidate that passed its gates waits for deployment")
    return {"decision": decision["id"], "candidate": decision["candidate_version"], "why": decision["reason"]}


def promote(settings: Settings, *, decision_id: int) -> int:
    """Return the version to serve for a decision: the candidate, or its final fit if the model file asks for one.

    Raises:
        NotFound: the decision does not exist.
        NothingToDo: a newer candidate has passed its gates, for example while this candidate waited for approval.
        IntegrityError: the final fit is worse on the test rows than the candidate, although it was fitted on these
            rows. The champion keeps serving.
    """
    with session(settings, "pipeline") as connection:
        decision = decisions.find_decision(connection, decision_id)
        newer_version = (
            decisions.newer_candidate(connection, model=decision["model"], than=decision_id) if decision else None
        )
    if decision is None:
        raise NotFound(what=f"promotion decision {decision_id}")
    if newer_version:
        raise NothingToDo(model=decision["model"], reason=f"candidate version {newer_version} superseded this one")
    if decision["promoted_version"]:
        return int(decision["promoted_version"])
    run = training_runs.load_run(settings, decision["run_id"])
    version = int(decision["candidate_version"])
    if run.spec.training.final_fit:
        # The import takes long, because it loads CatBoost. Airflow imports this module at every parse of a DAG file.
        from pipelines.training.final_fit import fit_on_all_rows

        version = fit_on_all_rows(run, version, settings=settings)
    with session(settings, "pipeline") as connection:
        decisions.set_promoted_version(connection, decision_id=decision["id"], version=version)
    return version
