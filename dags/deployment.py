"""`<model>_deployment`: claim → (approve) → promote → roll out → verify, and a rollback after a failure."""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, chain, task
from shared import MlflowLink, model_dag, model_specs, step, with_link

from pipelines.deployment import promote, rollout
from pipelines.deployment.promote import Claimed
from pipelines.spec import ModelSpec
from pipelines.training.training_steps import version_url

APPROVAL_TIMEOUT = timedelta(days=7)  # no answer by then means no


@task(multiple_outputs=False)
def claim(model: str) -> Claimed:
    with step() as (settings, run_id, now):
        return promote.claim(settings, model=model, run_id=run_id, now=now)


@task(task_id="promote")
def promote_candidate(model: str, candidate: Claimed) -> int:
    with step() as (settings, _, _):
        version = promote.promote(settings, decision_id=candidate["decision"])
        MlflowLink.show(version_url(settings, model, version))
        return version


@task
def roll_out(model: str, candidate: Claimed, version: int) -> int:
    with step() as (settings, run_id, now):
        rollout.roll_out(
            settings,
            model=model,
            version=version,
            caused_by=run_id,
            reason=candidate["why"],
            decision_id=candidate["decision"],
            now=now,
        )
        return version


@task(retries=0)
def verify(model: str, version: int) -> None:
    with step() as (settings, run_id, _):
        rollout.wait_until_live(settings, model=model, version=version, caused_by=run_id)


@task(trigger_rule="one_failed")
def roll_back(model: str) -> None:
    with step() as (settings, run_id, now):
        rollout.undo(settings, model=model, caused_by=run_id, now=now)


def approval(name: str) -> ApprovalOperator:
    return ApprovalOperator(
        task_id="approve",
        subject=f"Put a new version of {name} into service?",
        body="Candidate version {{ ti.xcom_pull('claim')['candidate'] }}: {{ ti.xcom_pull('claim')['why'] }}",
        execution_timeout=None,
        response_timeout=APPROVAL_TIMEOUT,
        defaults="Reject",
    )


def deployment(spec: ModelSpec) -> None:
    needs_approval = spec.gates.approval == "human"
    with model_dag(
        spec,
        "deployment",
        description=f"Put the newest good candidate of {spec.name} into service",
        schedule=[Asset(f"candidate/{spec.name}")],
        max_active_runs=8 if needs_approval else 1,  # an unanswered approval must not block that of a newer candidate
    ):
        candidate: Any = claim(spec.name)  # an XComArg, which stands for the value
        version = with_link(promote_candidate(spec.name, candidate))
        live_version: Any = roll_out(spec.name, candidate, version)
        [live_version, verify(spec.name, live_version)] >> roll_back(spec.name)
        if needs_approval:
            chain(candidate, approval(spec.name), version)


for model_spec in model_specs("deployment"):
    deployment(model_spec)
