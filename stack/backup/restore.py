"""`restore`: from a backup's file to a stack that `up` continues with.

All of it is made in a folder of its own, `restoring` below the state folder, with a MariaDB of its own on a spare port;
only what is complete is moved to its place. Whatever goes wrong before, what was there stays as it was.
"""

import io
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from dotenv import dotenv_values
from sqlalchemy import MetaData, Table, bindparam, func, select, text

from db import migrations
from db.admin import bootstrap
from db.session import session
from stack.backup.archive import FORMAT, Archive, Progress, opened
from stack.backup.backup import DUMP, SETTINGS, plain_fields
from stack.backup.dump import load
from stack.programs import mariadb, ports, secrets
from stack.programs.folders import runtime
from stack.programs.lock import exclusive
from stack.programs.processes import clear_leftovers, ours
from stack.programs.program import base_environment
from stack.programs.starting import wait_for_end, wait_for_process
from stack.programs.supervisor import Supervisor
from utils.errors import DataRefused, IntegrityError, StackError
from utils.settings import Settings

PARTS = ("mariadb", "mlflow", "snapshots", "bento", "airflow", "serving_ports.json")  # of the state folder
# What is being made needs to survive no power cut: it is thrown away then.
HURRIED = ("--innodb-flush-log-at-trx-commit=0", "--skip-innodb-doublewrite")


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """`made_at` and `commit` are the backup's; `left_out`: what must be given again by hand, one line each."""

    file: Path
    made_at: str
    commit: str
    seconds: float
    tables: int
    rows: int
    files: int
    left_out: list[str]


def restore(settings: Settings, file: Path, *, force: bool, progress: Progress) -> RestoreReport:
    """Make the state of `settings` that of the backup in `file`; `up` continues from there.

    Secrets that `settings` has are kept, and those that are missing are made. Settings of the backup fill what is not
    set. Where there is data already, or a model file differs, only `force` replaces it.

    Raises: NotFound, IntegrityError, DataRefused; StackError; Unreachable and AccessDenied with a team's own MariaDB.
    Nothing has changed then, but that database of a team's own may be half filled.
    """
    begun = time.monotonic()
    with opened(file) as archive, exclusive(settings):
        _refuse_newer(archive)
        given = _archived_settings(settings, archive)
        settings = _with(settings, given)
        _refuse_running(settings)
        if not force:
            _refuse_occupied(settings, archive)
        archive.verify(progress)
        settings, _ = secrets.ensure(settings)
        with _staged(settings) as staged:
            names = _unpack(archive, staged.home.parent, progress)
            _fill(staged, archive, force=force, progress=progress)
            _move_in(settings, staged)
        secrets.add(settings.env_file, given)
    said, rows = archive.manifest, archive.manifest["rows"]
    seconds = round(time.monotonic() - begun, 1)
    return RestoreReport(
        file, said["made_at"], said["commit"], seconds, len(rows), sum(rows.values()), len(names), said["left_out"]
    )


def _unpack(archive: Archive, folder: Path, progress: Progress) -> list[str]:
    names, done = archive.names("home/") + archive.names("models/"), 0
    total = sum(archive.sizes[name] for name in names)
    for name in names:
        archive.extract(name, folder)
        done += archive.sizes[name]
        progress("files", done, total)
    return names


def _refuse_newer(archive: Archive) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    revision, made_by = archive.manifest["revision"], archive.manifest["commit"]
    if archive.manifest["format"] > FORMAT or (revision is not None and revision not in known):
        raise DataRefused(
            f"{archive.path} was made by newer code (revision {revision}; here {max(known)}): check out {made_by} first"
        )


def _archived_settings(settings: Settings, archive: Archive) -> dict[str, str]:
    """The variables that the backup sets and neither `.env` nor the environment do."""
    given = dotenv_values(stream=io.StringIO(archive.read(SETTINGS).decode()))
    names = {f"EVERGREEN_{name.upper()}": name for name in plain_fields() if name not in settings.model_fields_set}
    return {variable: value for variable, value in given.items() if variable in names and value}


def _with(settings: Settings, given: Mapping[str, str]) -> Settings:
    fields = {variable.removeprefix("EVERGREEN_").lower(): value for variable, value in given.items()}
    parsed = Settings(_env_file=None, **fields)  # type: ignore[arg-type]
    return settings.model_copy(update={name: getattr(parsed, name) for name in fields})


def _refuse_running(settings: Settings) -> None:
    if Supervisor(settings).running or ours(settings):
        raise StackError(f"the stack in {settings.home} runs: stop it with `make down`, then restore")


def _refuse_occupied(settings: Settings, archive: Archive) -> None:
    home = settings.home
    held = [str(home / name) for name in PARTS if (home / name).is_file() or any(_entries(home / name))]
    for name in archive.names("models/"):
        here = settings.models_dir / name.removeprefix("models/")
        if here.exists() and here.read_bytes() != archive.read(name):
            held.append(f"{here}, which differs from the backup's")
    if settings.mariadb_host:
        with session(settings, "root", "information_schema") as connection:
            query = text("SELECT DISTINCT table_schema FROM information_schema.tables WHERE table_schema IN :names")
            wanted = query.bindparams(bindparam("names", archive.manifest["databases"], expanding=True))
            held += [f"database {name} at {settings.mariadb_address}" for name in connection.execute(wanted).scalars()]
    if held:
        raise DataRefused(
            f"there is data already: {'; '.join(held)}. To replace it say so with --force (make restore FORCE=1)"
        )


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


@contextmanager
def _staged(settings: Settings) -> Iterator[Settings]:
    """The settings of an empty stack below the state folder, gone at the end of the block with what is left in it."""
    folder = settings.home.resolve() / "restoring"
    own = {} if settings.mariadb_host else {"mariadb_port": ports.free_ports(1)}
    staged = settings.model_copy(update={"home": folder / "home", "models_dir": folder / "models", **own})
    clear_leftovers(staged)  # of a restore that was killed
    shutil.rmtree(folder, ignore_errors=True)
    staged.home.mkdir(parents=True)
    try:
        yield staged
    except OSError as error:
        raise StackError(f"nothing was restored into {settings.home}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(runtime(staged), ignore_errors=True)  # elsewhere, where the path of home is long
        shutil.rmtree(folder, ignore_errors=True)


def _fill(staged: Settings, archive: Archive, *, force: bool, progress: Progress) -> None:
    """Databases, users and rows; with `force` in place of what a team's own server holds."""
    databases, size = archive.manifest["databases"], archive.sizes[DUMP]
    with _server(staged):
        if staged.mariadb_host and force:
            with session(staged, "root", "information_schema") as connection:
                for name in databases:
                    quoted = connection.dialect.identifier_preparer.quote(name)
                    connection.execute(text(f"DROP DATABASE IF EXISTS {quoted}"))
        bootstrap.create_databases_and_users(staged)
        with archive.open(DUMP) as source:
            load(staged, source, told=lambda done: progress("databases", done, size))
        with session(staged, "admin") as connection:
            for name, rows in archive.manifest["rows"].items():
                database, _, table = name.partition(".")
                found = connection.scalar(select(func.count()).select_from(Table(table, MetaData(), schema=database)))
                if found != rows:
                    raise IntegrityError(what=f"table {name}", expected=f"{rows} rows", found=str(found))


@contextmanager
def _server(staged: Settings) -> Iterator[None]:
    """The private MariaDB of `staged`, up to the end of the block; nothing to do where a team's own is used."""
    if staged.mariadb_host:
        yield
        return
    mariadb.initialise(mariadb.data_folder(staged), root_password=staged.db_password("root"))
    log = staged.home.parent / "mariadb.log"
    with log.open("wb") as opened:
        environment = base_environment(staged)
        argv = [*mariadb.command(staged), *HURRIED]
        server = subprocess.Popen(argv, stdout=opened, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_for_process("MariaDB", server, lambda: mariadb.root_signs_in(staged), log=log)
        yield
    finally:
        server.terminate()
        wait_for_end("MariaDB", server, log=log)


def _move_in(settings: Settings, staged: Settings) -> None:
    """Put what is complete in the place of what was there: renames within one folder, so that nothing is half there."""
    home, replaced = settings.home.resolve(), staged.home.parent / "replaced"
    replaced.mkdir()
    for name in PARTS:
        if (home / name).exists():
            (home / name).rename(replaced / name)
        if (staged.home / name).exists():
            (staged.home / name).rename(home / name)
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    for path in staged.models_dir.glob("*.yaml"):
        shutil.copyfile(path, settings.models_dir / path.name)
