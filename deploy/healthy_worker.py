"""`healthy_worker.py`: exit code 0 where the Celery worker of this container answers over the broker.

Of Airflow only the broker's address is used: importing all of it every half minute would cost more than it tells.
"""

import os
import socket

from celery import Celery

worker = f"celery@{socket.gethostname()}"
with Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"]) as app:
    if not app.control.ping(destination=[worker], timeout=10):
        raise SystemExit(f"{worker} does not answer")
