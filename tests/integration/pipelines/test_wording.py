"""`evergreen why` and `evergreen history` with rows in a real MariaDB."""

import json
import os
from datetime import datetime, timedelta

import pytest

from db import history
from db.session import session
from db.tables import deployment, promotion_decision, retrain_decision, snapshot, training_run
from pipelines import wording
from stack.programs.program import settings_environment
from tests import commands
from tests.services import spec_like_credit_score

MODEL, MODEL_WITHOUT_HISTORY = "history_model", "model_without_history"
START = datetime(2026, 11, 20, 8)
EVIDENCE = {  # in the form that monitoring writes
    "reasons": [{"cause": "drift", "text": "income drifted"}],
    "blocks": [],
    "history": {
        "windows": [{"end": "2026-11-20T10:00:00Z", "rows": 500, "drifted": ["income", "age"], "defects": []}],
        "performance": None,
        "new_labels": 0,
        "running": "",
    },
}
GATES = [
    {"name": "minimum.macro_f1", "value": 0.71, "threshold": 0.6, "passed": True, "detail": "macro_f1 0.71"},
    {"name": "champion.macro_f1", "value": -0.03, "threshold": -0.01, "passed": False, "detail": "worse"},
    {"name": "slice.credit_mix.Bad", "value": 0.01, "threshold": -0.05, "passed": True, "detail": "fine"},
]


@pytest.fixture(scope="module")
def history_settings(settings, tmp_path_factory):
    """Settings with a model of three trainings: version 2 serves, 4 was rolled back, candidate 5 was rejected."""
    folder = tmp_path_factory.mktemp("models")
    for name in (MODEL, MODEL_WITHOUT_HISTORY):
        spec_like_credit_score(name, folder)
    with session(settings, "pipeline") as connection:
        _add_training(connection, "training/1", candidate=1, at=START, cause="manual", reason="first training")
        _add_verdict(connection, "training/1", 1, None, "promote", at=START, promoted=2, by="deployment/1")
        _add_deployment(connection, "deploy", 2, None, START + timedelta(minutes=5), "deployment/1", "passed 1 gate")
        _add_deployment(
            connection, "live", 2, None, START + timedelta(minutes=6), "deployment/1", "2 worker(s) serve it"
        )
        second_time = START + timedelta(hours=1)
        _add_training(
            connection, "training/2", candidate=3, at=second_time, cause="drift", reason="annual_income moved"
        )
        _add_verdict(connection, "training/2", 3, 2, "promote", at=second_time, promoted=4, by="deployment/2")
        _add_deployment(connection, "deploy", 4, 2, second_time, "deployment/2", "passed 3 gates")
        _add_deployment(
            connection, "failed", 4, None, second_time + timedelta(minutes=3), "deployment/2", "did not come up"
        )
        _add_deployment(
            connection, "rollback", 2, 4, second_time + timedelta(minutes=4), "deployment/2", "version 4 failed"
        )
        third_time = START + timedelta(hours=2)
        _add_training(connection, "training/3", candidate=5, at=third_time, cause="schedule", reason="Monday")
        _add_verdict(connection, "training/3", 5, 2, "reject", at=third_time, gates=GATES)
        hold = {"action": "hold", "cause": "cooldown", "reason": "trained 1 h ago", "evidence": EVIDENCE}
        hold["alert"] = "held back for a week"
        _add(connection, retrain_decision, **hold, caused_by="monitoring/9", decided_at=START + timedelta(hours=3))
    return settings.model_copy(update={"models_dir": folder})


def _add(connection, table, **row):
    history.add(connection, table, {"model": MODEL, **row})


def _add_training(connection, run_id, *, candidate, at, cause, reason):
    decision = {"action": "retrain", "cause": cause, "reason": reason, "evidence": {"psi": 0.2371, "rows": 500}}
    _add(connection, retrain_decision, **decision, caused_by=f"by {cause}", decided_at=at, run_id=run_id, claimed_at=at)
    data = {"window_end": at, "commit_seq": 1, "spec_hash": "s" * 64}
    inputs = {"snapshot_id": f"snapshot of {run_id}", "candidate_version": candidate, "code_commit": "c", "spec": {}}
    state = {"state": "finished", "started_at": at, "trials": 1, "reason": f"{cause}: {reason}"}
    _add(connection, training_run, run_id=run_id, **data, **inputs, **state)
    row = {"snapshot_id": f"snapshot of {run_id}", "row_count": 1234, "content_sha256": "d", "path": "p"}
    _add(connection, snapshot, **data, **row, created_at=at)


def _add_verdict(connection, run_id, candidate, champion, verdict, *, at, gates=GATES, promoted=None, by=None):
    row = {"candidate_version": candidate, "champion_version": champion, "verdict": verdict, "gates": gates}
    row |= {"promoted_version": promoted, "deployment_run_id": by}
    _add(connection, promotion_decision, **row, run_id=run_id, reason=f"verdict on {candidate}", decided_at=at)


def _add_deployment(connection, action, version, previous, at, by, reason):
    row = {"action": action, "version": version, "previous_version": previous, "artifact_sha256": "a" * 64}
    _add(connection, deployment, **row, caused_by=by, reason=reason, created_at=at)


def evergreen(settings, *arguments):
    """Run the command and return its output."""
    environment = settings_environment(settings, secrets=("db_reader_password",))
    process = commands.evergreen(*arguments, environment={**os.environ, **environment, "COLUMNS": "200"})
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_history_lists_versions_with_their_times_reasons_and_runs_newest_first(history_settings):
    rows = wording.serving_history(history_settings, MODEL)
    assert [(row["version"], row["action"], row["outcome"]) for row in rows] == [
        (2, "rollback", None),
        (4, "deploy", "failed"),
        (2, "deploy", "live"),
    ]
    rollback, failed, first_deployment = rows
    assert rollback["until"] is None
    assert failed["until"] == rollback["since"]
    assert first_deployment["until"] == failed["since"]
    assert failed["outcome_reason"] == "did not come up"
    assert (first_deployment["candidate_version"], first_deployment["run_id"]) == (1, "training/1")
    assert (failed["trained_because"], failed["caused_by"]) == ("drift: annual_income moved", "deployment/2")


def test_the_explanation_has_the_last_decision_of_each_kind_with_its_evidence(history_settings):
    explanation = wording.explain(history_settings, MODEL)
    assert explanation.hold is not None
    assert explanation.training is not None
    assert explanation.promotion is not None
    assert explanation.deployment is not None
    assert (explanation.hold["cause"], explanation.hold["evidence"]) == ("cooldown", EVIDENCE)
    assert (explanation.training["cause"], explanation.training["evidence"]["psi"]) == ("schedule", 0.2371)
    assert (explanation.promotion["verdict"], explanation.promotion["gates"]) == ("reject", GATES)
    assert (explanation.promotion["snapshot_rows"], explanation.deployment["version"]) == (1234, 2)


def test_the_command_why_prints_the_decisions_in_sentences(history_settings):
    output = evergreen(history_settings, "why", MODEL)
    assert "a training was asked for (schedule): Monday. Decided by by schedule; taken up by run training/3" in output
    assert (
        "version 5, compared with version 2, may not serve: verdict on 5. Trained by run training/3 on 1,234 r"
        in output
    )
    assert "champion.macro_f1" in output
    assert "and 1 slice(s) passed" in output
    assert "version 2 was put back into service in place of version 4: version 4 failed" in output
    assert "no training was asked for (cooldown): trained 1 h ago. Decided by monitoring/9." in output
    for line in ("psi  0.2371", "reasons  cause drift, text income drifted", "new labels  0", "alert  held back for a"):
        assert line in output
    assert "windows  end 2026-11-20T10:00:00Z, rows 500, drifted income, age" in output
    assert "performance" not in output


def test_the_command_history_prints_the_versions_with_their_times_and_reasons(history_settings):
    output = evergreen(history_settings, "history", MODEL)
    assert output.index("version 2  2026-11-20 09:04:00 UTC to now") < output.index(
        "version 4  2026-11-20 09:00:00 UTC to"
    )
    assert "deploy; failed at 2026-11-20 09:03:00 UTC: did not come up" in output
    assert "drift: annual_income moved (run training/2)" in output


def test_why_and_history_print_one_json_document_with_json(history_settings):
    assert (
        json.loads(evergreen(history_settings, "why", MODEL, "--json"))["deployment"]["since"] == "2026-11-20T09:04:00Z"
    )
    assert [row["version"] for row in json.loads(evergreen(history_settings, "history", MODEL, "--json"))] == [2, 4, 2]


def test_why_and_history_have_a_sentence_for_a_model_without_history(history_settings):
    assert "nothing was deployed yet" in evergreen(history_settings, "why", MODEL_WITHOUT_HISTORY)
    assert f"{MODEL_WITHOUT_HISTORY} has served nothing yet" in evergreen(
        history_settings, "history", MODEL_WITHOUT_HISTORY
    )
    assert json.loads(evergreen(history_settings, "history", MODEL_WITHOUT_HISTORY, "--json")) == []
