"""Each database user can run the statements that its job needs, and no others."""

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from db.session import session
from tests.servers import free_port
from utils.errors import AccessDenied, Unreachable

LOG = """INSERT INTO evergreen.prediction_log
         VALUES (UUID(), 'm', 1, 'champion', 'e', '{}', 'x', NULL, NULL, NULL, 1, UUID(), NOW(), NOW())
         ON DUPLICATE KEY UPDATE prediction_id = VALUES(prediction_id)"""
DEPLOY = """INSERT INTO evergreen.deployment (model, action, version, artifact_sha256, caused_by, reason, created_at)
            VALUES ('m', 'deploy', 1, 'x', 'me', 'test', NOW())"""
FEEDBACK = """INSERT INTO evergreen.prediction_feedback (prediction_id, model, actual, received_at)
              VALUES (UUID(), 'm', 'x', NOW())"""
REJECT = """INSERT INTO evergreen.request_reject VALUES ('m', NOW(), 'f', 'r', 1)
            ON DUPLICATE KEY UPDATE requests = requests + 1"""
WINDOW = """INSERT INTO evergreen.window_profile VALUES (NULL, 'm', 1, NOW(), NOW(), 0, 0, '{}', '{}', NOW())"""
FEATURES, LABELS = "evergreen_store.credit_score_features", "evergreen_store.credit_score_labels"
LATEST = "evergreen_store.credit_score_latest"

ALLOWED = [
    ("api", LOG),
    ("api", f"SELECT * FROM {LATEST}"),
    ("api", "SELECT * FROM evergreen.deployment"),
    ("api", FEEDBACK),
    ("api", REJECT),
    ("api", "UPDATE evergreen.instance SET heartbeat_at = NOW()"),
    ("loader", f"DELETE FROM {FEATURES} WHERE batch_id = 0"),
    ("loader", "SELECT * FROM evergreen.load_batch"),
    ("loader", "CREATE TEMPORARY TABLE evergreen_store.scratch (n INT)"),
    ("pipeline", DEPLOY),
    ("pipeline", LOG.partition(" ON DUPLICATE")[0]),
    ("pipeline", f"SELECT * FROM {FEATURES}"),
    ("pipeline", "SELECT * FROM evergreen.prediction_log"),
    ("pipeline", "SELECT * FROM evergreen.prediction_feedback"),
    ("pipeline", "SELECT * FROM evergreen.request_reject"),
    ("pipeline", WINDOW),
    ("pipeline", "CREATE OR REPLACE TABLE optuna.scratch (n INT)"),
    ("pipeline", "CREATE TABLE IF NOT EXISTS evergreen_results.scratch (n INT)"),
    ("pipeline", "INSERT INTO evergreen_results.scratch VALUES (1)"),
    ("reader", "SELECT * FROM evergreen_results.scratch"),
    ("reader", f"SELECT * FROM {LABELS}"),
    ("reader", "SELECT * FROM evergreen.deployment"),
    ("mlflow", "CREATE OR REPLACE TABLE mlflow.scratch (n INT)"),
    ("maintenance", "LOCK TABLES evergreen.prediction_log WRITE"),
    ("maintenance", "ALTER TABLE evergreen.prediction_log TRUNCATE PARTITION p_later"),
    ("maintenance", "DELETE FROM evergreen.prediction_feedback WHERE id = 0"),
    ("maintenance", "UPDATE evergreen.load_batch SET state = 'abandoned' WHERE batch_id = 0"),
    ("maintenance", f"ALTER TABLE {FEATURES} TRUNCATE PARTITION p_later"),
    ("maintenance", f"DELETE FROM {LABELS} WHERE batch_id = 0"),
    ("maintenance", "SELECT * FROM evergreen.snapshot"),
    ("admin", "ALTER TABLE evergreen.instance COMMENT = ''"),
]

FORBIDDEN = [
    ("api", f"SELECT * FROM {FEATURES}"),
    ("api", f"SELECT * FROM {LABELS}"),
    ("api", f"UPDATE {LATEST} SET age = 1"),
    ("api", "UPDATE evergreen.deployment SET version = 2"),
    ("api", DEPLOY),
    ("api", "SELECT features FROM evergreen.prediction_log"),
    ("api", "UPDATE evergreen.prediction_log SET prediction = 'y'"),
    ("api", "DELETE FROM evergreen.prediction_log"),
    ("api", "SELECT * FROM evergreen.prediction_feedback"),
    ("api", "SELECT * FROM evergreen.training_run"),
    ("loader", "SELECT * FROM evergreen.prediction_log"),
    ("loader", "SELECT * FROM evergreen.deployment"),
    ("loader", f"UPDATE {FEATURES} SET age = 1"),
    ("loader", f"DELETE FROM {LATEST}"),
    ("loader", "DELETE FROM evergreen.load_batch"),
    ("loader", f"DROP TABLE {FEATURES}"),
    ("pipeline", f"DELETE FROM {FEATURES}"),
    ("pipeline", f"INSERT INTO {LABELS} VALUES ('e', NOW(), NOW(), 1, 'Good')"),
    ("pipeline", "DELETE FROM evergreen.training_run"),
    ("pipeline", "UPDATE evergreen.deployment SET version = 2"),
    ("pipeline", "UPDATE evergreen.drift_result SET drifted = 0"),
    ("pipeline", "DELETE FROM evergreen.performance_result"),
    ("api", "SELECT * FROM evergreen.drift_result"),
    ("pipeline", "UPDATE evergreen.snapshot SET path = ''"),
    ("pipeline", "UPDATE evergreen.prediction_log SET prediction = 'y'"),
    ("pipeline", "SELECT 1 FROM mlflow.scratch"),
    ("pipeline", "CREATE TABLE evergreen_store.scratch (n INT)"),
    ("pipeline", "DELETE FROM evergreen_results.scratch"),
    ("pipeline", "DROP TABLE evergreen_results.scratch"),
    ("reader", "INSERT INTO evergreen_results.scratch VALUES (1)"),
    ("api", "SELECT * FROM evergreen_results.scratch"),
    ("reader", "UPDATE evergreen.deployment SET version = 2"),
    ("reader", f"DELETE FROM {LABELS}"),
    ("reader", "CREATE TABLE evergreen.scratch (n INT)"),
    ("reader", "SELECT * FROM mysql.global_priv"),
    ("mlflow", "SELECT * FROM evergreen.training_run"),
    ("maintenance", "DELETE FROM evergreen.prediction_log"),
    ("maintenance", "UPDATE evergreen.load_batch SET commit_seq = 1"),
    ("maintenance", "DELETE FROM evergreen.snapshot"),
    ("maintenance", "DELETE FROM evergreen.retention"),
    ("maintenance", "ALTER TABLE evergreen.deployment COMMENT = ''"),
    ("maintenance", DEPLOY),
    ("maintenance", f"UPDATE {FEATURES} SET age = 1"),
    ("maintenance", f"DELETE FROM {LATEST}"),
    ("maintenance", "SELECT 1 FROM mlflow.scratch"),
    ("mlflow", f"SELECT * FROM {LATEST}"),
    ("mlflow", "SELECT 1 FROM optuna.scratch"),
    ("admin", "CREATE DATABASE another"),
    ("admin", "SELECT * FROM mysql.global_priv"),
    ("admin", "CREATE USER somebody"),
]


@pytest.mark.parametrize(("role", "statement"), ALLOWED)
def test_a_user_can_do_its_work(settings, role, statement):
    with session(settings, role, "information_schema") as connection:
        connection.execute(text(statement))
        connection.rollback()


@pytest.mark.parametrize(("role", "statement"), FORBIDDEN)
def test_a_user_can_do_nothing_else(settings, role, statement):
    with (
        pytest.raises(AccessDenied, match=f"refuses user 'evergreen_{role}'"),
        session(settings, role, "information_schema") as connection,
    ):
        connection.execute(text(statement))


def test_a_wrong_password_is_one_line_without_the_password(settings):
    wrong_password = settings.model_copy(update={"db_reader_password": SecretStr("guessed")})
    with (
        pytest.raises(AccessDenied, match="refuses user 'evergreen_reader'") as refused,
        session(wrong_password, "reader"),
    ):
        pass
    assert "\n" not in str(refused.value)
    assert "guessed" not in str(refused.value)


def test_the_error_for_a_missing_database_advises_make_up(settings):
    with (
        pytest.raises(AccessDenied, match="`make up` gives missing grants"),
        session(settings, "pipeline", "not_made_yet"),
    ):
        pass


def test_a_server_that_is_down_is_unreachable(settings):
    down = settings.model_copy(update={"mariadb_port": free_port()})
    address = f"127.0.0.1:{down.mariadb_port}"
    with pytest.raises(Unreachable, match=f"MariaDB does not answer at {address}") as refused, session(down, "reader"):
        pass
    assert "\n" not in str(refused.value)
