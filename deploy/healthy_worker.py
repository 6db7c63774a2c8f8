"""`healthy_worker.py`: exit code 0 if the Celery worker of this container answers over the broker.

It uses only the broker's address, because importing Airflow every half minute would be expensive.
"""

import os
import socket

from celery import Celery

worker = f"celery@{socket.gethostname()}"
with Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"]) as app:
    if not app.control.ping(destination=[worker], timeout=10):
        raise SystemExit(f"{worker} does not answer")
