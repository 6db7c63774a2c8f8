"""`python dags_probe.py DAGS FILE [DAG_ID]`: processor seconds to read one DAG file, in forks with Airflow imported.

So does Airflow's DAG processor read a file, in a new process each time. With DAG_ID a task of that DAG reads it at its
start, in a process that has the large libraries imported too (`stack.programs.preloaded`); ALL is such a task that
makes every DAG of the file. Prints JSON: the seconds of each fork, and how many DAGs were made. Run in a process of its
own, for Airflow reads its settings at import.
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
    folder, file, wanted = Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None
    warnings.simplefilter("ignore")
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager as asked_for

    logging.disable()
    if wanted:  # as in the processes that tasks are forked from
        import catboost  # noqa: F401
        import mlflow.catboost  # noqa: F401
        import optuna  # noqa: F401
        import pandera.pandas  # noqa: F401

    def read() -> list[float]:
        begun = time.process_time()
        sys.path.append(str(folder))
        with asked_for(dag_id=None if wanted == "ALL" else wanted, task_id="a task"):
            bag = DagBag(str(folder / file))
        assert not bag.import_errors, bag.import_errors
        return [time.process_time() - begun, len(bag.dags)]

    results = [_in_a_fork(read) for _ in range(FORKS)]
    print(json.dumps({"seconds": [seconds for seconds, _ in results], "dags": results[0][1]}))


def _in_a_fork(work: object) -> list[float]:
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, json.dumps(work()).encode())  # type: ignore[operator]
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found: list[float] = json.loads(answer.read())
    os.waitpid(pid, 0)
    return found


if __name__ == "__main__":
    main()
