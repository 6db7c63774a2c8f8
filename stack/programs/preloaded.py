"""`python -m stack.programs.preloaded COMMAND…` runs `airflow COMMAND…` after importing the libraries of our tasks.

Airflow's executors fork a process for every task. A fork with imported libraries starts two seconds sooner and shares
their memory. Our own modules are not imported here: each task imports them, so an edit takes effect with the next task.
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
