"""Workflows and hooks use existing targets of the Makefile. `make workflows` checks their syntax."""

import re
from typing import Any

import pytest
import yaml

from utils.version import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
WORKFLOWS: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*")
}
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


def test_workflows_run_only_existing_targets_of_the_makefile() -> None:
    matrix = WORKFLOWS["nightly"]["jobs"]["run"]["strategy"]["matrix"]["target"]
    (check_command,) = (step["run"] for step in WORKFLOWS["check"]["jobs"]["check"]["steps"] if "run" in step)
    for target in (*matrix, check_command.removeprefix("make ")):
        assert re.search(rf"(?m)^{target}:", MAKEFILE), target


def test_the_workflow_publishes_exactly_the_images_that_the_compose_file_builds() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"].values()
    built_targets = {service["build"]["target"] for service in services if "build" in service}
    assert set(WORKFLOWS["images"]["jobs"]["image"]["strategy"]["matrix"]["target"]) == built_targets


def test_images_with_our_code_contain_pyproject_toml_with_its_version() -> None:
    stages = dict(re.findall(r"(?ms)^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE))
    assert "COPY pyproject.toml ./" in stages["code"]
    assert "COPY --from=code /app /app" in stages["serving"]
    assert "FROM code AS all-code" in DOCKERFILE
    assert "COPY --from=all-code /app /app" in stages["pipelines"]


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook["language"] == "system"], ids=lambda hook: hook["id"])
def test_the_command_of_a_pre_commit_hook_is_a_line_of_the_makefile(hook: dict[str, str]) -> None:
    assert re.search(rf"(?m)^\t@?{re.escape(hook['entry'])}$", MAKEFILE)


def test_only_the_release_job_has_a_write_permission() -> None:
    for workflow_name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {}, workflow_name
        writing_jobs = {name for name, job in workflow["jobs"].items() if "write" in job["permissions"].values()}
        assert writing_jobs == ({"release"} if workflow_name == "images" else set())
