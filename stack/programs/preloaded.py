"""`python -m stack.programs.preloaded COMMAND…`: `airflow COMMAND…`, with the libraries of our tasks already imported.

Airflow's executors fork a process for every task. The fork saves two seconds of imports and shares the memory.
Only libraries are imported here. Every task imports our own modules anew, so an edit takes effect with the next task.
"""

import sys

import catboost  # noqa: F401
import mlflow.catboost  # noqa: F401
import optuna  # noqa: F401
import pandera.pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pymysql  # noqa: F401
import sklearn.metrics  # noqa: F401
from airflow.__main__ import main

if __name__ == "__main__":
    sys.argv[0] = "airflow"
    main()
