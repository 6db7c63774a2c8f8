"""Check ports before the programs start. Find free ports."""

import random
import socket
from collections.abc import Iterable

import psutil

from stack.programs.processes import is_ours
from stack.programs.program import Program
from utils.errors import StackError
from utils.settings import Settings


def check(programs: Iterable[Program], settings: Settings) -> None:
    """Check that every port is free or already used by this stack.

    Raises: StackError with each taken port, its owner if the owner is visible, and the variable that sets our port.
    """
    problems = []
    for program in programs:
        if program.port is None or is_free(program.port):
            continue
        owner = owner_of(program.port)
        if owner is None or not is_ours(owner, settings):
            problems.append(
                f"port {program.port} ({program.name}) is taken by {_owner_text(owner)}: set {program.variable}"
            )
    if shared_port_text := _find_shared_port(programs):
        problems.append(shared_port_text)
    if problems:
        raise StackError("; ".join(problems) + " in .env to another port")


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1 at `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores connections in TIME_WAIT
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> int:
    """Find `count` consecutive free TCP ports. Return the first port.

    The ports are below the system's ephemeral ports, so no client socket takes one of them before it is used.

    Raises: StackError.
    """
    for base in random.sample(range(20_000, 32_000, count), 500):
        if all(is_free(port) for port in range(base, base + count)):
            return base
    raise StackError(f"no {count} neighbouring ports between 20000 and 32000 are free")


def owner_of(port: int) -> psutil.Process | None:
    """The process that listens on `port`. None if the process is not visible to this user."""
    try:
        listeners = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:  # macOS
        return None
    pid = next((c.pid for c in listeners if c.pid and getattr(c.laddr, "port", 0) == port), None)
    try:
        return psutil.Process(pid) if pid else None
    except psutil.NoSuchProcess:
        return None


def _owner_text(owner: psutil.Process | None) -> str:
    if owner is None:
        return "a process of another user"
    try:
        return f"process {owner.pid} ({' '.join(owner.cmdline())[:80] or owner.name()})"
    except psutil.Error:
        return f"process {owner.pid}"


def _find_shared_port(programs: Iterable[Program]) -> str:
    by_port: dict[int, Program] = {}
    for program in programs:
        if program.port is None:
            continue
        if (first_program := by_port.setdefault(program.port, program)) is not program:
            return f"port {program.port} is wanted by {first_program.name} and {program.name}: set {program.variable}"
    return ""
