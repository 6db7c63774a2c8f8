"""What reading the DAG files takes, and what it adds to the start of a task, with 3 and with 100 model files.

The baseline of a task's start is the same file read as a whole. All times are of the processor.
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

from benchmarks.figures import Figure, lower_is_better, within
from utils.version import ROOT

FEW, MANY = 3, 100
MODEL = "credit_score"


def measure() -> list[Figure]:
    """Raises: CalledProcessError where a DAG file can't be read."""
    figures, starts = [], {}
    files = sorted(path.name for path in (ROOT / "dags").glob("*.py") if path.name not in {"forms.py", "shared.py"})
    for count in (FEW, MANY):
        with _models(count) as models:
            whole = sum(_milliseconds(models, file) for file in files)
            starts[count] = _milliseconds(models, "training.py", f"{MODEL}_training")
            every = _milliseconds(models, "training.py", "ALL")
        figures.append(Figure(f"all DAG files read once, {count} models", whole, "ms"))
        what = f"a DAG file at a task's start, {count} models: its own DAG, against all of the file's"
        figures.append(lower_is_better(what, starts[count], "ms", baseline=every))
    figures.append(within("a task's start, 100 models against 3", starts[MANY] / starts[FEW], "times", most=2.0))
    return figures


@contextmanager
def _models(count: int) -> Iterator[Path]:
    """A folder with so many model files, each of a name of its own."""
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
    done = subprocess.run([*probe, *dag_id], env=environment, capture_output=True, text=True, check=True)
    return 1000 * median(json.loads(done.stdout.splitlines()[-1])["seconds"])
