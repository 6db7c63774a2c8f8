"""Measure how long Airflow takes to read the DAG files, with 3 and with 100 model files.

A task reads its DAG file when it starts. The benchmark compares two ways: reading only the task's own DAG, and reading
all DAGs of the file. All times are processor times.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import yaml

from benchmarks.figures import Figure, lower_is_better
from utils.version import ROOT

FEW_MODELS, MANY_MODELS = 3, 100
ROUNDS = 3
MODEL = "credit_score"


def measure() -> list[Figure]:
    """Measure the time of every DAG file, and of one file at a task's start.

    Raises: CalledProcessError if a DAG file can't be read.
    """
    files = sorted(path.name for path in (ROOT / "dags").glob("*.py") if path.name not in {"forms.py", "shared.py"})
    own_dag_times: dict[int, list[float]] = {FEW_MODELS: [], MANY_MODELS: []}
    all_dags_times: dict[int, list[float]] = {FEW_MODELS: [], MANY_MODELS: []}
    figures: list[Figure] = []
    with _write_model_files(FEW_MODELS) as few_folder, _write_model_files(MANY_MODELS) as many_folder:
        folders = {FEW_MODELS: few_folder, MANY_MODELS: many_folder}
        for count, folder in folders.items():
            milliseconds = sum(_time_reading(folder, file) for file in files)
            figures.append(Figure(f"all DAG files read once, {count} models", milliseconds, "ms"))
        for _ in range(ROUNDS):
            for count, folder in folders.items():
                own_dag_times[count].append(_time_reading(folder, "training.py", f"{MODEL}_training"))
                all_dags_times[count].append(_time_reading(folder, "training.py", "ALL"))
    title = "a DAG file at a task's start"
    for count, goal in ((FEW_MODELS, None), (MANY_MODELS, 4.0)):
        figures.append(
            lower_is_better(
                f"{title}, {count} models: its own DAG",
                own_dag_times[count],
                "ms",
                against="all of the file's",
                baselines=all_dags_times[count],
                goal=goal,
            )
        )
    figures.append(
        lower_is_better(
            f"{title}, {MANY_MODELS} models",
            own_dag_times[MANY_MODELS],
            "ms",
            against=f"{FEW_MODELS} models",
            baselines=own_dag_times[FEW_MODELS],
            goal=0.7,
        )
    )
    return figures


@contextmanager
def _write_model_files(count: int) -> Iterator[Path]:
    """Write `count` model files with different names to a temporary folder, and yield the folder."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "models" / f"{MODEL}.yaml", folder)
        content = yaml.safe_load((ROOT / "models" / f"{MODEL}.yaml").read_text(encoding="utf-8"))
        for number in range(1, count):
            name = f"model_{number:03}"
            (Path(folder) / f"{name}.yaml").write_text(yaml.safe_dump({**content, "name": name}), encoding="utf-8")
        yield Path(folder)


def _time_reading(models_folder: Path, file: str, *dag_id: str) -> float:
    """Return the median time to read the DAG file `file`, in milliseconds of the processor."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(models_folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
        "EVERGREEN_ENV_FILE": "/dev/null",
        "EVERGREEN_MODELS_DIR": str(models_folder),
        "PYTHONPATH": str(ROOT),
    }
    probe = [sys.executable, str(ROOT / "benchmarks" / "dags_probe.py"), str(ROOT / "dags"), file]
    process = subprocess.run([*probe, *dag_id], env=environment, capture_output=True, text=True, check=True)
    seconds: list[float] = json.loads(process.stdout.splitlines()[-1])["seconds"]
    return 1000 * median(seconds)
