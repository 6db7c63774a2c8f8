"""`python dags_probe.py DAGS FILE [DAG_ID]`: processor seconds to read one DAG file, in forks with Airflow imported.

Airflow's DAG processor reads a file like this, in a new process each time. With DAG_ID, the file is read like at the
start of a task of that DAG, in a process that has also imported the large libraries (`stack.programs.preloaded`). With
ALL, such a task creates every DAG of the file. Prints JSON: the seconds of each fork and the number of DAGs. It must
run in its own process, because Airflow reads its settings at import.
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
    if dag_id:  # like in the processes that tasks are forked from
        import catboost  # noqa: F401
        import mlflow.catboost  # noqa: F401
        import optuna  # noqa: F401
        import pandera.pandas  # noqa: F401

    def read_file() -> list[float]:
        start = time.process_time()
        sys.path.append(str(folder))
        with context(dag_id=None if dag_id == "ALL" else dag_id, task_id="a task"):
            bag = DagBag(str(folder / file))
        assert not bag.import_errors, bag.import_errors
        return [time.process_time() - start, len(bag.dags)]

    results = [_in_a_fork(read_file) for _ in range(FORKS)]
    print(json.dumps({"seconds": [seconds for seconds, _ in results], "dags": results[0][1]}))


def _in_a_fork(work: object) -> list[float]:
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, json.dumps(work()).encode())  # type: ignore[operator]
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        result: list[float] = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return result


if __name__ == "__main__":
    main()
