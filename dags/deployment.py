"""`<model>_deployment` for every model: claim → (approve) → promote → roll out → verify, and back where that fails."""

from datetime import timedelta

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, dag, task
from airflow.sdk.bases.operator import chain
from steps import ALERTS, RETRIES, MlflowLink, model_specs, own_id, step, with_link

from pipelines.spec import ModelSpec
from utils.clock import utc_now

APPROVAL_TIMEOUT = timedelta(days=7)  # after it the answer is no

DOC = """
Puts the newest candidate of **{name}** that passed its gates into service.

| step | does |
|---|---|
| claim | takes the candidates that wait; the newest is deployed, older ones are superseded |
| approve | only with `gates.approval: human`: waits up to a week for a person; no answer means no |
| promote | refits the judged recipe on all rows (`training.final_fit`) and registers what will serve |
| roll_out | says in `deployment` which version should serve, and moves MLflow's aliases; the services follow |
| verify | waits until every living worker serves it |
| roll_back | only after a failure: the version before serves again, aliases included |

It is woken by a training whose verdict is *promote*. Triggered by hand it looks for a waiting candidate itself.
`evergreen deploy` and `evergreen rollback` do the same for a version of your choice.
"""


def deployment(spec: ModelSpec) -> None:
    @dag(
        dag_id=f"{spec.name}_deployment",
        description=f"Put the newest good candidate of {spec.name} into service",
        schedule=[Asset(f"candidate/{spec.name}")],
        catchup=False,
        # A candidate that waits for a person must not keep a newer one from asking.
        max_active_runs=8 if spec.gates.approval == "human" else 1,
        default_args=RETRIES,
        **ALERTS,
        tags=["evergreen", spec.name],
        doc_md=DOC.format(name=spec.name),
    )
    def build() -> None:
        @task(multiple_outputs=False)
        def claim() -> dict[str, object]:
            from pipelines.deployment import promote

            with step() as settings:
                decision = promote.claim(settings, model=spec.name, run_id=own_id(), now=utc_now())
            return {"decision": decision["id"], "candidate": decision["candidate_version"], "why": decision["reason"]}

        @task(task_id="promote")
        def promote_candidate(claimed: dict[str, int]) -> int:
            from pipelines.deployment import promote
            from pipelines.training.training_steps import version_url

            with step() as settings:
                version = promote.promote(settings, decision_id=claimed["decision"])
                MlflowLink.show(version_url(settings, spec.name, version))
            return version

        @task
        def roll_out(claimed: dict[str, object], version: int) -> int:
            from pipelines.deployment import rollout

            with step() as settings:
                rollout.roll_out(
                    settings, model=spec.name, version=version, caused_by=own_id(), reason=str(claimed["why"]),
                    decision_id=int(str(claimed["decision"])), now=utc_now(),
                )  # fmt: skip
            return version

        @task(retries=0)
        def verify(version: int) -> None:
            from pipelines.deployment import rollout

            with step() as settings:
                rollout.verify(settings, model=spec.name, version=version, caused_by=own_id())

        @task(trigger_rule="one_failed")
        def roll_back() -> None:
            from pipelines.deployment import rollout

            with step() as settings:
                rollout.undo(settings, model=spec.name, caused_by=own_id(), now=utc_now())

        claimed = claim()
        version = with_link(promote_candidate(claimed))
        rolled_out = roll_out(claimed, version)
        verified = verify(rolled_out)
        [rolled_out, verified] >> roll_back()
        if spec.gates.approval == "human":
            approve = ApprovalOperator(
                task_id="approve",
                subject=f"Put a new version of {spec.name} into service?",
                body="Candidate version {{ ti.xcom_pull('claim')['candidate'] }}: {{ ti.xcom_pull('claim')['why'] }}",
                execution_timeout=None,
                response_timeout=APPROVAL_TIMEOUT,
                defaults="Reject",
            )
            chain(claimed, approve, version)

    build()


for model_spec in model_specs(suffix="_deployment"):
    deployment(model_spec)
