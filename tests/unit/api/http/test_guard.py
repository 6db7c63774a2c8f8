"""What the guard does with time: bodies and answers that do not come, and too much that comes at once."""

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
SOON = 0.05  # seconds, in the place of the ten that clients have
NEVER = asyncio.Event  # an event that nobody sets


async def never(scope, receive, send):
    await NEVER().wait()


async def ask(guard, *pieces, more=False):
    """The status, headers and content that a POST of `pieces` gets; with `more`, its end never comes."""
    waiting, sent = list(pieces), []

    async def receive():
        if not waiting:
            await NEVER().wait()
        piece = waiting.pop(0)
        return {"type": "http.request", "body": piece, "more_body": more or bool(waiting)}

    async def send(message):
        sent.append(message)

    await guard({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive, send)
    start, *parts = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, json.loads(b"".join(part["body"] for part in parts))


def guard(app, **further):
    further = {"keys": Keys(SETTINGS), "rejects": RejectCounts(), "numbers": NUMBERS, **further}
    return Guard(app, spec=SPEC, bodies={"/predict": build_schemas(SPEC).predict}, **further)


def counted(outcome, reason):
    labels = {"service_name": "guarded", "endpoint": "/predict", "outcome": outcome, "reason": reason}
    return NUMBERS.registry.get_sample_value("evergreen_requests_total", labels)


def test_a_request_without_an_answer_is_told_so_and_when_to_come_back():
    before = counted("failed", "timeout")
    status, headers, content = asyncio.run(ask(guard(never, timeout=SOON), BODY))
    assert status == 504
    assert counted("failed", "timeout") == before + 1
    assert int(headers["retry-after"]) > 0
    assert "Idempotency-Key" in content["error"]


def test_what_was_asked_of_the_model_is_given_up_with_its_request():
    given_up = []

    async def app(scope, receive, send):
        try:
            await NEVER().wait()
        except asyncio.CancelledError:
            given_up.append(scope["path"])
            raise

    asyncio.run(ask(guard(app, timeout=SOON), BODY))
    assert given_up == ["/predict"]


@pytest.mark.parametrize("pieces", [(), (b"",), (BODY[:9], BODY[9:-1])])
def test_a_body_that_does_not_come_is_a_408_and_ends_the_connection(pieces):
    status, headers, content = asyncio.run(ask(guard(never, timeout=SOON), *pieces, more=True))
    assert (status, headers["connection"]) == (408, "close")
    assert "body" in content["error"]


def test_large_bodies_of_many_clients_at_once_are_told_to_come_back_and_leave_nothing_behind():
    piece = b"x" * (MAX_BODY // 2)

    async def scenario():
        tested = guard(never, timeout=1)
        slow = [asyncio.ensure_future(ask(tested, piece, more=True)) for _ in range(MAX_ARRIVING // len(piece) + 1)]
        await asyncio.sleep(0)
        refused = await ask(tested, b"{", b"}")
        return refused, await asyncio.gather(*slow), await ask(tested, b"{", b"}")

    (status, headers, content), slow, after = asyncio.run(scenario())
    assert status == 503
    assert int(headers["retry-after"]) > 0
    assert "large" in content["error"]
    assert 408 in {status for status, _, _ in slow}
    assert after[0] == 400  # it is read again: nothing but data is missing


def test_a_client_that_goes_away_is_counted_and_not_answered():
    async def gone():
        return {"type": "http.disconnect"}

    async def send(message):
        raise AssertionError(message)

    before = counted("gone", "")
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(guard(never)(scope, gone, send))
    assert counted("gone", "") == before + 1
