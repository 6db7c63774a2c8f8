"""One part of the stack in the foreground, as its supervisor starts it: for a container, or a supervisor of yours."""

import os
from collections.abc import Callable
from typing import NoReturn

from stack.programs import airflow_programs
from stack.programs.program import Launch
from stack.programs.program_list import mlflow_program, serving_programs
from utils.errors import NotFound
from utils.settings import Settings

OWN = ("AIRFLOW__", "MLFLOW_SERVER_", "EVERGREEN_COMMIT", "PG")  # by these whoever starts a part overrules Evergreen
# What a stack on one machine does not keep running.
ELSEWHERE: dict[str, Callable[[Settings], Launch]] = {
    "airflow-migrate": airflow_programs.migrate_launch,
    "airflow-worker": airflow_programs.worker_launch,
}


def run(settings: Settings, part: str) -> NoReturn:
    """Become `part`; `airflow-migrate` brings Airflow's own database up to date and ends.

    Raises: NotFound where there is no such part; SettingMissing.
    """
    launch = _launch(settings, part)
    given = {name: value for name, value in os.environ.items() if name.startswith(OWN)}
    os.execvpe(launch.argv[0], launch.argv, {**launch.environment, **given})  # noqa: S606 - no shell is wanted


def _launch(settings: Settings, part: str) -> Launch:
    if part.startswith("airflow-"):
        airflow_programs.write_passwords(settings)
        known = airflow_programs.airflow_programs(settings)
    else:
        known = serving_programs(settings) if part.startswith("serve-") else [mlflow_program(settings)]
    if part in ELSEWHERE:
        return ELSEWHERE[part](settings)
    for program in known:
        if program.name == part:
            return program.launch()
    others = "mlflow, airflow-api-server, airflow-scheduler, airflow-dag-processor, airflow-triggerer, serve-MODEL"
    raise NotFound(what=f"part {part}", hint=f"there are {others}, {' and '.join(ELSEWHERE)}")
