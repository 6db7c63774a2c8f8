"""One supervisord a stack: it restarts what crashes and keeps the logs. Everything is asked of it over its socket."""

import hashlib
import json
import shlex
import subprocess
import sys
import xmlrpc.client
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import SupervisorTransport

from stack.programs.folders import logs, runtime
from stack.programs.logs import last_words, size
from stack.programs.processes import MARKER, PROGRAM, clear_leftovers, is_alive
from stack.programs.program import Launch, Program
from utils.errors import GaveUp, StackError
from utils.patience import Patience
from utils.private_files import write_private
from utils.settings import Settings, inherited_environment
from utils.version import ROOT

GONE = (OSError, xmlrpc.client.Error)
LAUNCH = Path(__file__).with_name("launcher.py")
RUNNING, FATAL = "RUNNING", "FATAL"
STOPPED = {"STOPPED", "EXITED", FATAL}
STOPPED_FIRST = ("airflow-scheduler",)  # its tasks end by telling the API server so
STOPPED_LAST = ("mlflow", "mariadb")  # what others write to outlives them
RETRIES = 20  # starts that fail, each a second later than the one before, until a program is given up: FATAL
STOP_PATIENCE = 130.0  # seconds without any program's end, above the longest `stop_seconds` of one


@dataclass(frozen=True, slots=True)
class State:
    """What the supervisor says of a program. `pid` is 0 while it does not run; `since` is a Unix time in seconds."""

    name: str
    state: str
    pid: int
    since: float
    detail: str


class Supervisor:
    """The supervisor of the stack in `settings.home`, running or not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = runtime(settings)
        self._socket = self._folder / "supervisor.sock"
        self._config = settings.home.resolve() / "supervisord.conf"
        self._outdated: set[str] = set()  # programs that run by an earlier definition until `start` is asked for them

    def _call(self, method: str, *arguments: object) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        proxy = xmlrpc.client.ServerProxy("http://supervisor", transport=transport)
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        finally:
            transport.close()

    @property
    def running(self) -> bool:
        try:
            return bool(self._call("getState")["statecode"] == 1)
        except GONE:
            return False

    def states(self) -> dict[str, State]:
        """Every program by name; empty where no supervisor runs."""
        try:
            found = self._call("getAllProcessInfo")
        except GONE:
            return {}
        return {
            p["name"]: State(p["name"], p["statename"], p["pid"], float(p["start"]), p["description"]) for p in found
        }

    def clear_leftovers(self) -> int:
        """End what a killed run of this stack left behind; the number of processes. Nothing while a supervisor runs."""
        return 0 if self.running else clear_leftovers(self._settings)

    def ensure(self, programs: Iterable[Program], *, until_start: Collection[str] = ()) -> None:
        """Run a supervisor that knows exactly `programs`; leftovers of a killed one are ended first.

        A program whose definition changed is stopped and waits for `start`; one named in `until_start` runs on until
        then, by its earlier definition. Nothing else that runs is disturbed.

        Raises: StackError.
        """
        self._write(list(programs))
        if self.running:
            self._reload(until_start)
            return
        self.clear_leftovers()
        environment = {**inherited_environment(), MARKER: str(self._settings.home.resolve())}
        daemon = [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(self._config)]
        ran = subprocess.run(daemon, env=environment, cwd=ROOT, capture_output=True, text=True)
        if ran.returncode:
            raise StackError(f"the supervisor did not start: {(ran.stderr or ran.stdout).strip()[-300:]}")
        log = self.log("supervisor")
        patience = Patience("the supervisor", lambda: size(log), state=lambda: last_words(log, lines=1))
        patience.until(lambda: self.running)

    def _reload(self, until_start: Collection[str]) -> None:
        added, changed, removed = self._call("reloadConfig")[0]
        states = self.states()
        self._outdated = {name for name in changed if name in until_start and states[name].pid}
        self._exchange([name for name in changed if name not in self._outdated], added=added, removed=removed)

    def _exchange(self, changed: Collection[str], *, added: Iterable[str] = (), removed: Iterable[str] = ()) -> None:
        gone = [*changed, *removed]
        self._stop_in_order(gone)
        for name in gone:
            self._call("removeProcessGroup", name)
        for name in (*added, *changed):
            self._call("addProcessGroup", name)

    def log(self, name: str) -> Path:
        """Where program `name` writes."""
        return logs(self._settings) / f"{name}.log"

    def start(self, names: Iterable[str]) -> list[str]:
        """Start those of the programs `names` that do not run by their present definition; the names of these.

        It waits until what runs by an earlier one has ended, and not for what it starts.
        """
        wanted = list(names)
        outdated = [name for name in wanted if name in self._outdated]
        self._exchange(outdated)
        self._outdated.difference_update(outdated)
        states = self.states()
        started = [name for name in wanted if states[name].state in STOPPED]
        for name in started:
            self._call("startProcess", name, False)
        return started

    def stop(self) -> None:
        """Stop every program, the scheduler first, MLflow and then MariaDB last; then the supervisor itself.

        Bounded: what does not end in its time is killed.

        Raises: GaveUp where the supervisor does not end.
        """
        pid = self.pid()
        self._stop_in_order(list(self.states()))
        try:
            self._call("shutdown")
        except GONE:
            return
        Patience("the supervisor's end").until(
            lambda: not (pid and psutil.pid_exists(pid) and is_alive(psutil.Process(pid)))
        )

    def _stop_in_order(self, names: Collection[str]) -> None:
        others = [name for name in names if name not in {*STOPPED_FIRST, *STOPPED_LAST}]
        for together in (STOPPED_FIRST, others, *((name,) for name in STOPPED_LAST)):
            self._stop_all([name for name in together if name in names])

    def _stop_all(self, names: list[str]) -> None:
        for name in names:
            try:
                self._call("stopProcess", name, False)
            except xmlrpc.client.Fault:
                continue  # it does not run, or there is none of that name

        def left() -> list[str]:
            return [name for name, each in self.states().items() if name in names and each.state not in STOPPED]

        with suppress(GaveUp):  # the supervisor kills it as it ends itself, or `down` finds it among the leftovers
            Patience("programs to end", left, seconds=STOP_PATIENCE).until(lambda: not left())

    def pid(self) -> int:
        """Its process id, 0 where none runs."""
        try:
            return int(self._call("getPID"))
        except GONE:
            return 0

    def _write(self, programs: list[Program]) -> None:
        folder = self._settings.home.resolve() / "programs"
        logs(self._settings).mkdir(parents=True, exist_ok=True)
        sections = [_daemon_section(self._socket, self._folder, logs(self._settings).resolve())]
        for program in programs:
            launch = program.launch()
            environment = {**launch.environment, PROGRAM: program.name}
            described = {"argv": launch.argv, "environment": environment}
            write_private(folder / f"{program.name}.json", json.dumps(described))
            argv = launcher_command(folder / f"{program.name}.json", digest=_digest(launch))
            sections.append(_program_section(program, argv, logs(self._settings).resolve()))
        write_private(self._config, "\n".join(sections))


def launcher_command(description: Path, *, digest: str) -> list[str]:
    """What becomes the program that the file `description` holds. Another `digest` means that it is to start anew."""
    return [sys.executable, "-I", "-S", str(LAUNCH), str(description), digest]


def _digest(launch: Launch) -> str:
    """SHA-256 of what defines a program; not of what the caller's shell happens to be set to."""
    own = {name: value for name, value in launch.environment.items() if name not in inherited_environment()}
    return hashlib.sha256(json.dumps([launch.argv, own], sort_keys=True).encode()).hexdigest()


def _plain(path: Path) -> str:
    return str(path).replace("%", "%%")  # % starts an expression


def _daemon_section(socket: Path, run: Path, log_folder: Path) -> str:
    return f"""; Written by `evergreen up`; changes are lost.
[unix_http_server]
file={_plain(socket)}
chmod=0700
[supervisord]
logfile={_plain(log_folder)}/supervisor.log
logfile_maxbytes=5MB
logfile_backups=2
pidfile={_plain(run)}/supervisor.pid
childlogdir={_plain(log_folder)}
minfds=4096
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""


def _program_section(program: Program, argv: list[str], log_folder: Path) -> str:
    return f"""[program:{program.name}]
command={" ".join(shlex.quote(word) for word in argv).replace("%", "%%")}
directory={_plain(ROOT)}
autostart=false
autorestart=true
startsecs=3
startretries={RETRIES}
stopasgroup=true
killasgroup=true
stopwaitsecs={program.stop_seconds}
redirect_stderr=true
stdout_logfile={_plain(log_folder)}/{program.name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""
