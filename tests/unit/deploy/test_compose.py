"""The content of `docker-compose.yaml` and the output of `env.sh`. `make compose-check` runs the containers."""

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
    served_models = {
        service["environment"]["EVERGREEN_MODEL"] for name, service in SERVICES.items() if name.startswith("serve-")
    }
    assert served_models == set(MODELS)


def test_prometheus_reads_the_metrics_of_every_models_service() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert set(job["dns_sd_configs"][0]["names"]) == {f"serve-{model}" for model in MODELS}


def test_services_share_the_volume_of_versions_and_each_has_its_own_spool() -> None:
    volumes_by_service = {name: service["volumes"] for name, service in SERVICES.items() if name.startswith("serve-")}
    assert all("bento:/var/lib/evergreen/bento" in volumes for volumes in volumes_by_service.values())
    spools = [
        volume
        for volumes in volumes_by_service.values()
        for volume in volumes
        if volume.endswith(":/var/lib/evergreen/spool")
    ]
    assert len(set(spools)) == len(volumes_by_service)
    assert {spool.split(":")[0] for spool in spools} <= set(COMPOSE["volumes"])


def test_prediction_services_can_only_read_the_api_keys_and_begin_can_write_them() -> None:
    key_volumes = {
        name: [volume for volume in service.get("volumes", ()) if volume.startswith("keys:")]
        for name, service in SERVICES.items()
    }
    prediction_services = {name for name in SERVICES if name.startswith("serve-")}
    read_only = {name for name, volumes in key_volumes.items() if volumes == ["keys:/var/lib/evergreen/keys:ro"]}
    assert read_only == prediction_services
    assert {name for name, volumes in key_volumes.items() if volumes} == {*prediction_services, "begin"}


def test_every_published_port_is_reachable_only_from_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("service", [name for name in SERVICES if name.startswith("serve-")])
def test_a_prediction_service_gets_only_its_own_password_and_the_api_key(service: str) -> None:
    assert secrets_of(service) == {"DB_API_PASSWORD", "API_KEY"}


def test_airflow_gets_no_password_of_mariadb() -> None:
    for name in SERVICES:
        if name.startswith("airflow-"):
            assert not {secret for secret in secrets_of(name) if secret.startswith(("DB_", "MARIADB_"))}, name


def test_only_migrate_and_begin_get_the_password_of_the_maintenance_user() -> None:
    assert {name for name in SERVICES if "DB_MAINTENANCE_PASSWORD" in secrets_of(name)} == {"migrate", "begin"}


def test_tasks_of_airflow_get_the_address_of_the_metadata_database_for_cleaning(tmp_path: Path) -> None:
    containers = [SERVICES[name]["environment"] for name in ("airflow-scheduler", "airflow-worker")]
    for environment in (airflow_environment(load_settings(home=tmp_path)), *containers):
        address = environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
        assert environment["AIRFLOW__MAINTENANCE__SQL_ALCHEMY_CONN"] == address


def test_mariadb_has_the_options_of_the_stack_on_one_machine(tmp_path: Path) -> None:
    command_without_containers = set(mariadb.command(load_settings(home=tmp_path)))
    assert set(SERVICES["mariadb"]["command"]) <= command_without_containers


def test_every_container_of_our_images_has_no_capabilities_and_a_read_only_root() -> None:
    for name, service in SERVICES.items():
        if service["image"].startswith("evergreen-"):
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name


def test_permanent_services_have_a_health_check_and_all_services_have_a_memory_limit() -> None:
    exempt = {"adminer", "grafana"}  # no other service needs these two
    for name, service in SERVICES.items():
        if service.get("restart") == "unless-stopped" and name not in exempt:
            assert "healthcheck" in service, name
        assert "mem_limit" in service, name


def test_every_health_check_has_the_same_long_start_period() -> None:
    assert {each["healthcheck"]["start_period"] for each in SERVICES.values() if "healthcheck" in each} == {"60m"}


def test_env_sh_writes_each_secret_once_and_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    shutil.copy(ROOT / "env.sh", tmp_path)
    (tmp_path / ".env").write_text("EVERGREEN_MARIADB_ROOT_PASSWORD=mine\nEVERGREEN_API_KEY=\n")
    subprocess.run(["./env.sh"], cwd=tmp_path, check=True, capture_output=True)
    content = (tmp_path / ".env").read_text()
    subprocess.run(["./env.sh"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / ".env").read_text() == content
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    values = dict(line.split("=", 1) for line in content.splitlines())
    assert values["EVERGREEN_MARIADB_ROOT_PASSWORD"] == "mine"
    variables = {f"EVERGREEN_{name}" for service in SERVICES for name in secrets_of(service)}
    assert {name for name in variables if len(values[name]) >= 4} == variables
    Fernet(values["EVERGREEN_AIRFLOW_FERNET_KEY"])
