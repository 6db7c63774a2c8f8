"""Rules of the command line: one line for an error, an exit code, a traceback only with --debug."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from tests import commands
from utils.version import release


def environment_of(folder: Path, **environment: str) -> dict[str, str]:
    """The environment of a command with all its files in `folder`."""
    return {**os.environ, "EVERGREEN_ENV_FILE": str(folder / ".env"), "EVERGREEN_HOME": str(folder), **environment}


def evergreen(*arguments: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return commands.evergreen(*arguments, environment=environment_of(folder, **environment))


@pytest.mark.parametrize("command", ["train", "deploy", "rollback"])
def test_the_error_for_an_unknown_model_is_one_line_with_the_known_models(command: str, tmp_path: Path) -> None:
    result = evergreen(command, "nosuch", folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "'nosuch'" in result.stderr
    assert "credit_score" in result.stderr
    assert result.stdout == ""


def test_the_error_for_a_wrong_model_file_is_one_line_with_file_key_and_expectation(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("name: wrong\ntask: guessing\nentity: id\n")
    result = evergreen("models", "wrong", folder=tmp_path, EVERGREEN_MODELS_DIR=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "wrong.yaml: task: " in result.stderr


def test_a_traceback_comes_only_with_debug(tmp_path: Path) -> None:
    for options, count in (((), 0), (("--debug",), 1)):
        command = [commands.EVERGREEN, *options, "train", "nosuch"]
        result = subprocess.run(command, env=environment_of(tmp_path), capture_output=True, text=True)
        assert result.returncode != 0
        assert result.stderr.count("Traceback") == count


def test_the_version_is_shown_with_the_commit(tmp_path: Path) -> None:
    command = [commands.EVERGREEN, "--version"]  # in its own process, because a process looks up the commit only once
    result = subprocess.run(
        command, env=environment_of(tmp_path, EVERGREEN_COMMIT="abc"), capture_output=True, text=True
    )
    assert result.stdout == f"evergreen {release()} (abc)\n"


def test_a_database_that_is_not_up_is_named_with_its_address(tmp_path: Path) -> None:
    variables = {
        "EVERGREEN_MARIADB_PORT": "1",
        "EVERGREEN_DB_READER_PASSWORD": "x",
        "EVERGREEN_DB_PIPELINE_PASSWORD": "x",
    }
    for command in (("models",), ("train", "credit_score"), ("lineage", "01a1fb67-1800-7000-8000-000000000000")):
        result = evergreen(*command, folder=tmp_path, **variables)
        assert result.returncode == 3, command
        assert "MariaDB does not answer at 127.0.0.1:1" in result.stderr


def test_a_missing_password_is_named_by_its_variable(tmp_path: Path) -> None:
    result = evergreen("models", folder=tmp_path)
    assert "EVERGREEN_DB_READER_PASSWORD is not set" in result.stderr


def test_a_text_that_is_no_id_is_refused(tmp_path: Path) -> None:
    result = evergreen("lineage", "abc", folder=tmp_path)
    assert result.returncode == 4
    assert "'abc' is not a prediction_id" in result.stderr


@pytest.mark.parametrize("text", ["3x", "soon", "2026-13-01", "m"])
def test_a_text_that_is_no_moment_is_refused_before_anything_is_sent(text: str) -> None:
    result = CliRunner().invoke(app, ["simulate", "credit_score", "--at", text])
    assert result.exit_code == 2
    assert "--at" in result.stderr


def test_json_is_one_document_and_nothing_else(tmp_path: Path) -> None:
    result = evergreen("models", "credit_score", "--json", folder=tmp_path)
    assert json.loads(result.stdout)["name"] == "credit_score"
    assert result.stderr == ""


def test_without_a_terminal_there_are_no_colours(tmp_path: Path) -> None:
    result = evergreen("models", "credit_score", folder=tmp_path)
    assert "\x1b[" not in result.stdout
