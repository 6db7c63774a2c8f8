"""Our endpoints without BentoML's layers between a request and its answer: those take longer than the prediction.

BentoML's middleware for metrics is the outermost layer of its app, so ours takes its place: it counts every request in
the same metrics, under the same names, and passes on what is not one of our endpoints.
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
    """Answers a validated body (`Guard` has put it into the scope, and has the deadline) by the endpoint of its path.

    `endpoints` is filled when the worker starts. An endpoint takes the body's fields as arguments.
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
    """BentoML's metrics. Requests to the `paths` of `fast_app` are counted too, and go there."""

    def __init__(self, app: ASGIApp, *, fast_app: ASGIApp, paths: frozenset[str], **further: Any) -> None:
        super().__init__(app, **further)
        self._fast_app, self._paths = fast_app, paths
        self._named: dict[tuple[object, ...], Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self._paths or scope["method"] != "POST":
            await super().__call__(scope, receive, send)
            return
        if not self._is_setup:
            self._setup()
        endpoint, began, status = scope["path"], perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body"):
                self._count(endpoint, status, perf_counter() - began)

        with self._of(self.metrics_request_in_progress, endpoint=endpoint).track_inprogress():
            await self._fast_app(scope, receive, counted)

    def _count(self, endpoint: str, status: int, seconds: float) -> None:
        labels = {"endpoint": endpoint, "http_response_code": status}
        self._of(self.metrics_last_request_timestamp).set(time())
        self._of(self.metrics_request_total, **labels).inc()
        self._of(self.metrics_request_duration, **labels).observe(seconds)

    def _of(self, metric: Any, **labels: Any) -> Any:
        """The series of `metric` with these labels; finding it costs more than counting."""
        key = (metric, *labels.values())
        found = self._named.get(key)
        if found is None:
            found = self._named[key] = metric.labels(
                service_name=server_context.bento_name,
                service_version=server_context.bento_version,
                runner_name=server_context.service_name,
                **labels,
            )
        return found


def put_before(app: Starlette, *, fast_app: ASGIApp, paths: frozenset[str]) -> None:
    """Let `Traffic` take the place of BentoML's own metrics in `app`, which has not begun to serve."""
    layers: list[Any] = app.user_middleware
    (place,) = [i for i, each in enumerate(layers) if each.cls is RunnerTrafficMetricsMiddleware]
    layers[place] = Middleware(Traffic, **{**layers[place].kwargs, "fast_app": fast_app, "paths": paths})  # type: ignore[arg-type]
