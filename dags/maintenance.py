"""`maintenance`: runs once a day, with one task a duty. No task waits for another."""

import sys

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, CronTriggerTimetable, task
from shared import DEFAULTS, SETTINGS, page, step

from pipelines.maintenance.duties import DUTIES, Job

KEEP = "macros.timedelta(days=90)"
METADATA = "AIRFLOW__MAINTENANCE__SQL_ALCHEMY_CONN"  # tasks do not know the address of Airflow's own database
CLEAN = f"""
[ -n "${METADATA}" ] || exit 99
export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="${METADATA}"
exec {sys.executable} -m airflow db clean --yes --skip-archive --error-on-cleanup-failure --batch-size 1000 \
  --clean-before-timestamp '{{{{ (dag_run.run_after - {KEEP}).isoformat() }}}}'
"""


@task
def do(duty: str) -> str:
    with step("maintenance") as (settings, run_id, now):
        return DUTIES[duty](Job(settings, now, run_id))


with DAG(
    dag_id="maintenance",
    description="Coming partitions, retention, and what is left behind",
    schedule=CronTriggerTimetable("30 4 * * *", timezone=SETTINGS.timezone),
    max_active_runs=1,
    tags=["evergreen"],
    doc_md=page("maintenance"),
    **DEFAULTS,
):
    for name in DUTIES:
        do.override(task_id=name)(name)
    BashOperator(task_id="airflow", bash_command=CLEAN, append_env=True, skip_on_exit_code=99)
