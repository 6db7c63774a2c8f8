"""The least that a service can be: Starlette, CatBoost, and no log, no checks of the input, no metrics.

`uvicorn benchmarks.baselines.bare:app --workers N`, with BARE_MODEL (a CatBoost file), BARE_SPEC (the model file as
JSON) and BARE_THREADS (CatBoost's threads a request; -1: all).
"""

import json
import os
from pathlib import Path

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


async def predict(request: Request) -> JSONResponse:
    data = json.loads(await request.body())["data"]
    row = [gap if data[name] is None else data[name] for name, gap in zip(names, missing, strict=True)]
    pool = Pool([row], feature_names=names, cat_features=categories, text_features=texts)
    probabilities = model.predict(pool, prediction_type="Probability", thread_count=threads)[0].tolist()
    best = max(range(len(classes)), key=probabilities.__getitem__)
    return JSONResponse({"prediction": classes[best], "probabilities": dict(zip(classes, probabilities, strict=True))})


async def ready(_: Request) -> JSONResponse:
    return JSONResponse({})


app = Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/readyz", ready)])
