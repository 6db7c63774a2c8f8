"""`maintenance`: once a day, one task a duty, none waiting for another."""

import sys

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import CronTriggerTimetable, dag, task
from steps import ALERTS, RETRIES, as_user, own_id, step

from pipelines.maintenance.duties import DUTIES
from utils.clock import utc_now
from utils.settings import load_settings

KEEP = "macros.timedelta(days=90)"
METADATA = "AIRFLOW__MAINTENANCE__SQL_ALCHEMY_CONN"  # tasks are not given the address of Airflow's own database
CLEAN = f"""
[ -n "${METADATA}" ] || exit 99
export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="${METADATA}"
exec {sys.executable} -m airflow db clean --yes --skip-archive --error-on-cleanup-failure --batch-size 1000 \
  --clean-before-timestamp '{{{{ (dag_run.run_after - {KEEP}).isoformat() }}}}'
"""

DOC = """
Keeps the stores usable. Each task can be repeated; nothing that is still needed goes ([what stays, and how
long](docs/maintenance.md)).

| task | does |
|---|---|
| partitions | makes those of the next 14 days of `prediction_log` and 3 months of each store table |
| predictions | drops whole days of the log past `EVERGREEN_KEEP_PREDICTIONS`, and the feedback on them |
| features | drops whole months past a model file's `keep`, unless a champion's snapshot file is gone or damaged |
| batches | removes what killed loads left behind |
| snapshots | deletes the files of snapshots that nothing in use came from |
| artifacts | deletes refused versions from MLflow after a month |
| airflow | `airflow db clean`: what is older than 90 days; skipped where Evergreen did not start Airflow |
"""


@dag(
    dag_id="maintenance",
    description="Coming partitions, retention, and what is left behind",
    schedule=CronTriggerTimetable("30 4 * * *", timezone=load_settings().timezone),
    catchup=False,
    max_active_runs=1,
    default_args=RETRIES,
    **ALERTS,
    tags=["evergreen"],
    doc_md=DOC,
)
def build() -> None:
    def duty(name: str) -> None:
        @task(task_id=name)
        def do() -> str:
            from pipelines.maintenance.duties import Job

            with step() as settings:
                return DUTIES[name](Job(as_user("maintenance", settings), utc_now(), own_id()))

        do()

    for name in DUTIES:
        duty(name)
    BashOperator(task_id="airflow", bash_command=CLEAN, append_env=True, skip_on_exit_code=99)


build()
