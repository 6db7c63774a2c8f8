"""Promote: claim what was judged good enough, and name the version that shall serve."""

from datetime import datetime
from typing import TypedDict

from db.history import decisions
from db.session import session
from pipelines.runs import training_runs
from utils.errors import NotFound, NothingToDo
from utils.settings import Settings


class Claimed(TypedDict):
    """A candidate that a deployment took. `decision`: its row's id; `candidate`: its version; `why` it may serve."""

    decision: int
    candidate: int
    why: str


def claim(settings: Settings, *, model: str, run_id: str, now: datetime) -> Claimed:
    """The newest candidate of `model` that passed its gates and waits; it and all older ones are then `run_id`'s.

    Raises: NothingToDo where none waits.
    """
    with session(settings, "pipeline") as connection:
        decision = decisions.claim_candidate(connection, model=model, run_id=run_id, now=now)
    if decision is None:
        raise NothingToDo(model=model, reason="no candidate that passed its gates waits for deployment")
    return {"decision": decision["id"], "candidate": decision["candidate_version"], "why": decision["reason"]}


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
    version = int(decision["candidate_version"])
    if run.spec.training.final_fit:
        from pipelines.training.final_fit import final_fit  # CatBoost: the DAG file imports this one at every parse

        version = final_fit(run, version, settings=settings)
    with session(settings, "pipeline") as connection:
        decisions.set_promoted_version(connection, decision_id=decision["id"], version=version)
    return version
