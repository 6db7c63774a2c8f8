"""Limits of the guard: bodies and answers that do not arrive in time, and too many large bodies at once."""

import asyncio
import json

import pytest

from api.http.bearer_keys import Keys
from api.http.guard import MAX_ARRIVING, MAX_BODY, Guard
from api.prometheus import Numbers
from api.requests.reject_counts import RejectCounts
from api.requests.row_type import example
from api.requests.schemas import build_schemas
from pipelines.spec import find_spec
from utils.settings import load_settings
from utils.version import ROOT

SPEC = find_spec(ROOT / "models", "credit_score")
SETTINGS = load_settings(env_file="/dev/null", home=ROOT / "nowhere", api_key="")
BODY = json.dumps({"data": example(SPEC)}).encode()
NUMBERS = Numbers("guarded", endpoints=["/predict"])
SOON = 0.05  # seconds, instead of the ten seconds in production
NEVER = asyncio.Event  # an event that is never set


async def never(scope, receive, send):
    await NEVER().wait()


async def ask(guard, *pieces, more=False):
    """POST `pieces` and return status, headers and content. With `more`, the end of the body never arrives."""
    queue, messages = list(pieces), []

    async def receive():
        if not queue:
            await NEVER().wait()
        piece = queue.pop(0)
        return {"type": "http.request", "body": piece, "more_body": more or bool(queue)}

    async def send(message):
        messages.append(message)

    await guard({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive, send)
    start, *parts = messages
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, json.loads(b"".join(part["body"] for part in parts))


def guard(app, **changes):
    arguments = {"keys": Keys(SETTINGS), "rejects": RejectCounts(), "numbers": NUMBERS, **changes}
    return Guard(app, spec=SPEC, bodies={"/predict": build_schemas(SPEC).predict}, **arguments)


def count_of(outcome, reason):
    labels = {"service_name": "guarded", "endpoint": "/predict", "outcome": outcome, "reason": reason}
    return NUMBERS.registry.get_sample_value("evergreen_requests_total", labels)


def test_a_request_without_an_answer_gets_a_504_and_a_time_to_retry():
    before = count_of("failed", "timeout")
    status, headers, content = asyncio.run(ask(guard(never, timeout=SOON), BODY))
    assert status == 504
    assert count_of("failed", "timeout") == before + 1
    assert int(headers["retry-after"]) > 0
    assert "Idempotency-Key" in content["error"]


def test_the_work_of_the_model_is_cancelled_with_its_request():
    cancelled = []

    async def app(scope, receive, send):
        try:
            await NEVER().wait()
        except asyncio.CancelledError:
            cancelled.append(scope["path"])
            raise

    asyncio.run(ask(guard(app, timeout=SOON), BODY))
    assert cancelled == ["/predict"]


@pytest.mark.parametrize("pieces", [(), (b"",), (BODY[:9], BODY[9:-1])])
def test_a_body_that_does_not_come_is_a_408_and_ends_the_connection(pieces):
    status, headers, content = asyncio.run(ask(guard(never, timeout=SOON), *pieces, more=True))
    assert (status, headers["connection"]) == (408, "close")
    assert "body" in content["error"]


def test_large_bodies_of_many_clients_at_once_get_a_503_and_leave_nothing_behind():
    piece = b"x" * (MAX_BODY // 2)

    async def scenario():
        busy_guard = guard(never, timeout=1)
        slow = [asyncio.ensure_future(ask(busy_guard, piece, more=True)) for _ in range(MAX_ARRIVING // len(piece) + 1)]
        await asyncio.sleep(0)
        rejection = await ask(busy_guard, b"{", b"}")
        return rejection, await asyncio.gather(*slow), await ask(busy_guard, b"{", b"}")

    (status, headers, content), slow, after = asyncio.run(scenario())
    assert status == 503
    assert int(headers["retry-after"]) > 0
    assert "large" in content["error"]
    assert 408 in {status for status, _, _ in slow}
    assert after[0] == 400  # the body is read again, and only `data` is missing


def test_a_client_that_goes_away_is_counted_and_not_answered():
    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        raise AssertionError(message)

    before = count_of("gone", "")
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(guard(never)(scope, receive, send))
    assert count_of("gone", "") == before + 1
