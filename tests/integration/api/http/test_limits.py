"""What one client may take from the others: bytes, rows, places in the queue and, above all, time."""

import json
import os
import select
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import psutil
import pytest

from api.http.connections import MAX_HEAD
from api.http.guard import MAX_BODY
from api.requests.schemas import BATCH_ROWS
from tests.services import make_service, wait_for

MANY = 60  # slow clients of each kind
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    """One worker: whoever holds it holds all of it."""
    made = make_service(settings, tmp_path_factory.mktemp("limits"), "serve_limits")
    made.deploy(1, made.store(1))
    with made.running():
        yield made


def connect(service, first=b""):
    made = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    made.sendall(first)
    return made


def answer(connection):
    """Everything that came until the service closed the connection: status and JSON; (0, None) where nothing did."""
    received = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65_536):
            received += piece
    if not received:
        return 0, None
    head, _, content = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def test_a_chunked_body_of_fifty_megabytes_is_refused_before_it_is_read(service):
    sent = 0
    with connect(service, CHUNKED) as client:
        while sent < 50_000_000 and not select.select([client], [], [], 0)[0]:
            client.sendall(CHUNK)
            sent += len(CHUNK)
        assert client.recv(12) == b"HTTP/1.1 413"
    assert sent < 3 * MAX_BODY  # what it could send before the refusal arrived
    assert service.predict().status_code == 200


def test_slow_clients_are_cut_off_and_nobody_waits_for_them(service):
    kinds = {
        "silent": b"",
        "empty lines": b"\r\n",
        "half of the headers": b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "headers, then nothing": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
        "a byte at a time": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        "refused, sends on": b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    }
    more = {"empty lines": b"\r\n", "half of the headers": b"x", "a byte at a time": b" ", "refused, sends on": CHUNK}
    clients = {kind: [connect(service, first) for _ in range(MANY)] for kind, first in kinds.items()}
    done = threading.Event()

    def trickle():
        while not done.wait(0.5):
            for kind, piece in more.items():
                for client in clients[kind]:
                    with suppress(OSError):
                        client.send(piece)

    trickling = threading.Thread(target=trickle)
    trickling.start()
    try:
        with ThreadPoolExecutor(8) as others:
            statuses = list(others.map(lambda _: service.predict().status_code, range(200)))
        assert set(statuses) == {200}
        told = {kind: [answer(client) for client in mine] for kind, mine in clients.items()}
    finally:
        done.set()
        trickling.join()
        for client in (each for mine in clients.values() for each in mine):
            client.close()
    assert {status for kind in ("silent", "empty lines") for status, _ in told[kind]} == {0}
    assert {status for status, _ in told["refused, sends on"]} <= {404, 0}  # 0: the cut overtook what it was told
    for kind, part in (
        ("half of the headers", "headers"),
        ("headers, then nothing", "body"),
        ("a byte at a time", "body"),
    ):
        for status, content in told[kind]:
            assert status == 408, kind
            assert part in content["error"], kind
    assert service.predict().status_code == 200
    assert "Traceback" not in service.log.read_text()


def test_endless_headers_are_refused(service):
    with connect(service, b"POST /predict HTTP/1.1\r\nHost: x\r\n") as client:
        with suppress(ConnectionError):
            for _ in range(2 * MAX_HEAD // 1000):
                client.sendall(b"X-More: " + b"x" * 990 + b"\r\n")
        assert answer(client)[0] in {431, 0}  # 0: what was sent after the refusal made the system forget it
    with connect(service, b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * MAX_HEAD) as client:
        status, content = answer(client)
    assert status == 431
    assert "headers" in content["error"]
    assert service.predict().status_code == 200


def test_a_batch_of_too_many_rows_is_told_how_many_are_allowed(service):
    refused = service.post("/predict_batch", {"data": [service.row] * (BATCH_ROWS + 1)})
    assert refused.status_code == 400
    (problem,) = refused.json()["detail"]
    assert problem["field"] == "data"
    assert str(BATCH_ROWS) in problem["message"]


def test_a_full_queue_tells_clients_to_come_back_and_empties(service, mariadb):
    batch = {"data": [service.row] * BATCH_ROWS}
    with ThreadPoolExecutor(16) as clients:
        os.kill(mariadb.pid, signal.SIGSTOP)
        try:
            answers = list(clients.map(lambda _: service.post("/predict_batch", batch), range(16)))
        finally:
            os.kill(mariadb.pid, signal.SIGCONT)
    refused = [each for each in answers if each.status_code == 503 and "wait already" in each.json()["error"]]
    assert refused
    assert {each.status_code for each in answers} <= {200, 503, 504}
    assert all(int(each.headers["Retry-After"]) > 0 for each in answers if each.status_code != 200)
    wait_for("answers again", lambda: service.predict().status_code == 200)


def test_who_waits_ten_seconds_behind_others_is_told_to_ask_again(service, mariadb):
    truth = {"prediction_id": service.predict().json()["prediction_id"], "actual": "Poor"}
    with ThreadPoolExecutor(16) as clients:
        os.kill(mariadb.pid, signal.SIGSTOP)  # each report of a truth waits a second for it, one after the other
        try:
            answers = list(clients.map(lambda _: service.post("/feedback", truth), range(16)))
        finally:
            os.kill(mariadb.pid, signal.SIGCONT)
    assert {each.status_code for each in answers} == {503, 504}
    assert all(int(each.headers["Retry-After"]) > 0 for each in answers)
    assert {"error"} == {key for each in answers for key in each.json()}
    wait_for("answers again", lambda: service.post("/feedback", truth).status_code == 200)
    assert "Traceback" not in service.log.read_text()


def test_a_method_that_a_path_does_not_have_is_told_which_it_has(service):
    refused = service.get("/predict")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
    assert "POST" in refused.json()["error"]
    assert service.post("/livez", {}).headers["Allow"] == "GET, HEAD"


def test_a_worker_without_room_for_connections_takes_them_when_there_is_some_again(service):
    worker = psutil.Process(service.workers()[0]["pid"])
    limits = worker.rlimit(psutil.RLIMIT_NOFILE)
    with ExitStack() as opened:
        opened.callback(worker.rlimit, psutil.RLIMIT_NOFILE, limits)
        worker.rlimit(psutil.RLIMIT_NOFILE, (worker.num_fds() + 4, limits[1]))

        def is_full() -> bool:
            opened.enter_context(connect(service))  # one more each time: connections of other tests may end meanwhile
            return "no connection can be taken" in service.log.read_text()

        wait_for("the log", is_full)
    assert service.predict().status_code == 200
