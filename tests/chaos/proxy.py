"""Run nginx in front of several instances, with the rules of deploy/nginx.conf."""

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stack.programs.starting import wait_for_end, wait_for_process
from tests.chaos.tools import find_nginx
from tests.servers import free_port
from utils.version import ROOT


def build_configuration(ports: Sequence[int], listen_port: int, folder: Path) -> str:
    """Return deploy/nginx.conf for instances at `ports` of this machine. nginx listens on `listen_port`."""
    # In containers, Docker resolves the name of the instances for each request, so no instance counts as failed.
    # max_fails=0 has the same effect.
    replicas = "".join(f"server 127.0.0.1:{port} max_fails=0; " for port in ports)
    content = (ROOT / "deploy" / "nginx.conf").read_text()
    for pattern, replacement in (
        (r"/tmp/", f"{folder}/"),  # noqa: S108 - a path in the file
        (r" *resolver .*\n", ""),
        (r" *set \$replicas .*\n", ""),
        (r"http://\$replicas:3000", "http://replicas"),
        (r"listen 8080;", f"listen 127.0.0.1:{listen_port};"),
        (r"  server \{", f"  upstream replicas {{ {replicas}}}\n  server {{"),
    ):
        content, count = re.subn(pattern, replacement, content)
        if not count:
            raise ValueError(f"deploy/nginx.conf has no {pattern} any more")
    return content


@contextmanager
def run_proxy(ports: Sequence[int], folder: Path) -> Iterator[int]:
    """Run nginx in front of services at `ports` until the end of the block. Yields the port of nginx."""
    listen_port, file = free_port(), folder / "nginx.conf"
    file.write_text(build_configuration(ports, listen_port, folder))
    directives = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    with (folder / "nginx.log").open("ab") as log:
        process = subprocess.Popen([find_nginx(), "-p", folder, "-c", file, "-g", directives], stdout=log, stderr=log)
    try:
        wait_for_process("nginx", process, lambda: _accepts_connections(listen_port), log=folder / "nginx.log")
        yield listen_port
    finally:
        process.terminate()
        wait_for_end("nginx", process, log=folder / "nginx.log")


def _accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
