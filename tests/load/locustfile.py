"""Load on a prediction service, like that of its clients: `make load`, or by hand

    locust -f tests/load/locustfile.py --host http://127.0.0.1:3001 --ids FILE

Requests follow the model file, which the clients read from /docs.json. Features lie within their limits. A few are
missing, and now and then a category is unseen. FILE has one entity of the store a line. Without FILE, requests to
/predict_by_id name unknown entities, and 404 is the right answer. EVERGREEN_API_KEY is the key of the requests.

A run fails if it breaks the limits --max-p99 or --max-failures, or if it has no requests.
"""

import os
import random
import sys
import uuid
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from locust import FastHttpUser, between, events, task
from locust.env import Environment

BATCHES = (10, 200)  # rows
IDS = (1, 20)  # entities of one request
MISSING, UNSEEN = 0.03, 0.01  # share of all values, share of values of open categories
LONGEST_CATEGORY = 128  # characters; longer features are text
WRONG = 0.2  # share of predictions whose truth is another value


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _(parser: ArgumentParser) -> None:
    parser.add_argument("--max-p99", type=float, default=250.0, help="Milliseconds that 99% of requests may take")
    parser.add_argument("--max-failures", type=float, default=0.1, help="Percent of requests that may fail")
    parser.add_argument("--ids", default="", help="File with an entity that the store knows a line")


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Environment, **_: object) -> None:
    """Print whether the run kept the limits, and set its exit code."""
    total, allowed = environment.stats.total, environment.parsed_options
    assert allowed is not None
    p99, failed = total.get_response_time_percentile(0.99) or 0.0, 100 * total.fail_ratio
    good = total.num_requests > 0 and p99 <= allowed.max_p99 and failed <= allowed.max_failures
    sys.stdout.write(
        f"{'kept' if good else 'BROKEN'}: {total.num_requests:,} requests, 99% of them within {p99:.0f} ms"
        f" (at most {allowed.max_p99:g}), {failed:.2f}% failed (at most {allowed.max_failures:g}%)\n"
    )
    environment.process_exit_code = 0 if good else 1


class Client(FastHttpUser):
    wait_time = between(0.05, 0.2)

    def on_start(self) -> None:
        """Read the schemas of requests and answers from the service."""
        key = os.environ.get("EVERGREEN_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        schemas = self.client.get("/docs.json", name="/docs.json").json()["components"]["schemas"]
        row, answer = schemas["Row"], schemas["Answer"]["properties"]["prediction"]
        (self.entity,) = row["required"]
        self.features = {name: each["anyOf"][0] for name, each in row["properties"].items() if name != self.entity}
        self.typical: dict[str, Any] = schemas["Predict"]["example"]["data"]
        self.classes: list[str] = answer.get("enum", [])  # empty if the prediction is a number
        file = self.environment.parsed_options.ids
        self.ids = Path(file).read_text(encoding="utf-8").splitlines() if file else []

    @task(20)
    def predict(self) -> None:
        self._post("/predict", {"data": self._row()})

    @task(4)
    def predict_by_id(self) -> None:
        count = random.randint(*IDS)
        ids = random.choices(self.ids, k=count) if self.ids else [uuid.uuid4().hex for _ in range(count)]
        self._post("/predict_by_id", {"ids": ids}, expected=200 if self.ids else 404)

    @task(1)
    def predict_batch(self) -> None:
        self._post("/predict_batch", {"data": [self._row() for _ in range(random.randint(*BATCHES))]})

    @task(3)
    def predict_and_report_the_truth(self) -> None:
        """Ask for a prediction, then report its truth, which is mostly the prediction."""
        answer = self._post("/predict", {"data": self._row()})
        if answer and random.random() < 0.5:
            actual = answer["prediction"]
            if random.random() < WRONG:
                actual = random.choice(self.classes) if self.classes else actual * random.uniform(0.5, 1.5)
            self._post("/feedback", {"prediction_id": answer["prediction_id"], "actual": actual})

    def _post(self, path: str, body: dict[str, Any], *, expected: int = 200) -> dict[str, Any] | None:
        """The answer, or None if its status is not `expected`."""
        with self.client.post(path, json=body, headers=self.headers, catch_response=True) as answer:
            if answer.status_code != expected:
                answer.failure(f"{answer.status_code}: {(answer.text or '')[:200]}")
                return None
            answer.success()
            content: dict[str, Any] = answer.json()
            return content

    def _row(self) -> dict[str, Any]:
        values = {name: self._value(name, kind) for name, kind in self.features.items()}
        return {self.entity: f"load-{uuid.uuid4().hex[:12]}", **values}

    def _value(self, name: str, kind: dict[str, Any]) -> Any:
        if random.random() < MISSING:
            return None
        if "enum" in kind or "const" in kind:
            return random.choice(kind.get("enum") or [kind["const"]])
        typical = self.typical[name]
        if kind["type"] == "number":
            return _number(typical, kind.get("minimum"), kind.get("maximum"))
        if kind["maxLength"] <= LONGEST_CATEGORY and random.random() < UNSEEN:
            return f"unseen-{random.randint(0, 99)}"
        return typical


def _number(typical: float, low: float | None, high: float | None) -> float:
    """A random number around the typical one, within the limits."""
    if low is not None and high is not None:
        return round(random.triangular(low, high, typical), 2)
    number = typical * random.lognormvariate(0, 0.5) if typical else random.gauss(0, 1)
    number = number if low is None else max(low, number)
    return number if high is None else min(high, number)
