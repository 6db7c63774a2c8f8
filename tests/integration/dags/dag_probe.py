"""`dag_probe.py DAGS`: a real Airflow for the DAG files in DAGS, in its own process. `runs.airflow` starts it.

Airflow reads its settings at import and builds its API once per process, which takes longer than most DAG runs.
This process therefore does both once, then forks for each line of standard input: an environment, an output file and
arguments. Without arguments a fork prints the tasks of every DAG as JSON. With a DAG's name and a `conf` it runs that
DAG and prints the states of its tasks and the names of the assets that got an event. The process prints the exit
status of each fork.

As in production, only libraries are imported before the fork.
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
    descriptions = {
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
    return {"errors": bag.import_errors, "dags": descriptions}


def run(dag_id, conf):
    dag = DagBag(sys.argv[1]).dags[dag_id]
    for task in dag.tasks:
        task.retry_delay = timedelta(0)
    run = dag.test(run_conf=json.loads(conf))
    states = {instance.task_id: str(instance.state) for instance in run.get_task_instances()}
    with create_session() as session:
        names = select(AssetModel.name).join(AssetEvent, AssetEvent.asset_id == AssetModel.id)
        this_run = (AssetEvent.source_dag_id == dag_id, AssetEvent.source_run_id == run.run_id)
        events = list(session.scalars(names.where(*this_run)))
    return {"state": str(run.state), "tasks": states, "events": events}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep Airflow's output out of the answers
    initdb()
    asyncio.run(make_api())
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            output = os.open(request["output"], os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.clear()
            os.environ.update(request["environment"])
            print("RESULT" + json.dumps(run(*request["arguments"]) if request["arguments"] else define()), flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1], file=answers, flush=True)
