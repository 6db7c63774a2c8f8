"""What came of a request as its response: the answer, or the status and the words of what stands in its way."""

from collections.abc import Awaitable
from typing import Any

from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from api.prometheus import CAUSE
from utils.errors import NotFound, NotLogged, NotNow, UnknownEntities

STATUS = {NotNow: 503, NotFound: 404, NotLogged: 500}


async def responded(work: Awaitable[Any]) -> Response:
    """The outcome as a response; BentoML's own serialisation takes longer than the prediction."""
    try:
        content = await work
    except UnknownEntities as error:
        keys = ("row", "field", "reason", "message")
        told = [(place, "ids", "unknown_entity", f"{name!r} is not in the store") for place, name in error.unknown]
        return JSONResponse({"error": str(error), "detail": [dict(zip(keys, each, strict=True)) for each in told]}, 404)
    except (NotNow, NotFound, NotLogged) as error:
        headers = None
        if isinstance(error, NotNow):
            headers = {"Retry-After": str(error.retry_after)}
            CAUSE.set(error.cause)
        return JSONResponse({"error": str(error)}, STATUS[type(error)], headers)
    return Response(to_json(content), media_type="application/json")
