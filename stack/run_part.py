"""Run one part of the stack in the foreground, for a container or for another supervisor."""

import os
from collections.abc import Callable
from typing import NoReturn

from stack.programs import airflow_programs
from stack.programs.program import Launch
from stack.programs.program_list import mlflow_program, serving_programs
from utils.errors import NotFound
from utils.settings import Settings

# Prefixes of the variables in the environment that override those of Evergreen.
OVERRIDES = ("AIRFLOW__", "MLFLOW_SERVER_", "EVERGREEN_COMMIT", "PG")
# Parts that a stack on one machine does not run permanently.
EXTRA_PARTS: dict[str, Callable[[Settings], Launch]] = {
    "airflow-migrate": airflow_programs.migrate_launch,
    "airflow-worker": airflow_programs.worker_launch,
}


def run(settings: Settings, part: str) -> NoReturn:
    """Replace this process by the program of `part`.

    Raises: NotFound if there is no part with this name; SettingMissing.
    """
    launch = _launch(settings, part)
    overrides = {name: value for name, value in os.environ.items() if name.startswith(OVERRIDES)}
    os.execvpe(launch.argv[0], launch.argv, {**launch.environment, **overrides})  # noqa: S606 - no shell is wanted


def _launch(settings: Settings, part: str) -> Launch:
    if part.startswith("airflow-"):
        airflow_programs.write_passwords(settings)
        programs = airflow_programs.airflow_programs(settings)
    else:
        programs = serving_programs(settings) if part.startswith("serve-") else [mlflow_program(settings)]
    if part in EXTRA_PARTS:
        return EXTRA_PARTS[part](settings)
    for program in programs:
        if program.name == part:
            return program.launch()
    part_names = "mlflow, airflow-api-server, airflow-scheduler, airflow-dag-processor, airflow-triggerer, serve-MODEL"
    raise NotFound(what=f"part {part}", hint=f"there are {part_names}, {' and '.join(EXTRA_PARTS)}")
