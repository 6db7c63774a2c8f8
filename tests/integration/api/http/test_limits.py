"""Limits on what one client can take from other clients: bytes, rows, places in the queue and time."""

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
    """A service with one worker. A client that blocks it blocks the whole service."""
    service_process = make_service(settings, tmp_path_factory.mktemp("limits"), "serve_limits")
    service_process.deploy(1, service_process.store(1))
    with service_process.running():
        yield service_process


def connect(service, first=b""):
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    connection.sendall(first)
    return connection


def answer(connection):
    """Read until the service closes the connection. Return status and JSON, or (0, None) if nothing arrived."""
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
    assert sent < 3 * MAX_BODY  # the bytes sent before the refusal arrived
    assert service.predict().status_code == 200


def test_slow_clients_are_cut_off_and_do_not_delay_other_clients(service):
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
    stop = threading.Event()

    def trickle():
        while not stop.wait(0.5):
            for kind, piece in more.items():
                for client in clients[kind]:
                    with suppress(OSError):
                        client.send(piece)

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: service.predict().status_code, range(200)))
        assert set(statuses) == {200}
        received = {kind: [answer(client) for client in connections] for kind, connections in clients.items()}
    finally:
        stop.set()
        thread.join()
        for connection in (connection for connections in clients.values() for connection in connections):
            connection.close()
    assert {status for kind in ("silent", "empty lines") for status, _ in received[kind]} == {0}
    # 0: the connection was cut before the answer arrived
    assert {status for status, _ in received["refused, sends on"]} <= {404, 0}
    for kind, part in (
        ("half of the headers", "headers"),
        ("headers, then nothing", "body"),
        ("a byte at a time", "body"),
    ):
        for status, content in received[kind]:
            assert status == 408, kind
            assert part in content["error"], kind
    assert service.predict().status_code == 200
    assert "Traceback" not in service.log.read_text()


def test_endless_headers_are_refused(service):
    with connect(service, b"POST /predict HTTP/1.1\r\nHost: x\r\n") as client:
        with suppress(ConnectionError):
            for _ in range(2 * MAX_HEAD // 1000):
                client.sendall(b"X-More: " + b"x" * 990 + b"\r\n")
        assert answer(client)[0] in {431, 0}  # 0: bytes sent after the refusal reset the connection
    with connect(service, b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * MAX_HEAD) as client:
        status, content = answer(client)
    assert status == 431
    assert "headers" in content["error"]
    assert service.predict().status_code == 200


def test_the_error_for_a_batch_of_too_many_rows_names_the_limit(service):
    response = service.post("/predict_batch", {"data": [service.row] * (BATCH_ROWS + 1)})
    assert response.status_code == 400
    (problem,) = response.json()["detail"]
    assert problem["field"] == "data"
    assert str(BATCH_ROWS) in problem["message"]


def test_a_full_queue_asks_clients_to_retry_and_empties(service, mariadb):
    batch = {"data": [service.row] * BATCH_ROWS}
    with ThreadPoolExecutor(16) as clients:
        os.kill(mariadb.pid, signal.SIGSTOP)
        try:
            answers = list(clients.map(lambda _: service.post("/predict_batch", batch), range(16)))
        finally:
            os.kill(mariadb.pid, signal.SIGCONT)
    refusals = [
        response for response in answers if response.status_code == 503 and "wait already" in response.json()["error"]
    ]
    assert refusals
    assert {response.status_code for response in answers} <= {200, 503, 504}
    assert all(int(response.headers["Retry-After"]) > 0 for response in answers if response.status_code != 200)
    wait_for("answers again", lambda: service.predict().status_code == 200)


def test_a_request_that_waits_ten_seconds_in_the_queue_is_answered_with_retry_after(service, mariadb):
    feedback = {"prediction_id": service.predict().json()["prediction_id"], "actual": "Poor"}
    with ThreadPoolExecutor(16) as clients:
        os.kill(mariadb.pid, signal.SIGSTOP)  # each request waits a second for MariaDB, one after the other
        try:
            answers = list(clients.map(lambda _: service.post("/feedback", feedback), range(16)))
        finally:
            os.kill(mariadb.pid, signal.SIGCONT)
    assert {response.status_code for response in answers} == {503, 504}
    assert all(int(response.headers["Retry-After"]) > 0 for response in answers)
    assert {"error"} == {key for response in answers for key in response.json()}
    wait_for("answers again", lambda: service.post("/feedback", feedback).status_code == 200)
    assert "Traceback" not in service.log.read_text()


def test_the_error_for_a_wrong_method_names_the_allowed_methods(service):
    response = service.get("/predict")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert "POST" in response.json()["error"]
    assert service.post("/livez", {}).headers["Allow"] == "GET, HEAD"


def test_a_worker_out_of_file_descriptors_accepts_connections_once_some_are_free(service):
    worker = psutil.Process(service.workers()[0]["pid"])
    limits = worker.rlimit(psutil.RLIMIT_NOFILE)
    with ExitStack() as resources:
        resources.callback(worker.rlimit, psutil.RLIMIT_NOFILE, limits)
        worker.rlimit(psutil.RLIMIT_NOFILE, (worker.num_fds() + 4, limits[1]))

        def is_full() -> bool:
            resources.enter_context(connect(service))  # one more each time, since connections of other tests may end
            return "no connection can be taken" in service.log.read_text()

        wait_for("the log", is_full)
    assert service.predict().status_code == 200
