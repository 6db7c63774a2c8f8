"""The response to a request: its answer, or the status and message of the error."""

from collections.abc import Awaitable
from typing import Any

from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from api.prometheus import CAUSE
from utils.errors import NotFound, NotLogged, NotNow, UnknownEntities

STATUS = {NotNow: 503, NotFound: 404, NotLogged: 500}


async def to_response(work: Awaitable[Any]) -> Response:
    """The outcome of `work` as a response. BentoML's own serialisation takes longer than the prediction."""
    try:
        content = await work
    except UnknownEntities as error:
        keys = ("row", "field", "reason", "message")
        unknown = [(place, "ids", "unknown_entity", f"{name!r} is not in the store") for place, name in error.unknown]
        detail = [dict(zip(keys, values, strict=True)) for values in unknown]
        return JSONResponse({"error": str(error), "detail": detail}, 404)
    except (NotNow, NotFound, NotLogged) as error:
        headers = None
        if isinstance(error, NotNow):
            headers = {"Retry-After": str(error.retry_after)}
            CAUSE.set(error.cause)
        return JSONResponse({"error": str(error)}, STATUS[type(error)], headers)
    return Response(to_json(content), media_type="application/json")
