"""Training and promotion with a real MariaDB and MLflow. Each step runs twice, and the second call changes nothing."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from sqlalchemy import delete, insert, update

from db.history import decisions, deployments
from db.session import session
from db.store.store_tables import store_tables
from db.tables import retention
from pipelines import registry
from pipelines.deployment import promote, rollout
from pipelines.runs import training_runs
from pipelines.runs.extract import read_rows
from pipelines.runs.snapshot import content_hash, read_snapshot
from pipelines.runs.training_runs import Run
from pipelines.runs.verify import verify_snapshot
from pipelines.training import training_steps, verdict
from pipelines.training.evaluate import Evaluation
from tests.integration.conftest import Small
from utils.errors import EmptyWindow, IntegrityError, NotFound, NothingToDo, Unreachable
from utils.settings import STORE_DB
from utils.version import code_commit


def claim_run(small: Small, run_id: str, window_end: datetime, trials: int | None = None) -> Run:
    training_runs.record_decision(
        small.settings, model=small.spec.name, cause="manual", reason="a test", caused_by=run_id, now=small.end
    )
    return training_runs.claim(
        small.settings, spec=small.spec, run_id=run_id, now=small.end, window_end=window_end, trials=trials
    )


def train(small: Small, run_id: str, window_end: datetime) -> str:
    claim_run(small, run_id, window_end)
    for step in training_steps.STEPS:
        result = training_steps.run_step(step, run_id, settings=small.settings, now=small.end)
        repeated = training_steps.run_step(step, run_id, settings=small.settings, now=small.end)
        assert repeated == result, f"the second call of {step} has another result"
    return training_runs.read_verdict(small.settings, run_id)


@pytest.fixture(scope="module")
def first_run(small: Small) -> Run:
    """The run of a first training, up to 70 days before the end. Its version was promoted and rolled out."""
    assert train(small, "t/first", small.end - timedelta(days=70)) == "promote"
    claim = promote.claim(small.settings, model=small.spec.name, run_id="d/first", now=small.end)
    version = promote.promote(small.settings, decision_id=claim["decision"])
    assert promote.promote(small.settings, decision_id=claim["decision"]) == version
    for _ in range(2):
        rollout.roll_out(
            small.settings, model=small.spec.name, version=version, caused_by="d/first", reason="a test", now=small.end
        )
    return training_runs.load_run(small.settings, "t/first")


def test_a_version_has_the_bundle_to_serve_it_and_the_tags_of_its_origin(small: Small, first_run: Run) -> None:
    assert first_run.candidate_version
    assert first_run.snapshot_id
    snapshot = read_snapshot(first_run.snapshot_id, settings=small.settings)
    tags = registry.version_tags(small.settings, first_run.model, first_run.candidate_version)
    assert tags["snapshot_id"] == snapshot.manifest.snapshot_id
    assert tags["snapshot_sha256"] == snapshot.manifest.content_sha256
    assert tags["spec_hash"] == small.spec.hash
    assert tags["code_commit"] == code_commit()
    assert tags["run_id"] == "t/first"
    bundle = registry.load(small.settings, first_run.model, first_run.candidate_version)
    assert bundle.spec == small.spec
    assert len(bundle.golden["rows"]) == 20
    newest_label = snapshot.frame["event_time"][
        snapshot.frame["event_time"] <= first_run.window_end - timedelta(days=61)
    ]
    assert registry.fitted_until(tags) == newest_label.max()


def test_the_champion_is_the_final_fit_of_the_candidate_and_has_the_alias(small: Small, first_run: Run) -> None:
    with session(small.settings, "pipeline") as connection:
        champion = deployments.champion(connection, first_run.model)
    assert champion is not None
    tags = registry.version_tags(small.settings, first_run.model, champion["version"])
    assert tags["evaluated_as"] == str(first_run.candidate_version)
    assert registry.fitted_until(tags) > first_run.window_end - timedelta(days=3)
    assert champion["artifact_sha256"] == tags["bundle_sha256"]
    aliases = registry.client(small.settings).get_registered_model(first_run.model).aliases
    assert aliases == {"champion": str(champion["version"]), "challenger": str(first_run.candidate_version)}


def test_the_store_returns_exactly_the_rows_of_the_snapshot_again(small: Small, first_run: Run) -> None:
    assert first_run.snapshot_id
    recorded = read_snapshot(first_run.snapshot_id, settings=small.settings).manifest.content_sha256
    assert content_hash(read_rows(first_run, settings=small.settings)) == recorded


def test_a_snapshot_is_verified_from_the_store_or_from_its_file_after_retention_dropped_rows(
    small: Small, first_run: Run
) -> None:
    assert first_run.snapshot_id
    from_store = verify_snapshot(first_run.snapshot_id, settings=small.settings)
    assert (from_store.read_from, from_store.note) == ("store", "")
    drop = {"table_name": first_run.spec.store.features_table, "model": first_run.model, "caused_by": "test"}
    with session(small.settings, "admin") as connection:
        statement = insert(retention).values(**drop, dropped_before=first_run.window_end, dropped_at=small.end)
        dropped_id = connection.execute(statement).lastrowid
    try:
        from_file = verify_snapshot(first_run.snapshot_id, settings=small.settings)
        assert (from_file.read_from, from_file.content_sha256) == ("file", from_store.content_sha256)
        assert "retention dropped rows before" in from_file.note
    finally:
        with session(small.settings, "admin") as connection:
            connection.execute(delete(retention).where(retention.c.id == dropped_id))


def test_verification_fails_if_rows_of_the_store_were_changed(small: Small, first_run: Run) -> None:
    assert first_run.snapshot_id
    table = store_tables(first_run.spec.store).features
    change = update(table).where(table.c.event_time <= first_run.window_end)
    with session(small.settings, "admin", STORE_DB) as connection:
        connection.execute(change.values(age=table.c.age + 1))
    try:
        with pytest.raises(IntegrityError, match=first_run.snapshot_id):
            verify_snapshot(first_run.snapshot_id, settings=small.settings)
    finally:
        with session(small.settings, "admin", STORE_DB) as connection:
            connection.execute(change.values(age=table.c.age - 1))


def test_a_snapshot_whose_file_was_changed_cannot_be_read(small: Small, first_run: Run) -> None:
    assert first_run.snapshot_id
    file = small.settings.snapshots / f"{first_run.snapshot_id}.parquet"
    content, frame = file.read_bytes(), read_snapshot(first_run.snapshot_id, settings=small.settings).frame
    try:
        frame.assign(age=frame["age"] + 1).to_parquet(file)
        with pytest.raises(IntegrityError, match=first_run.snapshot_id):
            read_snapshot(first_run.snapshot_id, settings=small.settings)
    finally:
        file.write_bytes(content)


def test_mlflow_has_the_data_set_parameters_metrics_curves_plots_and_trials(small: Small, first_run: Run) -> None:
    assert first_run.mlflow_run_id
    mlflow = registry.client(small.settings)
    run = mlflow.get_run(first_run.mlflow_run_id)
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.name == first_run.snapshot_id
    assert {"depth", "learning_rate", "l2_leaf_reg", "trees"} <= set(run.data.params)
    assert {"test_macro_f1", "test_accuracy", "validation_macro_f1"} <= set(run.data.metrics)
    assert len(mlflow.get_metric_history(first_run.mlflow_run_id, "loss_validation")) > 10
    files = {file.path for file in mlflow.list_artifacts(first_run.mlflow_run_id)}
    assert {"confusion_matrix.png", "feature_importance.png", "evaluation.json"} <= files
    trials = mlflow.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first_run.mlflow_run_id}'")
    assert len(trials) == 2


def test_two_workers_that_share_a_search_run_each_trial_once(small: Small) -> None:
    run_id = "t/shared"
    claim_run(small, run_id, small.end, trials=5)
    for step in ("extract", "validate", "open"):
        training_steps.run_step(step, run_id, settings=small.settings, now=small.end)
    with ThreadPoolExecutor(2) as workers:
        futures = [
            workers.submit(training_steps.run_step, "explore", run_id, settings=small.settings, now=small.end)
            for _ in "ab"
        ]
        assert "5 of 5 trials are complete" in {future.result().summary for future in futures}
    repeated = training_steps.run_step("explore", run_id, settings=small.settings, now=small.end)
    assert repeated.summary == "5 of 5 trials are complete"
    training_steps.run_step("search", run_id, settings=small.settings, now=small.end)
    run = training_runs.load_run(small.settings, run_id)
    assert run.mlflow_run_id
    mlflow = registry.client(small.settings)
    experiment = mlflow.get_run(run.mlflow_run_id).info.experiment_id
    trials = mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.mlflow_run_id}'")
    assert len({trial.data.params["learning_rate"] for trial in trials}) == len(trials) == 5
    assert run.best_params
    training_steps.give_up(run_id, settings=small.settings, now=small.end)


def test_a_second_training_is_compared_with_the_champion_on_newer_labels(small: Small, first_run: Run) -> None:
    reached_verdict = train(small, "t/second", small.end)
    with session(small.settings, "pipeline") as connection:
        row = decisions.find_verdict(connection, "t/second")
        champion = deployments.champion(connection, first_run.model)
    assert row is not None
    assert champion is not None
    assert row["champion_version"] == champion["version"]
    gates = {gate["name"]: gate for gate in row["gates"]}
    assert gates["min_rows"]["value"] > 300
    assert "champion.macro_f1" in gates
    assert reached_verdict in {"promote", "wait", "reject"}
    assert (reached_verdict == "promote") == all(gate["passed"] for gate in gates.values())


def test_the_verdict_on_a_training_without_newer_labels_is_to_wait(small: Small, first_run: Run) -> None:
    assert train(small, "t/again", first_run.window_end) == "wait"
    with session(small.settings, "pipeline") as connection:
        row = decisions.find_verdict(connection, "t/again")
    assert row is not None
    assert row["reason"].startswith("waiting for 300 more labels newer than")


def test_a_retry_keeps_the_window_end_and_the_number_of_trials_of_the_first_try(small: Small) -> None:
    first_try = claim_run(small, "t/retry", small.end - timedelta(days=1), trials=1)
    second_try = claim_run(small, "t/retry", small.end + timedelta(days=9), trials=7)
    assert second_try == first_try


def test_a_run_without_an_open_decision_is_rejected_and_not_recorded(small: Small) -> None:
    claim_run(small, "t/claims-all", small.end)
    with pytest.raises(NothingToDo):
        training_runs.claim(small.settings, spec=small.spec, run_id="t/late", now=small.end, window_end=small.end)
    with pytest.raises(NotFound):
        training_runs.load_run(small.settings, "t/late")


def test_the_next_run_claims_the_decisions_of_a_failed_run(small: Small) -> None:
    claim_run(small, "t/fails", small.end)
    training_runs.fail(small.settings, "t/fails", now=small.end)
    run = training_runs.claim(small.settings, spec=small.spec, run_id="t/next", now=small.end, window_end=small.end)
    assert "a test" in run.reason


def test_the_extract_step_fails_without_labels_and_leaves_no_snapshot(small: Small) -> None:
    run = claim_run(small, "t/empty", datetime(2001, 1, 1))
    with pytest.raises(EmptyWindow, match="2000-12-31"):
        training_steps.run_step("extract", run.run_id, settings=small.settings, now=small.end)
    assert training_runs.load_run(small.settings, "t/empty").snapshot_id is None


def test_the_error_of_the_health_check_names_mlflow(small: Small) -> None:
    without_mlflow = small.settings.model_copy(update={"mlflow_port": 1})
    with pytest.raises(Unreachable, match="MLflow does not answer"):
        registry.client(without_mlflow)


def test_a_deployment_that_no_service_loads_fails_and_can_be_undone(small: Small, first_run: Run) -> None:
    from utils.errors import DeploymentFailed

    with session(small.settings, "pipeline") as connection:
        previous = deployments.champion(connection, first_run.model)
    assert previous is not None
    assert first_run.candidate_version
    settings, model = small.settings, first_run.model
    rollout.roll_out(
        settings, model=model, version=first_run.candidate_version, caused_by="d/bad", reason="a test", now=small.end
    )
    with pytest.raises(DeploymentFailed, match=f"version {previous['version']} serves on"):
        rollout.wait_until_live(
            settings, model=model, version=first_run.candidate_version, caused_by="d/bad", timeout=timedelta(seconds=1)
        )
    assert rollout.undo(settings, model=model, caused_by="d/bad", now=small.end) == previous["version"]
    with session(settings, "pipeline") as connection:
        champion = deployments.champion(connection, model)
    assert champion is not None
    assert champion["version"] == previous["version"]
    aliases = registry.client(settings).get_registered_model(model).aliases
    assert aliases["champion"] == str(previous["version"])
    with pytest.raises(NothingToDo):
        rollout.undo(settings, model=model, caused_by="d/bad", now=small.end)


def test_a_candidate_is_not_promoted_if_a_newer_candidate_has_superseded_it(small: Small, first_run: Run) -> None:
    with session(small.settings, "pipeline") as connection:
        old_verdict = decisions.find_verdict(connection, "t/first")
    assert old_verdict is not None
    evaluation = Evaluation(99, None, 9, 9, {}, {}, None, ())
    run = claim_run(small, "t/newer", small.end)
    results = verdict.GateResults("promote", "a test", ())
    verdict.record_verdict(run, results, evaluation, settings=small.settings, now=small.end)
    with pytest.raises(NothingToDo, match="99 superseded"):
        promote.promote(small.settings, decision_id=old_verdict["id"])
