"""From rows in MariaDB to a version that may serve, with a real MLflow; every step also done a second time."""

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


def claimed(small: Small, run_id: str, window_end: datetime, trials: int | None = None) -> Run:
    training_runs.record_decision(
        small.settings, model=small.spec.name, cause="manual", reason="a test", caused_by=run_id, now=small.end
    )
    return training_runs.claim(
        small.settings, spec=small.spec, run_id=run_id, now=small.end, window_end=window_end, trials=trials
    )


def trained(small: Small, run_id: str, window_end: datetime) -> str:
    claimed(small, run_id, window_end)
    for step in training_steps.STEPS:
        done = training_steps.do(step, run_id, settings=small.settings, now=small.end)
        again = training_steps.do(step, run_id, settings=small.settings, now=small.end)
        assert (again.summary, again.url) == (done.summary, done.url), f"{step} did something else the second time"
    return training_runs.verdict(small.settings, run_id)


@pytest.fixture(scope="module")
def first(small: Small) -> Run:
    """A training up to 70 days before the end, promoted and rolled out."""
    assert trained(small, "t/first", small.end - timedelta(days=70)) == "promote"
    claimed = promote.claim(small.settings, model=small.spec.name, run_id="d/first", now=small.end)
    version = promote.promote(small.settings, decision_id=claimed["decision"])
    assert promote.promote(small.settings, decision_id=claimed["decision"]) == version
    for _ in range(2):
        rollout.roll_out(
            small.settings, model=small.spec.name, version=version, caused_by="d/first", reason="a test", now=small.end
        )
    return training_runs.load_run(small.settings, "t/first")


def test_a_version_carries_everything_that_serving_it_and_tracing_it_back_takes(small: Small, first: Run) -> None:
    assert first.candidate_version
    assert first.snapshot_id
    snapshot = read_snapshot(first.snapshot_id, settings=small.settings)
    tags = registry.version_tags(small.settings, first.model, first.candidate_version)
    assert tags["snapshot_id"] == snapshot.manifest.snapshot_id
    assert tags["snapshot_sha256"] == snapshot.manifest.content_sha256
    assert tags["spec_hash"] == small.spec.hash
    assert tags["code_commit"] == code_commit()
    assert tags["run_id"] == "t/first"
    bundle = registry.load(small.settings, first.model, first.candidate_version)
    assert bundle.spec == small.spec
    assert len(bundle.golden["rows"]) == 20
    newest_fitted = snapshot.frame["event_time"][snapshot.frame["event_time"] <= first.window_end - timedelta(days=61)]
    assert registry.fitted_until(tags) == newest_fitted.max()


def test_what_serves_is_the_final_fit_of_what_was_judged_and_the_aliases_say_so(small: Small, first: Run) -> None:
    with session(small.settings, "pipeline") as connection:
        serving = deployments.champion(connection, first.model)
    assert serving is not None
    tags = registry.version_tags(small.settings, first.model, serving["version"])
    assert tags["evaluated_as"] == str(first.candidate_version)
    assert registry.fitted_until(tags) > first.window_end - timedelta(days=3)
    assert serving["artifact_sha256"] == tags["bundle_sha256"]
    aliases = registry.client(small.settings).get_registered_model(first.model).aliases
    assert aliases == {"champion": str(serving["version"]), "challenger": str(first.candidate_version)}


def test_the_snapshot_can_be_read_from_the_store_again_exactly(small: Small, first: Run) -> None:
    assert first.snapshot_id
    recorded = read_snapshot(first.snapshot_id, settings=small.settings).manifest.content_sha256
    assert content_hash(read_rows(first, settings=small.settings)) == recorded


def test_a_snapshot_is_verified_from_the_store_and_from_its_file_where_retention_dropped_rows(
    small: Small, first: Run
) -> None:
    assert first.snapshot_id
    verified = verify_snapshot(first.snapshot_id, settings=small.settings)
    assert (verified.read_from, verified.note) == ("store", "")
    dropped = {"table_name": first.spec.store.features_table, "model": first.model, "caused_by": "test"}
    with session(small.settings, "admin") as connection:
        added = insert(retention).values(**dropped, dropped_before=first.window_end, dropped_at=small.end)
        dropped_id = connection.execute(added).lastrowid
    try:
        again = verify_snapshot(first.snapshot_id, settings=small.settings)
        assert (again.read_from, again.content_sha256) == ("file", verified.content_sha256)
        assert "retention dropped rows before" in again.note
    finally:
        with session(small.settings, "admin") as connection:
            connection.execute(delete(retention).where(retention.c.id == dropped_id))


def test_a_store_that_was_changed_behind_its_back_no_longer_verifies(small: Small, first: Run) -> None:
    assert first.snapshot_id
    table = store_tables(first.spec.store).features
    moved = update(table).where(table.c.event_time <= first.window_end)
    with session(small.settings, "admin", STORE_DB) as connection:
        connection.execute(moved.values(age=table.c.age + 1))
    try:
        with pytest.raises(IntegrityError, match=first.snapshot_id):
            verify_snapshot(first.snapshot_id, settings=small.settings)
    finally:
        with session(small.settings, "admin", STORE_DB) as connection:
            connection.execute(moved.values(age=table.c.age - 1))


def test_a_snapshot_whose_file_was_changed_is_refused(small: Small, first: Run) -> None:
    assert first.snapshot_id
    file = small.settings.snapshots / f"{first.snapshot_id}.parquet"
    kept, frame = file.read_bytes(), read_snapshot(first.snapshot_id, settings=small.settings).frame
    try:
        frame.assign(age=frame["age"] + 1).to_parquet(file)
        with pytest.raises(IntegrityError, match=first.snapshot_id):
            read_snapshot(first.snapshot_id, settings=small.settings)
    finally:
        file.write_bytes(kept)


def test_mlflow_shows_data_set_parameters_metrics_curves_plots_and_trials(small: Small, first: Run) -> None:
    assert first.mlflow_run_id
    mlflow = registry.client(small.settings)
    run = mlflow.get_run(first.mlflow_run_id)
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.name == first.snapshot_id
    assert {"depth", "learning_rate", "l2_leaf_reg", "trees"} <= set(run.data.params)
    assert {"test_macro_f1", "test_accuracy", "validation_macro_f1"} <= set(run.data.metrics)
    assert len(mlflow.get_metric_history(first.mlflow_run_id, "loss_validation")) > 10
    files = {file.path for file in mlflow.list_artifacts(first.mlflow_run_id)}
    assert {"confusion_matrix.png", "feature_importance.png", "evaluation.json"} <= files
    trials = mlflow.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first.mlflow_run_id}'")
    assert len(trials) == 2


def test_two_who_share_a_search_try_each_trial_once_and_what_one_leaves_is_done_after(small: Small) -> None:
    run_id = "t/shared"
    claimed(small, run_id, small.end, trials=5)
    for step in ("extract", "validate", "open"):
        training_steps.do(step, run_id, settings=small.settings, now=small.end)
    with ThreadPoolExecutor(2) as workers:
        shared = [
            workers.submit(training_steps.do, "explore", run_id, settings=small.settings, now=small.end) for _ in "ab"
        ]
        assert "5 of 5 trials are complete" in {done.result().summary for done in shared}
    again = training_steps.do("explore", run_id, settings=small.settings, now=small.end)
    assert again.summary == "5 of 5 trials are complete"
    training_steps.do("search", run_id, settings=small.settings, now=small.end)
    run = training_runs.load_run(small.settings, run_id)
    assert run.mlflow_run_id
    mlflow = registry.client(small.settings)
    experiment = mlflow.get_run(run.mlflow_run_id).info.experiment_id
    tried = mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.mlflow_run_id}'")
    assert len({trial.data.params["learning_rate"] for trial in tried}) == len(tried) == 5
    assert run.best_params
    training_steps.give_up(run_id, settings=small.settings, now=small.end)


def test_a_second_training_is_judged_on_rows_newer_than_the_champion_knows(small: Small, first: Run) -> None:
    verdict = trained(small, "t/second", small.end)
    with session(small.settings, "pipeline") as connection:
        row = decisions.find_verdict(connection, "t/second")
        serving = deployments.champion(connection, first.model)
    assert row is not None
    assert serving is not None
    assert row["champion_version"] == serving["version"]
    gates = {gate["name"]: gate for gate in row["gates"]}
    assert gates["min_rows"]["value"] > 300
    assert "champion.macro_f1" in gates
    assert verdict in {"promote", "wait", "reject"}
    assert (verdict == "promote") == all(gate["passed"] for gate in gates.values())


def test_the_same_data_again_waits_for_labels_that_the_champion_has_not_seen(small: Small, first: Run) -> None:
    assert trained(small, "t/again", first.window_end) == "wait"
    with session(small.settings, "pipeline") as connection:
        row = decisions.find_verdict(connection, "t/again")
    assert row is not None
    assert row["reason"].startswith("waiting for 300 more labels newer than")


def test_a_retry_keeps_the_window_and_the_budget_that_the_first_try_fixed(small: Small) -> None:
    once = claimed(small, "t/retry", small.end - timedelta(days=1), trials=1)
    again = claimed(small, "t/retry", small.end + timedelta(days=9), trials=7)
    assert again == once


def test_nothing_is_trained_where_no_decision_is_open(small: Small) -> None:
    claimed(small, "t/takes-all", small.end)
    with pytest.raises(NothingToDo):
        training_runs.claim(small.settings, spec=small.spec, run_id="t/late", now=small.end, window_end=small.end)
    with pytest.raises(NotFound):
        training_runs.load_run(small.settings, "t/late")


def test_decisions_of_a_failed_run_are_claimed_by_the_next(small: Small) -> None:
    claimed(small, "t/dies", small.end)
    training_runs.fail(small.settings, "t/dies", now=small.end)
    taken = training_runs.claim(small.settings, spec=small.spec, run_id="t/heir", now=small.end, window_end=small.end)
    assert "a test" in taken.reason


def test_an_empty_window_is_refused_and_leaves_no_snapshot(small: Small) -> None:
    run = claimed(small, "t/empty", datetime(2001, 1, 1))
    with pytest.raises(EmptyWindow, match="2000-12-31"):
        training_steps.do("extract", run.run_id, settings=small.settings, now=small.end)
    assert training_runs.load_run(small.settings, "t/empty").snapshot_id is None


def test_an_mlflow_that_is_down_is_named_at_once(small: Small) -> None:
    gone = small.settings.model_copy(update={"mlflow_port": 1})
    with pytest.raises(Unreachable, match="MLflow does not answer"):
        registry.client(gone)


def test_a_deployment_that_no_service_takes_up_fails_and_is_undone(small: Small, first: Run) -> None:
    from utils.errors import DeploymentFailed

    with session(small.settings, "pipeline") as connection:
        before = deployments.champion(connection, first.model)
    assert before is not None
    assert first.candidate_version
    settings, model = small.settings, first.model
    rollout.roll_out(
        settings, model=model, version=first.candidate_version, caused_by="d/bad", reason="a test", now=small.end
    )
    with pytest.raises(DeploymentFailed, match=f"version {before['version']} serves on"):
        rollout.wait_until_live(
            settings, model=model, version=first.candidate_version, caused_by="d/bad", timeout=timedelta(seconds=1)
        )
    assert rollout.undo(settings, model=model, caused_by="d/bad", now=small.end) == before["version"]
    with session(settings, "pipeline") as connection:
        champion = deployments.champion(connection, model)
    assert champion is not None
    assert champion["version"] == before["version"]
    aliases = registry.client(settings).get_registered_model(model).aliases
    assert aliases["champion"] == str(before["version"])
    with pytest.raises(NothingToDo):
        rollout.undo(settings, model=model, caused_by="d/bad", now=small.end)


def test_an_older_candidate_is_superseded_by_a_newer_one(small: Small, first: Run) -> None:
    with session(small.settings, "pipeline") as connection:
        old = decisions.find_verdict(connection, "t/first")
    assert old is not None
    evaluation = Evaluation(99, None, 9, 9, {}, {}, None, ())
    run = claimed(small, "t/newer", small.end)
    decision = verdict.GateResults("promote", "a test", ())
    verdict.record_verdict(run, decision, evaluation, settings=small.settings, now=small.end)
    with pytest.raises(NothingToDo, match="99 superseded"):
        promote.promote(small.settings, decision_id=old["id"])
