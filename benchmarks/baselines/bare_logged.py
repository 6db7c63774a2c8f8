"""`bare`, with the same row as ours in the same table, committed before the answer: one INSERT a request.

`uvicorn benchmarks.baselines.bare_logged:app --workers N`, with the variables of `bare` and BARE_DATABASE, an address
for SQLAlchemy. The connection is used on the event loop itself: for one client nothing is faster, as no thread needs to
be woken. Nothing is checked, and nothing is kept where MariaDB is away.
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


def answers(data: Sequence[Mapping[str, Any]], began: float) -> list[dict[str, Any]]:
    """The answer to each row of `data`, once all are logged."""
    now = datetime.now(UTC).replace(tzinfo=None)
    made = scored(data)
    rows: list[tuple[object, ...]] = []
    for given, each in zip(data, made, strict=True):
        each["prediction_id"] = str(uuid7())
        features, chances = json.dumps({name: given[name] for name in names}), each["probabilities"]
        row = (each["prediction_id"], "bare", 1, "champion", given[spec["entity"]], features, each["prediction"])
        took = 1000 * (time.perf_counter() - began)
        rows.append((*row, max(chances.values()), json.dumps(chances), "[]", took, INSTANCE, now, now))
    with link.cursor() as cursor:
        cursor.executemany(LOG, rows)
    return made


async def predict(request: Request) -> JSONResponse:
    began = time.perf_counter()
    return JSONResponse(answers([json.loads(await request.body())["data"]], began)[0])


async def predict_batch(request: Request) -> JSONResponse:
    began = time.perf_counter()
    return JSONResponse({"predictions": answers(json.loads(await request.body())["data"], began)})


async def predict_by_id(request: Request) -> JSONResponse:
    began = time.perf_counter()
    (name,) = json.loads(await request.body())["ids"]
    with link.cursor() as cursor:
        cursor.execute(BY_ID, (name,))
        values = cursor.fetchone()
    assert values is not None
    row = {spec["entity"]: name, **dict(zip(names, values, strict=True))}
    return JSONResponse({"predictions": answers([row], began)})


app = Starlette(
    routes=[
        Route("/predict", predict, methods=["POST"]),
        Route("/predict_batch", predict_batch, methods=["POST"]),
        Route("/predict_by_id", predict_by_id, methods=["POST"]),
        Route("/readyz", ready),
    ]
)
