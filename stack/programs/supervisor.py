"""The supervisord of a stack. It restarts programs that crashed and writes their logs. All calls use its socket."""

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
from stack.programs.logs import last_lines, size
from stack.programs.processes import MARKER, PROGRAM, clear_leftovers, is_alive, work
from stack.programs.program import Launch, Program
from utils.errors import GaveUp, StackError
from utils.patience import Patience
from utils.private_files import write_private
from utils.settings import Settings, inherited_environment
from utils.version import ROOT

UNREACHABLE = (OSError, xmlrpc.client.Error)
LAUNCH = Path(__file__).with_name("launcher.py")
RUNNING, FATAL = "RUNNING", "FATAL"
STOPPED = {"STOPPED", "EXITED", FATAL}
STOPPED_FIRST = ("airflow-scheduler",)  # because its tasks report to the API server when they end
STOPPED_LAST = ("mlflow", "mariadb")  # because the other programs write to these until they end
RETRIES = 20  # failed starts before the state becomes FATAL; each wait is a second longer than the one before
STOP_PATIENCE = 130.0  # seconds in which no program ends; longer than any `stop_seconds`
OWN_PATIENCE = 120.0  # seconds in which the supervisor makes no progress while it starts or ends


@dataclass(frozen=True, slots=True)
class State:
    """The state of a program in the supervisor.

    name: the name of the program.
    state: supervisord's name of the state, such as RUNNING.
    pid: the process id. 0 while the program does not run.
    since: the Unix time of the last start, in seconds.
    detail: supervisord's description.
    """

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
        self._outdated: set[str] = set()  # the programs that keep their old definition until `start`

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
        except UNREACHABLE:
            return False

    def states(self) -> dict[str, State]:
        """The state of every program, by name. Empty if no supervisor runs."""
        try:
            processes = self._call("getAllProcessInfo")
        except UNREACHABLE:
            return {}
        return {
            info["name"]: State(info["name"], info["statename"], info["pid"], float(info["start"]), info["description"])
            for info in processes
        }

    def clear_leftovers(self) -> int:
        """End the processes that a killed run of this stack left. Return their number. 0 if a supervisor runs."""
        return 0 if self.running else clear_leftovers(self._settings)

    def ensure(self, programs: Iterable[Program], *, until_start: Collection[str] = ()) -> None:
        """Run a supervisor with exactly `programs`. Processes that a killed supervisor left are ended first.

        Unchanged programs keep running. A program with a changed definition is stopped, and `start` starts it again. If
        it is in `until_start`, it keeps running with its old definition until `start` is called.

        Raises: StackError.
        """
        self._write_configuration(list(programs))
        if self.running:
            self._reload(until_start)
            return
        self.clear_leftovers()
        environment = {**inherited_environment(), MARKER: str(self._settings.home.resolve())}
        daemon = [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(self._config)]
        result = subprocess.run(daemon, env=environment, cwd=ROOT, capture_output=True, text=True)
        if result.returncode:
            raise StackError(f"the supervisor did not start: {(result.stderr or result.stdout).strip()[-300:]}")
        self._patience("the supervisor", self.pid()).until(lambda: self.running)

    def _patience(self, awaited: str, pid: int) -> Patience:
        log = self.log("supervisor")
        return Patience(
            awaited,
            lambda: (size(log), work(pid)),
            seconds=OWN_PATIENCE,
            state=lambda: last_lines(log, lines=1),
        )

    def _reload(self, until_start: Collection[str]) -> None:
        added, changed, removed = self._call("reloadConfig")[0]
        states = self.states()
        self._outdated = {name for name in changed if name in until_start and states[name].pid}
        self._replace_programs([name for name in changed if name not in self._outdated], added=added, removed=removed)

    def _replace_programs(
        self, changed: Collection[str], *, added: Iterable[str] = (), removed: Iterable[str] = ()
    ) -> None:
        obsolete = [*changed, *removed]
        self._stop_in_order(obsolete)
        for name in obsolete:
            self._call("removeProcessGroup", name)
        for name in (*added, *changed):
            self._call("addProcessGroup", name)

    def log(self, name: str) -> Path:
        """The log file of program `name`."""
        return logs(self._settings) / f"{name}.log"

    def progress(self, name: str) -> object:
        """The size of a program's log and the work of its processes, as a sign of progress for a `Patience`."""
        state = self.states().get(name)
        return size(self.log(name)), work(state.pid if state else 0)

    def start(self, names: Iterable[str]) -> list[str]:
        """Start the programs in `names` that do not run with their current definition. Return the started names.

        Programs with an old definition are stopped first. The call does not wait until the started programs answer.
        """
        requested = list(names)
        outdated = [name for name in requested if name in self._outdated]
        self._replace_programs(outdated)
        self._outdated.difference_update(outdated)
        states = self.states()
        started = [name for name in requested if states[name].state in STOPPED]
        for name in started:
            self._call("startProcess", name, False)
        return started

    def stop(self) -> None:
        """Stop every program: the scheduler first, MLflow and MariaDB last. Then stop the supervisor.

        A program that does not end within its `stop_seconds` is killed.

        Raises: GaveUp if the supervisor does not end.
        """
        pid = self.pid()
        self._stop_in_order(list(self.states()))
        try:
            self._call("shutdown")
        except UNREACHABLE:
            return
        self._patience("the supervisor's end", pid).until(
            lambda: not (pid and psutil.pid_exists(pid) and is_alive(psutil.Process(pid)))
        )

    def _stop_in_order(self, names: Collection[str]) -> None:
        others = [name for name in names if name not in {*STOPPED_FIRST, *STOPPED_LAST}]
        for group in (STOPPED_FIRST, others, *((name,) for name in STOPPED_LAST)):
            self._stop_all([name for name in group if name in names])

    def _stop_all(self, names: list[str]) -> None:
        for name in names:
            try:
                self._call("stopProcess", name, False)
            except xmlrpc.client.Fault:
                continue  # the program does not run, or does not exist

        def still_running() -> list[str]:
            return [name for name, state in self.states().items() if name in names and state.state not in STOPPED]

        with suppress(GaveUp):  # the supervisor or `down` ends the remaining programs
            Patience("programs to end", still_running, seconds=STOP_PATIENCE).until(lambda: not still_running())

    def pid(self) -> int:
        """The process id of the supervisor. 0 if it does not run."""
        try:
            return int(self._call("getPID"))
        except UNREACHABLE:
            return 0

    def _write_configuration(self, programs: list[Program]) -> None:
        folder = self._settings.home.resolve() / "programs"
        logs(self._settings).mkdir(parents=True, exist_ok=True)
        sections = [_daemon_section(self._socket, self._folder, logs(self._settings).resolve())]
        for program in programs:
            launch = program.launch()
            environment = {**launch.environment, PROGRAM: program.name}
            description = {"argv": launch.argv, "environment": environment}
            write_private(folder / f"{program.name}.json", json.dumps(description))
            argv = launcher_command(folder / f"{program.name}.json", digest=_digest(launch))
            sections.append(_program_section(program, argv, logs(self._settings).resolve()))
        write_private(self._config, "\n".join(sections))


def launcher_command(description: Path, *, digest: str) -> list[str]:
    """The command that starts the program in the file `description`. With another `digest` the program is restarted."""
    return [sys.executable, "-I", "-S", str(LAUNCH), str(description), digest]


def _digest(launch: Launch) -> str:
    """The SHA-256 of a program's definition, without the variables that are inherited from the caller's shell."""
    own_variables = {name: value for name, value in launch.environment.items() if name not in inherited_environment()}
    return hashlib.sha256(json.dumps([launch.argv, own_variables], sort_keys=True).encode()).hexdigest()


def _escape_percent(path: Path) -> str:
    return str(path).replace("%", "%%")  # % starts an expression in supervisord's configuration


def _daemon_section(socket: Path, run: Path, log_folder: Path) -> str:
    return f"""; Written by `evergreen up`; changes are lost.
[unix_http_server]
file={_escape_percent(socket)}
chmod=0700
[supervisord]
logfile={_escape_percent(log_folder)}/supervisor.log
logfile_maxbytes=5MB
logfile_backups=2
pidfile={_escape_percent(run)}/supervisor.pid
childlogdir={_escape_percent(log_folder)}
minfds=4096
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""


def _program_section(program: Program, argv: list[str], log_folder: Path) -> str:
    return f"""[program:{program.name}]
command={" ".join(shlex.quote(word) for word in argv).replace("%", "%%")}
directory={_escape_percent(ROOT)}
autostart=false
autorestart=true
startsecs=3
startretries={RETRIES}
stopasgroup=true
killasgroup=true
stopwaitsecs={program.stop_seconds}
redirect_stderr=true
stdout_logfile={_escape_percent(log_folder)}/{program.name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""
