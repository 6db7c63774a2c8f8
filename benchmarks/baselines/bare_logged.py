"""`bare` with a log: it commits the same row as ours to the same table before the answer, one INSERT for each request.

`uvicorn benchmarks.baselines.bare_logged:app --workers N`, with the variables of `bare` and BARE_DATABASE, an address
for SQLAlchemy. The event loop itself uses the connection. For one client this is fastest, because no thread must be
woken. The input is not checked, and rows are lost while MariaDB is away.
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

from benchmarks.baselines.bare import names, ready, scored, spec

LOG = f"INSERT INTO prediction_log VALUES ({', '.join(['%s'] * 14)})"  # noqa: S608 - constants only
BY_ID = f"SELECT {', '.join(names)} FROM evergreen_store.{spec['name']}_latest WHERE entity_id = %s"  # noqa: S608 - names of a model file
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


def answers(data: Sequence[Mapping[str, Any]], start: float) -> list[dict[str, Any]]:
    """Log the answers to all rows of `data`, and return them."""
    now = datetime.now(UTC).replace(tzinfo=None)
    predictions = scored(data)
    rows: list[tuple[object, ...]] = []
    for inputs, answer in zip(data, predictions, strict=True):
        answer["prediction_id"] = str(uuid7())
        features, chances = json.dumps({name: inputs[name] for name in names}), answer["probabilities"]
        row = (answer["prediction_id"], "bare", 1, "champion", inputs[spec["entity"]], features, answer["prediction"])
        latency_ms = 1000 * (time.perf_counter() - start)
        rows.append((*row, max(chances.values()), json.dumps(chances), "[]", latency_ms, INSTANCE, now, now))
    with link.cursor() as cursor:
        cursor.executemany(LOG, rows)
    return predictions


async def predict(request: Request) -> JSONResponse:
    start = time.perf_counter()
    return JSONResponse(answers([json.loads(await request.body())["data"]], start)[0])


async def predict_batch(request: Request) -> JSONResponse:
    start = time.perf_counter()
    return JSONResponse({"predictions": answers(json.loads(await request.body())["data"], start)})


async def predict_by_id(request: Request) -> JSONResponse:
    start = time.perf_counter()
    (entity_id,) = json.loads(await request.body())["ids"]
    with link.cursor() as cursor:
        cursor.execute(BY_ID, (entity_id,))
        values = cursor.fetchone()
    assert values is not None
    row = {spec["entity"]: entity_id, **dict(zip(names, values, strict=True))}
    return JSONResponse({"predictions": answers([row], start)})


app = Starlette(
    routes=[
        Route("/predict", predict, methods=["POST"]),
        Route("/predict_batch", predict_batch, methods=["POST"]),
        Route("/predict_by_id", predict_by_id, methods=["POST"]),
        Route("/readyz", ready),
    ]
)
