"""The services that the serving benchmark compares, and the data that they share.

All services have the same trees and rows. Their access logs are off, and they log only warnings.
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
REQUESTS, BATCH_ROWS, VERSIONS = 1_000, 1_000, (1, 2)
COUNT_PREDICTIONS = "SELECT COUNT(*) FROM prediction_log"
NO_ACCESS_LOG = "api_server.logging.access.enabled=false"


@dataclass(frozen=True, slots=True)
class Side:
    """One service of the comparison.

    name: the name in the figures.
    argv, environment: the command that starts the service.
    port: the port that the service listens on.
    bodies: a file with one request body per line. Each body has one row.
    path: the path of the requests.
    ready_path: the path that answers 200 as soon as the service is ready.
    count_query: the query that counts the rows that the service has logged. Empty if it does not log.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    port: int
    bodies: Path
    path: str = "/predict"
    ready_path: str = "/readyz"
    count_query: str = ""


class ServingSetup:
    """What all services of the benchmark share: a labelled history, a model fitted on it, and files of requests.

    rows: the rows of the requests.
    single_bodies, batch_bodies, id_bodies: files with one request body per line, for /predict, /predict_batch and
        /predict_by_id.
    sha256: the hash of each version's bundle.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.spec = settings, find_spec(ROOT / "models", MODEL)
        history_frame = example_world(MODEL, end=utc_now(), customers=CUSTOMERS)
        assert history_frame is not None
        store_names = {self.spec.entity: "entity_id", str(self.spec.source.event_time): "event_time"}
        self.frame: pd.DataFrame = history_frame.rename(columns=store_names)
        self.model = CatBoostClassifier(
            iterations=TREES, depth=6, random_seed=1, verbose=False, allow_writing_files=False
        )
        self.model.fit(pool_from_frame(self.frame, spec=self.spec, label=True))
        self.sha256 = {version: self._store_bundle(version) for version in VERSIONS}
        self.deploy(VERSIONS[0])
        self._fill_store()
        sample = self.frame.sample(REQUESTS, random_state=1)
        feature_values = [
            dict(zip(self.spec.features.columns, row, strict=True)) for row in rows_of(sample, spec=self.spec)
        ]
        self.rows = [{self.spec.entity: f"c-{i}", **values} for i, values in enumerate(feature_values)]
        self.single_bodies = self._write_bodies("single", [{"data": row} for row in self.rows])
        self.batch_bodies = self._write_bodies("batches", [{"data": self.rows[:BATCH_ROWS]}])
        ids = self.frame["entity_id"].drop_duplicates().head(REQUESTS)
        self.id_bodies = self._write_bodies("by_id", [{"ids": [entity_id]} for entity_id in ids])

    def deploy(self, version: int) -> None:
        """Record the deployment of `version`."""
        row = {"model": MODEL, "action": "deploy", "version": version, "artifact_sha256": self.sha256[version]}
        with session(self.settings, "pipeline") as connection:
            cause = {"caused_by": "benchmark", "reason": "benchmark", "created_at": utc_now()}
            history.add(connection, deployment, {**row, **cause})

    def evergreen_side(self, *, workers: int) -> Side:
        """Return our service."""
        port = free_port()
        settings = self.settings.model_copy(update={"serving_workers": workers})
        argv, environment = serve_command(settings, MODEL, port)
        settings_variables = settings_environment(settings, secrets=("db_api_password", "api_key"))
        return Side(
            f"evergreen, {workers}",
            argv,
            {**settings_variables, **environment},
            port,
            self.single_bodies,
            count_query=COUNT_PREDICTIONS,
        )

    def course_side(self, *, workers: int) -> Side:
        """Fit the model of `baselines.course_style`, create its table, and return the service."""
        folder, port = self.settings.home / f"course-{workers}", free_port()
        folder.mkdir()
        columns = {kind: self.spec.columns_of(kind) for kind in ("numeric", "categorical")}  # text would make it slower
        course_style.train(self.frame, **columns, label=self.spec.label.column, folder=folder, trees=TREES)
        with session(self.settings, "admin") as connection:
            course_style.Base.metadata.create_all(connection)
        argv, environment = serve_command(self.settings, MODEL, port)
        argv = ["benchmarks.baselines.course_style:CourseService" if "api.service" in part else part for part in argv]
        environment |= {
            "BENTOML_HOME": str(folder),
            "BENTOML_CONFIG_OPTIONS": NO_ACCESS_LOG,
            "COURSE_FOLDER": str(folder),
            "COURSE_DATABASE": self.settings.db_url("admin"),
            "COURSE_WORKERS": str(workers),
        }
        count_query = "SELECT COUNT(*) FROM course_prediction"
        return Side(f"course-style, {workers}", argv, environment, port, self.single_bodies, count_query=count_query)

    def mlflow_side(self) -> Side:
        """Return MLflow's scoring server with the model."""
        folder, port = self.settings.home / "mlflow-model", free_port()
        features = self._prepare_features()
        mlflow_serve.save(self.model, features, folder)
        json_rows = features.sample(REQUESTS, random_state=1).to_json(orient="records", lines=True).splitlines()
        bodies = self._write_bodies("mlflow", [{"dataframe_records": [json.loads(row)]} for row in json_rows])
        argv = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
        argv += ["--host", "127.0.0.1", "--port", str(port)]
        log_variables = {"UVICORN_LOG_LEVEL": "warning", "UVICORN_ACCESS_LOG": "false"}
        path_variable = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}  # mlflow finds uvicorn on the PATH
        return Side(
            "mlflow models serve",
            argv,
            {**log_variables, **path_variable},
            port,
            bodies,
            path="/invocations",
            ready_path="/ping",
        )

    def bare_side(self, *, workers: int, with_log: bool = False) -> Side:
        """Return the service `baselines.bare`, or `baselines.bare_logged` if `with_log`."""
        name, port = f"bare{' and logged' * with_log}, {workers}", free_port()
        folder = self.settings.home / name
        folder.mkdir()
        self.model.save_model(str(folder / "model.cb"))
        (folder / "spec.json").write_text(json.dumps(self.spec.to_json()), encoding="utf-8")
        app = "benchmarks.baselines.bare_logged:app" if with_log else "benchmarks.baselines.bare:app"
        argv = [sys.executable, "-m", "uvicorn", app, "--workers", str(workers)]
        argv += ["--port", str(port), "--log-level", "warning", "--no-access-log"]
        environment = {
            "BARE_MODEL": str(folder / "model.cb"),
            "BARE_SPEC": str(folder / "spec.json"),
            # A single worker uses all cores. Several workers use one core each.
            "BARE_THREADS": "-1" if workers == 1 else "1",
            "BARE_DATABASE": self.settings.db_url("api"),
        }
        return Side(
            name, argv, environment, port, self.single_bodies, count_query=COUNT_PREDICTIONS if with_log else ""
        )

    def _store_bundle(self, version: int) -> str:
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
        """Add the newest feature row of each entity to the feature store."""
        newest_rows = self.frame.sort_values("event_time").drop_duplicates("entity_id", keep="last")
        appending.append(
            self.settings,
            self.spec.store,
            features=newest_rows[["entity_id", "event_time", *self.spec.features.columns]],
            labels=None,
            source="benchmark",
            content_sha256="0" * 64,
            caused_by="benchmark",
            now=utc_now(),
            available_at_given=False,
        )

    def _prepare_features(self) -> pd.DataFrame:
        """Return the features with numbers as floats, and without missing values in categories and text."""
        numeric = self.spec.columns_of("numeric")
        features = self.frame[list(self.spec.features.columns)]
        filled = features.drop(columns=numeric).astype(object).fillna(MISSING_TEXT)
        return pd.concat([features[numeric].astype("float64"), filled], axis=1)[list(features.columns)]

    def _write_bodies(self, name: str, bodies: Sequence[object]) -> Path:
        """Write one JSON body per line, and return the file."""
        path = self.settings.home / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(body) for body in bodies), encoding="utf-8")
        return path
