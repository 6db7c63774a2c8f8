"""nginx before several instances, with the rules of deploy/nginx.conf."""

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.tools import nginx
from tests.servers import free_port
from tests.services import wait_for
from utils.version import ROOT


def configuration(ports: Sequence[int], listen: int, folder: Path) -> str:
    """deploy/nginx.conf with its replicas at `ports` of this machine instead of those that Docker names."""
    replicas = "".join(f"server 127.0.0.1:{port} max_fails=0; " for port in ports)  # as where a name is resolved anew
    content = (ROOT / "deploy" / "nginx.conf").read_text()
    for old, new in (
        (r"/tmp/", f"{folder}/"),  # noqa: S108 - what stands there
        (r" *resolver .*\n", ""),
        (r" *set \$replicas .*\n", ""),
        (r"http://\$replicas:3000", "http://replicas"),
        (r"listen 8080;", f"listen 127.0.0.1:{listen};"),
        (r"  server \{", f"  upstream replicas {{ {replicas}}}\n  server {{"),
    ):
        content, changed = re.subn(old, new, content)
        if not changed:
            raise ValueError(f"deploy/nginx.conf has no {old} any more")
    return content


@contextmanager
def proxy(ports: Sequence[int], folder: Path) -> Iterator[int]:
    """The port of an nginx before services at `ports`, up to the end of the block."""
    listen, file = free_port(), folder / "nginx.conf"
    file.write_text(configuration(ports, listen, folder))
    rules = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    with (folder / "nginx.log").open("ab") as log:
        process = subprocess.Popen([nginx(), "-p", folder, "-c", file, "-g", rules], stdout=log, stderr=log)
    try:
        wait_for("nginx", lambda: process.poll() is not None or _listens(listen))
        if process.poll() is not None:
            raise RuntimeError(f"nginx ended: {(folder / 'nginx.log').read_text()[-500:]}")
        yield listen
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
