"""`python -m stack.programs.preloaded COMMAND…`: `airflow COMMAND…`, with our steps' libraries imported beforehand.

Airflow's executors fork a process for every task, which then need not import for two seconds, and shares the memory.
Libraries only: our own modules are read anew by every task, so an edited file counts from the next one.
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
