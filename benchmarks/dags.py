"""The time to read the DAG files, and the time that it adds to the start of a task, with 3 and 100 model files.

The baseline of a task's start reads all DAGs of the same file. All times are processor times.
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

FEW, MANY = 3, 100
ROUNDS = 3
MODEL = "credit_score"


def measure() -> list[Figure]:
    """Raises: CalledProcessError if a DAG file can't be read."""
    files = sorted(path.name for path in (ROOT / "dags").glob("*.py") if path.name not in {"forms.py", "shared.py"})
    own_dag: dict[int, list[float]] = {FEW: [], MANY: []}
    all_dags: dict[int, list[float]] = {FEW: [], MANY: []}
    figures: list[Figure] = []
    with _models(FEW) as few, _models(MANY) as many:
        folders = {FEW: few, MANY: many}
        for count, models in folders.items():
            milliseconds = sum(_milliseconds(models, file) for file in files)
            figures.append(Figure(f"all DAG files read once, {count} models", milliseconds, "ms"))
        for _ in range(ROUNDS):
            for count, models in folders.items():
                own_dag[count].append(_milliseconds(models, "training.py", f"{MODEL}_training"))
                all_dags[count].append(_milliseconds(models, "training.py", "ALL"))
    what = "a DAG file at a task's start"
    for count, goal in ((FEW, None), (MANY, 4.0)):
        figures.append(
            lower_is_better(
                f"{what}, {count} models: its own DAG",
                own_dag[count],
                "ms",
                against="all of the file's",
                baselines=all_dags[count],
                goal=goal,
            )
        )
    figures.append(
        lower_is_better(
            f"{what}, {MANY} models", own_dag[MANY], "ms", against=f"{FEW} models", baselines=own_dag[FEW], goal=0.7
        )
    )
    return figures


@contextmanager
def _models(count: int) -> Iterator[Path]:
    """A temporary folder with `count` model files of different names."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "models" / f"{MODEL}.yaml", folder)
        file = yaml.safe_load((ROOT / "models" / f"{MODEL}.yaml").read_text(encoding="utf-8"))
        for number in range(1, count):
            name = f"model_{number:03}"
            (Path(folder) / f"{name}.yaml").write_text(yaml.safe_dump({**file, "name": name}), encoding="utf-8")
        yield Path(folder)


def _milliseconds(models: Path, file: str, *dag_id: str) -> float:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(models / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
        "EVERGREEN_ENV_FILE": "/dev/null",
        "EVERGREEN_MODELS_DIR": str(models),
        "PYTHONPATH": str(ROOT),
    }
    probe = [sys.executable, str(ROOT / "benchmarks" / "dags_probe.py"), str(ROOT / "dags"), file]
    result = subprocess.run([*probe, *dag_id], env=environment, capture_output=True, text=True, check=True)
    seconds: list[float] = json.loads(result.stdout.splitlines()[-1])["seconds"]
    return 1000 * median(seconds)
