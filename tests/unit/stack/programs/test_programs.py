import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipelines.spec import model_names
from stack.programs import ports, program_list, secrets
from stack.programs.airflow_programs import airflow_programs
from stack.programs.logs import show
from stack.programs.processes import MARKER
from stack.programs.program import settings_environment
from stack.programs.supervisor import launcher_command
from utils.errors import NotFound, StackError
from utils.settings import Settings, load_settings
from utils.version import ROOT


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return secrets.ensure(load_settings(env_file=tmp_path / ".env", home=tmp_path / "home"))[0]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def secrets_in(text: str, settings: Settings) -> set[str]:
    names = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    return {name for name in names if getattr(settings, name).get_secret_value() in text}


def test_command_lines_and_reprs_contain_no_secret(settings: Settings) -> None:
    for program in program_list.programs(settings):
        launch = program.launch()
        assert secrets_in(" ".join(launch.argv), settings) == set(), program.name
        assert secrets_in(repr(program) + repr(launch), settings) == set(), program.name


def test_each_program_gets_only_the_secrets_that_it_needs(settings: Settings) -> None:
    secrets_by_program = {
        program.name: secrets_in(json.dumps(dict(program.launch().environment)), settings)
        for program in program_list.programs(settings)
    }
    airflow_secrets = {"airflow_jwt_secret", "airflow_fernet_key"}
    assert secrets_by_program == {
        "mariadb": set(),
        "mlflow": {"db_mlflow_password"},
        "airflow-api-server": airflow_secrets,
        "airflow-scheduler": airflow_secrets,
        "airflow-dag-processor": airflow_secrets,
        "airflow-triggerer": airflow_secrets,
        **{f"serve-{model}": {"db_api_password", "api_key"} for model in model_names(ROOT / "models")},
    }


def test_a_program_reads_the_settings_of_the_process_that_starts_it(settings: Settings) -> None:
    environment = settings_environment(settings, secrets=("db_api_password",))
    script = "from utils.settings import load_settings; print(load_settings().model_dump_json())"
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = Settings.model_validate_json(process.stdout)
    assert (loaded.home, loaded.timezone, loaded.serving_port) == (
        settings.home,
        settings.timezone,
        settings.serving_port,
    )
    assert loaded.api_key.get_secret_value() == ""


def test_programs_that_a_teams_own_servers_replace_are_not_started(settings: Settings) -> None:
    addresses = {
        "mariadb_host": "db.example",
        "mlflow_url": "http://mlflow.example",
        "airflow_url": "http://air.example",
    }
    names = [program.name for program in program_list.programs(settings.model_copy(update=addresses))]
    assert names == [f"serve-{model}" for model in model_names(ROOT / "models")]


def test_a_model_keeps_its_port_when_other_models_are_added_or_removed(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    local_settings = settings.model_copy(update={"models_dir": folder, "serving_port": 4000})
    (folder / "m.yaml").touch()
    assert program_list.serving_ports(local_settings) == {"m": 4000}
    (folder / "a.yaml").touch()
    assert program_list.serving_ports(local_settings) == {"a": 4001, "m": 4000}
    (folder / "m.yaml").unlink()
    assert program_list.serving_ports(local_settings) == {"a": 4001}


def test_the_error_for_a_taken_port_names_its_owner_and_the_variable_that_changes_it(
    settings: Settings, listener: socket.socket
) -> None:
    port = listener.getsockname()[1]
    changed_settings = settings.model_copy(update={"mlflow_port": port})
    with pytest.raises(
        StackError, match=rf"port {port} \(mlflow\) is taken by process {os.getpid()} .*EVERGREEN_MLFLOW_PORT"
    ):
        ports.check([program_list.mlflow_program(changed_settings)], changed_settings)


def test_the_error_for_a_port_that_two_parts_want_names_both_parts(settings: Settings, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    changed_settings = settings.model_copy(update={"mlflow_port": port, "airflow_port": port})
    wanted_programs = [program_list.mlflow_program(changed_settings), *airflow_programs(changed_settings)]
    with pytest.raises(StackError, match=rf"port {port} is wanted by mlflow and airflow-api-server"):
        ports.check(wanted_programs, changed_settings)


def test_a_program_gets_arguments_and_variables_with_special_characters_unchanged(tmp_path: Path) -> None:
    special_text = "quote' double\" percent% ;comment #hash \\ back\nline"
    file = tmp_path / "program.json"
    script = "import json, os, sys; print(json.dumps([sys.argv[1], dict(os.environ)]))"
    file.write_text(
        json.dumps({"argv": [sys.executable, "-c", script, special_text], "environment": {"ODD": special_text}})
    )
    process = subprocess.run(launcher_command(file, digest="0"), capture_output=True, text=True, check=True)
    argument, environment = json.loads(process.stdout)
    assert (argument, environment["ODD"]) == (special_text, special_text)
    assert "HOME" not in environment


def test_logs_show_the_last_lines_of_one_part_or_of_all(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    folder = settings.home / "logs"
    folder.mkdir(parents=True)
    (folder / "one.log").write_text("a\nb\nc\n")
    (folder / "two.log").write_text("d\n")
    show(settings, part="one", lines=2, follow=False)
    assert capsys.readouterr().out == "b\nc\n"
    show(settings, part=None, lines=1, follow=False)
    assert capsys.readouterr().out == "one | c\ntwo | d\n"
    with pytest.raises(NotFound, match="logs are one, two"):
        show(settings, part="three", lines=1, follow=False)


def test_the_environment_of_every_program_contains_the_marker_of_its_stack(settings: Settings) -> None:
    for program in program_list.programs(settings):
        assert program.launch().environment[MARKER] == str(settings.home.resolve()), program.name
