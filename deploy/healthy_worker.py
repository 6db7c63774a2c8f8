"""`healthy_worker.py` exits with 0 if the Celery worker of this container answers a ping over the broker.

It does not import Airflow, because that would use much processor time every half minute.
"""

import os
import socket

from celery import Celery

worker = f"celery@{socket.gethostname()}"
with Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"]) as app:
    if not app.control.ping(destination=[worker], timeout=10):
        raise SystemExit(f"{worker} does not answer")
