"""The contents of `docker-compose.yaml` and the results of `env.sh`. `make compose-check` runs the containers."""

import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.fernet import Fernet

from pipelines.spec import model_names
from stack.programs import mariadb
from stack.programs.airflow_programs import airflow_environment
from utils.settings import load_settings
from utils.version import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MODELS = model_names(ROOT / "models")
SECRET = re.compile(r"\$\{EVERGREEN_([A-Z_]*(?:PASSWORD|SECRET|KEY))\b")


def secrets_of(service: str) -> set[str]:
    return {name for value in SERVICES[service].get("environment", {}).values() for name in SECRET.findall(str(value))}


def test_every_model_file_has_a_service() -> None:
    served = {each["environment"]["EVERGREEN_MODEL"] for name, each in SERVICES.items() if name.startswith("serve-")}
    assert served == set(MODELS)


def test_prometheus_watches_the_service_of_every_model() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert set(job["dns_sd_configs"][0]["names"]) == {f"serve-{model}" for model in MODELS}


def test_services_share_their_versions_and_each_has_a_spool_of_its_own() -> None:
    volumes = {name: each["volumes"] for name, each in SERVICES.items() if name.startswith("serve-")}
    assert all("bento:/var/lib/evergreen/bento" in mounted for mounted in volumes.values())
    spools = [each for mounted in volumes.values() for each in mounted if each.endswith(":/var/lib/evergreen/spool")]
    assert len(set(spools)) == len(volumes)
    assert {spool.split(":")[0] for spool in spools} <= set(COMPOSE["volumes"])


def test_services_read_the_keys_that_only_the_command_writes() -> None:
    mounted = {
        name: [each for each in service.get("volumes", ()) if each.startswith("keys:")]
        for name, service in SERVICES.items()
    }
    services = {name for name in SERVICES if name.startswith("serve-")}
    assert {name for name, volumes in mounted.items() if volumes == ["keys:/var/lib/evergreen/keys:ro"]} == services
    assert {name for name, volumes in mounted.items() if volumes} == {*services, "begin"}


def test_every_published_port_listens_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("service", [name for name in SERVICES if name.startswith("serve-")])
def test_a_prediction_service_knows_no_other_password_than_its_own(service: str) -> None:
    assert secrets_of(service) == {"DB_API_PASSWORD", "API_KEY"}


def test_airflow_knows_no_password_of_the_store() -> None:
    for name in SERVICES:
        if name.startswith("airflow-"):
            assert not {secret for secret in secrets_of(name) if secret.startswith(("DB_", "MARIADB_"))}, name


def test_only_services_that_create_the_maintenance_user_and_connection_know_its_password() -> None:
    assert {name for name in SERVICES if "DB_MAINTENANCE_PASSWORD" in secrets_of(name)} == {"migrate", "begin"}


def test_tasks_of_airflow_get_the_address_of_the_database_that_they_clean(tmp_path: Path) -> None:
    alone = airflow_environment(load_settings(home=tmp_path))
    for environment in (alone, SERVICES["airflow-scheduler"]["environment"], SERVICES["airflow-worker"]["environment"]):
        address = environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
        assert environment["AIRFLOW__MAINTENANCE__SQL_ALCHEMY_CONN"] == address


def test_mariadb_has_the_options_of_the_stack_on_one_machine(tmp_path: Path) -> None:
    alone = set(mariadb.command(load_settings(home=tmp_path)))
    assert set(SERVICES["mariadb"]["command"]) <= alone


def test_every_program_of_ours_runs_without_rights_and_on_a_root_that_it_can_not_write() -> None:
    for name, service in SERVICES.items():
        if service["image"].startswith("evergreen-"):
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name


def test_services_that_stay_up_have_a_health_check_and_a_memory_limit() -> None:
    exempt = {"adminer", "grafana"}  # these two show their health in their own way
    for name, service in SERVICES.items():
        if service.get("restart") == "unless-stopped" and name not in exempt:
            assert "healthcheck" in service, name
        assert "mem_limit" in service, name


def test_every_health_check_allows_a_slow_start() -> None:
    assert {each["healthcheck"]["start_period"] for each in SERVICES.values() if "healthcheck" in each} == {"60m"}


def test_secrets_are_written_once_for_their_owner_only(tmp_path: Path) -> None:
    shutil.copy(ROOT / "env.sh", tmp_path)
    (tmp_path / ".env").write_text("EVERGREEN_MARIADB_ROOT_PASSWORD=mine\nEVERGREEN_API_KEY=\n")
    subprocess.run(["./env.sh"], cwd=tmp_path, check=True, capture_output=True)
    first = (tmp_path / ".env").read_text()
    subprocess.run(["./env.sh"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / ".env").read_text() == first
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    values = dict(line.split("=", 1) for line in first.splitlines())
    assert values["EVERGREEN_MARIADB_ROOT_PASSWORD"] == "mine"
    variables = {f"EVERGREEN_{name}" for service in SERVICES for name in secrets_of(service)}
    assert {name for name in variables if len(values[name]) >= 4} == variables
    Fernet(values["EVERGREEN_AIRFLOW_FERNET_KEY"])
