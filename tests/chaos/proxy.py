"""nginx in front of several instances, with the rules of deploy/nginx.conf."""

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stack.programs.starting import wait_for_end, wait_for_process
from tests.chaos.tools import nginx
from tests.servers import free_port
from utils.version import ROOT


def configuration(ports: Sequence[int], listen: int, folder: Path) -> str:
    """deploy/nginx.conf with replicas at `ports` of this machine instead of names that Docker resolves."""
    # max_fails=0 gives the behaviour of a name that is resolved anew.
    replicas = "".join(f"server 127.0.0.1:{port} max_fails=0; " for port in ports)
    content = (ROOT / "deploy" / "nginx.conf").read_text()
    for old, new in (
        (r"/tmp/", f"{folder}/"),  # noqa: S108 - the text of the file
        (r" *resolver .*\n", ""),
        (r" *set \$replicas .*\n", ""),
        (r"http://\$replicas:3000", "http://replicas"),
        (r"listen 8080;", f"listen 127.0.0.1:{listen};"),
        (r"  server \{", f"  upstream replicas {{ {replicas}}}\n  server {{"),
    ):
        content, count = re.subn(old, new, content)
        if not count:
            raise ValueError(f"deploy/nginx.conf has no {old} any more")
    return content


@contextmanager
def proxy(ports: Sequence[int], folder: Path) -> Iterator[int]:
    """Run nginx in front of services at `ports` until the end of the block. Yields its port."""
    listen, file = free_port(), folder / "nginx.conf"
    file.write_text(configuration(ports, listen, folder))
    rules = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    with (folder / "nginx.log").open("ab") as log:
        process = subprocess.Popen([nginx(), "-p", folder, "-c", file, "-g", rules], stdout=log, stderr=log)
    try:
        wait_for_process("nginx", process, lambda: _listens(listen), log=folder / "nginx.log")
        yield listen
    finally:
        process.terminate()
        wait_for_end("nginx", process, log=folder / "nginx.log")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
