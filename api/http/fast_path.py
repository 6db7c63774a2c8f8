"""A short path for our endpoints around BentoML's middleware, which takes longer than a prediction.

BentoML's metrics middleware is the outermost layer of its app. `Traffic` replaces it: it counts every request in the
same metrics under the same names, and hands requests to other paths on to BentoML.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter, time
from typing import Any

from bentoml._internal.context import server_context
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.guard import REQUEST

Answer = Callable[..., Awaitable[Response]]

log = logging.getLogger(__name__)


class Direct:
    """Call the endpoint of a request's path with the fields of its validated body as arguments.

    `Guard` has put the body into the scope and keeps the deadline. `endpoints` is filled when the worker starts.
    """

    def __init__(self, endpoints: Mapping[str, Answer]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body: BaseModel = scope[REQUEST]
        try:
            response = await self._endpoints[scope["path"]](**body.__dict__)
        except Exception:
            log.exception("%s failed", scope["path"])
            response = JSONResponse({"error": "an unexpected error: the service's log says more"}, 500)
        await response(scope, receive, send)


class Traffic(RunnerTrafficMetricsMiddleware):
    """BentoML's metrics. POST requests to `paths` are counted too and go to `fast_app`."""

    def __init__(self, app: ASGIApp, *, fast_app: ASGIApp, paths: frozenset[str], **options: Any) -> None:
        super().__init__(app, **options)
        self._fast_app, self._paths = fast_app, paths
        self._series: dict[tuple[object, ...], Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self._paths or scope["method"] != "POST":
            await super().__call__(scope, receive, send)
            return
        if not self._is_setup:
            self._setup()
        endpoint, began, status = scope["path"], perf_counter(), 500

        async def send_and_count(message: Message) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body"):
                self._count(endpoint, status, perf_counter() - began)

        with self._series_of(self.metrics_request_in_progress, endpoint=endpoint).track_inprogress():
            await self._fast_app(scope, receive, send_and_count)

    def _count(self, endpoint: str, status: int, seconds: float) -> None:
        labels = {"endpoint": endpoint, "http_response_code": status}
        self._series_of(self.metrics_last_request_timestamp).set(time())
        self._series_of(self.metrics_request_total, **labels).inc()
        self._series_of(self.metrics_request_duration, **labels).observe(seconds)

    def _series_of(self, metric: Any, **labels: Any) -> Any:
        """The series of `metric` with these labels, from a cache: the look-up costs more than counting."""
        key = (metric, *labels.values())
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = metric.labels(
                service_name=server_context.bento_name,
                service_version=server_context.bento_version,
                runner_name=server_context.service_name,
                **labels,
            )
        return series


def put_before(app: Starlette, *, fast_app: ASGIApp, paths: frozenset[str]) -> None:
    """Replace BentoML's metrics middleware in `app` by `Traffic`. Call it before `app` serves."""
    layers: list[Any] = app.user_middleware
    (place,) = [i for i, layer in enumerate(layers) if layer.cls is RunnerTrafficMetricsMiddleware]
    layers[place] = Middleware(Traffic, **{**layers[place].kwargs, "fast_app": fast_app, "paths": paths})  # type: ignore[arg-type]
