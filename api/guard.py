"""What a request must be before any endpoint sees it: authorised, JSON, of bearable size, and of the right types.

An ASGI middleware rather than BentoML's own parsing, which logs a traceback with the input values of each refusal.
"""

import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.rejects import Rejects
from api.repeats import HEADER, KEY, parse_key
from api.schemas import Problem, problems
from pipelines.spec import ModelSpec
from utils.clock import utc_now

MAX_BODY = 10_000_000  # bytes
REQUEST = "evergreen.request"  # key of the validated body in the ASGI scope
WHOLE = "(request)"  # the field under which refusals of a request as such are counted


class Guard:
    """Validates the bodies of POST requests to the paths of `bodies`; everything else passes untouched."""

    def __init__(
        self, app: ASGIApp, *, spec: ModelSpec, bodies: Mapping[str, type[BaseModel]], api_key: str, rejects: Rejects
    ) -> None:
        self._app, self._spec, self._bodies, self._rejects = app, spec, bodies, rejects
        self._expected = f"Bearer {api_key}".encode() if api_key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self._bodies.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if body is None:
            await self._app(scope, receive, send)
            return
        refused = self._refused_by_headers(dict(scope["headers"]))
        if refused is None:
            content = await _read(receive)
            if content is None:
                return  # the client went away
            refused = self._refused_by_content(scope, body, content)
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await refused(scope, receive, send)

    def _refused_by_headers(self, headers: Mapping[bytes, bytes]) -> Response | None:
        if self._expected and not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            return self._refuse(
                401, "a valid key is needed: send the header Authorization: Bearer KEY", headers=_CHALLENGE
            )
        if _media_type(headers) != b"application/json":
            return self._refuse(415, "the body must be JSON, with the header Content-Type: application/json")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return self._refuse(413, _TOO_LARGE)
        try:
            KEY.set(parse_key(headers[HEADER], now=utc_now()) if HEADER in headers else None)
        except ValueError as error:
            return self._refuse(400, str(error))
        return None

    def _refused_by_content(self, scope: Scope, body: type[BaseModel], content: bytes) -> Response | None:
        """Puts the validated body into `scope`, or says what is wrong with it."""
        if len(content) > MAX_BODY:
            return self._refuse(413, _TOO_LARGE)
        try:
            scope[REQUEST] = body.model_validate_json(content or b"{}")
        except ValidationError as error:
            found = problems(error, spec=self._spec)
            self._rejects.add((problem.field, problem.reason) for problem in found)
            return JSONResponse({"error": str(found[0]), "detail": _shown(found)}, 400)
        return None

    def _refuse(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> Response:
        self._rejects.add([(WHOLE, str(status))])
        return JSONResponse({"error": message}, status, headers)


_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_TOO_LARGE = f"the body is larger than {MAX_BODY // 1_000_000} MB: send fewer rows at a time"


def _media_type(headers: Mapping[bytes, bytes]) -> bytes:
    return headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()


async def _read(receive: Receive) -> bytes | None:
    """The body, up to its first piece beyond the limit: chunked ones do not say their length. None: disconnected."""
    pieces: list[bytes] = []
    size = 0
    while size <= MAX_BODY:
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if not message.get("more_body"):
            break
    return b"".join(pieces)


def _shown(found: Iterable[Problem]) -> list[dict[str, Any]]:
    keys = ("row", "field", "reason", "message")
    return [{key: getattr(each, key) for key in keys if getattr(each, key) is not None} for each in found]
