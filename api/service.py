"""`bentoml serve api.service:service`: the prediction service of the model that EVERGREEN_MODEL names."""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import bentoml
from pydantic import BaseModel, create_model
from starlette.requests import Request
from starlette.responses import Response

from api.http import connections, server
from api.http.bearer_keys import Keys
from api.http.fast_path import Answer, Direct, put_before
from api.http.guard import REQUEST, REQUEST_SECONDS, Guard
from api.http.known_paths import KnownPaths
from api.http.openapi import document
from api.http.responses import to_response
from api.log.drain import Drainer
from api.log.prediction_log import Breaker, PredictionLog
from api.log.spool import Spool
from api.prometheus import Numbers
from api.requests.reject_counts import RejectCounts
from api.requests.row_type import Row
from api.requests.schemas import Metadata, Nothing, Recorded, Schemas, build_schemas
from api.scoring.batcher import Batcher
from api.scoring.lookups import Lookups
from api.scoring.predict import LoadedVersion, Prediction, predict
from api.scoring.reasons import with_reasons
from api.versions.bento_store import BentoStore
from api.versions.model_slot import ModelSlot
from db import driver
from db.history import heartbeats
from db.log import writing
from pipelines.spec import ModelSpec, find_spec
from utils.clock import utc_now
from utils.errors import EvergreenError, NotFound, NotNow, SettingMissing
from utils.log_setup import configure
from utils.settings import Settings, load_settings

ENDPOINTS = ("predict", "predict_batch", "predict_by_id", "feedback", "metadata")

log = logging.getLogger(__name__)


class Endpoints:
    """One worker's parts and endpoints. `build` makes a subclass with the model's types."""

    settings: ClassVar[Settings]
    schemas: ClassVar[Schemas]
    rejects: ClassVar[RejectCounts]
    numbers: ClassVar[Numbers]
    answers: ClassVar[dict[str, Answer]]  # the endpoint of each path, filled when the worker starts
    bento_service: Any  # set by BentoML

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        configure()
        logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
        spec = self.schemas.spec
        instance, folder, breaker = uuid4(), self.settings.spool / spec.name, Breaker()
        spool = Spool(folder, str(instance))
        url = self.bento_service.url or ""
        self._slot = ModelSlot(
            self.settings,
            spec=spec,
            url=url,
            instance_id=instance,
            rejects=self.rejects,
            numbers=self.numbers,
            spool_depth=spool.depth,
        )
        self._drainer = Drainer(self.settings, spec.name, spool=spool, breaker=breaker, folder=folder)
        self._batcher = Batcher(
            version=lambda: self._slot.version,
            score=self._score,
            log=PredictionLog(self.settings, spool=spool, breaker=breaker),
            explain=with_reasons,
            numbers=self.numbers,
            shadow=self._slot.shadow.offer,
        )
        self._lookups = Lookups(self.settings, schemas=self.schemas)
        self._feedback_thread = ThreadPoolExecutor(1, "feedback")
        self._feedback_client = driver.Client(self.settings)
        self._slot.start()
        self._batcher.start()
        self._drainer.start()
        self._lookups.start()
        self.answers.update({f"/{name}": getattr(Endpoints, name).__get__(self) for name in ENDPOINTS})

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        await self._lookups.stop()
        await self._batcher.stop()
        self._feedback_thread.shutdown()
        await asyncio.to_thread(self._drainer.stop)
        await asyncio.to_thread(self._slot.stop)

    def __is_ready__(self) -> bool:
        return self._slot.version is not None

    async def predict(self, data: Row, explain: bool = False) -> Response:
        """One row: features in, prediction out. It is in the log when the answer arrives."""

        async def answer() -> Any:
            return (await self._batcher.predict([data], explain=explain))[0]

        return await to_response(answer())

    async def predict_batch(self, data: list[Row], explain: bool = False) -> Response:
        """Many rows in one call, answered in their order by one version; all of them or none."""

        async def answers() -> Any:
            return {"predictions": await self._batcher.predict(data, explain=explain)}

        return await to_response(answers())

    async def predict_by_id(self, ids: list[str], explain: bool = False) -> Response:
        """Predictions from each entity's newest features in the store, in the order of the ids; all of them or none."""

        async def answers() -> Any:
            rows, doubts = await self._lookups.rows(ids)
            return {"predictions": await self._batcher.predict(rows, explain=explain, doubts=doubts)}

        return await to_response(answers())

    async def feedback(self, prediction_id: UUID, actual: str | float) -> Response:
        """The truth about an earlier prediction, by its prediction_id. A later report corrects an earlier one."""
        loop = asyncio.get_running_loop()
        return await to_response(loop.run_in_executor(self._feedback_thread, self._record, prediction_id, actual))

    async def metadata(self) -> Response:
        """Which version serves, since when, and where it came from."""

        async def answer() -> Any:
            return self._metadata()

        return await to_response(answer())

    def _score(self, version: LoadedVersion, rows: Any, origins: Any) -> list[Prediction]:
        return predict(version, rows, instance=self._slot.instance_id, origins=origins, now=utc_now())

    def _record(self, prediction_id: UUID, actual: str | float) -> dict[str, Any]:
        model = self.schemas.spec.name

        def write(link: driver.Link) -> bool:
            if is_logged := writing.is_logged(link, prediction_id):
                writing.add_feedback(link, prediction_id, model=model, actual=str(actual))
            elif heartbeats.is_spooling(link, model):
                raise NotNow(reason="the prediction may not have reached the log yet", retry_after=5, cause="spool")
            return is_logged

        if not self._feedback_client.run(write):
            raise NotFound(what=f"prediction {prediction_id}", hint="take the id from an answer of /predict")
        return {"recorded": True}

    def _metadata(self) -> dict[str, Any]:
        version = self._slot.version
        if version is None:
            raise NotNow(reason="there is no trained model to serve yet", retry_after=5, cause="no model")
        metadata = Metadata(
            model=version.model,
            version=version.number,
            sha256=version.bundle.sha256,
            serving_since=version.serving_since.isoformat() + "Z",
            deployed_at=version.deployed_at.isoformat() + "Z",
            task=version.bundle.spec.task,
            spec_hash=version.bundle.spec.hash,
            **{name: version.tags.get(name) for name in TAGS},
        )
        return metadata.model_dump()


TAGS = ("run_id", "snapshot_id", "snapshot_sha256", "code_commit", "fitted_until", "evaluated_as")


class ValidatedBody(bentoml.IODescriptor):  # type: ignore[misc]
    """A body that `Guard` has read and validated."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Any:
        return request.scope[REQUEST]

    @classmethod
    def openapi_components(cls, name: str) -> dict[str, Any]:
        return {}  # `api.http.openapi` describes bodies and answers


class ModelService(bentoml.Service):  # type: ignore[misc]
    """BentoML's service with our OpenAPI document, the fast path to our endpoints and no metrics of unknown paths."""

    @property
    def openapi_spec(self) -> "ModelService":
        return self

    def asdict(self) -> dict[str, Any]:
        settings, spec = self.inner.settings, self.inner.schemas.spec
        _, profile = _current_spec(settings)  # the version may be newer than this worker
        endpoints = _bodies(build_schemas(spec, profile=profile))
        key = Keys(settings).are_needed
        return document(super().openapi_spec.asdict(), spec=spec, endpoints=endpoints, key=key)

    def to_asgi(self, is_main: bool = True) -> KnownPaths:
        connections.install()
        server.install()
        app, inner = super().to_asgi(is_main=is_main), self.inner
        settings, schemas = inner.settings, inner.schemas
        guard = Guard(
            Direct(inner.answers),
            spec=schemas.spec,
            bodies={path: body for path, (body, _) in _bodies(schemas).items()},
            keys=Keys(settings),
            rejects=inner.rejects,
            numbers=inner.numbers,
        )
        put_before(app, fast_app=guard, paths=frozenset(_bodies(schemas)))
        return KnownPaths(app)


def build(settings: Settings) -> ModelService:
    """The service of `settings.model`. Connections and threads begin when a worker starts."""
    spec, profile = _current_spec(settings)
    schemas, rejects = build_schemas(spec, profile=profile), RejectCounts()
    bodies = _bodies(schemas)
    numbers = Numbers(spec.name, endpoints=bodies)
    methods = {
        path[1:]: bentoml.api(
            getattr(Endpoints, path[1:]), input_spec=_descriptor(request), output_spec=_descriptor(answer)
        )
        for path, (request, answer) in bodies.items()
    }
    parts = {"settings": settings, "schemas": schemas, "rejects": rejects, "numbers": numbers, "answers": {}}
    model_service: ModelService = bentoml.service(
        type(spec.name, (Endpoints,), {**parts, **methods, "__module__": __name__, "__doc__": spec.description}),
        name=spec.name,
        service_class=ModelService,
        workers=settings.serving_workers,
        traffic={"timeout": REQUEST_SECONDS},
        tracing={"excluded_urls": ".*"},  # half of a request's CPU
        logging={"access": {"enabled": False}},
    )
    return model_service


def _bodies(schemas: Schemas) -> dict[str, tuple[type[BaseModel], type[BaseModel]]]:
    """The types of every endpoint's request and answer, by path."""
    return {
        "/predict": (schemas.predict, schemas.answer),
        "/predict_batch": (schemas.predict_batch, schemas.answers),
        "/predict_by_id": (schemas.predict_by_id, schemas.answers),
        "/feedback": (schemas.feedback, Recorded),
        "/metadata": (Nothing, Metadata),
    }


def _descriptor(model: type[BaseModel]) -> type[BaseModel]:
    return create_model(model.__name__, __base__=(ValidatedBody, model), __module__=__name__)


def _current_spec(settings: Settings) -> tuple[ModelSpec, dict[str, Any] | None]:
    """The spec and profile of the version that serves here. Before the first version, the model file and None.

    Raises: SettingMissing, UnknownModel, SpecInvalid.
    """
    if not settings.model:
        raise SettingMissing(variable="EVERGREEN_MODEL", needed_for="a prediction service")
    bento_store = BentoStore(settings, settings.model)
    current = bento_store.current()
    folder = bento_store.folder(current.version) if current else None
    if folder is not None:
        try:
            return ModelSpec.parse(_json(folder / "spec.json"), file="spec.json"), _json(folder / "profile.json")
        except (ValueError, EvergreenError) as error:
            log.warning("the version on disk can't be read: %s", error)
    return find_spec(settings.models_dir, settings.model), None


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


service = build(load_settings())
