"""Run by test_dags in a process of its own, for Airflow reads its settings at import: prints what the DAG files define.

`dag_probe.py DAGS` prints every DAG's tasks as JSON; `dag_probe.py DAGS DAG_ID CONF` runs that DAG in this process and
prints the states of its tasks and the names of the assets that got an event. `dag_probe.py` makes Airflow's database.
"""

import json
import sys
import warnings
from datetime import timedelta

sys.path.extend(sys.argv[1:2])
warnings.simplefilter("ignore")

from airflow.dag_processing.dagbag import DagBag  # noqa: E402
from airflow.serialization.serialized_objects import DagSerialization  # noqa: E402
from airflow.utils.db import initdb  # noqa: E402

if len(sys.argv) == 1:
    initdb()
    sys.exit()
bag = DagBag(sys.argv[1])
if len(sys.argv) == 2:
    shown = {
        dag_id: {
            "serialized": bool(DagSerialization.to_dict(dag)),
            "doc": dag.doc_md,
            "max_active_runs": dag.max_active_runs,
            "notifies": dag.has_on_failure_callback,
            "schedule": getattr(dag.timetable, "expression", None),
            "params": {name: param.schema for name, param in dag.params.items()},
            "tasks": {t.task_id: {"after": sorted(t.upstream_task_ids), "retries": t.retries} for t in dag.tasks},
        }
        for dag_id, dag in bag.dags.items()
    }
    print("RESULT" + json.dumps({"errors": bag.import_errors, "dags": shown}))
else:
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    dag = bag.dags[sys.argv[2]]
    for task in dag.tasks:
        task.retry_delay = timedelta(0)
    run = dag.test(run_conf=json.loads(sys.argv[3]))
    states = {instance.task_id: str(instance.state) for instance in run.get_task_instances()}
    with create_session() as session:
        names = select(AssetModel.name).join(AssetEvent, AssetEvent.asset_id == AssetModel.id)
        events = list(session.scalars(names))
    print("RESULT" + json.dumps({"state": str(run.state), "tasks": states, "events": events}))
