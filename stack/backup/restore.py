"""`restore`: create a stack from the file of a backup. `up` then starts it.

The new state is prepared in the folder `restoring` below the state folder, with an extra MariaDB on a free port. After
it is complete, it replaces the old state. If a step before that fails, the old state stays unchanged.
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
from stack.backup.archive import FORMAT, Archive, Progress, open_archive
from stack.backup.backup import DUMP, SETTINGS, portable_fields
from stack.backup.dump import load
from stack.programs import mariadb, ports, secrets
from stack.programs.folders import runtime
from stack.programs.lock import hold_lock
from stack.programs.processes import clear_leftovers, ours
from stack.programs.program import base_environment
from stack.programs.starting import wait_for_end, wait_for_process
from stack.programs.supervisor import Supervisor
from utils.errors import DataRefused, IntegrityError, StackError
from utils.settings import Settings

# Files and folders in the state folder that a restore replaces.
STATE_PARTS = ("mariadb", "mlflow", "snapshots", "bento", "airflow", "serving_ports.json")
# The new data need not survive a power cut, because an incomplete restore is removed.
NOT_DURABLE = ("--innodb-flush-log-at-trx-commit=0", "--skip-innodb-doublewrite")


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """The result of a restore.

    file: the path of the backup.
    made_at: the time of the backup, ISO 8601 in UTC.
    commit: the commit of the code that wrote the backup.
    seconds: the duration.
    tables: the number of tables.
    rows: the number of rows in all tables.
    files: the number of restored files.
    left_out: one line for each thing that a user must set again by hand.
    """

    file: Path
    made_at: str
    commit: str
    seconds: float
    tables: int
    rows: int
    files: int
    left_out: list[str]


def restore(settings: Settings, file: Path, *, force: bool, progress: Progress) -> RestoreReport:
    """Replace the state of a stack by the state in the backup `file`. `up` then starts the stack.

    Existing secrets are kept, and missing secrets are generated. A setting of the backup is used only if this stack
    does not set it. Existing data and model files that differ are replaced only with `force`.

    Raises: NotFound, IntegrityError, DataRefused, StackError; Unreachable and AccessDenied with a team's own MariaDB.
    After an error the stack is unchanged, except that a team's own database may be partly filled.
    """
    start = time.monotonic()
    with open_archive(file) as archive, hold_lock(settings):
        _reject_newer_backup(archive)
        variables = _read_missing_variables(settings, archive)
        settings = _apply_variables(settings, variables)
        _require_stopped(settings)
        if not force:
            _require_empty(settings, archive)
        archive.check_members(progress)
        settings, _ = secrets.ensure(settings)
        with _staging_stack(settings) as staging:
            file_names = _unpack(archive, staging.home.parent, progress)
            _fill_databases(staging, archive, force=force, progress=progress)
            _replace_state(settings, staging)
        secrets.add(settings.env_file, variables)
    manifest, rows = archive.manifest, archive.manifest["rows"]
    seconds = round(time.monotonic() - start, 1)
    return RestoreReport(
        file,
        manifest["made_at"],
        manifest["commit"],
        seconds,
        len(rows),
        sum(rows.values()),
        len(file_names),
        manifest["left_out"],
    )


def _unpack(archive: Archive, folder: Path, progress: Progress) -> list[str]:
    names, done_bytes = archive.names("home/") + archive.names("models/"), 0
    total_bytes = sum(archive.sizes[name] for name in names)
    for name in names:
        archive.extract(name, folder)
        done_bytes += archive.sizes[name]
        progress("files", done_bytes, total_bytes)
    return names


def _reject_newer_backup(archive: Archive) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    revisions = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    revision, commit = archive.manifest["revision"], archive.manifest["commit"]
    if archive.manifest["format"] > FORMAT or (revision is not None and revision not in revisions):
        raise DataRefused(
            f"{archive.path} was made by newer code (revision {revision}; here {max(revisions)}):"
            f" check out {commit} first"
        )


def _read_missing_variables(settings: Settings, archive: Archive) -> dict[str, str]:
    """Read the variables of the backup that neither `.env` nor the environment sets."""
    variables = dotenv_values(stream=io.StringIO(archive.read(SETTINGS).decode()))
    names = {f"EVERGREEN_{name.upper()}": name for name in portable_fields() if name not in settings.model_fields_set}
    return {variable: value for variable, value in variables.items() if variable in names and value}


def _apply_variables(settings: Settings, variables: Mapping[str, str]) -> Settings:
    fields = {variable.removeprefix("EVERGREEN_").lower(): value for variable, value in variables.items()}
    parsed = Settings(_env_file=None, **fields)  # type: ignore[arg-type]
    return settings.model_copy(update={name: getattr(parsed, name) for name in fields})


def _require_stopped(settings: Settings) -> None:
    if Supervisor(settings).running or ours(settings):
        raise StackError(f"the stack in {settings.home} runs: stop it with `make down`, then restore")


def _require_empty(settings: Settings, archive: Archive) -> None:
    home = settings.home
    conflicts = [str(home / name) for name in STATE_PARTS if (home / name).is_file() or any(_list_entries(home / name))]
    for name in archive.names("models/"):
        model_file = settings.models_dir / name.removeprefix("models/")
        if model_file.exists() and model_file.read_bytes() != archive.read(name):
            conflicts.append(f"{model_file}, which differs from the backup's")
    if settings.mariadb_host:
        with session(settings, "root", "information_schema") as connection:
            query = text("SELECT DISTINCT table_schema FROM information_schema.tables WHERE table_schema IN :names")
            statement = query.bindparams(bindparam("names", archive.manifest["databases"], expanding=True))
            conflicts += [
                f"database {name} at {settings.mariadb_address}" for name in connection.execute(statement).scalars()
            ]
    if conflicts:
        raise DataRefused(
            f"there is data already: {'; '.join(conflicts)}. To replace it say so with --force (make restore FORCE=1)"
        )


def _list_entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


@contextmanager
def _staging_stack(settings: Settings) -> Iterator[Settings]:
    """Yield the settings of an empty stack below the state folder. Its folder is removed at the end of the block."""
    folder = settings.home.resolve() / "restoring"
    port_field = {} if settings.mariadb_host else {"mariadb_port": ports.free_ports(1)}
    staging = settings.model_copy(update={"home": folder / "home", "models_dir": folder / "models", **port_field})
    clear_leftovers(staging)  # processes of a killed restore
    shutil.rmtree(folder, ignore_errors=True)
    staging.home.mkdir(parents=True)
    try:
        yield staging
    except OSError as error:
        raise StackError(f"nothing was restored into {settings.home}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(runtime(staging), ignore_errors=True)  # outside of home if the path of home is long
        shutil.rmtree(folder, ignore_errors=True)


def _fill_databases(staging: Settings, archive: Archive, *, force: bool, progress: Progress) -> None:
    """Create databases, users and rows. With `force`, existing databases on a team's own server are dropped first."""
    databases, size = archive.manifest["databases"], archive.sizes[DUMP]
    with _run_server(staging):
        if staging.mariadb_host and force:
            with session(staging, "root", "information_schema") as connection:
                for name in databases:
                    quoted = connection.dialect.identifier_preparer.quote(name)
                    connection.execute(text(f"DROP DATABASE IF EXISTS {quoted}"))
        bootstrap.create_databases_and_users(staging)
        with archive.open(DUMP) as source:
            load(staging, source, report=lambda position: progress("databases", position, size))
        with session(staging, "admin") as connection:
            for name, rows in archive.manifest["rows"].items():
                database, _, table = name.partition(".")
                row_count = connection.scalar(
                    select(func.count()).select_from(Table(table, MetaData(), schema=database))
                )
                if row_count != rows:
                    raise IntegrityError(what=f"table {name}", expected=f"{rows} rows", found=str(row_count))


@contextmanager
def _run_server(staging: Settings) -> Iterator[None]:
    """Run the private MariaDB of `staging` during the block. Do nothing if the team has its own server."""
    if staging.mariadb_host:
        yield
        return
    mariadb.initialise(mariadb.data_folder(staging), root_password=staging.db_password("root"))
    log = staging.home.parent / "mariadb.log"
    with log.open("wb") as log_stream:
        environment = base_environment(staging)
        argv = [*mariadb.command(staging), *NOT_DURABLE]
        server = subprocess.Popen(argv, stdout=log_stream, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_for_process("MariaDB", server, lambda: mariadb.root_signs_in(staging), log=log)
        yield
    finally:
        server.terminate()
        wait_for_end("MariaDB", server, log=log)


def _replace_state(settings: Settings, staging: Settings) -> None:
    """Replace the old state by the complete new state. Each part is only renamed, so no part is ever incomplete."""
    home, old_state = settings.home.resolve(), staging.home.parent / "replaced"
    old_state.mkdir()
    for name in STATE_PARTS:
        if (home / name).exists():
            (home / name).rename(old_state / name)
        if (staging.home / name).exists():
            (staging.home / name).rename(home / name)
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    for path in staging.models_dir.glob("*.yaml"):
        shutil.copyfile(path, settings.models_dir / path.name)
