"""A real supervisor with a real private MariaDB. The tests start, change, kill and stop them."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pymysql
import pytest

from stack.down import clean, down
from stack.programs import mariadb, secrets
from stack.programs.folders import runtime
from stack.programs.processes import MARKER, is_alive, is_ours, ours, pss_mb, work
from stack.programs.program import Launch, Program, base_environment
from stack.programs.program_list import mariadb_program
from stack.programs.supervisor import Supervisor
from stack.up import start_mariadb
from tests.servers import free_port
from tests.services import PROGRAM_PATIENCE
from utils.errors import AccessDenied, StackError
from utils.patience import Patience
from utils.settings import Settings, load_settings


@pytest.fixture
def settings() -> Iterator[Settings]:
    folder = Path(tempfile.mkdtemp(prefix="eg"))
    without_secrets = load_settings(env_file=folder / ".env", home=folder / "home", mariadb_port=free_port())
    settings, _ = secrets.ensure(without_secrets)
    try:
        yield settings
    finally:
        down(settings)
        shutil.rmtree(folder)


def start(settings: Settings) -> Supervisor:
    """Return a supervisor that has started MariaDB in the same way as `up`."""
    supervisor = Supervisor(settings)
    supervisor.ensure([mariadb_program(settings)])
    start_mariadb(settings, supervisor)
    return supervisor


def query(settings: Settings, *statements: str) -> tuple[tuple[object, ...], ...]:
    password = settings.db_password("root")
    with (
        pymysql.connect(
            host="127.0.0.1", port=settings.mariadb_port, user="root", password=password, autocommit=True
        ) as connection,
        connection.cursor() as cursor,
    ):
        for statement in statements:
            cursor.execute(statement)
        return tuple(cursor.fetchall())


def wait_for(settings: Settings, condition: Callable[[], bool]) -> None:
    """Wait until `condition` is true, as long as processes of the stack work."""

    def sign() -> object:
        return work(*(process.pid for process in ours(settings)))

    Patience("a step of the supervisor", sign, seconds=PROGRAM_PATIENCE).until(condition)


def pid_of(supervisor: Supervisor) -> int:
    return supervisor.states()["mariadb"].pid


def write_row(settings: Settings) -> None:
    query(settings, "CREATE DATABASE kept", "CREATE TABLE kept.rows (n INT)", "INSERT INTO kept.rows VALUES (42)")


def test_a_killed_mariadb_is_restarted_with_the_same_data(settings: Settings) -> None:
    supervisor = start(settings)
    write_row(settings)
    killed_pid = pid_of(supervisor)
    os.kill(killed_pid, signal.SIGKILL)
    wait_for(settings, lambda: pid_of(supervisor) not in {0, killed_pid})
    wait_for(settings, lambda: mariadb.root_signs_in(settings))
    assert query(settings, "SELECT n FROM kept.rows") == ((42,),)


def test_children_of_a_killed_program_are_ended_before_it_starts_again(settings: Settings, tmp_path: Path) -> None:
    """A killed MLflow leaves a child that holds its port. A killed scheduler leaves tasks in other process groups."""
    file = tmp_path / "child_pids"
    child = f"import os, time; os.setsid(); print(os.getpid(), file=open({str(file)!r}, 'a')); time.sleep(999)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    launch = Launch((sys.executable, "-c", parent), base_environment(settings))
    supervisor = Supervisor(settings)
    supervisor.ensure([Program(name=name, launch=lambda: launch) for name in ("killed", "other")])

    def child_pids() -> list[int]:
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    supervisor.start(["killed"])
    wait_for(settings, lambda: len(child_pids()) == 1)
    supervisor.start(["other"])
    wait_for(settings, lambda: len(child_pids()) == 2)
    os.kill(supervisor.states()["killed"].pid, signal.SIGKILL)
    wait_for(settings, lambda: len(child_pids()) == 3)
    assert [psutil.pid_exists(pid) and is_alive(psutil.Process(pid)) for pid in child_pids()] == [False, True, True]


def test_programs_of_a_killed_supervisor_are_ended_and_other_processes_are_not(
    settings: Settings, tmp_path: Path
) -> None:
    supervisor = start(settings)
    write_row(settings)
    orphan = psutil.Process(pid_of(supervisor))
    sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
    # Neither process belongs to the stack: one is of another stack, and one only has the same EVERGREEN_HOME.
    other_stack = subprocess.Popen(sleep, env={MARKER: str(tmp_path)})
    same_home = subprocess.Popen(sleep, env={"EVERGREEN_HOME": str(settings.home)})
    try:
        os.kill(supervisor.pid(), signal.SIGKILL)
        wait_for(settings, lambda: not supervisor.running)
        assert orphan.is_running()
        assert is_ours(orphan, settings)
        start(settings)
        assert not is_alive(orphan)
        assert other_stack.poll() is None
        assert same_home.poll() is None
        assert query(settings, "SELECT n FROM kept.rows") == ((42,),)
    finally:
        for process in (other_stack, same_home):
            process.kill()
            process.wait()


def test_a_second_start_keeps_running_programs_and_restarts_a_changed_program(settings: Settings) -> None:
    supervisor = start(settings)
    pid_before = pid_of(supervisor)
    assert pid_of(start(settings)) == pid_before
    other_port = settings.model_copy(update={"mariadb_port": free_port()})
    assert pid_of(start(other_port)) not in {0, pid_before}
    assert query(other_port, "SELECT @@port") == ((other_port.mariadb_port,),)


def sleeper(settings: Settings, name: str, *, log: Path, definition: int) -> Program:
    """A program that creates a file when it starts. After SIGTERM it appends its name to `log` and ends, in 0.3 s."""
    script = (
        "import signal, sys, time; name, log, definition = sys.argv[1:]; note = lambda *_: [time.sleep(0.3), "
        "print(name, file=open(log, 'a')), sys.exit()]; signal.signal(signal.SIGTERM, note); "
        "open(f'{log}-{name}-{definition}', 'w'); time.sleep(999)"
    )
    argv = (sys.executable, "-c", script, name, str(log), str(definition))
    return Program(name=name, launch=lambda: Launch(argv, base_environment(settings)))


def wait_for_sleepers(settings: Settings, names: Sequence[str], *, log: Path, definition: int) -> None:
    wait_for(settings, lambda: all(Path(f"{log}-{name}-{definition}").exists() for name in names))


def test_changed_programs_stop_in_the_same_order_as_in_down(settings: Settings, tmp_path: Path) -> None:
    """If a checkout is moved, all programs change. Tasks report to the API server, and services write to MariaDB."""
    names, log = ("airflow-api-server", "airflow-scheduler", "mariadb", "mlflow", "serve-m"), tmp_path / "ended"
    supervisor = Supervisor(settings)
    supervisor.ensure([sleeper(settings, name, log=log, definition=1) for name in names])
    supervisor.start(names)
    wait_for_sleepers(settings, names, log=log, definition=1)
    supervisor.ensure([sleeper(settings, name, log=log, definition=2) for name in names])
    first_ended, *ended_together, second_last_ended, last_ended = log.read_text().split()
    assert (first_ended, second_last_ended, last_ended) == ("airflow-scheduler", "mlflow", "mariadb")
    assert sorted(ended_together) == ["airflow-api-server", "serve-m"]
    assert {state.state for state in supervisor.states().values()} == {"STOPPED"}


def test_a_changed_service_keeps_running_until_its_successor_starts(settings: Settings, tmp_path: Path) -> None:
    supervisor, names, log = Supervisor(settings), ("other", "serve-m"), tmp_path / "ended"
    supervisor.ensure([sleeper(settings, name, log=log, definition=1) for name in names])
    supervisor.start(names)
    wait_for_sleepers(settings, names, log=log, definition=1)
    pid_before = supervisor.states()["serve-m"].pid
    for definition in (2, 3):  # as if an `up` with definition 2 ended before it started the service
        new_supervisor = Supervisor(settings)
        programs = [sleeper(settings, name, log=log, definition=definition) for name in names]
        new_supervisor.ensure(programs, until_start=["serve-m"])
    assert (new_supervisor.states()["serve-m"].pid, new_supervisor.states()["other"].pid) == (pid_before, 0)
    assert new_supervisor.start(names) == ["other", "serve-m"]
    wait_for_sleepers(settings, names, log=log, definition=3)
    assert psutil.Process(new_supervisor.states()["serve-m"].pid).cmdline()[-1] == "3"
    assert log.read_text().split() == ["other", "serve-m"]
    assert new_supervisor.start(names) == []


def test_a_program_in_state_fatal_is_started_with_its_new_definition(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a checkout is moved, a restart looks for the program's file at the old path."""
    monkeypatch.setattr("stack.programs.supervisor.RETRIES", 0)
    name, supervisor = "serve-m", Supervisor(settings)
    missing = Launch((str(tmp_path / "gone"),), base_environment(settings))
    supervisor.ensure([Program(name=name, launch=lambda: missing)])
    supervisor.start([name])
    wait_for(settings, lambda: supervisor.states()[name].state == "FATAL")
    supervisor.ensure([sleeper(settings, name, log=tmp_path / "log", definition=1)], until_start=[name])
    assert supervisor.start([name]) == [name]
    wait_for(settings, lambda: supervisor.states()[name].state == "RUNNING")


def test_down_ends_every_process_and_up_continues_with_the_data(settings: Settings) -> None:
    start(settings)
    write_row(settings)
    assert down(settings) == 1
    assert ours(settings) == []
    assert down(settings) == 0
    start(settings)
    assert query(settings, "SELECT n FROM kept.rows") == ((42,),)


def test_the_private_mariadb_compares_text_by_bytes_uses_utc_and_has_only_the_user_root(settings: Settings) -> None:
    start(settings)
    write_row(settings)
    query(settings, "CREATE TABLE kept.names (name VARCHAR(9) PRIMARY KEY)", "INSERT INTO kept.names VALUES ('a')")
    assert query(settings, "INSERT INTO kept.names VALUES ('A'), ('a ')", "SELECT @@time_zone") == (("+00:00",),)
    assert query(settings, "SELECT user, host FROM mysql.user WHERE user <> 'mariadb.sys'") == (("root", "localhost"),)
    with pytest.raises(AccessDenied):
        mariadb.root_signs_in(settings.model_copy(update={"mariadb_root_password": settings.api_key}))


def test_a_changed_root_password_is_set_at_the_next_start(settings: Settings) -> None:
    start(settings)
    down(settings)
    new_password = settings.model_copy(update={"mariadb_root_password": settings.api_key})
    start(new_password)
    assert query(new_password, "SELECT 1") == ((1,),)


def test_memory_is_measured_and_the_socket_of_a_long_home_has_a_short_path(settings: Settings) -> None:
    supervisor = start(settings)
    assert pss_mb(pid_of(supervisor)) > 20
    long_home = settings.model_copy(update={"home": settings.home / ("long" * 30)})
    folder = runtime(long_home)
    try:
        assert len(str(folder / "supervisor.sock.1234567")) < 100
        assert folder == runtime(long_home)
    finally:
        folder.rmdir()


def test_clean_removes_the_folder_that_up_created_and_rejects_other_folders(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(StackError, match="was not made by"):
        clean(settings.model_copy(update={"home": tmp_path}))
    assert (tmp_path / "precious").exists()
    start(settings)
    assert clean(settings) == [str(settings.home)]
    assert ours(settings) == []
    assert settings.env_file.exists()
    clean(settings, secrets=True)
    assert not settings.env_file.exists()
