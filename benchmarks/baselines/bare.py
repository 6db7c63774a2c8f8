"""A minimal service: Starlette and CatBoost, without a log, checks of the input, or metrics.

`uvicorn benchmarks.baselines.bare:app --workers N`, with BARE_MODEL (a CatBoost file), BARE_SPEC (the model file as
JSON) and BARE_THREADS (CatBoost's threads a request; -1: all).
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from catboost import CatBoostClassifier, Pool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

spec = json.loads(Path(os.environ["BARE_SPEC"]).read_text())
threads = int(os.environ["BARE_THREADS"])
model = CatBoostClassifier()
model.load_model(os.environ["BARE_MODEL"])
kinds = {name: feature["type"] for name, feature in spec["features"]["columns"].items()}
names = list(kinds)
missing = [np.nan if kind == "numeric" else "" for kind in kinds.values()]
categories = [name for name in names if kinds[name] == "categorical"]
texts = [name for name in names if kinds[name] == "text"]
classes = [str(name) for name in model.classes_]


def scored(data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answer to each row of `data`."""
    rows = [[gap if row[name] is None else row[name] for name, gap in zip(names, missing, strict=True)] for row in data]
    pool = Pool(rows, feature_names=names, cat_features=categories, text_features=texts, thread_count=threads)
    probabilities = model.predict(pool, prediction_type="Probability", thread_count=threads).tolist()
    by_class = [dict(zip(classes, chances, strict=True)) for chances in probabilities]
    return [{"prediction": max(chances, key=chances.__getitem__), "probabilities": chances} for chances in by_class]


async def predict(request: Request) -> JSONResponse:
    return JSONResponse(scored([json.loads(await request.body())["data"]])[0])


async def ready(_: Request) -> JSONResponse:
    return JSONResponse({})


app = Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/readyz", ready)])
