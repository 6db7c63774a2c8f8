"""404 and 405 before BentoML counts them: it keeps some twenty metrics for every path and status that it sees."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

READ = frozenset({"GET", "HEAD"})


class KnownPaths:
    """`app` for the methods and paths of its routes and static files."""

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
            wrong = JSONResponse({"error": f"the method here is {allowed}"}, 405, {"Allow": allowed})
            await wrong(scope, receive, send)
        else:
            missing = JSONResponse({"error": "there is nothing here: / shows every endpoint"}, 404)
            await missing(scope, receive, send)
