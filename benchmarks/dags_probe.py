"""`python dags_probe.py DAGS FILE [DAG_ID]`: print how much processor time it takes to read one DAG file.

DAGS is the folder of FILE. Like Airflow's DAG processor, the program reads the file in forks that already have Airflow
imported. With DAG_ID, the forks read the file like a task of that DAG does when it starts. They then also have the
large libraries imported, like the processes of `stack.programs.preloaded`. With ALL as DAG_ID, they create every DAG.

The output is JSON: the seconds of each fork and the number of DAGs. The program must run in its own process, because
Airflow reads its settings at import.
"""

import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path

FORKS = 5


def main() -> None:
    folder, file, dag_id = Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None
    warnings.simplefilter("ignore")
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager as context

    logging.disable()
    if dag_id:  # the libraries that `stack.programs.preloaded` imports before it forks tasks
        import catboost  # noqa: F401
        import mlflow.catboost  # noqa: F401
        import optuna  # noqa: F401
        import pandera.pandas  # noqa: F401

    def read_file() -> list[float]:
        """Return the processor seconds and the number of DAGs."""
        start = time.process_time()
        sys.path.append(str(folder))
        with context(dag_id=None if dag_id == "ALL" else dag_id, task_id="a task"):
            bag = DagBag(str(folder / file))
        assert not bag.import_errors, bag.import_errors
        return [time.process_time() - start, len(bag.dags)]

    measurements = [_run_in_fork(read_file) for _ in range(FORKS)]
    print(json.dumps({"seconds": [seconds for seconds, _ in measurements], "dags": measurements[0][1]}))


def _run_in_fork(work: object) -> list[float]:
    """Call `work` in a fork of this process, and return its numbers."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, json.dumps(work()).encode())  # type: ignore[operator]
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        numbers: list[float] = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return numbers


if __name__ == "__main__":
    main()
