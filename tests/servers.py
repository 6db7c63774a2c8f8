"""Real servers for tests. Each has its own folder and a free port, and is stopped by its process id."""

import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pymysql

from stack.programs.ports import free_ports
from stack.programs.starting import wait_for_end, wait_for_process

_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port that nothing listens on and that no other test has."""
    return neighbouring_ports(1)


def neighbouring_ports(count: int) -> int:
    """Return the first of `count` neighbouring TCP ports that nothing listens on and that no other test has.

    A UDP socket on the same number reserves each port against tests of other processes, until this process ends.
    The ports lie outside the system's ephemeral range. BentoML takes ephemeral ports before it listens on its own port,
    and the system sometimes gave it that port.
    """
    while True:
        first = free_ports(count)
        if _reserve(range(first, first + count)):
            return first


def _reserve(ports: range) -> bool:
    marks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in ports]
    try:
        for mark, port in zip(marks, ports, strict=True):
            mark.bind(("127.0.0.1", port))
    except OSError:
        for mark in marks:
            mark.close()
        return False
    _reserved.extend(marks)
    return True


@dataclass(frozen=True, slots=True)
class MariaDB:
    """A running private server. `root` can also sign in over TCP."""

    folder: Path
    port: int
    root_password: str
    pid: int


@contextmanager
def mariadb_server(folder: Path) -> Iterator[MariaDB]:
    """Run a MariaDB with its data in `folder`. The path must be short: a socket path has 107 bytes at most.

    The server does not flush to disk, for speed, so it would not survive a power cut. All else is as in production.
    """
    data, socket_path, port, password = folder / "data", folder / "s", free_port(), secrets.token_hex(12)
    (folder / "tmp").mkdir()
    _run_install(data)
    with (folder / "mariadbd.log").open("wb") as log:
        server = subprocess.Popen(_command(data, socket_path, port), stdout=log, stderr=subprocess.STDOUT)
    try:
        _secure(socket_path, server, password, folder / "mariadbd.log")
        yield MariaDB(folder, port, password, server.pid)
    finally:
        server.terminate()
        wait_for_end("MariaDB", server, log=folder / "mariadbd.log")


def _run_install(data: Path) -> None:
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--tmpdir={data.parent / 'tmp'}"]
    install += ["--skip-test-db", "--auth-root-authentication-method=normal", "--user=root"]
    subprocess.run(install, check=True, capture_output=True)


def _command(data: Path, socket_path: Path, port: int) -> list[str]:
    return [
        "mariadbd",
        "--no-defaults",
        "--user=root",
        f"--datadir={data}",
        f"--tmpdir={data.parent / 'tmp'}",
        f"--socket={socket_path}",
        f"--port={port}",
        "--bind-address=127.0.0.1",
        "--default-time-zone=+00:00",
        "--character-set-server=utf8mb4",
        "--collation-server=utf8mb4_nopad_bin",
        "--innodb-buffer-pool-size=256M",
        "--innodb-log-file-size=256M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-flush-method=nosync",
    ]


def _secure(socket_path: Path, server: "subprocess.Popen[bytes]", password: str, log: Path) -> None:
    """Wait until `server` answers, then set root's password and remove the anonymous accounts."""
    wait_for_process("MariaDB", server, lambda: _listening(socket_path), log=log)
    connection = pymysql.connect(unix_socket=str(socket_path), user="root", autocommit=True)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT user, host FROM mysql.user WHERE user IN ('', 'root')")
        for user, host in cursor.fetchall():
            if user:
                cursor.execute("ALTER USER %s@%s IDENTIFIED BY %s", (user, host, password))
            else:
                cursor.execute("DROP USER %s@%s", (user, host))


def _listening(socket_path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(socket_path)) == 0
