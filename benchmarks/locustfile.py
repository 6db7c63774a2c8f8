"""Load on a prediction service, as its clients would put it: `make load`, or by hand

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:3001

Every user asks with the example that the service's own page shows, each time as another entity, and now and then in a
batch. EVERGREEN_API_KEY is the key that requests carry.
"""

import os
import random
import uuid
from typing import Any

from locust import HttpUser, between, task

BATCH = 50  # rows


class Client(HttpUser):  # type: ignore[misc]
    wait_time = between(0.05, 0.2)

    def on_start(self) -> None:
        """Learn from the service what it wants to be asked."""
        if key := os.environ.get("EVERGREEN_API_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"
        document = self.client.get("/docs.json", name="docs").json()
        body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
        schema = body["schema"]
        if reference := schema.get("$ref"):
            schema = document["components"]["schemas"][reference.rpartition("/")[2]]
        self.example: dict[str, Any] = (body.get("example") or schema["example"])["data"]
        self.entity = next(name for name, value in self.example.items() if str(value).startswith("example"))

    @task(20)
    def predict(self) -> None:
        self.client.post("/predict", json={"data": self._row()})

    @task(1)
    def predict_batch(self) -> None:
        self.client.post("/predict_batch", json={"data": [self._row() for _ in range(BATCH)]})

    @task(2)
    def predict_and_tell_the_truth(self) -> None:
        """Ask, then report what came true: here what was predicted, as far as load is concerned."""
        answer = self.client.post("/predict", json={"data": self._row()})
        if answer.ok and random.random() < 0.5:
            told = answer.json()
            self.client.post("/feedback", json={"prediction_id": told["prediction_id"], "actual": told["prediction"]})

    def _row(self) -> dict[str, Any]:
        return {**self.example, self.entity: f"load-{uuid.uuid4().hex[:12]}"}
