"""The services that the benchmark of serving compares. They have the same trees, rows and log settings.

Each one answers one row per request. On every side access logs are off, and only warnings are logged.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from catboost import CatBoostClassifier

from api.launch import serve_command
from api.versions.bento_store import BentoStore
from benchmarks.baselines import course_style, mlflow_serve
from db import history
from db.session import session
from db.store import appending
from db.tables import deployment
from pipelines.artifact.bundle import write_companions
from pipelines.artifact.bundle_files import bundle_hash
from pipelines.artifact.learner import MISSING_TEXT, pool_from_frame, rows_of, score
from pipelines.artifact.profile import build_profile
from pipelines.spec import find_spec
from stack.example_data.worlds import example_world
from stack.programs.program import settings_environment
from tests.servers import free_port
from utils.clock import utc_now
from utils.settings import Settings
from utils.version import ROOT

MODEL, CUSTOMERS, TREES = "credit_score", 1_500, 300
REQUESTS, BATCH, VERSIONS = 1_000, 1_000, (1, 2)
PREDICTIONS = "SELECT COUNT(*) FROM prediction_log"
QUIET = "api_server.logging.access.enabled=false"


@dataclass(frozen=True, slots=True)
class Side:
    """A service in the comparison.

    name: its name in the figures.
    argv, environment: the command to start it.
    port: the port that it listens on.
    bodies: the file with a request body in each line.
    path: the path of the requests.
    ready: the path that answers 200 when it is ready.
    count: the query that counts its logged rows. Empty if it does not log.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    port: int
    bodies: Path
    path: str = "/predict"
    ready: str = "/readyz"
    count: str = ""


class World:
    """A labelled history, a model fitted on it, and requests with its rows."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.spec = settings, find_spec(ROOT / "models", MODEL)
        world = example_world(MODEL, end=utc_now(), customers=CUSTOMERS)
        assert world is not None
        names = {self.spec.entity: "entity_id", str(self.spec.source.event_time): "event_time"}
        self.frame: pd.DataFrame = world.rename(columns=names)
        self.model = CatBoostClassifier(
            iterations=TREES, depth=6, random_seed=1, verbose=False, allow_writing_files=False
        )
        self.model.fit(pool_from_frame(self.frame, spec=self.spec, label=True))
        self.sha256 = {version: self._store_version(version) for version in VERSIONS}
        self.deploy(VERSIONS[0])
        self._fill_store()
        sample = self.frame.sample(REQUESTS, random_state=1)
        values = [dict(zip(self.spec.features.columns, row, strict=True)) for row in rows_of(sample, spec=self.spec)]
        self.rows = [{self.spec.entity: f"c-{i}", **row_values} for i, row_values in enumerate(values)]
        self.single = self._file("single", [{"data": row} for row in self.rows])
        self.batches = self._file("batches", [{"data": self.rows[:BATCH]}])
        ids = self.frame["entity_id"].drop_duplicates().head(REQUESTS)
        self.by_id = self._file("by_id", [{"ids": [name]} for name in ids])

    def deploy(self, version: int) -> None:
        """Record the deployment of `version`."""
        row = {"model": MODEL, "action": "deploy", "version": version, "artifact_sha256": self.sha256[version]}
        with session(self.settings, "pipeline") as connection:
            cause = {"caused_by": "benchmark", "reason": "benchmark", "created_at": utc_now()}
            history.add(connection, deployment, {**row, **cause})

    def ours(self, *, workers: int) -> Side:
        port = free_port()
        settings = self.settings.model_copy(update={"serving_workers": workers})
        argv, environment = serve_command(settings, MODEL, port)
        own = settings_environment(settings, secrets=("db_api_password", "api_key"))
        return Side(f"evergreen, {workers}", argv, {**own, **environment}, port, self.single, count=PREDICTIONS)

    def course(self, *, workers: int) -> Side:
        folder, port = self.settings.home / f"course-{workers}", free_port()
        folder.mkdir()
        columns = {kind: self.spec.columns_of(kind) for kind in ("numeric", "categorical")}  # text would be more work
        course_style.train(self.frame, **columns, label=self.spec.label.column, folder=folder, trees=TREES)
        with session(self.settings, "admin") as connection:
            course_style.Base.metadata.create_all(connection)
        argv, environment = serve_command(self.settings, MODEL, port)
        argv = ["benchmarks.baselines.course_style:CourseService" if "api.service" in part else part for part in argv]
        environment |= {
            "BENTOML_HOME": str(folder),
            "BENTOML_CONFIG_OPTIONS": QUIET,
            "COURSE_FOLDER": str(folder),
            "COURSE_DATABASE": self.settings.db_url("admin"),
            "COURSE_WORKERS": str(workers),
        }
        count = "SELECT COUNT(*) FROM course_prediction"
        return Side(f"course-style, {workers}", argv, environment, port, self.single, count=count)

    def mlflow(self) -> Side:
        folder, port = self.settings.home / "mlflow-model", free_port()
        features = self._without_gaps_in_text()
        mlflow_serve.save(self.model, features, folder)
        json_rows = features.sample(REQUESTS, random_state=1).to_json(orient="records", lines=True).splitlines()
        bodies = self._file("mlflow", [{"dataframe_records": [json.loads(row)]} for row in json_rows])
        argv = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
        argv += ["--host", "127.0.0.1", "--port", str(port)]
        quiet = {"UVICORN_LOG_LEVEL": "warning", "UVICORN_ACCESS_LOG": "false"}
        path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}  # mlflow finds uvicorn on the PATH
        return Side("mlflow models serve", argv, {**quiet, **path}, port, bodies, path="/invocations", ready="/ping")

    def bare(self, *, workers: int, logged: bool = False) -> Side:
        name, port = f"bare{' and logged' * logged}, {workers}", free_port()
        folder = self.settings.home / name
        folder.mkdir()
        self.model.save_model(str(folder / "model.cb"))
        (folder / "spec.json").write_text(json.dumps(self.spec.to_json()), encoding="utf-8")
        app = "benchmarks.baselines.bare_logged:app" if logged else "benchmarks.baselines.bare:app"
        argv = [sys.executable, "-m", "uvicorn", app, "--workers", str(workers)]
        argv += ["--port", str(port), "--log-level", "warning", "--no-access-log"]
        environment = {
            "BARE_MODEL": str(folder / "model.cb"),
            "BARE_SPEC": str(folder / "spec.json"),
            "BARE_THREADS": "-1" if workers == 1 else "1",  # one worker uses all cores, else one core each
            "BARE_DATABASE": self.settings.db_url("api"),
        }
        return Side(name, argv, environment, port, self.single, count=PREDICTIONS if logged else "")

    def _store_version(self, version: int) -> str:
        """Put the model into the Bento store as `version`. Return the SHA-256 of the bundle."""
        folder = self.settings.home / f"bundle-{version}"
        folder.mkdir()
        self.model.save_model(str(folder / "model.cb"))
        pool = pool_from_frame(self.frame, spec=self.spec, label=False)
        predictions = score(self.model, pool, spec=self.spec).predictions
        profile = build_profile(self.frame, predictions, spec=self.spec)
        write_companions(folder, model=self.model, spec=self.spec, profile=profile, fitted=self.frame)
        BentoStore(self.settings, MODEL).put(version, folder, tags={})
        return bundle_hash(folder)

    def _fill_store(self) -> None:
        newest = self.frame.sort_values("event_time").drop_duplicates("entity_id", keep="last")
        appending.append(
            self.settings,
            self.spec.store,
            features=newest[["entity_id", "event_time", *self.spec.features.columns]],
            labels=None,
            source="benchmark",
            content_sha256="0" * 64,
            caused_by="benchmark",
            now=utc_now(),
            available_at_given=False,
        )

    def _without_gaps_in_text(self) -> pd.DataFrame:
        """The features in a frame for CatBoost: numbers as floats, no missing values in categories and text."""
        numeric = self.spec.columns_of("numeric")
        features = self.frame[list(self.spec.features.columns)]
        filled = features.drop(columns=numeric).astype(object).fillna(MISSING_TEXT)
        return pd.concat([features[numeric].astype("float64"), filled], axis=1)[list(features.columns)]

    def _file(self, name: str, bodies: Sequence[object]) -> Path:
        path = self.settings.home / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(body) for body in bodies), encoding="utf-8")
        return path
