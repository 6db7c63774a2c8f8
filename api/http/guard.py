"""Checks of a request before an endpoint gets it: its key, its content type, its size and its values.

An ASGI middleware replaces BentoML's own parsing, which logs a traceback with the input values for each refusal.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.bearer_keys import Keys
from api.prometheus import CAUSE, Numbers
from api.requests.idempotency import HEADER, KEY, parse_key
from api.requests.reject_counts import RejectCounts
from api.requests.schemas import Problem, problems
from pipelines.spec import ModelSpec
from utils.clock import utc_now
from utils.errors import NotNow

REQUEST_SECONDS = 10.0  # seconds from a request's headers to its answer; its body must arrive within them too
MAX_BODY = 10_000_000  # bytes
MAX_ARRIVING = 200_000_000  # bytes of bodies that have arrived in part, of all clients of a worker together
REQUEST = "evergreen.request"  # key of the validated body in the ASGI scope
WHOLE = "(request)"  # field name in the counts for refusals that concern no single field


class Guard:
    """Validate the bodies of POST requests to the paths of `bodies`. Other requests pass unchanged."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        spec: ModelSpec,
        bodies: Mapping[str, type[BaseModel]],
        keys: Keys,
        rejects: RejectCounts,
        numbers: Numbers,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        self._app, self._spec, self._bodies, self._rejects = app, spec, bodies, rejects
        self._keys, self._numbers, self._timeout = keys, numbers, timeout
        self._arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self._bodies.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if body is None:
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def send_and_record_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            async with asyncio.timeout(self._timeout):
                refusal = self._check_headers(dict(scope["headers"])) or await self._check_body(scope, body, receive)
                await (refusal or self._app)(scope, receive, send_and_record_status)
        except _Gone:
            pass
        except TimeoutError:
            if status is None:
                await self._too_late(arrived=REQUEST in scope)(scope, receive, send_and_record_status)
        finally:
            self._numbers.request(scope["path"], status)

    def _check_headers(self, headers: Mapping[bytes, bytes]) -> Response | None:
        """The refusal of a request by its headers, or None. Sets the idempotency key of the request."""
        if not self._keys.allow(headers.get(b"authorization", b"")):
            return self._refuse(
                401, "a valid key is needed: send the header Authorization: Bearer KEY", headers=_CHALLENGE
            )
        if _media_type(headers) != b"application/json":
            return self._refuse(415, "the body must be JSON, with the header Content-Type: application/json")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return self._refuse(415, "the body must not be compressed: send it without Content-Encoding")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return self._refuse(413, _TOO_LARGE)
        try:
            KEY.set(parse_key(headers[HEADER], now=utc_now()) if HEADER in headers else None)
        except ValueError as error:
            return self._refuse(400, str(error))
        return None

    async def _check_body(self, scope: Scope, body: type[BaseModel], receive: Receive) -> Response | None:
        """Put the validated body into `scope`. Return the refusal of the request, or None.

        Raises: _Gone.
        """
        try:
            content = await self._read(receive)
        except NotNow as error:
            CAUSE.set(error.cause)
            return self._refuse(503, str(error), headers={"Retry-After": str(error.retry_after)})
        if len(content) > MAX_BODY:
            return self._refuse(413, _TOO_LARGE)
        try:
            scope[REQUEST] = body.model_validate_json(content or b"{}")
        except ValidationError as error:
            body_problems = problems(error, spec=self._spec)
            self._rejects.add((problem.field, problem.reason) for problem in body_problems)
            return JSONResponse({"error": str(body_problems[0]), "detail": _details(body_problems)}, 400)
        return None

    async def _read(self, receive: Receive) -> bytes:
        """The body, up to the first piece beyond the limit. A chunked body does not declare its length.

        Raises: NotNow if too many bytes of other requests arrive at the same time; _Gone.
        """
        content, more = _piece(await receive())
        if not more:
            return content
        pieces, size = [content], len(content)
        self._arriving += size
        try:
            while more and size <= MAX_BODY:
                if self._arriving > MAX_ARRIVING:
                    raise NotNow(reason="too many large requests arrive at once", cause="busy")
                content, more = _piece(await receive())
                pieces.append(content)
                size += len(content)
                self._arriving += len(content)
        finally:
            self._arriving -= size
        return b"".join(pieces)

    def _too_late(self, *, arrived: bool) -> Response:
        if arrived:
            return JSONResponse({"error": _NO_ANSWER.format(self._timeout)}, 504, {"Retry-After": "1"})
        return self._refuse(408, _SLOW.format(self._timeout), headers={"Connection": "close"})

    def _refuse(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> Response:
        self._rejects.add([(WHOLE, str(status))])
        return JSONResponse({"error": message}, status, headers)


_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_SLOW = "the body did not arrive within {:.0f} s"
_NO_ANSWER = (
    "no answer within {:.0f} s: try again in 1 s; whether it was logged is unknown, and with the same Idempotency-Key"
    " it is logged once"
)
_TOO_LARGE = f"the body is larger than {MAX_BODY // 1_000_000} MB: send fewer rows at a time"


def _media_type(headers: Mapping[bytes, bytes]) -> bytes:
    return headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()


def _piece(message: Message) -> tuple[bytes, bool]:
    """The next piece of a body, and whether more follows. Raises: _Gone."""
    if message["type"] != "http.request":
        raise _Gone
    return message.get("body", b""), bool(message.get("more_body"))


class _Gone(Exception):
    """The client disconnected before its request had arrived."""


def _details(body_problems: Iterable[Problem]) -> list[dict[str, Any]]:
    keys = ("row", "field", "reason", "message")
    return [{key: value for key in keys if (value := getattr(problem, key)) is not None} for problem in body_problems]
