"""404 for paths that do not exist, before BentoML counts them: it keeps some twenty metrics for every path it sees."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send


class KnownPaths:
    """`app` for the paths of its routes and static files."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._paths = {route.path for route in app.routes if isinstance(route, Route)} | {"/"}
        for route in app.routes:
            if isinstance(route, Mount) and isinstance(route.app, StaticFiles) and route.app.directory:
                folder = Path(route.app.directory)
                self._paths |= {f"{route.path}/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._paths:
            await self._app(scope, receive, send)
        else:
            missing = JSONResponse({"error": "there is nothing here: / shows every endpoint"}, 404)
            await missing(scope, receive, send)
