"""`dag_probe.py DAGS`: a real Airflow for the DAG files of DAGS, in a process of its own; `runs.airflow` starts it.

Airflow reads its settings at import, and makes its API anew in each process, for longer than most DAGs run. So this
process does both once and forks for each line that it reads: an environment, an output file and arguments. Without
arguments a fork prints every DAG's tasks as JSON; with a DAG's name and a `conf` it runs that DAG, and prints the
states of its tasks and the names of the assets that got an event. It prints how each fork ended.

Of what a run imports, only libraries are imported beforehand, as in production.
"""

import asyncio
import json
import os
import sys
import warnings
from datetime import timedelta

sys.path.append(sys.argv[1])
warnings.simplefilter("ignore")

import httpx  # noqa: E402
from airflow.dag_processing.dagbag import DagBag  # noqa: E402
from airflow.models.asset import AssetEvent, AssetModel  # noqa: E402
from airflow.sdk.execution_time.supervisor import in_process_api_server  # noqa: E402
from airflow.serialization.serialized_objects import DagSerialization  # noqa: E402
from airflow.utils.db import initdb  # noqa: E402
from airflow.utils.session import create_session  # noqa: E402
from sqlalchemy import select  # noqa: E402

import stack.programs.preloaded  # noqa: E402, F401


async def make_api():
    async with httpx.AsyncClient(transport=in_process_api_server().atransport, base_url="http://here") as client:
        await client.get("/health")


def define():
    bag = DagBag(sys.argv[1])
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
    return {"errors": bag.import_errors, "dags": shown}


def run(dag_id, conf):
    dag = DagBag(sys.argv[1]).dags[dag_id]
    for task in dag.tasks:
        task.retry_delay = timedelta(0)
    run = dag.test(run_conf=json.loads(conf))
    states = {instance.task_id: str(instance.state) for instance in run.get_task_instances()}
    with create_session() as session:
        names = select(AssetModel.name).join(AssetEvent, AssetEvent.asset_id == AssetModel.id)
        of_this = (AssetEvent.source_dag_id == dag_id, AssetEvent.source_run_id == run.run_id)
        events = list(session.scalars(names.where(*of_this)))
    return {"state": str(run.state), "tasks": states, "events": events}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Airflow prints is no answer
    initdb()
    asyncio.run(make_api())
    for line in sys.stdin:
        asked = json.loads(line)
        if (child := os.fork()) == 0:
            output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.clear()
            os.environ.update(asked["environment"])
            print("RESULT" + json.dumps(run(*asked["arguments"]) if asked["arguments"] else define()), flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1], file=answers, flush=True)
