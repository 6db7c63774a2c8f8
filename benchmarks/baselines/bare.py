"""A baseline: a minimal service of Starlette and CatBoost. It has no log and no metrics, and does not check its input.

Start it with `uvicorn benchmarks.baselines.bare:app --workers N` and these variables: BARE_MODEL (a CatBoost file),
BARE_SPEC (the model file as JSON), and BARE_THREADS (CatBoost's threads per request; -1 for one per core).
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
feature_types = {name: feature["type"] for name, feature in spec["features"]["columns"].items()}
feature_names = list(feature_types)
missing_values = [np.nan if feature_type == "numeric" else "" for feature_type in feature_types.values()]
categorical_features = [name for name in feature_names if feature_types[name] == "categorical"]
text_features = [name for name in feature_names if feature_types[name] == "text"]
classes = [str(name) for name in model.classes_]


def score_rows(data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the answer to each row of `data`."""
    rows = [
        [
            missing if row[name] is None else row[name]
            for name, missing in zip(feature_names, missing_values, strict=True)
        ]
        for row in data
    ]
    pool = Pool(
        rows,
        feature_names=feature_names,
        cat_features=categorical_features,
        text_features=text_features,
        thread_count=threads,
    )
    probabilities = model.predict(pool, prediction_type="Probability", thread_count=threads).tolist()
    answer_probabilities = [dict(zip(classes, row_probabilities, strict=True)) for row_probabilities in probabilities]
    return [{"prediction": max(row, key=row.__getitem__), "probabilities": row} for row in answer_probabilities]


async def predict(request: Request) -> JSONResponse:
    return JSONResponse(score_rows([json.loads(await request.body())["data"]])[0])


async def ready(_: Request) -> JSONResponse:
    return JSONResponse({})


app = Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/readyz", ready)])
