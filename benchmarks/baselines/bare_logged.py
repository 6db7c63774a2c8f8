"""A baseline: the service `bare` with a log. Before it answers a request, it commits a row like ours to the same table.

Start it with `uvicorn benchmarks.baselines.bare_logged:app --workers N`, the variables of `bare`, and BARE_DATABASE (an
address for SQLAlchemy). Each request is one INSERT. The event loop itself waits for MariaDB. This is the fastest way
for a single client, because no thread has to be woken. The input is not checked, and requests fail while MariaDB is
unreachable.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pymysql
from sqlalchemy import make_url
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uuid6 import uuid7

from benchmarks.baselines.bare import feature_names, ready, score_rows, spec

LOG = f"INSERT INTO prediction_log VALUES ({', '.join(['%s'] * 14)})"  # noqa: S608 - constants only
BY_ID = f"SELECT {', '.join(feature_names)} FROM evergreen_store.{spec['name']}_latest WHERE entity_id = %s"  # noqa: S608 - names from a model file
INSTANCE = str(uuid7())
url = make_url(os.environ["BARE_DATABASE"])
link = pymysql.connect(
    host=url.host,
    port=url.port or 3306,
    user=url.username,
    password=str(url.password),
    database=url.database,
    autocommit=True,
)


def answer_and_log(data: Sequence[Mapping[str, Any]], start: float) -> list[dict[str, Any]]:
    """Score the rows of `data`, log the answers, and return them. `start` is in seconds of `perf_counter`."""
    now = datetime.now(UTC).replace(tzinfo=None)
    predictions = score_rows(data)
    rows: list[tuple[object, ...]] = []
    for inputs, answer in zip(data, predictions, strict=True):
        answer["prediction_id"] = str(uuid7())
        features, probabilities = json.dumps({name: inputs[name] for name in feature_names}), answer["probabilities"]
        row = (answer["prediction_id"], "bare", 1, "champion", inputs[spec["entity"]], features, answer["prediction"])
        latency_ms = 1000 * (time.perf_counter() - start)
        rows.append(
            (*row, max(probabilities.values()), json.dumps(probabilities), "[]", latency_ms, INSTANCE, now, now)
        )
    with link.cursor() as cursor:
        cursor.executemany(LOG, rows)
    return predictions


async def predict(request: Request) -> JSONResponse:
    start = time.perf_counter()
    return JSONResponse(answer_and_log([json.loads(await request.body())["data"]], start)[0])


async def predict_batch(request: Request) -> JSONResponse:
    start = time.perf_counter()
    return JSONResponse({"predictions": answer_and_log(json.loads(await request.body())["data"], start)})


async def predict_by_id(request: Request) -> JSONResponse:
    start = time.perf_counter()
    (entity_id,) = json.loads(await request.body())["ids"]
    with link.cursor() as cursor:
        cursor.execute(BY_ID, (entity_id,))
        values = cursor.fetchone()
    assert values is not None
    row = {spec["entity"]: entity_id, **dict(zip(feature_names, values, strict=True))}
    return JSONResponse({"predictions": answer_and_log([row], start)})


app = Starlette(
    routes=[
        Route("/predict", predict, methods=["POST"]),
        Route("/predict_batch", predict_batch, methods=["POST"]),
        Route("/predict_by_id", predict_by_id, methods=["POST"]),
        Route("/readyz", ready),
    ]
)
