"""Responses 404 and 405 before BentoML counts them. BentoML keeps some twenty metrics for every path and status."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

READ = frozenset({"GET", "HEAD"})


class KnownPaths:
    """Pass requests to `app` if it has their path and method: a route or a static file."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._methods = {route.path: frozenset(route.methods or ()) for route in app.routes if isinstance(route, Route)}
        for route in app.routes:
            if isinstance(route, Mount) and isinstance(route.app, StaticFiles) and route.app.directory:
                folder = Path(route.app.directory)
                files = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
                self._methods |= {f"{route.path}/{file}": READ for file in files}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self._methods.get(scope["path"]) if scope["type"] == "http" else None
        if scope["type"] == "lifespan" or (methods and scope["method"] in methods):
            await self._app(scope, receive, send)
        elif methods:
            allowed = ", ".join(sorted(methods))
            wrong_method = JSONResponse({"error": f"the method here is {allowed}"}, 405, {"Allow": allowed})
            await wrong_method(scope, receive, send)
        else:
            not_found = JSONResponse({"error": "there is nothing here: / shows every endpoint"}, 404)
            await not_found(scope, receive, send)
